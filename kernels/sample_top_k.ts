import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { type Buffers, SUM } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  penalized,
  type SampleSizes,
  scoreOf,
  topKRecords,
  words,
} from "./sample_case.ts";
import {
  chunkLength,
  deriveChunk,
  LOAD_SCORES,
  logitsContract,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";

interface TopKCase extends SampleSizes {
  penalty: number;
  k: number;
}

/**
 * Finds every token of a chunk that may be among the `k` highest of its row: those whose
 * scores reach the k-th highest of PARTS ≥ k partial maxima. At least k do, ties included,
 * and few more if PARTS is 2 k. Candidates are `[key, id]` in any order; records are
 * `[that bound, 0, candidates, highest key]`.
 */
export const sampleTopK = defineKernel<TopKCase>({
  name: "sampleTopK",
  buffers: (c) => ({
    ...logitsContract(c),
    candidates: "out sequences chunks room any",
    records: "out sequences chunks any",
  }),
  uniforms: { penalty: "f32", k: "u32" },
  constants: { ...SAMPLE_CONSTANTS, PARTS: 64 },
  derive: deriveChunk,
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
var<workgroup> own: array<f32, WORKGROUP>;
var<workgroup> maxima: array<vec4f, PARTS / 4>;
var<workgroup> not_bound: atomic<u32>;
var<workgroup> top: atomic<u32>;
var<workgroup> count: atomic<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  var most = vec4f(ABSENT);
  @unroll for (var i = 0; i < STEPS; i++) { most = max(most, x[i]); }
  own[tid] = max(max(most.x, most.y), max(most.z, most.w));
  workgroupBarrier();
  var part = ABSENT;
  if (tid < PARTS) {
    @unroll for (var i = 0; i < WORKGROUP / PARTS; i++) { part = max(part, own[tid + i * PARTS]); }
    maxima[tid / 4u][tid % 4u] = part;
  }
  workgroupBarrier();
  if (tid < PARTS) {
    var ahead = vec4u();
    for (var j = 0u; j < PARTS / 4u; j += 8u) {
      @unroll for (var i = 0; i < 8; i++) { ahead += select(vec4u(), vec4u(1u), maxima[j + i] > vec4f(part)); }
    }
    let rank = ahead.x + ahead.y + ahead.z + ahead.w;
    if (rank < u.k) { atomicMax(&not_bound, ~order(max(part, MINUS_INFINITY))); }
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
  workgroupBarrier();
  if (tid == 0u) {
    let record = (sequence * u.chunks + chunk) * 4u;
    records[record] = order(bound);
    records[record + 1u] = 0u;
    records[record + 2u] = atomicLoad(&count);
    records[record + 3u] = atomicLoad(&top);
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8, penalty: 1, k: 20 },
    { sequences: 2, vocab: 1024, chunks: 1, penalty: 2, k: 50 },
  ],
  makeCase(given, { device, random }) {
    const { sequences, vocab, chunks, penalty, k } = given;
    const { logits, seen, scores } = penalized(random, given, penalty);
    const room = chunkLength(vocab, chunks), PARTS = k <= 32 ? 64 : 128;
    return {
      what: `top ${k} of [${sequences}, ${vocab}] in ${chunks} chunks` +
        (penalty === 1 ? "" : `, penalty ${penalty}`),
      operands: {
        logits,
        seen,
        candidates: words(sequences, chunks, room, 2),
        records: words(sequences, chunks, 4),
      },
      constants: {
        ...laneConstants(device),
        PENALTY: penalty === 1 ? 0 : 1,
        PARTS,
      },
      uniforms: { penalty, k },
      expected: () => {
        const records = topKRecords(given, scores, k, PARTS);
        const numbers = records.flatMap(({ bound, ids, top }) => [
          bound,
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
