import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { u32Tensor } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { bestOf, logitsOf } from "./sample_case.ts";
import {
  ADVANCE,
  LOOP_CONTRACT,
  type LoopCase,
  loopCase,
} from "./sample_finish.ts";
import {
  BEST,
  BEST_OF_CHUNK,
  deriveChunk,
  LOAD_SCORES,
  LOGITS_CONTRACT,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { settingsOf } from "./sample_settings.ts";

/** Words of `found`: the best score and token of each chunk, then a counter per sequence. */
export const foundWords = (sequences: number, chunks: number): number =>
  sequences * (2 * chunks + 1);

/**
 * Greedy sampling in one dispatch: finds the highest score of each of CHUNKS chunks of a row, as
 * argmax.ts does, and the last workgroup of a row to count itself chooses the token with the
 * highest of all, the lowest id of several, and advances the decode loop as sample_finish.ts
 * does.
 *
 * As in attend_project.ts, each word of `found` is its own flag: it is 0 until the result
 * arrives, and the workgroup that reads it resets it. Tokens are stored plus one.
 */
export const sampleGreedy = defineKernel<LoopCase>({
  name: "sampleGreedy",
  buffers: (c) => ({
    ...LOGITS_CONTRACT,
    found: "inout any as atomic",
    ...LOOP_CONTRACT(c),
  }),
  uniforms: { advance: "u32", longest: "u32" },
  constants: { ...SAMPLE_CONSTANTS, CHUNKS: 1, COUNTS: 0 },
  derive: (c, dims) => deriveChunk(c, { ...dims, chunks: Number(c.CHUNKS) }),
  grid: ({ sequences }, { CHUNKS }) => [CHUNKS, sequences, 1],
  cost: (call) => samplingCost(call, true),
  body: /* wgsl */ `
${SCORES}
${BEST}
${settingsOf("masked", "idle")}
var<workgroup> before: u32;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  if (idle_of(sequence) > 0u) { return; }${BEST_OF_CHUNK}
  let counter = u.sequences * CHUNKS * 2u + sequence;
  if (tid == 0u) {
    atomicStore(&found[(sequence * CHUNKS + chunk) * 2u], own.x);
    atomicStore(&found[(sequence * CHUNKS + chunk) * 2u + 1u], own.y + 1u);
    before = atomicAdd(&found[counter], 1u);
  }
  if (workgroupUniformLoad(&before) + 1u < CHUNKS) { return; }
  let at = step[sequence];
  if (tid == 0u) { atomicStore(&found[counter], 0u); } // ready for the next step
  score = ABSENT;
  id = 0u;
  if (tid < CHUNKS) {
    let record = (sequence * CHUNKS + tid) * 2u;
    var key = atomicLoad(&found[record]);
    var next = atomicLoad(&found[record + 1u]);
    // They were stored, and will be seen; if not, the row is at fault.
    for (var i = 0u; i < 65536u && (key == 0u || next == 0u); i++) {
      key = atomicLoad(&found[record]);
      next = atomicLoad(&found[record + 1u]);
    }
    atomicStore(&found[record], 0u);
    atomicStore(&found[record + 1u], 0u);
    score = select(score_of(key), NOT_A_NUMBER, key == 0u || next == 0u);
    id = max(next, 1u) - 1u;
  }
  let best = workgroup_best(score, id, tid);
  let top = score_of(best.x);
  if (tid == 0u) {${ADVANCE}
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8, rows: [{ greedy: true }] },
    {
      ...{ sequences: 3, vocab: 1003, chunks: 2, counts: true },
      rows: [{ greedy: true }, { greedy: true }],
    },
  ],
  makeCase(given, { device, random }) {
    const { sequences, vocab, chunks } = given;
    const { logits, scores } = logitsOf(random, given);
    const all = Array.from({ length: vocab }, (_, id) => id);
    const words = new Uint32Array(foundWords(sequences, chunks));
    const one = loopCase(
      given,
      device,
      { logits, found: u32Tensor([words.length], words) },
      { CHUNKS: chunks, ...laneConstants(device) },
      scores.map(() => 1),
      () => scores.map((row) => bestOf(all, (id) => row[id]).id),
    );
    return {
      ...one,
      what: `${one.what} in ${chunks} chunks`,
      expected: () => [
        ...one.expected(),
        { of: "found", values: new Float64Array(words.length), tolerance: 0 },
      ],
    };
  },
});
