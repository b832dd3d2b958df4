import { chooseMatmul } from "../lib/dispatch/matmul.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { type Float, FLOATS, room, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";
import { deriveTile, TILE, tileConstants } from "./gemm.ts";

interface BatchedCase {
  m: number;
  n: number;
  k: number;
  b: Float;
}

/**
 * A matmul per batch and head, `[batch, heads, m, k] × [batch, kvHeads, k, n]`:
 * attention scores and values. `heads` is a multiple of `kvHeads`; the query heads of a
 * group read the same head of `b` without a copy.
 *
 * B_BY_COLUMN 1: `b` is `[batch, kvHeads, n, k]`, as keys are cached.
 */
export const batchedGemm = defineKernel<BatchedCase>({
  name: "batchedGemm",
  buffers: ({ B_BY_COLUMN }) => ({
    a: "batch heads m k as span",
    b: `batch kvHeads ${B_BY_COLUMN ? "n k" : "k n"} as span`,
    c: "inout batch heads m n as span",
  }),
  uniforms: { stride: "u32", column: "u32" },
  constants: { ...tileConstants, B_BY_COLUMN: 0 },
  derive: deriveTile,
  grid: ({ m, n, batch, heads }, { BM, BN }) => [
    Math.ceil(n / BN),
    Math.ceil(m / BM),
    batch * heads,
  ],
  body: `
fn offsets(z: u32) -> vec3u {
  let kv_head = z / u.heads * u.kvHeads + z % u.heads / (u.heads / u.kvHeads);
  return vec3u(z * u.m * u.k, kv_head * u.k * u.n, z * u.m * u.n);
}
fn splits_of_k(groups: vec3u) -> u32 { return 1u; }
${TILE}`,
  // Attention scores: 4 query heads share 2 key heads.
  cases: FLOATS.flatMap((b) => [
    { m: 7, n: 10, k: 12, b },
    { m: 5, n: 77, k: 128, b },
  ]),
  makeCase({ m, n, k, b: dtype }, { device, random, reference }) {
    const shapes = [[1, 4, m, k], [1, 2, n, k]];
    const a = random.tensor("f32", shapes[0]);
    const b = random.tensor(dtype, shapes[1]);
    const options = { transposeB: true, dtype };
    const choice = chooseMatmul(shapes[0], shapes[1], device, options);
    if (!choice.kernel) throw new Error(`Cannot test: ${choice.reason}`);
    return {
      what: `${dtype} [1, 4, ${m}, ${k}] × [1, 2, ${k}, ${n}]`,
      operands: { a, b, c: room([1, 4, m, n]) },
      constants: choice.constants,
      uniforms: { stride: n, column: 0 },
      expected: () => {
        const left = toF32(a), right = toF32(b);
        const heads = [0, 1, 2, 3].map((head) => {
          const at = head >> 1;
          return reference.linear(
            left.subarray(head * m * k, (head + 1) * m * k),
            right.subarray(at * n * k, (at + 1) * n * k),
            { m, n, k },
          );
        });
        return [{
          of: "c",
          values: heads.flatMap(({ values }) => [...values]),
          norms: heads.flatMap(({ norms }) => [...norms]),
          tolerance: SUM,
        }];
      },
    };
  },
});
