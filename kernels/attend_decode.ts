import { type Grid, kernel } from "../lib/kernel.ts";
import { LANES } from "../lib/wgsl.ts";
import { deriveHeads, HEADS, ROTATE } from "./heads.ts";

// The new key is not in the cache yet: its place is fetched as another's and replaced.
const fetchKeys = (begin: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    let at = cached + min(${begin} + s * KEYS + key_team, last) * WIDTH;
    @unroll for (var i = 0; i < KEY_STEPS; i++) {
      kv[s * KEY_STEPS + i] = k_at(at + min(i * KEY_LANES + key_lane, WIDTH - 1u));
    }
  }`;

const fetchAll = (x: string) => /* wgsl */ `
  let ${x}_units = min(arrayLength(&${x}), left);
  left -= ${x}_units;
  for (var i = worker; i < ${x}_units; i += workers * 8u) {
    @unroll for (var j = 0; j < 8; j++) {
      let unit = ${x}[min(i + workers * j, ${x}_units - 1u)];
      @if ${x.toUpperCase()}_VIEW == "unit" { seen ^= unit; }
      @else { seen.x ^= bitcast<u32>(unit); }
    }
  }`;

/**
 * The grid of a step: `splits` runs of keys, `shares` workgroups for all kv heads,
 * and at least `fetchers` more that read ahead.
 */
export const decodeGrid = (
  splits: number,
  shares: number,
  rows: number,
  fetchers: number,
): Grid => [splits, shares + Math.ceil(fetchers / splits / rows), rows];

/**
 * Attention of one new token per sequence over its KV cache, with everything that
 * comes before it in the same dispatch: q and k norm, RoPE, and the append of k
 * and v. A workgroup takes one kv head for GROUP of its query heads, which share
 * what it reads (SHARES workgroups take all of them), and one of `splits` runs of keys (flash decoding,
 * https://pytorch.org/blog/flash-decoding/), in tiles of TILE keys with a running
 * maximum (online softmax, https://arxiv.org/abs/1805.02867).
 *
 * KEY_LANES threads share a key's product. With one split the result is written
 * at once; with more, `partial` and `stats` go to merge_splits.ts.
 *
 * Few workgroups wait for one another here while the memory idles, so with FETCHERS
 * others read the matrices `next` and `after` meanwhile, AHEAD units of 16 bytes at most.
 */
export const attendDecode = kernel({
  name: "attendDecode",
  buffers: ({ VEC, FETCHERS }) => {
    const view = VEC === 4 ? "vec4" : "scalar";
    return {
      qkv: `m width as ${view}`,
      qNorm: `headDim as ${view}`,
      kNorm: `headDim as ${view}`,
      angles: `positions headDim as ${view}`,
      lengths: "sequences",
      k: `inout sequences kvHeads context headDim as ${view}`,
      v: `inout sequences kvHeads context headDim as ${view}`,
      y: `inout m any as ${view}`,
      partial: `inout any as ${view}`,
      stats: "inout any",
      flags: "inout any",
      ...(FETCHERS ? { next: "any as unit", after: "any as unit" } : {}),
    };
  },
  uniforms: { first: "u32", eps: "f32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    GROUP: 2,
    SHARES: 1,
    VEC: 4,
    WORKGROUP: 128,
    LOG_LANES: 4,
    SUBGROUPS: 1,
    LOG_KEY_LANES: 2,
    TILE: 128,
    FETCHERS: 0,
    AHEAD: 0,
  },
  derive: (c) => {
    const KEY_LANES = 1 << Number(c.LOG_KEY_LANES);
    const WIDTH = Number(c.HEAD_DIM) / Number(c.VEC); // elements in a head
    const KEYS = Number(c.WORKGROUP) / KEY_LANES; // keys of a step
    const RUNS = Math.floor(Number(c.WORKGROUP) / WIDTH); // threads per output element
    return {
      ...deriveHeads(c),
      KEY_LANES,
      KEYS,
      WIDTH,
      RUNS,
      STEPS: Number(c.TILE) / KEYS,
      KEY_STEPS: Math.ceil(WIDTH / KEY_LANES),
      VALUES: Math.ceil(Number(c.TILE) / RUNS),
    };
  },
  grid: ({ kvHeads, m }, { SHARES, FETCHERS }) =>
    decodeGrid(1, kvHeads * SHARES, m, FETCHERS),
  body: /* wgsl */ `
${LANES}
${HEADS}
const TEAMS = WORKGROUP / LANES;
const LOW = -3.0e38; // below every score
var<workgroup> queries: array<E, GROUP * WIDTH>;
var<workgroup> fresh: array<E, 2u * WIDTH>; // the new key and value, not rounded to the cache's type
var<workgroup> weights: array<f32, GROUP * TILE>;
var<workgroup> team_top: array<f32, GROUP * TEAMS>;
var<workgroup> team_sum: array<f32, GROUP * TEAMS>;
var<workgroup> sums: array<E, WORKGROUP>;


@if FETCHERS {
// Reads what is wanted next, so that it is in the cache then. What is read must not
// look unused, so it is compared with what it hardly is.
fn fetch(worker: u32, workers: u32) {
  var seen = vec4u();
  var left = AHEAD;
  ${fetchAll("next")}
  ${fetchAll("after")}
  if (all(seen == vec4u(0x9e3779b9u, 0x7f4a7c15u, 0xf39cc060u, 0x5cedc834u))) { flags[3] = 1u; }
}
}

fn guard(v: E) {
  @if K_DTYPE == "f16" { if (!all(abs(v) <= vec4f(65504.0))) { flags[0] = 1u; } }
}
fn product(a: E, b: E) -> f32 { @if VEC == 4 { return dot(a, b); } @else { return a * b; } }
fn key_sum(v: f32) -> f32 {
  var s = v;
  @unroll for (var b = 0; b < LOG_KEY_LANES; b++) { s += subgroupShuffleXor(s, 1u << b); }
  return s;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  @if FETCHERS {
    if (wg.y >= u.kvHeads * SHARES) {
      let lines = groups.y - u.kvHeads * SHARES;
      let fetcher = (wg.z * lines + wg.y - u.kvHeads * SHARES) * groups.x + wg.x;
      fetch(fetcher * WORKGROUP + tid, groups.z * lines * groups.x * WORKGROUP);
      return;
    }
  }
  let kv_head = wg.y / SHARES;
  let row = wg.z;
  let sequence = u.first + row;
  let position = lengths[sequence];
  let heads = u.kvHeads * SHARES * GROUP;
  let lane = tid % LANES;
  let team = tid / LANES;
  let cached = (sequence * u.kvHeads + kv_head) * u.context * WIDTH;
  let tiles = (position + TILE) / TILE; // of position + 1 keys
  let per_split = (tiles + groups.x - 1u) / groups.x * TILE;
  let begin = wg.x * per_split;
  let end = min(begin + per_split, position + 1u);
  let last = max(position, 1u) - 1u; // the last key that is in the cache already
  let key_lane = tid % KEY_LANES;
  let key_team = tid / KEY_LANES;
  let element = tid % WIDTH;
  let run = tid / WIDTH;

  // Keys of the first tile are on their way while q is normed.
  @split var kv: array<E, STEPS * KEY_STEPS>;
  ${fetchKeys("begin")}

  // GROUP heads of q, then k and v.
  for (var h0 = 0u; h0 < GROUP + 2u; h0 += TEAMS) {
    let h = min(h0 + team, GROUP + 1u);
    var head = wg.y * GROUP + h;
    if (h == GROUP) { head = heads + kv_head; }
    if (h == GROUP + 1u) { head = heads + u.kvHeads + kv_head; }
    @split var a: array<E, PAIRS>;
    @split var b: array<E, PAIRS>;
    var sum = 0.0;
    @unroll for (var p = 0; p < PAIRS; p++) {
      let i = p * LANES + lane;
      if (i < HALF) {
        a[p] = qkv_at(row * (u.width / VEC) + head * WIDTH + i);
        b[p] = qkv_at(row * (u.width / VEC) + head * WIDTH + HALF + i);
        sum += squares(a[p]) + squares(b[p]);
      }
    }
    sum = lanes_sum(sum, tid);
    let scale = inverseSqrt(sum / f32(HEAD_DIM) + u.eps);
    if (h < GROUP) { ${ROTATE("qNorm")} }
    else if (h == GROUP) { ${ROTATE("kNorm")} }
    @unroll for (var p = 0; p < PAIRS; p++) {
      let i = p * LANES + lane;
      if (i < HALF) {
        if (h < GROUP) {
          queries[h * WIDTH + i] = a[p] * u.scale;
          queries[h * WIDTH + HALF + i] = b[p] * u.scale;
        } else {
          fresh[(h - GROUP) * WIDTH + i] = a[p];
          fresh[(h - GROUP) * WIDTH + HALF + i] = b[p];
          if (wg.y % SHARES == 0u && begin <= position && position < begin + per_split) {
            let at = cached + position * WIDTH + i;
            guard(a[p]);
            guard(b[p]);
            if (h == GROUP) {
              k_put(at, a[p]);
              k_put(at + HALF, b[p]);
            } else {
              v_put(at, a[p]);
              v_put(at + HALF, b[p]);
            }
          }
        }
      }
    }
  }
  workgroupBarrier();

  @split var acc: array<E, GROUP>;
  @split var top: array<f32, GROUP>;
  @split var total: array<f32, GROUP>;
  @unroll for (var g = 0; g < GROUP; g++) { top[g] = LOW; }
  for (var t0 = begin; t0 < end; t0 += TILE) {
    if (t0 > begin) { ${fetchKeys("t0")} }
    @split var score: array<f32, GROUP * STEPS>;
    @unroll for (var g = 0; g < GROUP; g++) {
      var high = LOW;
      @unroll for (var s = 0; s < STEPS; s++) {
        let key = t0 + s * KEYS + key_team;
        var sum = 0.0;
        @unroll for (var i = 0; i < KEY_STEPS; i++) {
          let e = i * KEY_LANES + key_lane;
          if (e < WIDTH) { sum += product(queries[g * WIDTH + e], kv[s * KEY_STEPS + i]); }
        }
        if (key == position) {
          sum = 0.0;
          for (var e = key_lane; e < WIDTH; e += KEY_LANES) { sum += product(queries[g * WIDTH + e], fresh[e]); }
        }
        score[g * STEPS + s] = select(LOW, key_sum(sum), key < end);
        high = max(high, score[g * STEPS + s]);
      }
      high = lanes_max(high, tid);
      if (lane == 0u) { team_top[g * TEAMS + team] = high; }
    }
    // Values are fetched while the workgroup agrees on the highest scores.
    @split var value: array<E, VALUES>;
    @unroll for (var i = 0; i < VALUES; i++) {
      value[i] = v_at(cached + min(t0 + i * RUNS + run, last) * WIDTH + element);
    }
    workgroupBarrier();
    @unroll for (var g = 0; g < GROUP; g++) {
      var high = top[g];
      for (var j = lane; j < TEAMS; j += LANES) { high = max(high, team_top[g * TEAMS + j]); }
      high = lanes_max(high, tid);
      let shrink = exp(top[g] - high);
      top[g] = high;
      acc[g] *= shrink;
      total[g] *= shrink;
      var sum = 0.0;
      @unroll for (var s = 0; s < STEPS; s++) {
        let weight = exp(score[g * STEPS + s] - high); // 0 beyond the end
        if (key_lane == 0u) {
          weights[g * TILE + s * KEYS + key_team] = weight;
          sum += weight;
        }
      }
      sum = lanes_sum(sum, tid);
      if (lane == 0u) { team_sum[g * TEAMS + team] = sum; }
    }
    workgroupBarrier();
    @unroll for (var g = 0; g < GROUP; g++) {
      var sum = 0.0;
      for (var j = lane; j < TEAMS; j += LANES) { sum += team_sum[g * TEAMS + j]; }
      total[g] += lanes_sum(sum, tid);
    }
    if (run < RUNS) {
      @unroll for (var i = 0; i < VALUES; i++) {
        let j = i * RUNS + run;
        if (j < TILE && t0 + j < position) { // 0 · NaN is not 0: there may be anything after it
          @unroll for (var g = 0; g < GROUP; g++) { acc[g] += weights[g * TILE + j] * value[i]; }
        }
      }
    }
    if (run == 0u && t0 <= position && position < t0 + TILE) {
      @unroll for (var g = 0; g < GROUP; g++) { acc[g] += weights[g * TILE + position - t0] * fresh[WIDTH + element]; }
    }
    workgroupBarrier(); // weights and the teams' values are written again
  }
  @unroll for (var g = 0; g < GROUP; g++) {
    sums[tid] = acc[g];
    workgroupBarrier();
    if (tid < WIDTH) {
      var sum = sums[tid];
      @unroll for (var r = 1; r < RUNS; r++) { sum += sums[r * WIDTH + tid]; }
      let head = row * heads + wg.y * GROUP + g;
      if (groups.x == 1u) { y_put(head * WIDTH + tid, sum / total[g]); }
      else { partial_put((head * groups.x + wg.x) * WIDTH + tid, sum); }
      if (tid == 0u && groups.x > 1u) {
        stats[(head * groups.x + wg.x) * 2u] = bitcast<u32>(top[g]);
        stats[(head * groups.x + wg.x) * 2u + 1u] = bitcast<u32>(total[g]);
      }
    }
    workgroupBarrier();
  }
  if (tid == 0u) { flags[1] = groups.x; } // how many splits there are to merge
}`,
});
