import { assert, assertEquals, assertThrows } from "@std/assert";
import { chooseMatmul, type MatmulChoice } from "../lib/dispatch/matmul.ts";
import { type Dtype, elements } from "../lib/dtype.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { openDevice } from "../lib/device/open_device.ts";
import { batchedGemm, gemm, gemv, matmul } from "../lib/matmul.ts";
import { Tensor } from "../lib/webgpu/tensor.ts";
import { gpuTest, someOf, type Trial } from "./support/gpu.ts";
import { matrixTest } from "./support/subgroup_matrices.ts";
import {
  assertSums,
  type Expected,
  linear,
  transpose,
} from "./support/reference.ts";

type Shape = readonly number[];

interface Product {
  a: Shape;
  b: Shape;
  transposeB?: boolean;
  kernel: MatmulChoice["kernel"];
  shape: Shape;
}

/** One for each rule of the dispatch, some with odd sizes. */
const PRODUCTS: Product[] = [
  // A prompt of five tokens and one token through a Linear layer.
  {
    a: [5, 1024],
    b: [1024, 2048],
    kernel: "gemvColumns",
    shape: [5, 2048],
  },
  {
    a: [1, 1024],
    b: [1024, 2048],
    kernel: "gemvColumns",
    shape: [1, 2048],
  },
  // Attention scores of 16 heads, with 16 and with 8 key heads.
  {
    a: [1, 16, 5, 128],
    b: [1, 16, 128, 5],
    kernel: "batchedGemm",
    shape: [1, 16, 5, 5],
  },
  {
    a: [1, 16, 5, 128],
    b: [1, 8, 5, 128],
    transposeB: true,
    kernel: "batchedGemm",
    shape: [1, 16, 5, 5],
  },
  { a: [37, 61], b: [61], kernel: "gemv", shape: [37] },
  { a: [2048, 1024], b: [1024], kernel: "gemv", shape: [2048] },
  { a: [61], b: [61, 37], kernel: "gemvColumns", shape: [37] },
  {
    a: [64],
    b: [37, 64],
    transposeB: true,
    kernel: "gemv",
    shape: [37],
  },
  {
    a: [1, 64],
    b: [37, 64],
    transposeB: true,
    kernel: "gemv",
    shape: [1, 37],
  },
  {
    a: [8, 61],
    b: [37, 61],
    transposeB: true,
    kernel: "gemvRows",
    shape: [8, 37],
  },
  { a: [8, 61], b: [61, 37], kernel: "gemvColumns", shape: [8, 37] },
  { a: [9, 61], b: [61, 37], kernel: "gemm", shape: [9, 37] },
  { a: [9, 64], b: [64, 40], kernel: "gemm", shape: [9, 40] },
  {
    a: [70, 67],
    b: [129, 67],
    transposeB: true,
    kernel: "gemm",
    shape: [70, 129],
  },
  {
    a: [2, 6, 3, 17],
    b: [2, 3, 17, 9],
    kernel: "batchedGemm",
    shape: [2, 6, 3, 9],
  },
  { a: [1, 1], b: [1, 1], kernel: "gemvColumns", shape: [1, 1] },
];

const DTYPES: [Dtype, Dtype][] = [
  ["f32", "f32"],
  ["f32", "bf16"],
  ["f32", "f16"],
  ["bf16", "bf16"],
  ["f16", "f32"],
];

const isLarge = ({ a, b }: Product) => elements(a) > 1e5 || elements(b) > 1e5;

/**
 * The element types that a matmul is tested in. Each compiles another pipeline, so the
 * matmuls of a kernel divide the types among them; large matmuls take the first two.
 */
function typesOf(product: Product): [Dtype, Dtype][] {
  if (isLarge(product)) return DTYPES.slice(0, 2);
  const alike = PRODUCTS.filter((other) =>
    other.kernel === product.kernel && !isLarge(other)
  );
  const own = alike.indexOf(product);
  return DTYPES.filter((_, i) => i % alike.length === own % DTYPES.length);
}

/** The types of each matmul. Both tests take the same, whose pipelines they share. */
const TYPES = new Map(
  PRODUCTS.map((product) => [product, someOf(typesOf(product), 1)]),
);

const show = (shape: Shape) => `[${shape.join(", ")}]`;

gpuTest(
  "matmul multiplies all shapes and element types, and names its kernel",
  async (_, trial) => {
    for (const product of PRODUCTS) {
      for (const dtypes of TYPES.get(product)!) {
        const { choices } = await multiply(trial, product, dtypes, matmul);
        assertEquals(choices.length, 1);
        const [choice] = choices;
        assertEquals(choice.kernel, product.kernel, choice.reason);
        assert(choice.reason.length > 10);
      }
    }
  },
);

matrixTest("matmul of f16 uses tensor cores", async (trial) => {
  const rows = (m: number, k: number, transposeB = true): Product => ({
    ...{ a: [m, k], b: transposeB ? [37, k] : [k, 37], transposeB },
    ...{ kernel: "gemmMatrix", shape: [m, 37] },
  });
  const used = async (product: Product, types: [Dtype, Dtype]) => {
    const { choices } = await multiply(trial, product, types, matmul);
    return choices[0].kernel;
  };
  assertEquals(await used(rows(41, 72), ["f16", "f16"]), "gemmMatrix");
  assertEquals(await used(rows(33, 1024), ["f16", "f16"]), "gemmMatrix");
  assertEquals(await used(rows(41, 72), ["f32", "f16"]), "gemm");
  assertEquals(await used(rows(41, 72), ["f16", "bf16"]), "gemm");
  assertEquals(await used(rows(41, 76), ["f16", "f16"]), "gemm");
  assertEquals(await used(rows(41, 72, false), ["f16", "f16"]), "gemm");
});

gpuTest(
  "gemm, batchedGemm and gemv multiply their own shapes",
  async (_, trial) => {
    for (const product of PRODUCTS) {
      if (isLarge(product)) continue;
      const own = {
        gemm,
        gemmMatrix: gemm,
        batchedGemm,
        gemv,
        gemvRows: gemv,
        gemvColumns: gemv,
      }[
        product.kernel!
      ];
      for (const types of TYPES.get(product)!) {
        await multiply(trial, product, types, own);
      }
    }
    // gemm takes few rows too when called by name.
    const flat = PRODUCTS.filter((one) =>
      one.a.length === 2 && one.b.length === 2 && !isLarge(one)
    );
    for (const product of trial.some(flat, 2)) {
      const { choices } = await multiply(trial, product, ["f32", "f32"], gemm);
      assertEquals(choices[0].kernel, "gemm");
    }
  },
);

/** Multiplies random tensors and compares the result with float64. */
async function multiply(
  trial: Trial,
  { a, b, transposeB = false, shape }: Product,
  [typeA, typeB]: [Dtype, Dtype],
  product: typeof matmul,
): Promise<{ choices: MatmulChoice[] }> {
  const hostA = trial.random.tensor(typeA, a);
  const hostB = trial.random.tensor(typeB, b);
  const choices: MatmulChoice[] = [];
  using c = product(trial.upload(hostA), trial.upload(hostB), {
    transposeB,
    onChoice: (choice) => choices.push(choice),
  });
  assertEquals(c.shape, [...shape]);
  assertEquals(c.dtype, "f32");
  assertSums(
    await c.read(),
    expected(toF32(hostA), a, toF32(hostB), b, transposeB),
    `${typeA} ${show(a)} × ${typeB} ${show(b)}${transposeB ? "ᵀ" : ""} by ${
      choices[0].kernel
    }`,
  );
  return { choices };
}

/** The matmul in float64, matrix by matrix; groups of `a`'s heads share heads of `b`. */
function expected(
  a: Float32Array,
  shapeA: Shape,
  b: Float32Array,
  shapeB: Shape,
  transposeB: boolean,
): Expected {
  if (shapeB.length === 1) {
    return linear(a, b, { m: shapeA[0], n: 1, k: shapeB[0] });
  }
  const [m, k] = [shapeA.at(-2) ?? 1, shapeA.at(-1)!];
  const n = transposeB ? shapeB.at(-2)! : shapeB.at(-1)!;
  const [batch, heads] = shapeA.length === 4 ? shapeA : [1, 1];
  const group = shapeA.length === 4 ? heads / shapeB[1] : 1;
  const values: number[] = [], norms: number[] = [];
  for (let i = 0; i < batch * heads; i++) {
    const j = Math.floor(i / group);
    const matrix = b.subarray(j * k * n, (j + 1) * k * n);
    const one = linear(
      a.subarray(i * m * k, (i + 1) * m * k),
      transposeB ? matrix : transpose(matrix, k, n),
      { m, n, k },
    );
    values.push(...one.values);
    norms.push(...one.norms);
  }
  return {
    values: Float64Array.from(values),
    norms: Float64Array.from(norms),
  };
}

gpuTest(
  "a refused matmul is an error of one line with the shapes, and nothing falls back",
  async (gpu, trial) => {
    const of = (...shape: number[]) => trial.filled(shape, 1);
    const refused: [() => Tensor, string][] = [
      [
        () => matmul(of(2, 3), of(4, 5)),
        "Cannot multiply: [2, 3] × [4, 5]: the inner sizes 3 and 4 differ",
      ],
      [
        () => matmul(of(2, 3), of(3, 5), { transposeB: true }),
        "Cannot multiply: [2, 3] × [3, 5] transposed: the inner sizes 3 and 5 differ",
      ],
      [
        () => matmul(of(2, 3, 4), of(4, 5)),
        "Cannot multiply: [2, 3, 4] × [4, 5]: 3D×2D is not among 2D×1D, 1D×2D, 2D×2D and 4D×4D",
      ],
      [() => matmul(of(3), of(3)), "1D×1D is not among"],
      [
        () => matmul(of(1, 6, 2, 3), of(1, 4, 3, 2)),
        "6 heads are not a multiple of 4",
      ],
      [
        () => matmul(of(2, 6, 2, 3), of(1, 6, 3, 2)),
        "the batch sizes 2 and 1 differ",
      ],
      [
        () => gemm(of(2, 3), of(3)),
        "Cannot run gemm: [2, 3] × [3]: these shapes are for gemv, not for gemm",
      ],
      [
        () => gemv(of(9, 3), of(3, 4)),
        "Cannot run gemv: [9, 3] × [3, 4]: these shapes are for gemm, not for gemv or gemvRows or gemvColumns",
      ],
      [
        () => batchedGemm(of(2, 3), of(3, 4)),
        "Cannot run batchedGemm: [2, 3] × [3, 4]: these shapes are for gemvColumns or gemm, not for batchedGemm",
      ],
      [
        () => matmul(trial.u32(1, 2), of(2, 2)),
        "Cannot multiply: a is u32, must be f32, f16 or bf16",
      ],
    ];
    const before = gpu.allocated;
    for (const [product, message] of refused) {
      const { message: actual } = assertThrows(product, Error, message);
      assert(!actual.includes("\n"), actual);
    }
    assert(gpu.allocated > before); // operands only
    using other = await openDevice();
    using elsewhere = Tensor.create(other, "f32", [3, 4]);
    assertThrows(
      () => matmul(of(2, 3), elsewhere),
      Error,
      "Cannot multiply: a and b are on different devices, must be on the same one",
    );
  },
);

Deno.test("chooseMatmul gives a reason for every shape without a device", () => {
  const device = {
    subgroupSize: 32,
    limits: {
      maxComputeWorkgroupStorageSize: 32768,
      maxComputeInvocationsPerWorkgroup: 1024,
    },
  };
  for (const { a, b, transposeB, kernel, shape } of PRODUCTS) {
    const choice = chooseMatmul(a, b, device, { transposeB });
    assertEquals(choice.kernel, kernel);
    assert(choice.kernel);
    assertEquals(choice.shape, [...shape]);
    assert(!/undefined|NaN/.test(choice.reason), choice.reason);
  }
  const empty = chooseMatmul([0, 3], [3, 2], device);
  assertEquals(empty, {
    kernel: undefined,
    reason: "[0, 3] × [3, 2]: a size is 0",
  });
});

gpuTest("matmul refuses arguments of wrong types", (gpu, trial) => {
  const a = trial.own(Tensor.create(gpu, "f32", [2, 2]));
  const call = matmul as (...args: unknown[]) => Tensor;
  for (
    const [args, message] of [
      [[null, a], "a is null, must be a Tensor"],
      [[a, [1, 2]], "b is a list of 2, must be a Tensor"],
      [[a, a, 5], "the options argument is 5, must be a plain object"],
      [[a, a, { transposeB: "yes" }], 'transposeB is "yes", must be true or'],
      [[a, a, { onChoice: 5 }], "onChoice is 5, must be a function"],
    ] as const
  ) assertThrows(() => call(...args), Error, message);
});
