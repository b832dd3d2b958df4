import { laneConstants } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { CpuTensor } from "../lib/formats/tensor.ts";
import { type CaseTools, type KernelCase, u32, u32Tensor } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  bestOf,
  binned,
  binOf,
  bitsOf,
  drawScore,
  eachChunk,
  keyOf,
  logitsOf,
  narrow,
  rowsOf,
  rowsText,
  type SampleSizes,
  settingsTensor,
  topKRecords,
} from "./sample_case.ts";
import {
  BEST,
  BINS,
  chunkLength,
  FAULTS,
  GUMBEL,
  ORDER,
  recordWords,
  SAMPLE_CONSTANTS,
} from "./sample_scores.ts";
import { SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

/** Runs `body` for each of this thread's candidates; SHARE threads share a chunk. */
const each = (body: string) => /* wgsl */ `
  for (var j = tid % SHARE; j < mine; j += SHARE) {
    let key = candidates[base + j * 2u];
    let id = candidates[base + j * 2u + 1u];
    ${body}
  }`;

/** What advances the decode loop, and the sequences whose state that is. */
export const LOOP_CONTRACT = (c: Constants) => ({
  ...SETTINGS_CONTRACT,
  tokens: "inout sequences",
  ring: "inout steps slots",
  lengths: "inout sequences",
  ...(c.COUNTS ? { history: "inout sequences vocab" } : {}),
  step: "inout sequences",
});

/** Advances it by token `best.y` of a row whose highest score is `top`, in step `at`. */
export const ADVANCE = /* wgsl */ `
    tokens[sequence] = best.y;
    let fault = fault_of(top, masked_of(sequence));
    ring[(at % u.steps) * u.slots + sequence] = select(best.y, fault, fault != 0u);
    lengths[sequence] = min(lengths[sequence] + u.advance, u.longest);
    step[sequence] = at + 1u;
    @if COUNTS { history[sequence * u.vocab + best.y] += 1u; }`;

/** A sequence's limits; greedy ones are drawn from without noise. */
export interface FinishRow {
  topK?: number;
  topP?: number;
  greedy?: boolean;
}

interface FinishCase extends LoopCase {
  from: "winners" | "top-k" | "histogram";
}

/** Sequences of which each gets a token. */
export interface LoopCase extends SampleSizes {
  /** By sequence; the last one is left idle if there are more sequences. */
  rows: readonly FinishRow[];
  /** Whether tokens are counted. */
  counts?: boolean;
  /** Which kernel left records, if one did. */
  from?: string;
}

/** Makes a case from its operands and the tokens that must be chosen. */
export function loopCase(
  { sequences, vocab, rows, counts = false, from }: LoopCase,
  device: CaseTools["device"],
  operands: Record<string, CpuTensor>,
  constants: Constants,
  p: readonly number[],
  choose: () => number[],
): KernelCase {
  const steps = 3;
  const begin = Array.from({ length: sequences }, (_, s) => STEP + s);
  const idle = (s: number) => s >= rows.length;
  const before = Uint32Array.from(
    { length: sequences * vocab },
    (_, i) => i % 3 ? i % 5 : 0x80000000,
  );
  return {
    what: `[${sequences}, ${vocab}]${from ? ` from ${from}` : ""}, ${
      rowsText(rows)
    }${counts ? ", counted" : ""}`,
    operands: {
      ...operands,
      settings: settingsTensor(begin.map((_, s) =>
        idle(s) ? { idle: 1 } : {
          seed: (SEED + s) >>> 0,
          k: rows[s].greedy ? 1 : rows[s].topK ?? 0,
          p: p[s],
          noise: rows[s].greedy ? 0 : 1,
        }
      )),
      tokens: u32(...begin.map(() => 7)),
      ring: u32Tensor([steps, sequences]),
      lengths: u32(...begin.map((_, s) => 10 + s)),
      history: u32Tensor([sequences, vocab], before.slice()),
      step: u32(...begin),
    },
    constants: {
      ...laneConstants(device),
      ...constants,
      COUNTS: counts ? 1 : 0,
    },
    uniforms: { advance: 2, longest: 13 },
    expected: () => {
      const tokens = choose().map((id, s) => idle(s) ? 7 : id);
      const ring = new Float64Array(steps * sequences).fill(0xdeadbeef);
      const history = Float64Array.from(before);
      tokens.forEach((id, s) => {
        if (idle(s)) return;
        ring[begin[s] % steps * sequences + s] = id;
        history[s * vocab + id]++;
      });
      const exact = { tolerance: 0 };
      return [
        { of: "tokens", values: tokens, ...exact },
        { of: "ring", values: ring, ...exact },
        {
          of: "lengths",
          values: begin.map((_, s) => idle(s) ? 10 + s : Math.min(13, 12 + s)),
          ...exact,
        },
        ...(counts ? [{ of: "history", values: history, ...exact }] : []),
        {
          of: "step",
          values: begin.map((step, s) => idle(s) ? step : step + 1),
          ...exact,
        },
      ];
    },
  };
}

const SEED = 4_294_967_295, STEP = 4;

/** A case with records of argmax or of a draw: the best one wins. */
function finishWinners(
  given: FinishCase,
  { device, random }: CaseTools,
): KernelCase {
  const { sequences, chunks, vocab } = given;
  const { scores } = logitsOf(random, given);
  const records = u32Tensor([sequences, chunks, 4]);
  eachChunk(given, (s, c, ids) => {
    const { score, id } = bestOf(ids, (id) => scores[s][id]);
    records.data.set([keyOf(score), id, 0], (s * chunks + c) * 4);
  });
  const all = Array.from({ length: vocab }, (_, id) => id);
  return loopCase(
    given,
    device,
    { records },
    {},
    scores.map(() => 1),
    () => scores.map((row) => bestOf(all, (id) => row[id]).id),
  );
}

/** What the reference draws for each row. */
const drawn = (
  logits: readonly Float32Array[],
  { reference }: CaseTools,
  rows: readonly FinishRow[],
  p: readonly number[],
) =>
() =>
  logits.map((row, s) =>
    reference.sample(
      row,
      {
        temperature: rows[s]?.greedy ? 0 : 1,
        topK: rows[s]?.topK ?? 0,
        topP: p[s],
        seed: (SEED + s) >>> 0,
      },
      STEP + s,
    )
  );

/** A case with records and candidates of sample_top_k.ts. */
function finishTopK(given: FinishCase, tools: CaseTools): KernelCase {
  const { sequences, vocab, chunks, rows } = given;
  const { scores } = logitsOf(tools.random, given);
  const room = chunkLength(vocab, chunks);
  const records = u32Tensor([sequences, chunks, 4]);
  const candidates = u32Tensor([sequences, chunks, room, 2]);
  const one = { ...given, sequences: 1 };
  const found = scores.flatMap((row, s) =>
    topKRecords(one, [row], rows[s]?.topK ?? 1, 64)
      .map((record) => ({ ...record, row }))
  );
  found.forEach(({ bound, ids, top, row }, i) => {
    records.data.set([keyOf(bound), 0, ids.length, keyOf(top)], 4 * i);
    ids.forEach((id, j) =>
      candidates.data.set([keyOf(row[id]), id], 2 * (i * room + j))
    );
  });
  const p = scores.map((_, s) => Math.fround(rows[s]?.topP ?? 1));
  return loopCase(
    given,
    tools.device,
    { records, candidates },
    { WINNERS: 0, CANDIDATES: 1 },
    p,
    drawn(scores, tools, rows, p),
  );
}

/** A case with records and candidates of sample_draw.ts. */
function finishHistogram(given: FinishCase, tools: CaseTools): KernelCase {
  const { sequences, vocab, chunks, rows } = given;
  const { reference, random } = tools, width = 32 / BINS;
  const widths = Array.from({ length: sequences }, () => width);
  const logits = rowsOf(binned(random, given, widths));
  const room = chunkLength(vocab, chunks), words = recordWords(true);
  const records = u32Tensor([sequences, chunks, words]);
  const candidates = u32Tensor([sequences, chunks, room, 2]);
  const bins = logits.map((row, s) => {
    const { topK = 0, topP = 1, greedy = false } = rows[s] ?? {};
    return narrow(row, width, 1, { topK: greedy ? 1 : topK, topP });
  });
  eachChunk(given, (s, c, ids) => {
    const row = logits[s], { begin, end, above, massAbove, all } = bins[s];
    const bin = (id: number) => binOf(row[id], 0, width);
    const draw = {
      row,
      temperature: 1,
      seed: (SEED + s) >>> 0,
      step: STEP + s,
    };
    const best = bestOf(
      ids.filter((id) => bin(id) < begin),
      (id) => drawScore(reference, { ...draw, id }, 0),
    );
    const open = ids.filter((id) => bin(id) >= begin && bin(id) <= end);
    const i = s * chunks + c;
    records.data.set([
      keyOf(best.score),
      best.id,
      open.length,
      keyOf(0),
      above,
      bitsOf(massAbove),
      bitsOf(all),
      bitsOf(-begin * width),
    ], words * i);
    open.forEach((id, j) =>
      candidates.data.set([keyOf(row[id]), id], 2 * (i * room + j))
    );
  });
  const p = bins.map((found) => found.p);
  return loopCase(
    given,
    tools.device,
    { records, candidates },
    { CANDIDATES: 1, ABOVE: 1 },
    p,
    drawn(logits, tools, rows, p),
  );
}

/**
 * Chooses the token of each sequence and advances the decode loop's state: the next
 * step's token, the ring, the length, the step and, with COUNTS, how often the token was
 * generated. One workgroup per sequence. The state of idle sequences stays as it is.
 *
 * WINNERS: records begin with the best token of each chunk, `[key, id, …]`.
 * CANDIDATES: top-k and top-p have yet to decide on some tokens.
 * - top-k: finds the lowest score that is kept by bisection, counting tokens.
 * - top-p: first draws as if every remaining token were kept. The draw stands if the mass
 *   ahead of it is below p; otherwise it and all tokens behind it are excluded, and it
 *   draws again. The kept tokens have most of the mass, so one or two draws are enough for
 *   any number of tokens, and nothing is sorted.
 *
 * ABOVE: records say what is above the candidates (sample_draw.ts). Without it, candidates
 * begin at the top of the row and records are those of sample_top_k.ts.
 *
 * If a row cannot be sampled from, the ring has the reason in place of a token (FAULT in
 * lib/dispatch/sampling.ts); the next step reads some valid token.
 */
export const sampleFinish = defineKernel<FinishCase>({
  name: "sampleFinish",
  buffers: (c) => ({
    records: "sequences chunks any",
    ...(c.CANDIDATES ? { candidates: "sequences chunks room any" } : {}),
    ...LOOP_CONTRACT(c),
  }),
  uniforms: { advance: "u32", longest: "u32" },
  constants: {
    ...SAMPLE_CONSTANTS,
    WINNERS: 1,
    CANDIDATES: 0,
    ABOVE: 0,
    COUNTS: 0,
  },
  derive: (c, { chunks }) => ({
    LANES: 1 << Number(c.LOG_LANES),
    SHARE: Number(c.WORKGROUP) / chunks,
    RECORD: recordWords(c.ABOVE === 1),
  }),
  grid: ({ sequences }) => [sequences, 1, 1],
  cost: (call) => samplingCost(call, false),
  body: /* wgsl */ `
${ORDER}
${BEST}
${FAULTS}
${settingsOf("masked", "idle")}
@if CANDIDATES {
${GUMBEL}
${settingsOf("temperature", "noise", "lowest", "seed", "k", "p")}
var<workgroup> top_key: atomic<u32>;
var<workgroup> bound_key: atomic<u32>;
var<workgroup> range: vec2u;
var<workgroup> reaching: array<atomic<u32>, 33>;
var<workgroup> reaching_all: u32;
var<workgroup> units_high: atomic<u32>;
var<workgroup> units_low: atomic<u32>;
var<workgroup> mass: f32;
var<workgroup> drawn_key: u32;

// Probability mass relative to that of the score at edge, in units of 2⁻²⁸: an integer
// in two halves, so that fewer than 2¹⁸ of them sum in any order without overflow.
fn units_of(key: u32, edge: f32, temperature: f32) -> vec2u {
  let share = min(exp((score_of(key) - edge) / temperature), 1.0);
  let units = u32(share * 0x1p28f + 0.5);
  return vec2u(units >> 14u, units & 0x3fffu);
}
fn workgroup_mass(units: vec2u, tid: u32) -> f32 {
  if (tid == 0u) { atomicStore(&units_high, 0u); atomicStore(&units_low, 0u); }
  workgroupBarrier();
  if (units.x > 0u || units.y > 0u) { atomicAdd(&units_high, units.x); atomicAdd(&units_low, units.y); }
  workgroupBarrier();
  if (tid == 0u) { mass = f32(atomicLoad(&units_high)) * 0x1p-14f + f32(atomicLoad(&units_low)) * 0x1p-28f; }
  return workgroupUniformLoad(&mass);
}
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let sequence = wg.x;
  if (idle_of(sequence) > 0u) { return; }
  let at = step[sequence];
  var score = ABSENT; // that of the best token that is certainly kept
  var token = 0u;
  @if WINNERS {
    if (tid < u.chunks) {
      let record = (sequence * u.chunks + tid) * RECORD;
      score = score_of(records[record]);
      token = records[record + 1u];
    }
  }
  @if !CANDIDATES {
    let best = workgroup_best(score, token, tid);
    let top = score_of(best.x); // after a draw, the row's only if it cannot be sampled from
  } @else {
    let k = k_of(sequence);
    let p = p_of(sequence);
    let temperature = temperature_of(sequence);
    let lowest = lowest_of(sequence);
    let noise = noise_of(sequence);
    let noise_key = step_key(seed_of(sequence), at);
    let chunk = sequence * u.chunks + tid / SHARE;
    let base = chunk * u.room * 2u;
    let mine = records[chunk * RECORD + 2u];
    // Keys between which the lowest that top-k keeps is.
    @if ABOVE {
      let above = sequence * u.chunks * RECORD;
      var high = records[above + 3u];
      var low = 0u;
      let ahead = records[above + 4u];
      let mass_ahead = bitcast<f32>(records[above + 5u]);
      var all = bitcast<f32>(records[above + 6u]);
      let edge = bitcast<f32>(records[above + 7u]);
    } @else {
      if (tid % SHARE == 0u) {
        atomicMax(&bound_key, records[chunk * RECORD]);
        atomicMax(&top_key, records[chunk * RECORD + 3u]);
      }
      workgroupBarrier();
      if (tid == 0u) { range = vec2u(atomicLoad(&bound_key), atomicLoad(&top_key)); }
      let found = workgroupUniformLoad(&range);
      var high = found.y;
      var low = found.x;
      let ahead = 0u;
      let mass_ahead = 0.0;
      var all = 0.0;
      let edge = score_of(high);
    }
    let top = score_of(high);
    let edge_share = exp((edge - top) / temperature);

    if (k > 0u) {
      if (k == 1u) { low = high; }
      // Invariant: k tokens reach low, fewer than k exceed high.
      for (var round = 0u; low < high; round++) {
        let middle = low + (high - low + 1u) / 2u;
        var n = 0.0;
        ${each("n += select(0.0, 1.0, key >= middle);")}
        n = lanes_sum(n, tid);
        if (tid % LANES == 0u) { atomicAdd(&reaching[round], u32(n)); }
        workgroupBarrier();
        if (tid == 0u) { reaching_all = atomicLoad(&reaching[round]); }
        let total = ahead + workgroupUniformLoad(&reaching_all);
        if (total >= k) { low = middle; } else { high = middle - 1u; }
        if (total == k) { high = low; }
      }
      if (p < 1.0) {
        var units = vec2u();
        ${
    each("if (key >= low) { units += units_of(key, edge, temperature); }")
  }
        all = mass_ahead + edge_share * workgroup_mass(units, tid);
      }
    }

    // Candidates ahead of (limit, limit_id) remain.
    var limit = low;
    var limit_id = 0xffffffffu;
    var best = vec2u();
    for (;;) {
      var noisy = score;
      var drawn = token;
      var own = 0xffffffffu;
      ${
    each(`
      let scaled = (score_of(key) - top) / temperature;
      if ((key > limit || (key == limit && id < limit_id)) && scaled >= lowest) {
        let value = scaled + noise * gumbel(noise_key, id);
        if (value > noisy || (value == noisy && id < drawn)) { noisy = value; drawn = id; own = key; }
      }`)
  }
      best = workgroup_best(noisy, drawn, tid);
      if (p >= 1.0) { break; }
      if (order(noisy) == best.x && drawn == best.y) { drawn_key = own; }
      let key_of_best = workgroupUniformLoad(&drawn_key);
      var units = vec2u();
      ${
    each(
      "if (key > key_of_best || (key == key_of_best && id < best.y)) { units += units_of(key, edge, temperature); }",
    )
  }
      let before = mass_ahead + edge_share * workgroup_mass(units, tid);
      if (key_of_best == 0xffffffffu || before < p * all) { break; }
      limit = key_of_best;
      limit_id = best.y;
    }
  }
  if (tid == 0u) {${ADVANCE}
  }
}`,
  cases: [
    { sequences: 3, vocab: 1003, chunks: 2, from: "winners", rows: [{}, {}] },
    {
      sequences: 2,
      vocab: 5003,
      chunks: 8,
      from: "top-k",
      rows: [{ topK: 20 }, { topK: 3 }],
    },
    {
      sequences: 3,
      vocab: 5003,
      chunks: 8,
      from: "top-k",
      rows: [{ topK: 20, topP: 0.8 }, { topK: 1, greedy: true }],
      counts: true,
    },
    {
      sequences: 1,
      vocab: 5003,
      chunks: 8,
      from: "histogram",
      rows: [{ topP: 0.9 }],
    },
    {
      sequences: 3,
      vocab: 5003,
      chunks: 8,
      from: "histogram",
      rows: [{ topK: 300, topP: 0.6 }, { greedy: true }, {}],
      counts: true,
    },
  ],
  makeCase: (given, tools) =>
    given.from === "winners"
      ? finishWinners(given, tools)
      : given.from === "top-k"
      ? finishTopK(given, tools)
      : finishHistogram(given, tools),
});
