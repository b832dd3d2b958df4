/**
 * Every finished text of every kernel, on devices that between them bring about every
 * choice of constants.
 *
 * @module
 */
import { KERNELS, TUNED_KERNELS } from "../../kernels/list.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import { parseSynthetic } from "../checkpoint/synthetic.ts";
import type { AdapterClass, Compiler } from "../dispatch/capabilities.ts";
import { bf16 } from "../formats/bf16.ts";
import { q4_k } from "../formats/k_quants.ts";
import { FORMATS } from "../formats/mod.ts";
import { HALF_MATRICES } from "../dispatch/matrices.ts";
import { LEAST_LIMITS } from "../webgpu/device.ts";
import { showWgsl } from "../webgpu/kernel.ts";
import {
  type Call,
  recordCases,
  recordPass,
  type Sketched,
  type SketchedPass,
} from "./recording.ts";
import { ImpossibleError, showKernel, STATED_DEVICE } from "./show.ts";

/** A finished text, and where it was first found. */
interface Text {
  kernel: string;
  /** The device's name. */
  device: string;
  /** What the call computes. */
  label: string;
  wgsl: string;
}

/** A device of a class, named after one that is like it. */
const like = (
  name: string,
  adapterClass: AdapterClass,
  [subgroupSize, kibibytes, threads, buffers]: readonly [
    lanes: number,
    kibibytes: number,
    threads: number,
    buffers: number,
  ],
  more: Pick<Sketched, "vulkan" | "subgroupMatrices"> & {
    f16?: boolean;
  } = {},
): Sketched => ({
  name,
  adapterClass,
  subgroupSize,
  f16: true,
  software: adapterClass === "software",
  limits: {
    maxComputeWorkgroupStorageSize: kibibytes * 1024,
    maxComputeInvocationsPerWorkgroup: threads,
    maxComputeWorkgroupSizeX: threads,
    maxStorageBuffersPerShaderStage: buffers,
  },
  ...more,
});

/** Devices: each class, with and without what choices depend on. */
export const SKETCHES: readonly Sketched[] = [
  STATED_DEVICE,
  like("NVIDIA H200", "NVIDIA, large cache", [32, 48, 1024, 16], {
    vulkan: true,
  }),
  like("NVIDIA H200, tensor cores", "NVIDIA, large cache", [32, 48, 1024, 16], {
    subgroupMatrices: [HALF_MATRICES],
  }),
  like("NVIDIA RTX 3060, f16 off", "NVIDIA", [32, 48, 1024, 10], {
    f16: false,
  }),
  like("AMD RX 7900", "AMD", [32, 64, 1024, 16], { vulkan: true }),
  like("Intel Arc", "Intel", [8, 32, 1024, 16]),
  like("Apple M4", "Apple", [32, 32, 1024, 10]),
  like("Arm Mali", "other", [16, 32, 512, 8]),
  like("llvmpipe", "software", [8, 32, 1024, 16], { vulkan: true }),
  like("SwiftShader", "software", [4, 16, 256, 8], { f16: false }),
  like("no subgroups", "other", [0, 32, 256, 8]),
  {
    name: "WebGPU's default limits",
    f16: false,
    software: false,
    subgroupSize: 0,
    limits: LEAST_LIMITS,
  },
];

/** Tokens of prompts and rows of steps: each class of kernels and tiles, and its ends. */
const ROWS = [1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 64, 65, 256, 512] as const;

/** Positions of a cache: more would only take longer to sketch. */
const CONTEXT = 128;

const sized = (name: string): Qwen3Config =>
  parseSynthetic(`synthetic:qwen3-${name}`).config;

/** Heads and layers of no usual size. */
const odd = (): Qwen3Config => ({
  ...sized("0.6b"),
  hiddenSize: 70,
  intermediateSize: 90,
  headDim: 20,
  numAttentionHeads: 6,
  numKeyValueHeads: 2,
  vocabSize: 301,
});

/** Passes of models, of each kind; longer prompts run the same texts. */
function passes(): SketchedPass[] {
  const config = sized("0.6b"), moe = sized("30b-a3b");
  const large = sized("32b"), page = 32;
  const all: SketchedPass[] = [];
  for (const tokens of ROWS) {
    all.push({ config, tokens });
    // Texts that share a batch.
    if (tokens <= 64) all.push({ config, tokens: 1, sequences: tokens, page });
  }
  for (const format of FORMATS) {
    for (const tokens of [1, 16, 64]) all.push({ config, tokens, format });
    for (const tokens of [1, 64]) all.push({ config: moe, tokens, format });
  }
  for (const kv of ["f32", "f16", "q8_0"] as const) {
    for (const tokens of [1, 64]) {
      all.push({ config: large, tokens, kv }, { config, tokens, kv, page });
    }
    all.push({ config, tokens: 1, sequences: 8, kv, page });
  }
  for (const tokens of [1, 16, 64]) all.push({ config: odd(), tokens });
  all.push({ config, tokens: 40, sequences: 3, states: true });
  return all.map((pass) => ({ ...pass, context: CONTEXT }));
}

/**
 * Every distinct text: of the kernels' test cases and of passes on each device, and with
 * each constant that tuning tries.
 *
 * @param compiler that all devices are taken to have
 */
function* everyText(
  compiler: Compiler,
  sketches: readonly Sketched[],
): Generator<Text, void> {
  const seen = new Set<string>();
  const unseen = (wgsl: string) => !seen.has(wgsl) && seen.add(wgsl);
  for (const sketch of sketches) {
    // naga has no subgroup matrices.
    const subgroupMatrices = compiler === "tint" ? sketch.subgroupMatrices : [];
    const device = { ...sketch, compiler, subgroupMatrices };
    for (const call of calls(device)) {
      const { kernel, operands, options } = call;
      const wgsl = showWgsl(kernel, operands, options, compiler);
      if (!unseen(wgsl)) continue;
      const label = options.label ?? kernel.name;
      yield { kernel: kernel.name, device: device.name, label, wgsl };
    }
  }
  for (const text of tunedTexts(compiler)) if (unseen(text.wgsl)) yield text;
}

/**
 * Writes every text to a file of `folder`, after two lines that say where it was found.
 *
 * @returns how many there are
 */
export async function writeTexts(
  folder: string,
  compiler: Compiler,
  sketches: readonly Sketched[] = SKETCHES,
): Promise<number> {
  let count = 0;
  for (
    const { kernel, device, label, wgsl } of everyText(compiler, sketches)
  ) {
    count++;
    const file = `${kernel}-${`${count}`.padStart(4, "0")}.wgsl`;
    const head = `// ${kernel} on ${device}\n// ${label}\n`;
    await Deno.writeTextFile(`${folder}/${file}`, head + wgsl);
  }
  return count;
}

/** Texts with one constant as tuning might change it. */
function* tunedTexts(compiler: Compiler): Generator<Text, void> {
  const device = { ...STATED_DEVICE, compiler };
  for (const { name: kernel, tuning } of TUNED_KERNELS) {
    const config = sized(kernel.startsWith("expert") ? "30b-a3b" : "0.6b");
    const format = kernel.endsWith("Int8") ? q4_k : bf16;
    const options = { config, format, context: CONTEXT };
    for (const [name, values] of Object.entries(tuning.grid)) {
      for (const value of values) {
        const constants = { [name]: value };
        try {
          const { label, wgsl } = showKernel(kernel, device, {
            ...options,
            constants,
          });
          const what = `${label}, ${name}=${value}`;
          yield { kernel, device: device.name, label: what, wgsl };
        } catch (error) {
          if (!(error instanceof ImpossibleError)) throw error;
        }
      }
    }
  }
}

function* calls(device: Sketched): Generator<Call, void> {
  for (const kernel of KERNELS) yield* recordCases(device, kernel);
  for (const pass of passes()) yield* recordPass(device, pass);
}
