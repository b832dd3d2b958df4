/**
 * Tests the CPU path: its kernels against float64 references, and a short reply of the
 * story model.
 *
 * @module
 */
import { panelsOf } from "../../cpu/wasm_kernels.ts";
import { EPS, FLOATS, type Result, SUM } from "../../../kernels/case.ts";
import { parseSynthetic } from "../../checkpoint/synthetic.ts";
import { compare, passes } from "../../check/kernel_case.ts";
import {
  appended,
  attended,
  attentionInputs,
  epilogue,
  linear,
  Random,
  rmsNormed,
} from "../../check/reference.ts";
import type { Qwen3Config } from "../../checkpoint/config.ts";
import { type CpuInfo, CpuOps, type CpuTensor } from "../../cpu/ops.ts";
import { errorText } from "../../errors.ts";
import { matrixOf, withPlanes } from "../../formats/matrix.ts";
import { FORMATS } from "../../formats/mod.ts";
import { matrixToF32, toF32 } from "../../formats/tensor.ts";
import { DEFAULT_MODEL, loadQwen3 } from "../../load.ts";
import { fillAngles, ropeFrequencies } from "../../model/rope.ts";
import { resultsText } from "./device.ts";
import type { TestResult } from "./kernels.ts";
import type { Reporter } from "./report.ts";

/** Tests the CPU path. A problem is a finding, not an error. */
export async function examineCpu(
  reporter: Reporter,
  threads?: number,
  makeOps = (config: Qwen3Config) => new CpuOps(config, { threads }),
): Promise<void> {
  const red = (topic: string, error: unknown) =>
    reporter.found({ severity: "red", topic, text: errorText(error) });
  reporter.starting?.("CPU path");
  try {
    const { info, results } = testCpuKernels(makeOps);
    const { kernel, reason, threads } = info;
    const right = results.every(passes);
    const text = resultsText(results, "the CPU path");
    reporter.found({
      severity: right ? "green" : "red",
      topic: "CPU path",
      text: `${kernel} on ${threads} ${
        threads === 1 ? "thread" : "threads"
      } (${reason}): ${text}`,
      data: { ...info, results },
    });
  } catch (error) {
    red("CPU path", error);
  }
  reporter.starting?.("a reply on the CPU path");
  try {
    await shortReply(reporter, threads);
  } catch (error) {
    red("CPU reply", error);
  }
}

/** The test reply's prompt and length. */
const PROMPT = "Once upon a time", TOKENS = 16;

async function shortReply(
  reporter: Reporter,
  threads?: number,
): Promise<void> {
  using model = await loadQwen3(DEFAULT_MODEL, {
    device: "cpu",
    context: 64,
    threads,
  });
  const { text: reply, stats } = await model.generate(PROMPT, {
    maxTokens: TOKENS,
    temperature: 0,
  });
  const { tokens, decodeTokensPerSecond } = stats, text = PROMPT + reply;
  reporter.found({
    severity: "green",
    topic: "CPU reply",
    text: `the story model wrote ${tokens} tokens at ${
      Math.round(decodeTokensPerSecond)
    } tokens/s: ${JSON.stringify(text)}`,
    data: { tokens, decodeTokensPerSecond, text },
  });
}

/** Sizes that leave rests in every loop; the heads are those of Qwen3. */
const CONFIG: Qwen3Config = {
  ...parseSynthetic("synthetic:qwen3-0.6b").config,
  hiddenSize: 328,
  numHiddenLayers: 1,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  rmsNormEps: EPS,
  experts: {
    ...{ count: 5, used: 2, intermediateSize: 40 },
    normalized: true,
    denseLayers: [],
  },
};
/** Rows of a matmul, and of its weight. */
const ROWS = [1, 5, 33], N = 74;
/** Rows of a weight that are interleaved, as those of models are. */
const INTERLEAVED = 80;
/** The width of rows of blocks: whole blocks of every format. */
const BLOCKS_K = 768;

/** Runs the verbs of a layer in every element type, for one row and for several. */
function testCpuKernels(
  makeOps: (config: Qwen3Config) => CpuOps,
): { info: CpuInfo; results: TestResult[] } {
  using ops = makeOps(CONFIG);
  using dense = makeOps({ ...CONFIG, experts: undefined });
  const results: TestResult[] = [], random = new Random();
  const add = (what: string, y: CpuTensor, expected: Omit<Result, "of">) => {
    const found = compare({ of: "y", ...expected }, { y: y.data });
    results.push({ kernel: "CPU path", what, ...found });
  };
  for (const rows of ROWS) {
    for (const format of FORMATS) {
      matmuls(ops, random, format.name, { m: rows, n: N }, add);
      if (!panelsOf(format)) continue;
      matmuls(dense, random, format.name, { m: rows, n: INTERLEAVED }, add);
    }
    for (const dtype of FLOATS) experts(ops, random, dtype, rows, add);
  }
  attention(ops, random, 130, 1, add);
  attention(ops, random, 3, 33, add);
  return { info: ops.info, results };
}

type Add = (
  what: string,
  y: CpuTensor,
  expected: Omit<Result, "of">,
) => void;

/** Copies a tensor to where the CPU kernels can read it. */
function copied(ops: CpuOps, { dtype, shape, data }: CpuTensor): CpuTensor {
  const tensor = ops.tensor(dtype, shape);
  tensor.data.set(data);
  return tensor;
}

/** What a generator returns in the end. */
function resultOf<R>(slices: Generator<void, R>): R {
  for (;;) {
    const { done, value } = slices.next();
    if (done) return value;
  }
}

/** Matmuls by a weight in a format, whose blocks have random bits. */
function matmuls(
  ops: CpuOps,
  random: Random,
  format: string,
  { m, n }: { m: number; n: number },
  add: Add,
): void {
  const dtype = FLOATS.find((name) => name === format);
  const k = dtype ? CONFIG.hiddenSize : BLOCKS_K, before = 7;
  const size = { m, n, k }, tolerance = SUM;
  const x = copied(ops, random.tensor("f32", [m, k], 2));
  const norm = copied(ops, random.tensor(dtype ?? "f32", [k], 0.5, 1));
  const weights = random.matrix(format, [n, k]), all = matrixToF32(weights);
  const stored = withPlanes(weights, (plane) => copied(ops, plane));
  ops.together(stored);
  const w = n === INTERLEAVED ? resultOf(ops.interleave(stored)) : stored;
  const [part] = w.parts, half = n / 2;
  const pairs = { ...w, parts: [{ ...part, rows: half, twin: half }] };
  const residual = copied(ops, random.filled("f32", [m, n], before));
  const plain = linear(toF32(x), all, size);
  const normed = rmsNormed(toF32(x), toF32(norm), EPS);
  const product = linear(normed, all, size);
  const what = `${format} [${m}, ${k}] × [${k}, ${n}]${
    w === stored ? "" : ", interleaved"
  }`;
  // An earlier result lies where a later one is written, so each is compared at once.
  add(`${what}, added`, ops.matmulAdd(x, w, residual), {
    ...epilogue("add", plain, n, before),
    tolerance,
  });
  add(`${what}, normed`, ops.normMatmul(x, matrixOf(norm), w), {
    ...product,
    tolerance,
  });
  add(`${what}, gated`, ops.normSwiglu(x, matrixOf(norm), pairs), {
    ...epilogue("swiglu", product, n, 0),
    tolerance,
  });
}

/** A mixture of experts, the same for each row. */
function experts(
  ops: CpuOps,
  random: Random,
  dtype: typeof FLOATS[number],
  m: number,
  add: Add,
): void {
  const { hiddenSize: k, experts } = CONFIG;
  const { count, used, intermediateSize: n } = experts!, before = 7;
  const x = copied(ops, random.tensor("f32", [m, k], 2));
  const norm = copied(ops, random.tensor(dtype, [k], 0.5, 1));
  const gateUp = copied(ops, random.tensor(dtype, [2 * count * n, k], 0.1));
  const down = copied(ops, random.tensor(dtype, [count * k, n]));
  const data = Float32Array.from({ length: m * count }, (_, i) => i % count);
  const chosen = ops.chooseExperts({ dtype: "f32", shape: [m, count], data });
  const best = [count - 1, count - 2], odds = Math.exp(-1);
  const weights = [1 / (1 + odds), odds / (1 + odds)];
  const numbers = Array.from({ length: m }, () => [...best, ...weights]).flat();
  const what = `${dtype} [${m}, ${k}] × ${used} of ${count} experts`;
  const tolerance = SUM;
  add(`${what}, chosen`, chosen, { values: numbers, tolerance });
  const both = linear(
    rmsNormed(toF32(x), toF32(norm), EPS),
    toF32(gateUp),
    { m, n: 2 * count * n, k },
  );
  const all = epilogue("swiglu", both, 2 * count * n, 0); // [m, count · n]
  const ofBest = (values: Float64Array) =>
    Float64Array.from({ length: m * used * n }, (_, i) => {
      const pair = Math.floor(i / n), r = Math.floor(pair / used);
      return values[(r * count + best[pair % used]) * n + i % n];
    });
  const pairs = matrixOf(gateUp, "gate_up", true);
  const gated = ops.expertsSwiglu(x, matrixOf(norm), pairs, chosen);
  add(`${what}, gated`, gated, {
    values: ofBest(all.values),
    norms: ofBest(all.norms),
    tolerance,
  });
  const residual = copied(ops, random.filled("f32", [m, k], before));
  const values = new Float64Array(m * k).fill(before);
  const squares = new Float64Array(m * k).fill(before * before);
  const rows = toF32(gated), matrices = toF32(down);
  for (let pair = 0; pair < m * used; pair++) {
    const e = best[pair % used], weight = weights[pair % used];
    const y = linear(
      rows.subarray(pair * n, (pair + 1) * n),
      matrices.subarray(e * k * n, (e + 1) * k * n),
      { m: 1, n: k, k: n },
    );
    const row = Math.floor(pair / used) * k;
    for (let c = 0; c < k; c++) {
      values[row + c] += weight * y.values[c];
      squares[row + c] += (weight * y.norms[c]) ** 2;
    }
  }
  const sum = ops.expertsAdd(gated, matrixOf(down), chosen, residual);
  const norms = squares.map(Math.sqrt);
  add(`${what}, added`, sum, { values, norms, tolerance });
}

/** Attention of `tokens` new tokens over `length` cached ones and themselves. */
function attention(
  ops: CpuOps,
  random: Random,
  length: number,
  tokens: number,
  add: Add,
): void {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
    CONFIG;
  const context = length + tokens;
  const pass = { first: 0, tokens, rows: tokens };
  const sizes = {
    ...{ heads, kvHeads, headDim, context, lengths: [length], eps: EPS },
    ...pass,
  };
  const inputs = attentionInputs(random, sizes, { cache: "f32" });
  fillAngles(ropeFrequencies(CONFIG), inputs.angles.data as Float32Array);
  const [qkv, qNorm, kNorm] = [inputs.qkv, inputs.qNorm, inputs.kNorm]
    .map((tensor) => copied(ops, tensor));
  using cache = ops.createCache(1, context);
  const [{ k, v }] = cache.layers;
  k.data.set(inputs.k.data);
  v.data.set(inputs.v.data);
  cache.begin({ first: 0, sequences: 1, tokens: length });
  cache.advance();
  cache.begin({ first: 0, sequences: 1, tokens });
  const y = ops.attend(qkv, matrixOf(qNorm), matrixOf(kNorm), cache, 0);
  const all = appended(inputs, sizes);
  const what = `attention of ${tokens} over ${context} keys`;
  add(what, y, { ...attended(all, sizes), tolerance: SUM });
  const to = k.data.length;
  add(`${what}, keys`, k, { values: all.k.subarray(0, to), tolerance: SUM });
}
