import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { MOST_LOGPROBS } from "../lib/dispatch/sampling.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { type Buffers, SUM } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  floatOf,
  logitsOf,
  massesOf,
  type SampleSizes,
  scoreOf,
  settingsTensor,
  topKRecords,
  words,
} from "./sample_case.ts";
import {
  chunkLength,
  deriveChunk,
  LOAD_SCORES,
  LOGITS_CONTRACT,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

interface TopKCase extends SampleSizes {
  /** By sequence; with a single one for all, MASS may be set. */
  k: readonly number[];
  mass?: boolean;
}

/**
 * Finds every token of a chunk that may be among the `k` highest of its row: those whose
 * scores reach the k-th highest of PARTS ≥ k partial maxima. At least k do, ties included,
 * and few more if PARTS is 2 k. Candidates are `[key, id]` in any order; records are
 * `[that bound, 0, candidates, highest key]`.
 *
 * MASS is for log probabilities: `k` is the most alternatives that are reported, and in
 * place of the 0 there is the sum of exp(score − highest score of the chunk), an f32.
 */
export const sampleTopK = defineKernel<TopKCase>({
  name: "sampleTopK",
  buffers: (c) => ({
    ...LOGITS_CONTRACT,
    ...(c.MASS ? {} : SETTINGS_CONTRACT),
    candidates: "out sequences chunks room any",
    records: "out sequences chunks any",
  }),
  constants: { ...SAMPLE_CONSTANTS, PARTS: 64, MASS: 0 },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
@if MASS {
${LANES}
} @else {
${settingsOf("k")}
}
var<workgroup> own: array<f32, WORKGROUP>;
var<workgroup> maxima: array<f32, PARTS>;
var<workgroup> not_bound: atomic<u32>;
var<workgroup> top: atomic<u32>;
var<workgroup> count: atomic<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  @if MASS { let k = ${MOST_LOGPROBS}u; } @else { let k = k_of(sequence); }
  var most = vec4f(ABSENT);
  @unroll for (var i = 0; i < STEPS; i++) { most = max(most, x[i]); }
  own[tid] = max(max(most.x, most.y), max(most.z, most.w));
  workgroupBarrier();
  var part = ABSENT;
  if (tid < PARTS) {
    @unroll for (var i = 0; i < WORKGROUP / PARTS; i++) { part = max(part, own[tid + i * PARTS]); }
    maxima[tid] = part; // not part of a vector that other threads write, too
  }
  workgroupBarrier();
  if (tid < PARTS) {
    var ahead = vec4u();
    for (var j = 0u; j < PARTS / 4u; j += 8u) {
      @unroll for (var i = 0; i < 8; i++) {
        let at = 4u * (j + i);
        let four = vec4f(maxima[at], maxima[at + 1u], maxima[at + 2u], maxima[at + 3u]);
        ahead += select(vec4u(), vec4u(1u), four > vec4f(part));
      }
    }
    let rank = ahead.x + ahead.y + ahead.z + ahead.w;
    if (rank < k) { atomicMax(&not_bound, ~order(max(part, MINUS_INFINITY))); }
    if (rank == 0u) { atomicMax(&top, order(part)); }
  }
  workgroupBarrier();

  let bound = score_of(~atomicLoad(&not_bound));
  let base = (sequence * u.chunks + chunk) * u.room;
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] >= bound) {
        let at = (base + atomicAdd(&count, 1u)) * 2u;
        candidates[at] = order(x[i][c]);
        candidates[at + 1u] = first + i * 4u * WORKGROUP + c;
      }
    }
  }
  var mass = 0.0;
  @if MASS {
    let highest = max(score_of(atomicLoad(&top)), MINUS_INFINITY);
    var four = vec4f();
    @unroll for (var i = 0; i < STEPS; i++) { four += exp(x[i] - highest); }
    mass = lanes_sum(four.x + four.y + four.z + four.w, tid);
    if (tid % LANES == 0u) { own[tid / LANES] = mass; }
  }
  workgroupBarrier();
  if (tid == 0u) {
    @if MASS { for (var i = 1u; i < WORKGROUP / LANES; i++) { mass += own[i]; } }
    let record = (sequence * u.chunks + chunk) * 4u;
    records[record] = order(bound);
    records[record + 1u] = bitcast<u32>(mass);
    records[record + 2u] = atomicLoad(&count);
    records[record + 3u] = atomicLoad(&top);
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8, k: [20] },
    { sequences: 2, vocab: 1024, chunks: 1, k: [50, 7] },
    { sequences: 2, vocab: 5003, chunks: 8, k: [20, 20], mass: true },
  ],
  makeCase(given, { device, random }) {
    const { sequences, vocab, chunks, k, mass = false } = given;
    const { logits, scores } = logitsOf(random, given);
    const most = Math.max(...k);
    const room = chunkLength(vocab, chunks), PARTS = most <= 32 ? 64 : 128;
    return {
      what: `top ${k} of [${sequences}, ${vocab}] in ${chunks} chunks` +
        (mass ? ", with mass" : ""),
      operands: {
        logits,
        settings: settingsTensor(k.map((k) => ({ k }))),
        candidates: words(sequences, chunks, room, 2),
        records: words(sequences, chunks, 4),
      },
      constants: { ...laneConstants(device), PARTS, MASS: mass ? 1 : 0 },
      expected: () => {
        const records = scores.flatMap((row, s) =>
          topKRecords({ ...given, sequences: 1 }, [row], k[s], PARTS)
            .map((record) => ({ ...record, sequence: s }))
        );
        const masses = massesOf(given, scores);
        const numbers = records.flatMap(({ bound, ids, top }, i) => [
          bound,
          mass ? masses[i] : 0,
          ids.length,
          top,
        ]);
        // Indexed by token, because candidates are in any order.
        const byToken = (list: [id: number, score: number][][]) =>
          list.flatMap((chunk) => {
            const all = new Float64Array(vocab).fill(NaN);
            for (const [id, score] of chunk) all[id] = score;
            return [...all];
          });
        const found = byToken(
          records.map(({ ids, sequence }) =>
            ids.map((id) => [id, scores[sequence][id]])
          ),
        );
        return [
          {
            of: ({ records: words }: Buffers) =>
              records.flatMap((_, i) => [
                scoreOf(words[4 * i]),
                floatOf(words[4 * i + 1]),
                words[4 * i + 2],
                scoreOf(words[4 * i + 3]),
              ]),
            values: numbers,
            norms: numbers.map(Math.abs),
            tolerance: SUM,
          },
          {
            of: ({ candidates, records: words }: Buffers) =>
              byToken(
                records.map((_, i) =>
                  Array.from({ length: words[4 * i + 2] }, (_, j) => {
                    const at = 2 * (i * room + j);
                    return [candidates[at + 1], scoreOf(candidates[at])];
                  })
                ),
              ),
            values: found,
            norms: found.map(Math.abs),
            tolerance: SUM,
          },
        ];
      },
    };
  },
});
