import {
  deriveChunk,
  LOAD_SCORES,
  logitsContract,
  ROW_TOP,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/** Bins of the histogram. */
export const BINS = 1024;

/** The bin of a score: equal steps downwards from the highest, all the rest in the last. */
export const BIN = /* wgsl */ `
fn bin_of(x: f32, top: f32) -> u32 { return u32(min((top - x) / u.width, f32(BINS - 1u))); }
`;

/**
 * How many scores lie in each bin, and their probability mass. Rows of
 * `histogram`: the mass in units of 2⁻¹⁹ of its bin's upper edge, low 16 bits and
 * the rest apart so that sums over chunks cannot overflow, then the count. Whole
 * numbers: the sums do not depend on the order of threads.
 */
export const sampleHistogram = defineKernel({
  name: "sampleHistogram",
  buffers: (c) => ({
    ...logitsContract(c),
    highest: "sequences chunks any",
    histogram: "inout sequences sums bins as atomic",
  }),
  uniforms: { penalty: "f32", temperature: "f32", width: "f32" },
  constants: { ...SAMPLE_CONSTANTS, BINS },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${ROW_TOP}
${BIN}
var<workgroup> mass: array<atomic<u32>, BINS>;
var<workgroup> count: array<atomic<u32>, BINS>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  let top = row_top(sequence, tid);
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > ABSENT) {
        let b = bin_of(x[i][c], top);
        let share = exp((x[i][c] - top + f32(b) * u.width) / u.temperature);
        atomicAdd(&mass[b], u32(min(share, 1.0) * 0x1p19f + 0.5));
        atomicAdd(&count[b], 1u);
      }
    }
  }
  workgroupBarrier();
  let base = sequence * u.sums * BINS;
  for (var b = tid; b < BINS; b += WORKGROUP) {
    let n = atomicLoad(&count[b]);
    if (n > 0u) {
      let m = atomicLoad(&mass[b]);
      atomicAdd(&histogram[base + b], m & 0xffffu);
      atomicAdd(&histogram[base + BINS + b], m >> 16u);
      atomicAdd(&histogram[base + 2u * BINS + b], n);
    }
  }
}`,
});
