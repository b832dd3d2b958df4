/**
 * A self-test of every kernel that computes: with the constants that are chosen
 * for this adapter, at odd sizes and at those of a model, in every element type.
 *
 * @module
 */
import { formatNamed } from "../../formats/mod.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import { batchedGemm } from "../../../kernels/batched_gemm.ts";
import { embed } from "../../../kernels/embed.ts";
import { gemm } from "../../../kernels/gemm.ts";
import { gemv, squareParts } from "../../../kernels/gemv.ts";
import { gemvColumns } from "../../../kernels/gemv_columns.ts";
import { gemvRows, rowParts } from "../../../kernels/gemv_rows.ts";
import { maxAbs } from "../../../kernels/max_abs.ts";
import { rmsNorm } from "../../../kernels/rms_norm.ts";
import { sumSplits } from "../../../kernels/sum_splits.ts";
import { synthesize } from "../../../kernels/synthesize.ts";
import { toF16 } from "../../../kernels/to_f16.ts";
import { laneConstants } from "../../dispatch/capabilities.ts";
import { chooseLinear } from "../../dispatch/linear.ts";
import { chooseMatmul } from "../../dispatch/matmul.ts";
import type { Epilogue } from "../../dispatch/shapes.ts";
import { type CpuTensor, toF32 } from "../../cpu/tensor.ts";
import type { Bench } from "./bench.ts";
import {
  epilogue,
  linear,
  rmsNormed,
  transpose,
} from "../../check/reference.ts";
import { Plan } from "../../webgpu/plan.ts";
import { addSampling, createSamplerState } from "../../gpu/sample.ts";
import {
  resolveSampling,
  sample,
  type SamplingOptions,
} from "../../model/sampling.ts";
import { fillSynthetic } from "../../checkpoint/synthetic.ts";

/** f32 sums are off by a small multiple of the norm of what they sum. */
const SUM = 1e-5;
/** What products in f16 may be off. */
const HALF_SUM = 1e-2;
const EPS = 1e-6;
const TYPES = ["f32", "f16", "bf16"] as const;

/** Linear layers, as a prompt and as a decode step run them. */
export async function tryLinear(bench: Bench): Promise<void> {
  for (const dtype of TYPES) {
    await tryGemv(bench, dtype, [1, 37, 19]);
    await tryGemv(bench, dtype, [5, 37, 19]);
    await tryGemm(bench, dtype, [41, 37, 19]);
    await tryColumns(bench, dtype, [1, 37, 19]);
    // Of Qwen3-0.6B: down_proj in a decode step, k_proj in a prompt.
    await tryGemv(bench, dtype, [1, 1024, 3072]);
    await tryGemv(bench, dtype, [16, 1024, 1024]);
    await tryGemm(bench, dtype, [33, 1024, 1024]);
    await tryBatched(
      bench,
      dtype,
      dtype === "f32" ? [7, 10, 12] : [5, 77, 128],
    );
  }
  for (const epilogue of ["add", "swiglu"] as const) {
    await tryGemv(bench, "bf16", [1, 74, 88], epilogue);
    await tryGemv(bench, "bf16", [3, 74, 88], epilogue);
    await tryGemm(bench, "bf16", [41, 74, 88], epilogue);
  }
  for (const epilogue of ["store", "swiglu"] as const) {
    await tryGemv(bench, "bf16", [1, 74, 1024], epilogue, true);
    await tryGemv(bench, "f32", [17, 74, 76], epilogue, true);
  }
  // So long that they are summed in runs of k.
  await tryGemm(bench, "f32", [41, 37, 1019]);
  await tryGemm(bench, "bf16", [41, 74, 1024], "add");
  if (bench.gpu.f16) {
    await tryGemm(bench, "bf16", [70, 1024, 1024], "store", 0.5);
  }
}

type Size = [m: number, n: number, k: number];
type Type = typeof TYPES[number];

const naming = (dtype: Type, [m, n, k]: Size, kind: Epilogue) =>
  `${dtype} [${m}, ${k}] × [${n}, ${k}]ᵀ${
    { store: "", add: " added to a residual", swiglu: " with SwiGLU" }[kind]
  }`;

/** What is in the residual before. */
const BEFORE = 3;

const expectedLinear = (
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  [m, n, k]: Size,
  kind: Epilogue,
) => epilogue(kind, linear(x, w, { m, n, k }), n, BEFORE);

/** One row by gemv, more by gemvRows. */
async function tryGemv(
  bench: Bench,
  dtype: Type,
  size: Size,
  epilogue: Epilogue = "store",
  normFirst = false,
) {
  const [m, n, k] = size, swiglu = epilogue === "swiglu";
  const x = bench.random.tensor("f32", [m, k], 2);
  const norm = bench.random.tensor("bf16", [k], 0.5, 1);
  const w = bench.random.tensor(dtype, [n, k]);
  const layer = { m, n, k, format: formatNamed(dtype), swiglu };
  const shape = { ...layer, norm: normFirst, fixed: true };
  const { constants } = chooseLinear(shape, bench.gpu);
  const width = swiglu ? n / 2 : n;
  const y = bench.room([m, width], epilogue === "add" ? BEFORE : NaN);
  const squares = normFirst
    ? bench.upload(partialSquares(toF32(x), k))
    : bench.room([m, (m === 1 ? squareParts : rowParts)(n, constants)]);
  const operands = { w: bench.upload(w), x: bench.upload(x), y, squares };
  const kernel = m === 1 ? gemv : gemvRows;
  await bench.run(kernel, { ...operands, norm: bench.upload(norm) }, {
    constants: { ...constants, EPILOGUE: epilogue },
    uniforms: { stride: width, column: 0, eps: EPS },
  });
  const rows = normFirst ? rmsNormed(toF32(x), toF32(norm), EPS) : toF32(x);
  const expected = expectedLinear(rows, toF32(w), size, epilogue);
  const what = naming(dtype, size, epilogue) +
    (normFirst ? ", normed first" : "");
  bench.compare(kernel.name, what, await y.read(), expected, SUM);
}

/** What the writer of rows of `k` leaves for their norm: eight parts of the sum of squares. */
function partialSquares(x: Float32Array, k: number): CpuTensor {
  const m = x.length / k, data = new Float32Array(8 * m);
  x.forEach((v, at) => data[8 * Math.floor(at / k) + at % k % 8] += v * v);
  return { dtype: "f32", shape: [m, 8], data };
}

/** With `largest`, the largest weight, products are in f16: rows go through toF16. */
async function tryGemm(
  bench: Bench,
  dtype: Type,
  size: Size,
  epilogue: Epilogue = "store",
  largest?: number,
) {
  const [m, n, k] = size, swiglu = epilogue === "swiglu";
  const x = bench.random.tensor("f32", [m, k], 2);
  const w = bench.random.tensor(dtype, [n, k], largest);
  const shape = {
    m,
    n,
    k,
    format: formatNamed(dtype),
    norm: false,
    swiglu,
    largest,
  };
  const { constants, headroom, splits } = chooseLinear(shape, bench.gpu);
  const width = swiglu ? n / 2 : n, given = bench.upload(x);
  const c = bench.room([m, width], epilogue === "add" ? BEFORE : NaN);
  let a = given, scales = given;
  if (headroom) {
    a = bench.own(Tensor.create(bench.gpu, "f16", [m, k]));
    scales = bench.room([m]);
    await bench.run(toF16, { x: given, norm: given, y: a, scales }, {
      constants: laneConstants(bench.gpu),
      uniforms: { eps: EPS, headroom },
    });
  }
  const operands = { a, b: bench.upload(w), scales };
  const uniforms = { stride: width, column: 0 };
  if (splits === 1) {
    await bench.run(gemm, { ...operands, c }, {
      constants: { ...constants, EPILOGUE: epilogue },
      uniforms,
    });
  } else {
    const partial = bench.room([splits * m, n]);
    await bench.run(gemm, { ...operands, c: partial }, { constants, uniforms });
    await bench.run(sumSplits, { partial, y: c }, {
      constants: { SPLITS: splits, ADD: epilogue === "add" ? 1 : 0 },
      uniforms,
    });
  }
  const expected = expectedLinear(toF32(x), toF32(w), size, epilogue);
  const what = naming(dtype, size, epilogue) + (headroom ? " in f16" : "") +
    (splits > 1 ? `, k in ${splits} runs` : "");
  const tolerance = headroom ? HALF_SUM : SUM;
  bench.compare("gemm", what, await c.read(), expected, tolerance);
}

async function tryColumns(bench: Bench, dtype: Type, [m, n, k]: Size) {
  const x = bench.random.tensor("f32", [m, k]);
  const b = bench.random.tensor(dtype, [k, n]), y = bench.room([m, n]);
  const operands = { x: bench.upload(x), b: bench.upload(b), y };
  await bench.run(gemvColumns, operands, { constants: { M: m } });
  const columns = transpose(toF32(b), k, n);
  const expected = linear(toF32(x), columns, { m, n, k });
  const what = `${dtype} [${m}, ${k}] × [${k}, ${n}]`;
  bench.compare("gemvColumns", what, await y.read(), expected, SUM);
}

/** Attention scores: 4 heads over 2 that they share. */
async function tryBatched(bench: Bench, dtype: Type, [m, n, k]: Size) {
  const shapes = [[1, 4, m, k], [1, 2, n, k]];
  const a = bench.random.tensor("f32", shapes[0]);
  const b = bench.random.tensor(dtype, shapes[1]);
  const c = bench.room([1, 4, m, n]);
  const options = { transposeB: true, dtype };
  const choice = chooseMatmul(shapes[0], shapes[1], bench.gpu, options);
  if (!choice.kernel) throw new Error(`Cannot self-test: ${choice.reason}`);
  const operands = { a: bench.upload(a), b: bench.upload(b), c };
  await bench.run(batchedGemm, operands, {
    constants: choice.constants,
    uniforms: { stride: n, column: 0 },
  });
  const left = toF32(a), right = toF32(b);
  const values: number[] = [], norms: number[] = [];
  for (let head = 0; head < 4; head++) {
    const at = head >> 1;
    const own = linear(
      left.subarray(head * m * k, (head + 1) * m * k),
      right.subarray(at * n * k, (at + 1) * n * k),
      { m, n, k },
    );
    values.push(...own.values);
    norms.push(...own.norms);
  }
  const what = `${dtype} [1, 4, ${m}, ${k}] × [1, 2, ${k}, ${n}]`;
  bench.compare("batchedGemm", what, await c.read(), { values, norms }, SUM);
}

/** Everything by row or element: embedding, norms, sums, conversions. */
export async function tryRows(bench: Bench): Promise<void> {
  const { gpu, random } = bench, lanes = laneConstants(gpu);
  for (const dtype of TYPES) {
    for (const k of [19, 1024]) {
      const table = random.tensor(dtype, [11, k]), ids = [10, 0, 3];
      const given = bench.upload(table), x = bench.room([3, k]);
      const squares = bench.room([3, Number(embed.constants.WORKGROUP)]);
      await bench.run(embed, {
        ...{ table: given, tokens: bench.u32(...ids), x, squares },
      }, { uniforms: { begin: 0 } });
      const all = toF32(table);
      const rows = ids.flatMap((id) => [...all.subarray(id * k, id * k + k)]);
      const what = `${dtype} [11, ${k}]`;
      bench.compare("embed", what, await x.read(), { values: rows }, 0);

      const norm = random.tensor(dtype, [k], 0.5, 1), y = bench.room([3, k]);
      await bench.run(rmsNorm, { x, norm: bench.upload(norm), y }, {
        constants: lanes,
        uniforms: { eps: EPS },
      });
      const values = rmsNormed(rows, toF32(norm), EPS);
      bench.compare("rmsNorm", `[3, ${k}] by ${dtype}`, await y.read(), {
        values,
        norms: values.map(Math.abs),
      }, SUM);
    }
    const w = random.tensor(dtype, [7, 45]), largest = bench.u32(0);
    await bench.run(maxAbs, { w: bench.upload(w), largest }, {
      constants: lanes,
      uniforms: { at: 0 },
    });
    const bits = await gpu.readBuffer(largest.buffer, 0, 4);
    const values = [Math.max(...toF32(w).map(Math.abs))];
    const found = new Float32Array(bits);
    bench.compare("maxAbs", `${dtype} [7, 45]`, found, { values }, 0);
  }
  for (const dtype of TYPES) await tryToF16(bench, dtype);
  await trySumSplits(bench);
  await trySynthesize(bench);
}

async function tryToF16(bench: Bench, dtype: Type) {
  const m = 3, k = 100, headroom = 64, { random, gpu } = bench;
  const x = random.tensor("f32", [m, k], 1e6);
  const norm = random.tensor(dtype, [k], 0.5, 1);
  const y = bench.own(Tensor.create(gpu, "f16", [m, k])),
    scales = bench.room([m]);
  const operands = { x: bench.upload(x), norm: bench.upload(norm), y, scales };
  await bench.run(toF16, operands, {
    constants: { NORM: 1, ...laneConstants(gpu) },
    uniforms: { eps: EPS, headroom },
  });
  const halves = await y.read(), factors = await scales.read();
  const actual = halves.map((half, at) => half * factors[Math.floor(at / k)]);
  const values = rmsNormed(toF32(x), toF32(norm), EPS);
  // f16 keeps 11 bits, down to 2⁻²⁴ of what a row is scaled to.
  const norms = values.map((v) => Math.abs(v) + 1e-3);
  const what = `[${m}, ${k}], normed by ${dtype}`;
  bench.compare("toF16", what, actual, { values, norms }, 2 ** -10.9);
}

async function trySumSplits(bench: Bench) {
  const m = 5, n = 19, SPLITS = 3;
  const partial = bench.random.tensor("f32", [SPLITS * m, n]);
  const y = bench.room([m, n], BEFORE), all = toF32(partial);
  await bench.run(sumSplits, { partial: bench.upload(partial), y }, {
    constants: { SPLITS, ADD: 1 },
    uniforms: { stride: n, column: 0 },
  });
  const values = Float64Array.from({ length: m * n }, (_, at) => {
    let sum = BEFORE;
    for (let s = 0; s < SPLITS; s++) sum += all[s * m * n + at];
    return sum;
  });
  const what = `${SPLITS} × f32 [${m}, ${n}]`;
  bench.compare("sumSplits", what, await y.read(), { values }, SUM);
}

async function trySynthesize(bench: Bench) {
  const words = 333, rule = { seed: 7, scale: 0.25, offset: 0 as const };
  const w = bench.own(Tensor.create(bench.gpu, "bf16", [2 * words]));
  await bench.run(synthesize, { w }, {
    uniforms: { seed: rule.seed, scale: rule.scale, source: 0, to: 0, words },
  });
  const data = new Uint16Array(2 * words);
  fillSynthetic(rule, 0, data);
  const values = toF32({ dtype: "bf16", shape: [2 * words], data });
  const what = `bf16 [${2 * words}]`;
  bench.compare("synthesize", what, await w.read(), { values }, 0);
}

/** Each way to sample, by the kernel that only it runs (sampleFinish ends all). */
export async function trySampling(bench: Bench): Promise<void> {
  const ways: [kernel: string, options: SamplingOptions][] = [
    ["argmax", { temperature: 0, repetitionPenalty: 1.3 }],
    ["sampleTopK", { temperature: 0.7, topK: 20, topP: 0.8 }],
    ["sampleDraw", { temperature: 1, topK: 0 }],
    ["sampleHistogram", { temperature: 1, topK: 0, topP: 0.9 }],
  ];
  const { gpu } = bench, vocab = 5003;
  const logits = bench.random.tensor("f32", [1, vocab], 8);
  const given = bench.upload(logits), seen = new Uint32Array(157).fill(0x11);
  for (const [kernel, options] of ways) {
    const sampling = resolveSampling({ ...options, seed: 11 });
    const state = bench.own(
      createSamplerState(gpu, { sequences: 1, vocab, steps: 1 }),
    );
    const actual: number[] = [], values: number[] = [];
    bench.start(kernel);
    using plan = new Plan(gpu);
    using _scratch = addSampling(plan, given, sampling, state);
    const began = performance.now();
    for (let step = 0; step < 3; step++) {
      state.seen.write(0, seen);
      state.step.write(0, new Uint32Array([step]));
      plan.run();
      if (step === 0) {
        await gpu.device.queue.onSubmittedWorkDone();
        bench.firstUses.push({ kernel, ms: performance.now() - began });
      }
      actual.push(...await state.tokens.read());
      values.push(sample(toF32(logits), sampling, seen, step));
    }
    const what = `tokens of a vocabulary of ${vocab}`;
    for (const name of [kernel, "sampleFinish"]) {
      bench.compare(name, what, actual, { values }, 0);
    }
  }
}
