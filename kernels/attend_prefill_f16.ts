import { choosePrefillRows } from "../lib/dispatch/attention.ts";
import { HALF_PREFILL_BYTES } from "../lib/dispatch/precision.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";
import { HEADS_128, type PrefillCase, prefillCase } from "./attention_case.ts";
import { HALF_ATTENTION } from "./case.ts";
import { attentionCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  cacheBase,
  cacheRow,
  NOT_PAGED,
  PREFILL_KEYS,
  prefillGrid,
  prefillHead,
  QUANTS,
  splitBuffers,
  STATE,
} from "./heads.ts";

const cachedRow = (position: string) =>
  cacheRow("row", {
    base: "first_key",
    kvHead: "kv_head",
    position,
    word: (at) => `lengths[${at}]`,
  });

// Four quants of \`row\` and their scale. They are not multiplied yet, which would wait for them.
const fetch = (
  x: string,
  to: string,
  index: string,
  four: string,
) => /* wgsl */ `
  let group = (${four}) % (HEAD_DIM / 8u) / 4u;
  ${to}[${index}].quants = ${x}[quants_at(row, ${four})];
  ${to}[${index}].scale = scale_of(${x}[scale_at(row, group)], group);`;

// Blocks of 4 keys × 4 elements of the head.
const fetchKeys = (k0: string) => /* wgsl */ `
  @unroll for (var l = 0; l < KEY_BLOCKS; l++) {
    let block = l * WORKGROUP + tid;
    @unroll for (var i = 0; i < 4; i++) {
      ${cachedRow(`min(${k0} + block / WIDTH * 4u + i, keys - 1u)`)}
      @if CACHE == "q8_0" {
        ${fetch("k", "next", "l * 4 + i", "block % WIDTH")}
      } @else { next[l * 4 + i] = k_at(row * WIDTH + block % WIDTH); }
    }
  }`;

/**
 * The f16 version of attend_prefill.ts, for a cache in f16 or q8_0 and heads of 64 or 128 elements.
 * Workgroup memory holds q and a whole tile of 64 keys, then of their values; the next
 * tile is fetched into registers while this one is multiplied.
 *
 * Products are summed in f16 over TERMS terms, which must divide 32, and in f32 beyond. The
 * sums stay in range: q is scaled first and the norms' weights bound both factors (the
 * caller checks this), and the weights of values are divided by TERMS, so that a sum
 * cannot exceed the largest value.
 */
export const attendPrefillF16 = defineKernel<PrefillCase>({
  name: "attendPrefillF16",
  buffers: splitBuffers("half"),
  uniforms: { first: "u32", tokens: "u32", group: "u32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    ROWS: 64,
    LOG_LANES: 4,
    SUBGROUPS: 1,
    F16: 1,
    TERMS: 8,
    SPLIT: 0,
    CACHE: "float",
    ...NOT_PAGED,
  },
  derive: (c) => {
    const WIDTH = Number(c.HEAD_DIM) / 4, ROWS = Number(c.ROWS);
    const WORKGROUP = 4 * ROWS;
    return {
      WIDTH,
      WORKGROUP,
      NV: Math.ceil(WIDTH / 16),
      KEY_BLOCKS: 16 * WIDTH / WORKGROUP,
      VALUE_LOADS: 64 * WIDTH / WORKGROUP,
    };
  },
  grid: ({ m, tokens, group, kvHeads }, { ROWS }) =>
    prefillGrid({ m, tokens, group, kvHeads }, ROWS),
  cost: (call) => attentionCost(call),
  body: /* wgsl */ `
${LANES}
${STATE}
${QUANTS}
alias T = vec4<f16>;
@if CACHE == "q8_0" {
  struct Stored { quants: u32, scale: f32 }
  fn value_of(stored: Stored) -> T { return T(values_of(stored.quants) * stored.scale); }
} @else {
  alias Stored = T;
}
const FOURS = ROWS / 4u;
var<workgroup> queries: array<T, HEAD_DIM * FOURS>; // [d][rows]
var<workgroup> stage: array<T, HEAD_DIM * 16u>; // keys [d][keys], then values [key][d]
var<workgroup> weights: array<T, 64u * FOURS>; // [key][rows]

// Offset of row r of this workgroup, a (token, head of the group) pair, in q.
fn row_at(r: u32, kv_head: u32, sequence: u32) -> u32 {
  let token = sequence * u.tokens + r / u.group;
  return (token * u.kvHeads * u.group + kv_head * u.group + r % u.group) * WIDTH;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let kv_head = wg.y;
  let length = lengths[u.first + wg.z];
  ${cacheBase("first_key", "u.first + wg.z", "kv_head")}
  let rows = u.tokens * u.group;
  ${PREFILL_KEYS}
  let tn = tid % 16u;
  let tm = tid / 16u;
  @split var next: array<Stored, KEY_BLOCKS * 4>;
  ${fetchKeys("begin")}
  for (var block = tid; block < FOURS * WIDTH; block += WORKGROUP) {
    @split var part: array<T, 4>;
    @unroll for (var i = 0; i < 4; i++) {
      let row = min(first_row + block / WIDTH * 4u + i, rows - 1u);
      part[i] = T(q_at(row_at(row, kv_head, wg.z) + block % WIDTH) * u.scale);
    }
    let to = block % WIDTH * 4u * FOURS + block / WIDTH;
    queries[to] = T(part[0].x, part[1].x, part[2].x, part[3].x);
    queries[to + FOURS] = T(part[0].y, part[1].y, part[2].y, part[3].y);
    queries[to + 2u * FOURS] = T(part[0].z, part[1].z, part[2].z, part[3].z);
    queries[to + 3u * FOURS] = T(part[0].w, part[1].w, part[2].w, part[3].w);
  }
  @split var sees: array<u32, 4>; // end of the keys that a row sees
  @split var top: array<f32, 4>;
  @split var total: array<f32, 4>;
  @split var acc: array<vec4f, 4 * NV>;
  @unroll for (var r = 0; r < 4; r++) {
    sees[r] = length + min(first_row + tm * 4u + r, rows - 1u) / u.group + 1u;
    top[r] = ${LOW};
  }
  for (var k0 = begin; k0 < keys; k0 += 64u) {
    @unroll for (var l = 0; l < KEY_BLOCKS; l++) {
      let block = l * WORKGROUP + tid;
      let to = block % WIDTH * 64u + block / WIDTH;
      @split var four: array<T, 4>;
      @unroll for (var i = 0; i < 4; i++) {
        @if CACHE == "q8_0" { four[i] = value_of(next[l * 4 + i]); } @else { four[i] = next[l * 4 + i]; }
      }
      stage[to] = T(four[0].x, four[1].x, four[2].x, four[3].x);
      stage[to + 16u] = T(four[0].y, four[1].y, four[2].y, four[3].y);
      stage[to + 32u] = T(four[0].z, four[1].z, four[2].z, four[3].z);
      stage[to + 48u] = T(four[0].w, four[1].w, four[2].w, four[3].w);
    }
    workgroupBarrier();
    @split var value: array<Stored, VALUE_LOADS>;
    @unroll for (var l = 0; l < VALUE_LOADS; l++) {
      let i = l * WORKGROUP + tid;
      ${cachedRow("min(k0 + i / WIDTH, keys - 1u)")}
      @if CACHE == "q8_0" {
        ${fetch("v", "value", "l", "i % WIDTH")}
      } @else { value[l] = v_at(row * WIDTH + i % WIDTH); }
    }
    @split var score: array<vec4f, 4>;
    @unroll for (var r = 0; r < 4; r++) { score[r] = vec4f(); }
    for (var d0 = 0u; d0 < HEAD_DIM; d0 += 32u) {
      @split var sum: array<T, 4>;
      @unroll for (var d = 0; d < 32; d++) {
        let qv = queries[(d0 + d) * FOURS + tm];
        let kv = stage[(d0 + d) * 16u + tn];
        @unroll for (var r = 0; r < 4; r++) {
          @if d % TERMS == 0 { sum[r] = T(qv[r]) * kv; } @else { sum[r] = fma(T(qv[r]), kv, sum[r]); }
          @if (d + 1) % TERMS == 0 { score[r] += vec4f(sum[r]); }
        }
      }
    }
    let key = vec4u(k0 + tn * 4u) + vec4u(0u, 1u, 2u, 3u);
    @unroll for (var r = 0; r < 4; r++) {
      let seen = select(vec4f(${LOW}), score[r], key < vec4u(sees[r]));
      let high = max(top[r], lanes_max(max(max(seen.x, seen.y), max(seen.z, seen.w)), tid));
      score[r] = select(vec4f(), exp(seen - high), key < vec4u(sees[r]));
      let shrink = exp(top[r] - high);
      total[r] = total[r] * shrink + lanes_sum(dot(score[r], vec4f(1.0)), tid);
      top[r] = high;
      @unroll for (var j = 0; j < NV; j++) { acc[r * NV + j] *= shrink; }
    }
    workgroupBarrier(); // keys have been read
    @unroll for (var c = 0; c < 4; c++) {
      weights[(tn * 4u + c) * FOURS + tm] = T(vec4f(score[0][c], score[1][c], score[2][c], score[3][c]) / f32(TERMS));
    }
    @unroll for (var l = 0; l < VALUE_LOADS; l++) {
      @if CACHE == "q8_0" { stage[l * WORKGROUP + tid] = value_of(value[l]); }
      @else { stage[l * WORKGROUP + tid] = value[l]; }
    }
    workgroupBarrier();
    if (k0 + 64u < keys) { ${fetchKeys("k0 + 64u")} }
    for (var s0 = 0u; s0 < 64u; s0 += 32u) {
      @split var sum: array<T, 4 * NV>;
      @unroll for (var s = 0; s < 32; s++) {
        let w = weights[(s0 + s) * FOURS + tm];
        @unroll for (var j = 0; j < NV; j++) {
          let value = stage[(s0 + s) * WIDTH + min(j * 16u + tn, WIDTH - 1u)];
          @unroll for (var r = 0; r < 4; r++) {
            @if s % TERMS == 0 { sum[r * NV + j] = T(w[r]) * value; } @else { sum[r * NV + j] = fma(T(w[r]), value, sum[r * NV + j]); }
            @if (s + 1) % TERMS == 0 { acc[r * NV + j] += vec4f(sum[r * NV + j]); }
          }
        }
      }
    }
    workgroupBarrier(); // values and weights have been read
  }
  @unroll for (var r = 0; r < 4; r++) {
    let row = first_row + tm * 4u + r;
    if (row < rows) {
      ${prefillHead("row")}
      @unroll for (var j = 0; j < NV; j++) {
        let d = j * 16u + tn;
        if (d < WIDTH) { y_put(to * WIDTH + d, acc[r * NV + j] * (f32(TERMS) / total[r])); }
      }
    }
  }
}`,
  cases: [
    { ...HEADS_128, lengths: [145], tokens: 9, cache: "f16" },
    { ...HEADS_128, headDim: 64, lengths: [3, 90], tokens: 21, cache: "f16" },
    { ...HEADS_128, lengths: [3, 90], tokens: 21, cache: "q8_0" },
    { ...HEADS_128, lengths: [3, 90], tokens: 21, cache: "f16", page: 16 },
    { ...HEADS_128, lengths: [3, 90], tokens: 21, cache: "q8_0", page: 8 },
    { ...HEADS_128, lengths: [3, 130], tokens: 21, cache: "f16", splits: 3 },
    {
      ...{ ...HEADS_128, lengths: [140, 3], tokens: 9, cache: "q8_0" },
      ...{ splits: 2, page: 16 },
    },
  ],
  makeCase(given, tools) {
    const { device } = tools, { heads, kvHeads, tokens } = given;
    const { maxComputeWorkgroupStorageSize: room } = device.limits;
    if (!device.f16 || room < HALF_PREFILL_BYTES) return undefined;
    const rows = choosePrefillRows(tokens * heads / kvHeads, device, true);
    return prefillCase(given, tools, HALF_ATTENTION, rows);
  },
});
