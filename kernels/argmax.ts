import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { type Buffers, SUM } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  bestOf,
  eachChunk,
  logitsOf,
  type SampleSizes,
  scoreOf,
  words,
} from "./sample_case.ts";
import {
  BEST,
  BEST_OF_CHUNK,
  deriveChunk,
  LOAD_SCORES,
  LOGITS_CONTRACT,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";

interface ArgmaxCase extends SampleSizes {
  /** Whether there is a histogram to zero. */
  histogram?: boolean;
}

/**
 * Finds the highest score of each chunk of a row, and the lowest id with that score, and
 * writes records `[key, id, 0, 0]`. With HISTOGRAM it zeroes the histogram that
 * sample_histogram.ts fills next.
 */
export const argmax = defineKernel<ArgmaxCase>({
  name: "argmax",
  buffers: (c) => ({
    ...LOGITS_CONTRACT,
    highest: "out sequences chunks any",
    ...(c.HISTOGRAM ? { histogram: "out sequences sums bins" } : {}),
  }),
  constants: { ...SAMPLE_CONSTANTS, HISTOGRAM: 0 },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${BEST}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}${BEST_OF_CHUNK}
  if (tid == 0u) {
    let record = (sequence * u.chunks + chunk) * 4u;
    highest[record] = own.x;
    highest[record + 1u] = own.y;
    highest[record + 2u] = 0u;
  }
  @if HISTOGRAM {
    let words = u.sums * u.bins;
    for (var i = chunk * WORKGROUP + tid; i < words; i += u.chunks * WORKGROUP) {
      histogram[sequence * words + i] = 0u;
    }
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8 },
    { sequences: 3, vocab: 1024, chunks: 2, histogram: true },
  ],
  makeCase(given, { device, random }) {
    const { sequences, vocab, chunks, histogram = false } = given;
    const { logits, scores } = logitsOf(random, given);
    return {
      what: `[${sequences}, ${vocab}] in ${chunks} chunks`,
      operands: {
        logits,
        highest: words(sequences, chunks, 4),
        histogram: words(sequences, 3, 64),
      },
      constants: {
        ...laneConstants(device),
        HISTOGRAM: histogram ? 1 : 0,
      },
      expected: () => {
        const best: { score: number; id: number }[] = [];
        eachChunk(given, (s, _, ids) => {
          best.push(bestOf(ids, (id) => scores[s][id]));
        });
        const values = best.map(({ score }) => score);
        const word = (i: number) => ({ highest }: Buffers) =>
          best.map((_, record) => highest[record * 4 + i]);
        return [
          {
            of: (buffers) => word(0)(buffers).map(scoreOf),
            values,
            norms: values.map(Math.abs),
            tolerance: SUM,
          },
          { of: word(1), values: best.map(({ id }) => id), tolerance: 0 },
          { of: word(2), values: best.map(() => 0), tolerance: 0 },
          ...(histogram
            ? [{
              of: "histogram",
              values: new Float64Array(sequences * 3 * 64),
              tolerance: 0,
            }]
            : []),
        ];
      },
    };
  },
});
