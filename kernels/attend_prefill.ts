import { choosePrefillRows } from "../lib/dispatch/attention.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";
import {
  HEADS_128,
  HEADS_96,
  ODD_HEADS,
  type PrefillCase,
  prefillCase,
} from "./attention_case.ts";
import { SUM } from "./case.ts";
import { attentionCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  cacheBase,
  cacheRow,
  dequantized,
  NOT_PAGED,
  PREFILL_KEYS,
  prefillGrid,
  prefillHead,
  QUANTS,
  splitBuffers,
  STATE,
} from "./heads.ts";

const row = (name: string, position: string) =>
  cacheRow(name, {
    base: "first_key",
    kvHead: "kv_head",
    position,
    word: (at) => `lengths[${at}]`,
  });

/**
 * Causal attention of many new tokens per sequence over the KV cache, which already
 * holds their keys and values. No `[tokens, tokens]` matrix is written to memory
 * (FlashAttention-2, https://arxiv.org/abs/2307.08691).
 *
 * A workgroup takes one kv head and ROWS rows: 64, or 32 where workgroup memory is small.
 * A row is a (token, query head) pair of the head's group, so K and V are read once for the
 * whole group. For each tile of 64 keys it computes scores in slices of 16 elements,
 * updates each row's running maximum and sum, then multiplies by V in slices of V_KEYS keys.
 * 16 × ROWS / 4 threads each hold 4 × 4 scores and 4 rows of the output.
 */
export const attendPrefill = defineKernel<PrefillCase>({
  name: "attendPrefill",
  buffers: (constants) => {
    // The view depends on the head size, not on the row: each head must be whole vec4s.
    const view = Number(constants.HEAD_DIM) % 4 === 0 ? "span" : "scalar";
    return splitBuffers(view, view)(constants);
  },
  uniforms: { first: "u32", tokens: "u32", group: "u32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    ROWS: 64,
    LOG_LANES: 4,
    SUBGROUPS: 1,
    SPLIT: 0,
    CACHE: "float",
    ...NOT_PAGED,
  },
  derive: (c) => {
    const ROWS = Number(c.ROWS), NV = Math.ceil(Number(c.HEAD_DIM) / 64);
    // With 32 rows, everything fits 16 KiB.
    const most = Math.min(16, 2 ** Math.floor(Math.log2(24 / NV)));
    const V_KEYS = ROWS < 64 ? most : NV > 2 ? 8 : 16;
    return {
      WORKGROUP: 4 * ROWS,
      NV,
      V_KEYS,
      STAGE: Math.max(4 * ROWS + 256, 16 * V_KEYS * NV),
    };
  },
  grid: ({ m, tokens, group, kvHeads }, { ROWS }) =>
    prefillGrid({ m, tokens, group, kvHeads }, ROWS),
  cost: (call) => attentionCost(call),
  body: /* wgsl */ `
${LANES}
${STATE}
${QUANTS}
${dequantized("k")}
${dequantized("v")}
const FOURS = ROWS / 4u;
var<workgroup> stage: array<vec4f, STAGE>; // q and k slices, or a v slice
var<workgroup> weights: array<vec4f, 64u * FOURS>; // [key][rows]

fn remaining(begin: u32, size: u32, inside: bool) -> u32 {
  return select(0u, size - min(begin, size), inside);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let kv_head = wg.y;
  let heads = u.kvHeads * u.group;
  let length = lengths[u.first + wg.z];
  ${cacheBase("first_key", "u.first + wg.z", "kv_head")}
  let rows = u.tokens * u.group;
  ${PREFILL_KEYS}
  let tn = tid % 16u;
  let tm = tid / 16u;
  @split var sees: array<u32, 4>; // end of the keys that a row sees
  @split var top: array<f32, 4>;
  @split var total: array<f32, 4>;
  @split var acc: array<vec4f, 4 * NV>;
  @unroll for (var r = 0; r < 4; r++) {
    sees[r] = length + min(first_row + tm * 4u + r, rows - 1u) / u.group + 1u;
    top[r] = ${LOW};
  }
  for (var k0 = begin; k0 < keys; k0 += 64u) {
    @split var score: array<vec4f, 4>;
    @unroll for (var r = 0; r < 4; r++) { score[r] = vec4f(); }
    for (var d0 = 0u; d0 < HEAD_DIM; d0 += 16u) {
      workgroupBarrier();
      if (tid < ROWS + 64u) {
        // Threads below ROWS fetch a 4 × 4 block of q, 64 more one of k, and transpose it.
        let of_q = tid < ROWS;
        let block = select(tid - ROWS, tid, of_q) / 4u;
        let d = d0 + tid % 4u * 4u;
        @split var part: array<vec4f, 4>;
        @unroll for (var i = 0; i < 4; i++) {
          if (of_q) {
            let row = first_row + block * 4u + i;
            let at = ((wg.z * u.tokens + row / u.group) * heads + kv_head * u.group + row % u.group) * HEAD_DIM;
            part[i] = q_span(at + d, remaining(d, HEAD_DIM, row < rows));
          } else {
            let key = k0 + block * 4u + i;
            let left = remaining(d, HEAD_DIM, key < keys);
            ${row("cached", "min(key, keys - 1u)")}
            @if CACHE == "q8_0" {
              if (left > 0u) { part[i] = k_cached(cached, d / 4u); }
            } @else { part[i] = k_span(cached * HEAD_DIM + d, left); }
          }
        }
        let blocks = select(16u, FOURS, of_q);
        let to = select(16u * FOURS, 0u, of_q) + tid % 4u * 4u * blocks + block;
        stage[to] = vec4f(part[0].x, part[1].x, part[2].x, part[3].x);
        stage[to + blocks] = vec4f(part[0].y, part[1].y, part[2].y, part[3].y);
        stage[to + 2u * blocks] = vec4f(part[0].z, part[1].z, part[2].z, part[3].z);
        stage[to + 3u * blocks] = vec4f(part[0].w, part[1].w, part[2].w, part[3].w);
      }
      workgroupBarrier();
      @unroll for (var d = 0; d < 16; d++) {
        let qv = stage[d * FOURS + tm];
        let kv = stage[16u * FOURS + d * 16 + tn];
        @unroll for (var r = 0; r < 4; r++) { score[r] = fma(vec4f(qv[r]), kv, score[r]); }
      }
    }
    let key = vec4u(k0 + tn * 4u) + vec4u(0u, 1u, 2u, 3u);
    @unroll for (var r = 0; r < 4; r++) {
      let seen = select(vec4f(${LOW}), score[r] * u.scale, key < vec4u(sees[r]));
      let high = max(top[r], lanes_max(max(max(seen.x, seen.y), max(seen.z, seen.w)), tid));
      score[r] = select(vec4f(), exp(seen - high), key < vec4u(sees[r]));
      let shrink = exp(top[r] - high);
      total[r] = total[r] * shrink + lanes_sum(dot(score[r], vec4f(1.0)), tid);
      top[r] = high;
      @unroll for (var j = 0; j < NV; j++) { acc[r * NV + j] *= shrink; }
    }
    @unroll for (var c = 0; c < 4; c++) {
      weights[(tn * 4u + c) * FOURS + tm] = vec4f(score[0][c], score[1][c], score[2][c], score[3][c]);
    }
    for (var s0 = 0u; s0 < min(64u, keys - k0); s0 += V_KEYS) {
      workgroupBarrier();
      for (var i = tid; i < V_KEYS * NV * 16u; i += WORKGROUP) {
        let key = k0 + s0 + i / (NV * 16u);
        let d = i % (NV * 16u) * 4u;
        let left = remaining(d, HEAD_DIM, key < keys);
        ${row("cached", "min(key, keys - 1u)")}
        @if CACHE == "q8_0" {
          stage[i] = vec4f();
          if (left > 0u) { stage[i] = v_cached(cached, d / 4u); }
        } @else { stage[i] = v_span(cached * HEAD_DIM + d, left); }
      }
      workgroupBarrier();
      @unroll for (var s = 0; s < V_KEYS; s++) {
        let w = weights[(s0 + s) * FOURS + tm];
        @unroll for (var j = 0; j < NV; j++) {
          let value = stage[s * (NV * 16) + j * 16 + tn];
          @unroll for (var r = 0; r < 4; r++) { acc[r * NV + j] = fma(vec4f(w[r]), value, acc[r * NV + j]); }
        }
      }
    }
    workgroupBarrier(); // before weights and stage are overwritten
  }
  @unroll for (var r = 0; r < 4; r++) {
    let row = first_row + tm * 4u + r;
    if (row < rows) {
      ${prefillHead("row")}
      @unroll for (var j = 0; j < NV; j++) {
        let d = j * 64u + tn * 4u;
        y_store(to * HEAD_DIM + d, remaining(d, HEAD_DIM, true), acc[r * NV + j] / total[r]);
      }
    }
  }
}`,
  cases: [
    { ...HEADS_128, lengths: [145], tokens: 9, cache: "f16" },
    { ...HEADS_128, lengths: [17, 70], tokens: 5, cache: "f32" },
    { ...ODD_HEADS, lengths: [0], tokens: 5, cache: "f32" },
    { ...HEADS_128, lengths: [17, 70], tokens: 5, cache: "q8_0" },
    { ...HEADS_96, lengths: [30], tokens: 5, cache: "q8_0" },
    { ...HEADS_128, lengths: [17, 70], tokens: 5, cache: "f16", page: 16 },
    { ...ODD_HEADS, lengths: [9, 0], tokens: 5, cache: "f32", page: 4 },
    { ...HEADS_128, lengths: [17, 70], tokens: 5, cache: "q8_0", page: 32 },
    { ...HEADS_128, lengths: [141, 60], tokens: 9, cache: "f16", splits: 3 },
    { ...ODD_HEADS, lengths: [30], tokens: 5, cache: "f32", splits: 1 },
    {
      ...{ ...HEADS_128, lengths: [9, 130], tokens: 5, cache: "q8_0" },
      ...{ splits: 2, page: 32 },
    },
  ],
  makeCase(given, tools) {
    const { heads, kvHeads, tokens } = given;
    const rows = tokens * heads / kvHeads;
    const chosen = choosePrefillRows(rows, tools.device, false);
    return prefillCase(given, tools, SUM, chosen);
  },
});
