import { laneConstants } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { CpuTensor } from "../lib/formats/tensor.ts";
import { LOW } from "../lib/webgpu/wgsl.ts";
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
  narrow,
  penalized,
  rowsOf,
  type SampleSizes,
  topKRecords,
} from "./sample_case.ts";
import {
  BEST,
  BINS,
  chunkLength,
  FAULTS,
  GUMBEL,
  ORDER,
  SAMPLE_CONSTANTS,
} from "./sample_scores.ts";

/** Runs `body` for each of this thread's candidates; SHARE threads share a chunk. */
const each = (body: string) => /* wgsl */ `
  for (var j = tid % SHARE; j < mine; j += SHARE) {
    let key = candidates[base + j * 2u];
    let id = candidates[base + j * 2u + 1u];
    ${body}
  }`;

interface FinishCase extends SampleSizes {
  /** Which kernel left the records. */
  from: "winners" | "top-k" | "histogram";
  topK?: number;
  topP?: number;
}

/** Makes a case from its operands and the tokens that must be chosen. */
function finishCase(
  { sequences, vocab, from, topK = 0, topP = 1 }: FinishCase,
  device: CaseTools["device"],
  operands: Record<string, CpuTensor>,
  constants: Constants,
  p: number,
  choose: () => number[],
): KernelCase {
  const steps = 3, length = Math.ceil(vocab / 32);
  const begin = Array.from({ length: sequences }, (_, s) => STEP + s);
  return {
    what: `[${sequences}, ${vocab}] from ${from}` +
      (topK ? `, top-k ${topK}` : "") + (topP < 1 ? `, top-p ${topP}` : ""),
    operands: {
      ...operands,
      tokens: u32(...begin.map(() => 7)),
      ring: u32Tensor([steps, sequences]),
      lengths: u32(...begin.map((_, s) => 10 + s)),
      seen: u32Tensor(
        [sequences, length],
        new Uint32Array(sequences * length).fill(0x10000),
      ),
      step: u32(...begin),
    },
    constants: {
      ...laneConstants(device),
      ...constants,
      TOP_K: topK ? 1 : 0,
      TOP_P: topP < 1 ? 1 : 0,
    },
    uniforms: {
      advance: 2,
      longest: 13,
      temperature: 1,
      lowest: LOW,
      seed: SEED,
      k: topK,
      p,
    },
    expected: () => {
      const tokens = choose();
      const ring = new Float64Array(steps * sequences).fill(0xdeadbeef);
      const seen = new Float64Array(sequences * length).fill(0x10000);
      tokens.forEach((id, s) => {
        ring[begin[s] % steps * sequences + s] = id;
        const at = s * length + (id >>> 5);
        seen[at] = (seen[at] | 1 << (id & 31)) >>> 0;
      });
      const exact = { tolerance: 0 };
      return [
        { of: "tokens", values: tokens, ...exact },
        { of: "ring", values: ring, ...exact },
        {
          of: "lengths",
          values: begin.map((_, s) => Math.min(13, 12 + s)),
          ...exact,
        },
        { of: "seen", values: seen, ...exact },
        { of: "step", values: begin.map((step) => step + 1), ...exact },
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
  const { scores } = penalized(random, given, 1);
  const records = u32Tensor([sequences, chunks, 4]);
  eachChunk(given, (s, c, ids) => {
    const { score, id } = bestOf(ids, (id) => scores[s][id]);
    records.data.set([keyOf(score), id, 0], (s * chunks + c) * 4);
  });
  const all = Array.from({ length: vocab }, (_, id) => id);
  return finishCase(
    given,
    device,
    { records },
    {},
    1,
    () => scores.map((row) => bestOf(all, (id) => row[id]).id),
  );
}

/** What the reference draws for each row. */
const drawn = (
  rows: readonly Float32Array[],
  { reference }: CaseTools,
  topK: number,
  topP: number,
) =>
() =>
  rows.map((row, s) =>
    reference.sample(
      row,
      {
        temperature: 1,
        topK,
        topP,
        minP: 0,
        repetitionPenalty: 1,
        seed: (SEED + s) >>> 0,
      },
      new Uint32Array(),
      STEP + s,
    )
  );

/** A case with records and candidates of sample_top_k.ts. */
function finishTopK(given: FinishCase, tools: CaseTools): KernelCase {
  const { sequences, vocab, chunks, topK = 0, topP = 1 } = given;
  const { scores } = penalized(tools.random, given, 1);
  const room = chunkLength(vocab, chunks);
  const records = u32Tensor([sequences, chunks, 4]);
  const candidates = u32Tensor([sequences, chunks, room, 2]);
  topKRecords(given, scores, topK, 64).forEach((found, i) => {
    const { bound, ids, top, sequence } = found;
    records.data.set([keyOf(bound), 0, ids.length, keyOf(top)], 4 * i);
    ids.forEach((id, j) =>
      candidates.data.set([keyOf(scores[sequence][id]), id], 2 * (i * room + j))
    );
  });
  const p = Math.fround(topP);
  return finishCase(
    given,
    tools.device,
    { records, candidates },
    { WINNERS: 0, CANDIDATES: 1 },
    p,
    drawn(scores, tools, topK, p),
  );
}

/** A case with records, candidates and limits of sample_draw.ts. */
function finishHistogram(given: FinishCase, tools: CaseTools): KernelCase {
  const { sequences, vocab, chunks, topK = 0, topP = 1 } = given;
  const { reference, random } = tools, width = 32 / BINS;
  const logits = binned(random, given, width), rows = rowsOf(logits);
  const room = chunkLength(vocab, chunks);
  const records = u32Tensor([sequences, chunks, 4]);
  const candidates = u32Tensor([sequences, chunks, room, 2]);
  const limits = u32Tensor([sequences, 8]);
  const bins = rows.map((row) => narrow(row, width, 1, { topK, topP }));
  eachChunk(given, (s, c, ids) => {
    const row = rows[s], { begin, end, above, massAbove, all } = bins[s];
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
    records.data.set([keyOf(best.score), best.id, open.length, 0], 4 * i);
    open.forEach((id, j) =>
      candidates.data.set([keyOf(row[id]), id], 2 * (i * room + j))
    );
    limits.data.set([
      bitsOf(0),
      above,
      bitsOf(massAbove),
      bitsOf(all),
      bitsOf(-begin * width),
    ], 8 * s);
  });
  return finishCase(
    given,
    tools.device,
    { records, candidates, limits },
    { CANDIDATES: 1, LIMITS: 1 },
    bins[0].p,
    drawn(rows, tools, topK, bins[0].p),
  );
}

/**
 * Chooses the token of each sequence and advances the decode loop's state: the next
 * step's token, the ring, the length, the bitset of seen tokens, the step. One workgroup
 * per sequence.
 *
 * WINNERS: records begin with the best token of each chunk, `[key, id, …]`.
 * CANDIDATES: top-k and top-p have yet to decide on some tokens.
 * - top-k: finds the lowest score that is kept by bisection, counting tokens.
 * - top-p: first draws as if every remaining token were kept. The draw stands if the mass
 *   ahead of it is below p; otherwise it and all tokens behind it are excluded, and it
 *   draws again. The kept tokens have most of the mass, so one or two draws are enough for
 *   any number of tokens, and nothing is sorted.
 *
 * LIMITS: `limits` says what is above the candidates (sample_draw.ts). Without it,
 * candidates begin at the top of the row and records are those of sample_top_k.ts.
 *
 * If a row cannot be sampled from, the ring has the reason in place of a token (FAULT in
 * lib/dispatch/sampling.ts); the next step reads some valid token.
 */
export const sampleFinish = defineKernel<FinishCase>({
  name: "sampleFinish",
  buffers: (c) => ({
    records: "sequences chunks any",
    ...(c.CANDIDATES ? { candidates: "sequences chunks room any" } : {}),
    ...(c.LIMITS ? { limits: "sequences any" } : {}),
    tokens: "inout sequences",
    ring: "inout steps sequences",
    lengths: "inout sequences",
    seen: "inout sequences words",
    step: "inout sequences",
  }),
  uniforms: {
    advance: "u32",
    longest: "u32",
    temperature: "f32",
    lowest: "f32",
    seed: "u32",
    k: "u32",
    p: "f32",
  },
  constants: {
    ...SAMPLE_CONSTANTS,
    WINNERS: 1,
    CANDIDATES: 0,
    LIMITS: 0,
    TOP_K: 0,
    TOP_P: 0,
  },
  derive: (c, { chunks }) => ({
    LANES: 1 << Number(c.LOG_LANES),
    SHARE: Number(c.WORKGROUP) / chunks,
  }),
  grid: ({ sequences }) => [sequences, 1, 1],
  cost: (call) => samplingCost(call, false),
  body: /* wgsl */ `
${ORDER}
${BEST}
${FAULTS}
@if CANDIDATES {
${GUMBEL}
var<workgroup> top_key: atomic<u32>;
var<workgroup> bound_key: atomic<u32>;
var<workgroup> reaching: array<atomic<u32>, 33>;
var<workgroup> units_high: atomic<u32>;
var<workgroup> units_low: atomic<u32>;
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
  return f32(atomicLoad(&units_high)) * 0x1p-14f + f32(atomicLoad(&units_low)) * 0x1p-28f;
}
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let sequence = wg.x;
  let at = step[sequence];
  var score = ABSENT; // that of the best token that is certainly kept
  var token = 0u;
  @if WINNERS {
    if (tid < u.chunks) {
      let record = (sequence * u.chunks + tid) * 4u;
      score = score_of(records[record]);
      token = records[record + 1u];
    }
  }
  @if !CANDIDATES {
    let best = workgroup_best(score, token, tid);
    let top = score_of(best.x); // after a draw, the row's only if it cannot be sampled from
  } @else {
    let noise = step_key(u.seed + sequence, at);
    let chunk = sequence * u.chunks + tid / SHARE;
    let base = chunk * u.room * 2u;
    let mine = records[chunk * 4u + 2u];
    @if LIMITS {
      let top = bitcast<f32>(limits[sequence * 8u]);
      let ahead = limits[sequence * 8u + 1u];
      let mass_ahead = bitcast<f32>(limits[sequence * 8u + 2u]);
      var all = bitcast<f32>(limits[sequence * 8u + 3u]);
      let edge = bitcast<f32>(limits[sequence * 8u + 4u]);
      var low = 0u;
      var high = order(top);
    } @else {
      if (tid % SHARE == 0u) {
        atomicMax(&bound_key, records[chunk * 4u]);
        atomicMax(&top_key, records[chunk * 4u + 3u]);
      }
      workgroupBarrier();
      var low = atomicLoad(&bound_key);
      var high = atomicLoad(&top_key);
      let top = score_of(high);
      let ahead = 0u;
      let mass_ahead = 0.0;
      var all = 0.0;
      let edge = top;
    }
    let edge_share = exp((edge - top) / u.temperature);

    @if TOP_K {
      // Invariant: k tokens reach low, fewer than k exceed high.
      for (var round = 0u; low < high; round++) {
        let middle = low + (high - low + 1u) / 2u;
        var n = 0.0;
        ${each("n += select(0.0, 1.0, key >= middle);")}
        n = lanes_sum(n, tid);
        if (tid % LANES == 0u) { atomicAdd(&reaching[round], u32(n)); }
        workgroupBarrier();
        let total = ahead + atomicLoad(&reaching[round]);
        if (total >= u.k) { low = middle; } else { high = middle - 1u; }
        if (total == u.k) { high = low; }
      }
      @if TOP_P {
        var units = vec2u();
        ${
    each("if (key >= low) { units += units_of(key, edge, u.temperature); }")
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
      let scaled = (score_of(key) - top) / u.temperature;
      if ((key > limit || (key == limit && id < limit_id)) && scaled >= u.lowest) {
        let value = scaled + gumbel(noise, id);
        if (value > noisy || (value == noisy && id < drawn)) { noisy = value; drawn = id; own = key; }
      }`)
  }
      best = workgroup_best(noisy, drawn, tid);
      @if TOP_P {
        if (order(noisy) == best.x && drawn == best.y) { drawn_key = own; }
        workgroupBarrier();
        let key_of_best = drawn_key;
        var units = vec2u();
        ${
    each(
      "if (key > key_of_best || (key == key_of_best && id < best.y)) { units += units_of(key, edge, u.temperature); }",
    )
  }
        let before = mass_ahead + edge_share * workgroup_mass(units, tid);
        if (key_of_best == 0xffffffffu || before < u.p * all) { break; }
        limit = key_of_best;
        limit_id = best.y;
      } @else { break; }
    }
  }
  if (tid == 0u) {
    tokens[sequence] = best.y;
    let fault = fault_of(top);
    ring[(at % u.steps) * u.sequences + sequence] = select(best.y, fault, fault != 0u);
    lengths[sequence] = min(lengths[sequence] + u.advance, u.longest);
    seen[sequence * u.words + best.y / 32u] |= 1u << (best.y % 32u);
    step[sequence] = at + 1u;
  }
}`,
  cases: [
    { sequences: 3, vocab: 1003, chunks: 2, from: "winners" },
    { sequences: 2, vocab: 5003, chunks: 8, from: "top-k", topK: 20 },
    {
      sequences: 1,
      vocab: 5003,
      chunks: 8,
      from: "top-k",
      topK: 20,
      topP: 0.8,
    },
    { sequences: 1, vocab: 5003, chunks: 8, from: "histogram", topP: 0.9 },
    {
      sequences: 1,
      vocab: 5003,
      chunks: 8,
      from: "histogram",
      topK: 300,
      topP: 0.6,
    },
  ],
  makeCase: (given, tools) =>
    given.from === "winners"
      ? finishWinners(given, tools)
      : given.from === "top-k"
      ? finishTopK(given, tools)
      : finishHistogram(given, tools),
});
