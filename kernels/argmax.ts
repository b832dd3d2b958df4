import {
  BEST,
  deriveChunk,
  LOAD_SCORES,
  logitsContract,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * The highest score of each chunk of a row, after the penalty, and the lowest id
 * that has it: records `[key, id, 0, 0]`. Zeroes the histogram that
 * sample_histogram.ts fills next, if there is one.
 */
export const argmax = defineKernel({
  name: "argmax",
  buffers: (c) => ({
    ...logitsContract(c),
    highest: "out sequences chunks any",
    ...(c.HISTOGRAM ? { histogram: "out sequences sums bins" } : {}),
  }),
  uniforms: { penalty: "f32" },
  constants: { ...SAMPLE_CONSTANTS, HISTOGRAM: 0 },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${BEST}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  var score = ABSENT;
  var id = 0u;
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > score) { score = x[i][c]; id = first + i * 4u * WORKGROUP + c; }
    }
  }
  let best = workgroup_best(score, id, tid);
  if (tid == 0u) {
    let record = (sequence * u.chunks + chunk) * 4u;
    highest[record] = best.x;
    highest[record + 1u] = best.y;
    highest[record + 2u] = 0u;
  }
  @if HISTOGRAM {
    let words = u.sums * u.bins;
    for (var i = chunk * WORKGROUP + tid; i < words; i += u.chunks * WORKGROUP) {
      histogram[sequence * words + i] = 0u;
    }
  }
}`,
});
