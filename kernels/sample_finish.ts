import { BEST, GUMBEL, ORDER, SAMPLE_CONSTANTS } from "./sample_scores.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/** Runs `body` for every candidate `key`, `id` of this thread: SHARE threads go through a chunk's. */
const each = (body: string) => /* wgsl */ `
  for (var j = tid % SHARE; j < mine; j += SHARE) {
    let key = candidates[base + j * 2u];
    let id = candidates[base + j * 2u + 1u];
    ${body}
  }`;

/**
 * Chooses the token of each sequence and moves the decode loop on: the next
 * step's token, the ring, the length, the bitset of seen tokens, the step. One
 * workgroup per sequence.
 *
 * WINNERS: records begin with the best token of each chunk, `[key, id, …]`.
 * CANDIDATES: there are tokens on which top-k and top-p have yet to decide.
 * - top-k: its lowest score is bisected, by counting.
 * - top-p: the draw is made first, as if everything left were kept, and then
 *   stands if the mass ahead of it is below p. If not, it and all behind it
 *   are out, and it is drawn again: what is kept has most of the mass, so once
 *   or twice is enough, whatever the number of tokens, and nothing is sorted.
 *
 * LIMITS: what lies above the candidates (sample_draw.ts); else they begin at
 * the top of the row, and records are those of sample_top_k.ts.
 */
export const sampleFinish = defineKernel({
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
const ABSENT = -3.0e38;
@if CANDIDATES {
${GUMBEL}
var<workgroup> top_key: atomic<u32>;
var<workgroup> bound_key: atomic<u32>;
var<workgroup> reaching: array<atomic<u32>, 33>;
var<workgroup> units_high: atomic<u32>;
var<workgroup> units_low: atomic<u32>;
var<workgroup> drawn_key: u32;

// Probability mass relative to score edge, in units of 2⁻²⁸: whole numbers in
// two halves, so that the sum of fewer than 2¹⁸ of them neither overflows nor
// depends on the order of threads.
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
  var score = ABSENT; // of the best token that is surely kept
  var token = 0u;
  @if WINNERS {
    if (tid < u.chunks) {
      let record = (sequence * u.chunks + tid) * 4u;
      score = score_of(records[record]);
      token = records[record + 1u];
    }
  }
  @if !CANDIDATES { let best = workgroup_best(score, token, tid); }
  @else {
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
      // Always: k tokens reach low, fewer than k exceed high.
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

    // Of the candidates those remain that come before (limit, limit_id).
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
    ring[(at % u.steps) * u.sequences + sequence] = best.y;
    lengths[sequence] = min(lengths[sequence] + u.advance, u.longest);
    seen[sequence * u.words + best.y / 32u] |= 1u << (best.y % 32u);
    step[sequence] = at + 1u;
  }
}`,
});
