import { assert, assertEquals, assertRejects } from "@std/assert";
import { openDevice } from "../../mod.ts";
import { DeviceError } from "../../lib/errors.ts";
import {
  compileAll,
  isCompiled,
  type Shader,
} from "../../lib/webgpu/pipeline.ts";
import { gpuTest } from "../support/gpu.ts";

const shader = (label: string, lines = 1): Shader => ({
  label,
  code: `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
// ${label}
@compute @workgroup_size(1) fn main() {
${"  x[0] = x[0] * 3u;\n".repeat(lines)}}`,
  types: ["storage"],
});

/** A device that is compiled for as Dawn is, with the labels of what it compiled. */
async function likeDawn() {
  const gpu = await openDevice(), together: string[] = [], alone: string[] = [];
  Object.defineProperty(gpu, "implementation", { value: "dawn" });
  const { device } = gpu;
  const one = device.createComputePipeline.bind(device);
  const async = device.createComputePipelineAsync.bind(device);
  device.createComputePipeline = (descriptor) => {
    alone.push(descriptor.label!);
    return one(descriptor);
  };
  device.createComputePipelineAsync = (descriptor) => {
    together.push(descriptor.label!);
    return async(descriptor);
  };
  return { gpu, together, alone };
}

gpuTest("Dawn compiles shaders together, each once", async () => {
  const { gpu, together, alone } = await likeDawn();
  using _ = gpu;
  const [a, b, c] = ["a", "b", "c"].map((label) => shader(label));
  await compileAll(gpu, [a, b, a]);
  assertEquals(together, ["a", "b"]);
  await compileAll(gpu, [c, b]);
  await compileAll(gpu, []);
  assertEquals([together, alone], [["a", "b", "c"], []]);
  for (const one of [a, b, c]) assert(isCompiled(gpu, one), one.label);
  gpu.check();
  const late = AbortSignal.abort(new Error("stop"));
  await assertRejects(
    () => compileAll(gpu, [shader("d")], late),
    Error,
    "stop",
  );
  assertEquals(together.length, 3);
});

gpuTest("an interrupt does not wait for Dawn to compile", async () => {
  const { gpu } = await likeDawn();
  using _ = gpu;
  const compiling = Promise.withResolvers<GPUComputePipeline>();
  gpu.device.createComputePipelineAsync = () => compiling.promise;
  const interrupt = new AbortController(), stop = new Error("stop");
  const waiting = compileAll(gpu, [shader("slow")], interrupt.signal);
  interrupt.abort(stop);
  const first = await Promise.race([
    waiting.catch((error) => error),
    new Promise((done) => setTimeout(done, 1000, "still waits")),
  ]);
  compiling.reject(new Error("late")); // which nobody waits for any more
  await waiting.catch(() => {});
  assertEquals(first, stop);
});

gpuTest("a shader that Dawn refuses is an error that names it", async () => {
  const { gpu } = await likeDawn();
  using _ = gpu;
  const wrong = { ...shader("wrong"), code: "fn main() {}" };
  const error = await assertRejects(
    () => compileAll(gpu, [shader("right"), wrong]),
    DeviceError,
  );
  assert(/^Cannot (compile wrong|go on with .*): /.test(error.message));
  assert(!isCompiled(gpu, wrong));
});
