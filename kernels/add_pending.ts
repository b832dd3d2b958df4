import { toF32 } from "../lib/formats/tensor.ts";
import { room, rowSums, SUM, u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";
import {
  NO_PENDING,
  PENDING_AT,
  pendingConstants,
  pendingRounding,
  pendingTensor,
  RAISE_FLAGS,
} from "./pending.ts";

/** Threads; each leaves a partial sum of squares. */
const WORKGROUP = 256;

/**
 * Adds what is pending (pending.ts) to a row, for kernels that do not read it, and leaves
 * WORKGROUP partial sums of the row's squares.
 */
export const addPending = defineKernel<{ k: number }>({
  name: "addPending",
  buffers: {
    x: "inout m k",
    pending: "any as raw",
    flags: "inout any as raw",
    squares: "out m parts",
  },
  constants: { WORKGROUP, ...NO_PENDING },
  grid: () => [1, 1, 1],
  cost: (call) =>
    call.whole({
      name: call.role,
      group: "other",
      flops: call.k,
      bytes: 16 * call.k,
    }),
  body: /* wgsl */ `
${PENDING_AT}
${RAISE_FLAGS}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) tid: u32) {
  var squared = 0.0;
  for (var i = tid; i < u.k; i += WORKGROUP) {
    let value = x_at(i) + pending_at(u.k, i);
    x_put(i, value);
    squared += value * value;
  }
  squares[tid] = squared;
  if (tid == 0u) { raise_flags(u.k); }
}`,
  cases: [{ k: 19 }, { k: 1024 }],
  makeCase({ k }, { random }) {
    const x = random.tensor("f32", [1, k], 2);
    const later = Float32Array.from({ length: k }, () => random.next());
    const constants = pendingConstants(96), unit = 2 ** random.int(-9, 9);
    const sums = toF32(x).map((value, i) => value + later[i]);
    const squaresOf = (values: Float32Array) =>
      values.reduce((sum, value) => sum + value * value, 0);
    // Sums may be small where what was added is not.
    const rounding = pendingRounding(constants, { adders: 0, unit }) / SUM;
    const norms = later.map((v, i) =>
      Math.abs(v) + Math.abs(toF32(x)[i]) + rounding
    );
    return {
      what: `[1, ${k}]`,
      operands: {
        x,
        pending: pendingTensor(later, constants, unit),
        flags: u32Tensor([4], new Uint32Array(4)),
        squares: room([1, WORKGROUP]),
      },
      constants,
      expected: () => [
        {
          of: "x",
          values: sums,
          ...{ norms, tolerance: SUM },
        },
        {
          of: rowSums("squares", WORKGROUP),
          values: [squaresOf(sums)],
          norms: [2 * squaresOf(norms)],
          tolerance: SUM,
        },
        { of: "flags", values: new Float64Array(4), tolerance: 0 },
      ],
    };
  },
});
