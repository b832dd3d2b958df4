import { toF32 } from "../lib/formats/tensor.ts";
import { room, rowSums, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";
import {
  NO_PENDING,
  pendingConstants,
  pendingSums,
  pendingTensor,
  readPending,
} from "./pending.ts";

/** Threads; each leaves a partial sum of squares. */
const WORKGROUP = 256;

/**
 * Adds what is pending (pending.ts) to a row, for kernels that do not read it, and leaves
 * WORKGROUP partial sums of the row's squares. Nothing is pending afterwards.
 */
export const addPending = defineKernel<{ k: number }>({
  name: "addPending",
  buffers: {
    x: "inout m k",
    pending: "inout any as raw",
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
${readPending()}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) tid: u32) {
  var squared = 0.0;
  for (var i = tid; i < u.k; i += WORKGROUP) {
    let value = x_at(i) + pending_at(u.k, i);
    x_put(i, value);
    squared += value * value;
    pending[i] = 0u;
    pending[u.k + i] = 0u;
  }
  squares[tid] = squared;
}`,
  cases: [{ k: 19 }, { k: 1024 }],
  makeCase({ k }, { random }) {
    const x = random.tensor("f32", [1, k], 2);
    const later = Float32Array.from({ length: k }, () => random.next());
    const constants = pendingConstants(96);
    const sums = toF32(x).map((value, i) => value + later[i]);
    const squared = sums.reduce((sum, value) => sum + value * value, 0);
    return {
      what: `[1, ${k}]`,
      operands: {
        x,
        pending: pendingTensor(later, constants),
        squares: room([1, WORKGROUP]),
      },
      constants,
      expected: () => [
        { of: "x", values: sums, norms: sums.map(Math.abs), tolerance: SUM },
        {
          of: rowSums("squares", WORKGROUP),
          ...{ values: [squared], norms: [squared], tolerance: SUM },
        },
        {
          of: (buffers) => pendingSums(buffers, constants),
          values: new Float64Array(k),
          tolerance: 0,
        },
      ],
    };
  },
});
