import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { MOST_LOGPROBS } from "../lib/dispatch/sampling.ts";
import { u32, u32Tensor } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  bitsOf,
  floatOf,
  keyOf,
  logitsOf,
  massesOf,
  type SampleSizes,
  settingsTensor,
  topKRecords,
} from "./sample_case.ts";
import {
  BEST,
  chunkLength,
  ORDER,
  SAMPLE_CONSTANTS,
  STANDINS,
} from "./sample_scores.ts";
import { SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

interface LogprobsCase extends SampleSizes {
  /** By sequence; the last one is left idle if there are more sequences. */
  alternatives: readonly number[];
}

/** Words that describe a sampled token: see {@linkcode sampleLogprobs}. */
export const LOGPROB_WORDS = 2 + 2 * MOST_LOGPROBS;

/**
 * Computes log(softmax(logits)) of each sequence's token, which sample_finish.ts has just
 * chosen, and of the most likely tokens, in order, from records and candidates of
 * sample_top_k.ts with MASS. Writes `[log probability, n, then n × (id, log probability)]`
 * where the ring has the token; what lies far below every log probability stands for
 * tokens that cannot come next. One workgroup per sequence.
 */
export const sampleLogprobs = defineKernel<LogprobsCase>({
  name: "sampleLogprobs",
  buffers: {
    logits: "sequences vocab",
    ...SETTINGS_CONTRACT,
    records: "sequences chunks any",
    candidates: "sequences chunks room any",
    tokens: "sequences",
    step: "sequences",
    logprobs: "inout steps slots any",
  },
  constants: SAMPLE_CONSTANTS,
  derive: (c, { chunks }) => ({
    LANES: 1 << Number(c.LOG_LANES),
    SHARE: Number(c.WORKGROUP) / chunks,
  }),
  grid: ({ sequences }) => [sequences, 1, 1],
  cost: (call) => samplingCost(call, false),
  body: /* wgsl */ `
${ORDER}
${BEST}
${STANDINS}
${settingsOf("alternatives", "idle")}
var<workgroup> top_key: atomic<u32>;
var<workgroup> bound_key: atomic<u32>;
var<workgroup> masses: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let sequence = wg.x;
  if (idle_of(sequence) > 0u) { return; }
  let chunk = sequence * u.chunks + tid / SHARE;
  if (tid % SHARE == 0u) {
    atomicMax(&bound_key, records[chunk * 4u]);
    atomicMax(&top_key, records[chunk * 4u + 3u]);
  }
  workgroupBarrier();
  let top = score_of(atomicLoad(&top_key));
  let bound = atomicLoad(&bound_key); // at least as many tokens reach it as are reported
  if (tid % SHARE == 0u) {
    let part = bitcast<f32>(records[chunk * 4u + 1u]);
    masses[tid / SHARE] = part * exp(score_of(records[chunk * 4u + 3u]) - top);
  }
  workgroupBarrier();
  var mass = 0.0;
  let at = (((step[sequence] - 1u) % u.steps) * u.slots + sequence) * ${LOGPROB_WORDS}u;
  let n = alternatives_of(sequence);
  if (tid == 0u) {
    for (var i = 0u; i < u.chunks; i++) { mass += masses[i]; }
    let chosen = clamp(logits_at(sequence * u.vocab + tokens[sequence]), -HIGHEST, HIGHEST);
    logprobs[at] = bitcast<u32>(chosen - top - log(mass));
    logprobs[at + 1u] = n;
  }
  // Candidates behind (limit, limit_id) remain.
  let base = chunk * u.room * 2u;
  let mine = records[chunk * 4u + 2u];
  var limit = 0xffffffffu;
  var limit_id = 0u;
  for (var i = 0u; i < n; i++) {
    var best_key_of_mine = 0u;
    var id_of_mine = 0u;
    for (var j = tid % SHARE; j < mine; j += SHARE) {
      let key = candidates[base + j * 2u];
      let id = candidates[base + j * 2u + 1u];
      let left = key >= bound && (key < limit || (key == limit && id > limit_id));
      if (left && (key > best_key_of_mine || (key == best_key_of_mine && id < id_of_mine))) {
        best_key_of_mine = key;
        id_of_mine = id;
      }
    }
    let score = select(ABSENT, score_of(best_key_of_mine), best_key_of_mine > 0u);
    let best = workgroup_best(score, id_of_mine, tid);
    if (tid == 0u) {
      logprobs[at + 2u + 2u * i] = best.y;
      logprobs[at + 3u + 2u * i] = bitcast<u32>(score_of(best.x) - top - log(mass));
    }
    limit = best.x;
    limit_id = best.y;
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, chunks: 8, alternatives: [20] },
    { sequences: 4, vocab: 1024, chunks: 1, alternatives: [0, 3, 20] },
  ],
  makeCase(given, { device, random, reference }) {
    const { sequences, vocab, chunks, alternatives } = given, steps = 3;
    const { logits, scores } = logitsOf(random, given);
    const room = chunkLength(vocab, chunks);
    const records = u32Tensor([sequences, chunks, 4]);
    const candidates = u32Tensor([sequences, chunks, room, 2]);
    const masses = massesOf(given, scores);
    const found = topKRecords(given, scores, MOST_LOGPROBS, 64);
    found.forEach(({ bound, ids, top, sequence }, i) => {
      const record = [keyOf(bound), bitsOf(masses[i]), ids.length, keyOf(top)];
      records.data.set(record, 4 * i);
      ids.forEach((id, j) =>
        candidates.data.set(
          [keyOf(scores[sequence][id]), id],
          2 * (i * room + j),
        )
      );
    });
    const tokens = scores.map(() => random.int(0, vocab - 1));
    const step = scores.map((_, s) => 1 + s);
    const active = alternatives.slice(0, sequences);
    return {
      what: `${alternatives} of [${sequences}, ${vocab}] in ${chunks} chunks`,
      operands: {
        logits,
        settings: settingsTensor(scores.map((_, s) => ({
          alternatives: active[s] ?? 0,
          idle: s < active.length ? 0 : 1,
        }))),
        records,
        candidates,
        tokens: u32(...tokens),
        step: u32(...step),
        logprobs: u32Tensor([steps, sequences, LOGPROB_WORDS]),
      },
      constants: laneConstants(device),
      expected: () => {
        const all = scores.map((row) => reference.logSoftmax(row));
        const top = scores.map((row) =>
          [...row.keys()].sort((a, b) => row[b] - row[a] || a - b)
        );
        const at = (s: number) =>
          ((step[s] - 1) % steps * sequences + s) * LOGPROB_WORDS;
        const whole = new Set<number>(), floats = new Map<number, number>();
        const values = new Float64Array(steps * sequences * LOGPROB_WORDS)
          .fill(0xdeadbeef);
        active.forEach((n, s) => {
          floats.set(at(s), all[s][tokens[s]]);
          values[at(s) + 1] = n;
          for (let i = 0; i < n; i++) {
            const word = at(s) + 2 + 2 * i;
            // Of vocabularies smaller than n, the rest has no meaning.
            values[word] = top[s][i] ?? 0;
            floats.set(word + 1, all[s][top[s][i]] ?? -3e38);
          }
        });
        for (const word of values.keys()) {
          if (!floats.has(word)) whole.add(word);
        }
        const logs = [...floats.values()];
        return [{
          of: ({ logprobs }) => [...whole].map((i) => logprobs[i]),
          values: [...whole].map((i) => values[i]),
          tolerance: 0,
        }, {
          of: ({ logprobs }) =>
            [...floats.keys()].map((i) => floatOf(logprobs[i])),
          values: logs,
          norms: logs.map((x) => Math.max(1, Math.abs(x))),
          tolerance: 2e-6,
        }];
      },
    };
  },
});
