import { kernel } from "../lib/kernel.ts";
import { LANES } from "../lib/wgsl.ts";
import { deriveHeads, HEADS, ROTATE } from "./heads.ts";

/**
 * Attention of one new token per sequence over its KV cache, with everything that
 * comes before it in the same dispatch: q and k norm, RoPE, and the append of k
 * and v. A workgroup takes one kv head, whose GROUP query heads share what it
 * reads, and one of `splits` runs of keys (flash decoding,
 * https://pytorch.org/blog/flash-decoding/), in tiles of TILE keys with a running
 * maximum (online softmax, https://arxiv.org/abs/1805.02867).
 *
 * KEY_LANES threads share a key's product. With one split the result is written
 * at once; with more, `partial` and `stats` go to merge_splits.ts.
 */
export const attendDecode = kernel({
  name: "attendDecode",
  buffers: ({ VEC }) => {
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
    };
  },
  uniforms: { first: "u32", eps: "f32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    GROUP: 2,
    VEC: 4,
    WORKGROUP: 128,
    LOG_LANES: 4,
    SUBGROUPS: 1,
    LOG_KEY_LANES: 2,
    TILE: 128,
  },
  derive: (c) => {
    const KEY_LANES = 1 << Number(c.LOG_KEY_LANES);
    return {
      ...deriveHeads(c),
      KEY_LANES,
      KEYS: Number(c.WORKGROUP) / KEY_LANES,
      WIDTH: Number(c.HEAD_DIM) / Number(c.VEC), // elements in a head
      KEY_STEPS: Math.ceil(Number(c.HEAD_DIM) / Number(c.VEC) / KEY_LANES),
    };
  },
  grid: ({ kvHeads, m }) => [1, kvHeads, m],
  body: /* wgsl */ `
${LANES}
${HEADS}
const RUNS = WORKGROUP / WIDTH; // threads that share an element of the output
var<workgroup> queries: array<E, GROUP * WIDTH>;
var<workgroup> scores: array<f32, GROUP * TILE>;
var<workgroup> highest: array<f32, GROUP>;
var<workgroup> total: array<f32, GROUP>;
var<workgroup> shrink: array<f32, GROUP>;
var<workgroup> sums: array<E, WORKGROUP>;

fn guard(v: E) {
  @if K_DTYPE == "f16" { if (any(abs(v) > vec4f(65504.0))) { flags[0] = 1u; } }
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
  let kv_head = wg.y;
  let row = wg.z;
  let sequence = u.first + row;
  let position = lengths[sequence];
  let heads = u.kvHeads * GROUP;
  let lane = tid % LANES;
  let cached = (sequence * u.kvHeads + kv_head) * u.context * WIDTH;
  let tiles = (position + TILE) / TILE; // of position + 1 keys
  let per_split = (tiles + groups.x - 1u) / groups.x * TILE;
  let begin = wg.x * per_split;
  let end = min(begin + per_split, position + 1u);
  let appends = begin <= position && position < begin + per_split;

  // GROUP heads of q, then k and v.
  for (var h0 = 0u; h0 < GROUP + 2u; h0 += WORKGROUP / LANES) {
    let h = min(h0 + tid / LANES, GROUP + 1u);
    var head = kv_head * GROUP + h;
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
        } else if (appends) {
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
  for (var g = tid; g < GROUP; g += WORKGROUP) {
    highest[g] = -3.0e38;
    total[g] = 0.0;
  }
  storageBarrier();
  workgroupBarrier();

  let element = tid % WIDTH;
  let run = tid / WIDTH;
  @split var acc: array<E, GROUP>;
  for (var t0 = begin; t0 < end; t0 += TILE) {
    @unroll for (var s = 0; s < TILE / KEYS; s++) {
      let key = t0 + s * KEYS + tid / KEY_LANES;
      let at = cached + min(key, position) * WIDTH;
      @split var kv: array<E, KEY_STEPS>;
      @unroll for (var i = 0; i < KEY_STEPS; i++) {
        kv[i] = k_at(at + min(i * KEY_LANES + tid % KEY_LANES, WIDTH - 1u));
      }
      @unroll for (var g = 0; g < GROUP; g++) {
        var sum = 0.0;
        @unroll for (var i = 0; i < KEY_STEPS; i++) {
          let e = i * KEY_LANES + tid % KEY_LANES;
          if (e < WIDTH) { sum += product(queries[g * WIDTH + e], kv[i]); }
        }
        sum = key_sum(sum);
        if (tid % KEY_LANES == 0u) {
          scores[g * TILE + s * KEYS + tid / KEY_LANES] = select(-3.0e38, sum, key < end);
        }
      }
    }
    workgroupBarrier();
    for (var g0 = 0u; g0 < GROUP; g0 += WORKGROUP / LANES) {
      let g = min(g0 + tid / LANES, GROUP - 1u);
      var top = -3.0e38;
      for (var i = lane; i < TILE; i += LANES) { top = max(top, scores[g * TILE + i]); }
      top = max(lanes_max(top, tid), highest[g]);
      var sum = 0.0;
      if (g0 + tid / LANES < GROUP) {
        for (var i = lane; i < TILE; i += LANES) {
          let p = exp(scores[g * TILE + i] - top);
          scores[g * TILE + i] = p;
          sum += p;
        }
      }
      sum = lanes_sum(sum, tid);
      if (lane == 0u && g0 + tid / LANES < GROUP) {
        shrink[g] = exp(highest[g] - top);
        total[g] = total[g] * shrink[g] + sum;
        highest[g] = top;
      }
    }
    workgroupBarrier();
    if (run < RUNS) {
      @unroll for (var g = 0; g < GROUP; g++) { acc[g] *= shrink[g]; }
      let keys = min(TILE, end - t0);
      for (var j = run; j < keys; j += RUNS * 4u) {
        @split var value: array<E, 4>;
        @unroll for (var i = 0; i < 4; i++) {
          value[i] = v_at(cached + (t0 + min(j + i * RUNS, keys - 1u)) * WIDTH + element);
        }
        @unroll for (var i = 0; i < 4; i++) {
          if (j + i * RUNS < keys) {
            @unroll for (var g = 0; g < GROUP; g++) {
              acc[g] += scores[g * TILE + j + i * RUNS] * value[i];
            }
          }
        }
      }
    }
    workgroupBarrier();
  }
  @unroll for (var g = 0; g < GROUP; g++) {
    sums[tid] = acc[g];
    workgroupBarrier();
    if (tid < WIDTH) {
      var sum = sums[tid];
      for (var r = 1u; r < RUNS; r++) { sum += sums[r * WIDTH + tid]; }
      let head = row * heads + kv_head * GROUP + g;
      if (groups.x == 1u) { y_put(head * WIDTH + tid, sum / total[g]); }
      else { partial_put((head * groups.x + wg.x) * WIDTH + tid, sum); }
    }
    workgroupBarrier();
  }
  if (tid == 0u) { flags[1] = groups.x; } // how many splits there are to merge
  if (tid < GROUP && groups.x > 1u) {
    let at = ((row * heads + kv_head * GROUP + tid) * groups.x + wg.x) * 2u;
    stats[at] = bitcast<u32>(highest[tid]);
    stats[at + 1u] = bitcast<u32>(total[tid]);
  }
}`,
});
