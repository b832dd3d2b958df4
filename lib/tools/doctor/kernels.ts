/**
 * Self-tests of all other kernels that compute: with the constants chosen for this
 * adapter, at odd sizes and those of a real model, in every element type.
 *
 * @module
 */
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
import { type CpuTensor, toF32 } from "../../dtype.ts";
import type { SelfTest } from "./self_test.ts";
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

/** Tolerance of f32 sums, relative to the norm of what they sum. */
const SUM = 1e-5;
/** Tolerance of sums of f16 products. */
const HALF_SUM = 1e-2;
const EPS = 1e-6;
const TYPES = ["f32", "f16", "bf16"] as const;

/** Linear layers, dispatched as for a prompt and a decode step. */
export async function testLinear(test: SelfTest): Promise<void> {
  for (const dtype of TYPES) {
    await testGemv(test, dtype, [1, 37, 19]);
    await testGemv(test, dtype, [5, 37, 19]);
    await testGemm(test, dtype, [41, 37, 19]);
    await testColumns(test, dtype, [1, 37, 19]);
    // Qwen3-0.6B's down_proj in a decode step, and its k_proj in a prompt.
    await testGemv(test, dtype, [1, 1024, 3072]);
    await testGemv(test, dtype, [16, 1024, 1024]);
    await testGemm(test, dtype, [33, 1024, 1024]);
    await testBatched(
      test,
      dtype,
      dtype === "f32" ? [7, 10, 12] : [5, 77, 128],
    );
  }
  for (const epilogue of ["add", "swiglu"] as const) {
    await testGemv(test, "bf16", [1, 74, 88], epilogue);
    await testGemv(test, "bf16", [3, 74, 88], epilogue);
    await testGemm(test, "bf16", [41, 74, 88], epilogue);
  }
  for (const epilogue of ["store", "swiglu"] as const) {
    await testGemv(test, "bf16", [1, 74, 1024], epilogue, true);
    await testGemv(test, "f32", [17, 74, 76], epilogue, true);
  }
  // So long that k is split.
  await testGemm(test, "f32", [41, 37, 1019]);
  await testGemm(test, "bf16", [41, 74, 1024], "add");
  if (test.gpu.f16) {
    await testGemm(test, "bf16", [70, 1024, 1024], "store", 0.5);
  }
}

type Size = [m: number, n: number, k: number];
type Type = typeof TYPES[number];

const naming = (dtype: Type, [m, n, k]: Size, kind: Epilogue) =>
  `${dtype} [${m}, ${k}] × [${n}, ${k}]ᵀ${
    { store: "", add: " added to a residual", swiglu: " with SwiGLU" }[kind]
  }`;

/** Every element of the residual that is added. */
const BEFORE = 3;

const expectedLinear = (
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  [m, n, k]: Size,
  kind: Epilogue,
) => epilogue(kind, linear(x, w, { m, n, k }), n, BEFORE);

/** gemv for one row, gemvRows for more. */
async function testGemv(
  test: SelfTest,
  dtype: Type,
  size: Size,
  epilogue: Epilogue = "store",
  normFirst = false,
) {
  const [m, n, k] = size, swiglu = epilogue === "swiglu";
  const x = test.random.tensor("f32", [m, k], 2);
  const norm = test.random.tensor("bf16", [k], 0.5, 1);
  const w = test.random.tensor(dtype, [n, k]);
  const shape = { m, n, k, dtype, norm: normFirst, swiglu, fixed: true };
  const { constants } = chooseLinear(shape, test.gpu);
  const width = swiglu ? n / 2 : n;
  const y = test.output([m, width], epilogue === "add" ? BEFORE : NaN);
  const squares = normFirst
    ? test.upload(partialSquares(toF32(x), k))
    : test.output([m, (m === 1 ? squareParts : rowParts)(n, constants)]);
  const operands = { w: test.upload(w), x: test.upload(x), y, squares };
  const kernel = m === 1 ? gemv : gemvRows;
  await test.run(kernel, { ...operands, norm: test.upload(norm) }, {
    constants: { ...constants, EPILOGUE: epilogue },
    uniforms: { stride: width, column: 0, eps: EPS },
  });
  const rows = normFirst ? rmsNormed(toF32(x), toF32(norm), EPS) : toF32(x);
  const expected = expectedLinear(rows, toF32(w), size, epilogue);
  const what = naming(dtype, size, epilogue) +
    (normFirst ? ", normed first" : "");
  test.compare(kernel.name, what, await y.read(), expected, SUM);
}

/** Eight partial sums of squares per row of `k`, as the kernel that writes the rows leaves them. */
function partialSquares(x: Float32Array, k: number): CpuTensor {
  const m = x.length / k, data = new Float32Array(8 * m);
  x.forEach((v, at) => data[8 * Math.floor(at / k) + at % k % 8] += v * v);
  return { dtype: "f32", shape: [m, 8], data };
}

/** With `largest`, the largest weight, the products are f16, after toF16. */
async function testGemm(
  test: SelfTest,
  dtype: Type,
  size: Size,
  epilogue: Epilogue = "store",
  largest?: number,
) {
  const [m, n, k] = size, swiglu = epilogue === "swiglu";
  const x = test.random.tensor("f32", [m, k], 2);
  const w = test.random.tensor(dtype, [n, k], largest);
  const shape = { m, n, k, dtype, norm: false, swiglu, largest };
  const { constants, headroom, splits } = chooseLinear(shape, test.gpu);
  const width = swiglu ? n / 2 : n, given = test.upload(x);
  const c = test.output([m, width], epilogue === "add" ? BEFORE : NaN);
  let a = given, scales = given;
  if (headroom) {
    a = test.own(Tensor.create(test.gpu, "f16", [m, k]));
    scales = test.output([m]);
    await test.run(toF16, { x: given, norm: given, y: a, scales }, {
      constants: laneConstants(test.gpu),
      uniforms: { eps: EPS, headroom },
    });
  }
  const operands = { a, b: test.upload(w), scales };
  const uniforms = { stride: width, column: 0 };
  if (splits === 1) {
    await test.run(gemm, { ...operands, c }, {
      constants: { ...constants, EPILOGUE: epilogue },
      uniforms,
    });
  } else {
    const partial = test.output([splits * m, n]);
    await test.run(gemm, { ...operands, c: partial }, { constants, uniforms });
    await test.run(sumSplits, { partial, y: c }, {
      constants: { SPLITS: splits, ADD: epilogue === "add" ? 1 : 0 },
      uniforms,
    });
  }
  const expected = expectedLinear(toF32(x), toF32(w), size, epilogue);
  const what = naming(dtype, size, epilogue) + (headroom ? " in f16" : "") +
    (splits > 1 ? `, k in ${splits} splits` : "");
  const tolerance = headroom ? HALF_SUM : SUM;
  test.compare("gemm", what, await c.read(), expected, tolerance);
}

async function testColumns(test: SelfTest, dtype: Type, [m, n, k]: Size) {
  const x = test.random.tensor("f32", [m, k]);
  const b = test.random.tensor(dtype, [k, n]), y = test.output([m, n]);
  const operands = { x: test.upload(x), b: test.upload(b), y };
  await test.run(gemvColumns, operands, { constants: { M: m } });
  const columns = transpose(toF32(b), k, n);
  const expected = linear(toF32(x), columns, { m, n, k });
  const what = `${dtype} [${m}, ${k}] × [${k}, ${n}]`;
  test.compare("gemvColumns", what, await y.read(), expected, SUM);
}

/** Attention scores of 4 heads over 2 KV heads. */
async function testBatched(test: SelfTest, dtype: Type, [m, n, k]: Size) {
  const shapes = [[1, 4, m, k], [1, 2, n, k]];
  const a = test.random.tensor("f32", shapes[0]);
  const b = test.random.tensor(dtype, shapes[1]);
  const c = test.output([1, 4, m, n]);
  const options = { transposeB: true, dtype };
  const choice = chooseMatmul(shapes[0], shapes[1], test.gpu, options);
  if (!choice.kernel) throw new Error(`Cannot self-test: ${choice.reason}`);
  const operands = { a: test.upload(a), b: test.upload(b), c };
  await test.run(batchedGemm, operands, {
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
  test.compare("batchedGemm", what, await c.read(), { values, norms }, SUM);
}

/** Kernels that work by row or element: embedding, norms, sums, conversions. */
export async function testRows(test: SelfTest): Promise<void> {
  const { gpu, random } = test, lanes = laneConstants(gpu);
  for (const dtype of TYPES) {
    for (const k of [19, 1024]) {
      const table = random.tensor(dtype, [11, k]), ids = [10, 0, 3];
      const given = test.upload(table), x = test.output([3, k]);
      const squares = test.output([3, Number(embed.constants.WORKGROUP)]);
      await test.run(embed, {
        ...{ table: given, tokens: test.u32(...ids), x, squares },
      }, { uniforms: { begin: 0 } });
      const all = toF32(table);
      const rows = ids.flatMap((id) => [...all.subarray(id * k, id * k + k)]);
      const what = `${dtype} [11, ${k}]`;
      test.compare("embed", what, await x.read(), { values: rows }, 0);

      const norm = random.tensor(dtype, [k], 0.5, 1), y = test.output([3, k]);
      await test.run(rmsNorm, { x, norm: test.upload(norm), y }, {
        constants: lanes,
        uniforms: { eps: EPS },
      });
      const values = rmsNormed(rows, toF32(norm), EPS);
      test.compare("rmsNorm", `[3, ${k}] by ${dtype}`, await y.read(), {
        values,
        norms: values.map(Math.abs),
      }, SUM);
    }
    const w = random.tensor(dtype, [7, 45]), largest = test.u32(0);
    await test.run(maxAbs, { w: test.upload(w), largest }, {
      constants: lanes,
      uniforms: { at: 0 },
    });
    const bits = await gpu.readBuffer(largest.part.buffer, 0, 4);
    const values = [Math.max(...toF32(w).map(Math.abs))];
    const found = new Float32Array(bits);
    test.compare("maxAbs", `${dtype} [7, 45]`, found, { values }, 0);
  }
  for (const dtype of TYPES) await testToF16(test, dtype);
  await testSumSplits(test);
  await testSynthesize(test);
}

async function testToF16(test: SelfTest, dtype: Type) {
  const m = 3, k = 100, headroom = 64, { random, gpu } = test;
  const x = random.tensor("f32", [m, k], 1e6);
  const norm = random.tensor(dtype, [k], 0.5, 1);
  const y = test.own(Tensor.create(gpu, "f16", [m, k])),
    scales = test.output([m]);
  const operands = { x: test.upload(x), norm: test.upload(norm), y, scales };
  await test.run(toF16, operands, {
    constants: { NORM: 1, ...laneConstants(gpu) },
    uniforms: { eps: EPS, headroom },
  });
  const halves = await y.read(), factors = await scales.read();
  const actual = halves.map((half, at) => half * factors[Math.floor(at / k)]);
  const values = rmsNormed(toF32(x), toF32(norm), EPS);
  // f16 keeps 11 bits, down to 2⁻²⁴ of the row's scale.
  const norms = values.map((v) => Math.abs(v) + 1e-3);
  const what = `[${m}, ${k}], normed by ${dtype}`;
  test.compare("toF16", what, actual, { values, norms }, 2 ** -10.9);
}

async function testSumSplits(test: SelfTest) {
  const m = 5, n = 19, SPLITS = 3;
  const partial = test.random.tensor("f32", [SPLITS * m, n]);
  const y = test.output([m, n], BEFORE), all = toF32(partial);
  await test.run(sumSplits, { partial: test.upload(partial), y }, {
    constants: { SPLITS, ADD: 1 },
    uniforms: { stride: n, column: 0 },
  });
  const values = Float64Array.from({ length: m * n }, (_, at) => {
    let sum = BEFORE;
    for (let s = 0; s < SPLITS; s++) sum += all[s * m * n + at];
    return sum;
  });
  const what = `${SPLITS} × f32 [${m}, ${n}]`;
  test.compare("sumSplits", what, await y.read(), { values }, SUM);
}

async function testSynthesize(test: SelfTest) {
  const words = 333, rule = { seed: 7, scale: 0.25, offset: 0 as const };
  const w = test.own(Tensor.create(test.gpu, "bf16", [2 * words]));
  await test.run(synthesize, { w }, {
    uniforms: { seed: rule.seed, scale: rule.scale, source: 0, to: 0, words },
  });
  const data = new Uint16Array(2 * words);
  fillSynthetic(rule, 0, data);
  const values = toF32({ dtype: "bf16", shape: [2 * words], data });
  const what = `bf16 [${2 * words}]`;
  test.compare("synthesize", what, await w.read(), { values }, 0);
}

/** Each sampling method, by the kernel that only it runs; all end with sampleFinish. */
export async function testSampling(test: SelfTest): Promise<void> {
  const methods: [kernel: string, options: SamplingOptions][] = [
    ["argmax", { temperature: 0, repetitionPenalty: 1.3 }],
    ["sampleTopK", { temperature: 0.7, topK: 20, topP: 0.8 }],
    ["sampleDraw", { temperature: 1, topK: 0 }],
    ["sampleHistogram", { temperature: 1, topK: 0, topP: 0.9 }],
  ];
  const { gpu } = test, vocab = 5003;
  const logits = test.random.tensor("f32", [1, vocab], 8);
  const given = test.upload(logits), seen = new Uint32Array(157).fill(0x11);
  for (const [kernel, options] of methods) {
    const sampling = resolveSampling({ ...options, seed: 11 });
    const state = test.own(
      createSamplerState(gpu, { sequences: 1, vocab, steps: 1 }),
    );
    const actual: number[] = [], values: number[] = [];
    test.start(kernel);
    using plan = new Plan(gpu);
    using _scratch = addSampling(plan, given, sampling, state);
    const began = performance.now();
    for (let step = 0; step < 3; step++) {
      state.seen.write(0, seen);
      state.step.write(0, new Uint32Array([step]));
      plan.run();
      if (step === 0) {
        await gpu.device.queue.onSubmittedWorkDone();
        test.firstUses.push({ kernel, ms: performance.now() - began });
      }
      actual.push(...await state.tokens.read());
      values.push(sample(toF32(logits), sampling, seen, step));
    }
    const what = `tokens of a vocabulary of ${vocab}`;
    for (const name of [kernel, "sampleFinish"]) {
      test.compare(name, what, actual, { values }, 0);
    }
  }
}
