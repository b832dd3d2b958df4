import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { u32Tensor } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  binned,
  highestOf,
  histogramOf,
  rowsOf,
  type SampleSizes,
  settingsTensor,
} from "./sample_case.ts";
import {
  BINS,
  deriveChunk,
  LOAD_SCORES,
  LOGITS_CONTRACT,
  ROW_TOP,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { binWidth, SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

/** The bin of a score: equal steps down from the highest; the last bin takes the rest. */
export const BIN = /* wgsl */ `
fn bin_of(x: f32, top: f32, width: f32) -> u32 { return u32(min((top - x) / width, f32(BINS - 1u))); }
`;

interface HistogramCase extends SampleSizes {
  /** By sequence; there may be more. */
  temperatures: readonly number[];
}

/**
 * Counts the scores in each bin and sums their probability mass. `histogram` has three
 * rows: the low 16 bits of the mass, the rest of the mass, and the count. The mass is in
 * units of 2⁻¹⁹ of that at the bin's upper edge, and is in two rows so that sums over
 * chunks cannot overflow. All are integers, so that sums do not depend on the order of
 * threads.
 */
export const sampleHistogram = defineKernel<HistogramCase>({
  name: "sampleHistogram",
  buffers: {
    ...LOGITS_CONTRACT,
    ...SETTINGS_CONTRACT,
    highest: "sequences chunks any",
    histogram: "inout sequences sums bins as atomic",
  },
  constants: { ...SAMPLE_CONSTANTS, BINS },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${ROW_TOP}
${BIN}
${settingsOf("temperature", "width")}
var<workgroup> mass: array<atomic<u32>, BINS>;
var<workgroup> count: array<atomic<u32>, BINS>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  let top = row_top(sequence, tid);
  let width = width_of(sequence);
  let temperature = temperature_of(sequence);
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > ABSENT) {
        let b = bin_of(x[i][c], top, width);
        let share = exp((x[i][c] - top + f32(b) * width) / temperature);
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
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8, temperatures: [1] },
    { sequences: 2, vocab: 1024, chunks: 1, temperatures: [2.5, 0.7] },
  ],
  makeCase(given, { device, random }) {
    const { sequences, vocab, chunks } = given;
    const temperatures = given.temperatures.slice(0, sequences);
    const widths = temperatures.map(binWidth);
    const logits = binned(random, given, widths), rows = rowsOf(logits);
    return {
      what:
        `[${sequences}, ${vocab}] in ${chunks} chunks, temperature ${temperatures}`,
      operands: {
        logits,
        settings: settingsTensor(
          temperatures.map((temperature, s) => ({
            temperature,
            width: widths[s],
          })),
        ),
        highest: highestOf(given, rows),
        histogram: u32Tensor(
          [sequences, 3, BINS],
          new Uint32Array(sequences * 3 * BINS),
        ),
      },
      constants: laneConstants(device),
      expected: () => {
        const all = rows.map((row, s) =>
          histogramOf(row, widths[s], temperatures[s])
        );
        const count = all.flatMap(({ count }) => [...count]);
        const mass = all.flatMap(({ mass }) => [...mass]);
        const at = (i: number) => Math.floor(i / BINS) * 3 * BINS + i % BINS;
        return [
          {
            of: ({ histogram }) =>
              count.map((_, i) => histogram[at(i) + 2 * BINS]),
            values: count,
            tolerance: 0,
          },
          {
            of: ({ histogram }) =>
              mass.map((_, i) =>
                histogram[at(i)] + 65536 * histogram[at(i) + BINS]
              ),
            values: mass,
            norms: count,
            // Each score's mass is the exp of an f32, rounded to a whole unit.
            tolerance: 8,
          },
        ];
      },
    };
  },
});
