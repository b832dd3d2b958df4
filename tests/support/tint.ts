/** Tint, the compiler of Chrome and Dawn, which checks WGSL without a driver. */
import v8 from "node:v8";
import vm from "node:vm";

/** Why a text was refused, and the first line that offends, counted from 1. */
export interface Refusal {
  message: string;
  line: number;
}

// Not imported where it is named: 132 MB, which only tests that call this should download.
const PACKAGE = "npm:webgpu@0.6.2";
/** Dawn crashes if the object that it made is collected. */
let keep: GPU | undefined;
/** The garbage collector does not know how much memory modules take. */
const MODULES = 200;

/** Returns a function that compiles a text, and says what is wrong with it, if anything. */
export async function openTint(): Promise<
  (wgsl: string) => Promise<Refusal | undefined>
> {
  const { create }: { create(settings: string[]): GPU } = await import(PACKAGE);
  keep ??= create([
    "backend=null",
    "enable-dawn-features=allow_unsafe_apis", // subgroup matrices are experimental
  ]);
  const adapter = (await keep.requestAdapter())!;
  const requiredFeatures = [
    "subgroups",
    "shader-f16",
    "chromium-experimental-subgroup-matrix",
  ] as GPUFeatureName[];
  const device = await adapter.requestDevice({ requiredFeatures });
  v8.setFlagsFromString("--expose-gc");
  const collect: () => void = vm.runInNewContext("gc");
  let modules = 0;
  return async (code) => {
    if (++modules % MODULES === 0) collect();
    device.pushErrorScope("validation");
    const module = device.createShaderModule({ code });
    if (await device.popErrorScope() === null) return undefined;
    const { messages } = await module.getCompilationInfo();
    const { message, lineNum } = messages.find(({ type }) => type === "error")!;
    return { message, line: lineNum };
  };
}
