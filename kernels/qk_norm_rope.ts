import { cacheConstant, headConstants } from "../lib/dispatch/attention.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import {
  type AttentionCase,
  attentionText,
  cacheResults,
  HEADS_128,
  HEADS_96,
  inPages,
  inParts,
  ODD_HEADS,
  positionsTensor,
  sizesOf,
  stateTensor,
} from "./attention_case.ts";
import { EPS, room, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";
import {
  angle,
  cacheBase,
  cacheRow,
  HEADS,
  NOT_PAGED,
  POSITIONS,
  positionsWord,
  QUANTS,
  turnPair,
} from "./heads.ts";

/**
 * Norms and rotates every pair `a[p]`, `b[p]` of a head in place, given the factor. A
 * position has cosines in the first half of its angles and sines in the second.
 */
const rotate = (norm: string) => /* wgsl */ `
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = min(p * LANES + lane, HALF - 1u);
    let c = ${angle("position * 2u * HALF + i")};
    let s = ${angle("position * 2u * HALF + HALF + i")};
    ${
  turnPair(["a[p]", "b[p]"], [`${norm}_at(i)`, `${norm}_at(HALF + i)`], [
    "c",
    "s",
  ])
}
  }`;

// Stores the key or value of a head in q8_0. Four neighboring lanes have a block.
const quantize = (x: string) => /* wgsl */ `
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = p * LANES + lane;
    if (i < HALF) {
      let first = quants_at(cache_row, i);
      ${x}[first] = quantized(a[p], high[p]);
      ${x}[first + 2u] = quantized(b[p], high[p]);
      if (i % 8u == 0u) { ${x}[scale_at(cache_row, i / 4u)] = scales_word(high[p], paired[p]); }
    }
  }`;

/** A pass whose `qkv` may be left in parts, to be added up. */
interface NormCase extends AttentionCase {
  parts?: number;
}

/**
 * Does what lies between the packed projection and attention, for every head of every row:
 * norms and rotates q into a tensor of its own, norms and rotates k, and appends k and v
 * to the KV cache. Row r is token `r % tokens` of sequence `first + r / tokens`. QKV_SPLITS: see
 * attend_decode.ts.
 *
 * A key or value that f16 cannot hold sets `state[0]`, so that no run continues with an
 * infinity.
 */
export const qkNormRope = defineKernel<NormCase>({
  name: "qkNormRope",
  buffers: ({ VEC, CACHE, QKV_SPLITS }) => {
    const view = VEC === 4 ? "vec4" : "scalar";
    const cache = CACHE === "q8_0" ? "any as raw" : `headDim as ${view}`;
    return {
      qkv: `${QKV_SPLITS ? "qkvSplits " : ""}m width as ${view}`,
      qNorm: `headDim as ${view}`,
      kNorm: `headDim as ${view}`,
      positions: `rows headDim as ${view}`,
      q: `inout m any as ${view}`,
      k: `inout sequences kvHeads context ${cache}`,
      v: `inout sequences kvHeads context ${cache}`,
      state: "inout any as atomic",
    };
  },
  uniforms: { heads: "u32", first: "u32", tokens: "u32", eps: "f32" },
  constants: {
    HEAD_DIM: 128,
    VEC: 4,
    WORKGROUP: 128,
    LOG_LANES: 4,
    SUBGROUPS: 1,
    QKV_SPLITS: 0,
    CACHE: "float",
    ...NOT_PAGED,
  },
  // LANES threads share a head. Each holds PAIRS pairs (a[p], b[p]), half a head apart.
  derive: (c) => {
    const LANES = 1 << Number(c.LOG_LANES), VEC = Number(c.VEC);
    return { LANES, PAIRS: Math.ceil(Number(c.HEAD_DIM) / 2 / VEC / LANES) };
  },
  // One lane group per head of q, k and v, for each row.
  grid: ({ m, heads, kvHeads }, { WORKGROUP, LANES }) =>
    splitGrid(m * (heads + 2 * kvHeads) / (WORKGROUP / LANES)),
  cost: (call) => {
    const { config, sequences, tokens } = call.context;
    const { numAttentionHeads: heads, numKeyValueHeads: kv, headDim } = config;
    const rows = sequences * tokens;
    return call.whole({
      name: "q_norm, k_norm, rope",
      group: "norm",
      shape: `[${rows}, ${heads} + ${kv}, ${headDim}]`,
      dtypes: `f32 → f32, ${call.cached.dtype}`,
      flops: 10 * rows * (heads + kv) * headDim,
      bytes: rows * headDim *
        (4 * (heads + 2 * kv) + 4 * heads + 2 * kv * call.cached.size),
    });
  },
  body: /* wgsl */ `
${LANES}
${HEADS}
${QUANTS}
fn lane_other(v: f32, bit: u32, tid: u32) -> f32 {
  @if SUBGROUPS { return subgroupShuffleXor(v, bit); }
  @else {
    lanes[tid] = v;
    workgroupBarrier();
    let other = lanes[tid ^ bit];
    workgroupBarrier();
    return other;
  }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let all = u.heads + 2u * u.kvHeads;
  let task = (wg.y * groups.x + wg.x) * (WORKGROUP / LANES) + tid / LANES;
  let lane = tid % LANES;
  let row = min(task / all, u.m - 1u);
  let head = task % all;
  let sequence = u.first + row / u.tokens;
  ${POSITIONS("sequence")}
  let position = past + row % u.tokens;
  @split var a: array<E, PAIRS>;
  @split var b: array<E, PAIRS>;
  var sum = 0.0;
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = p * LANES + lane;
    if (i < HALF) {
      let at = (row * all + head) * 2u * HALF + i;
      a[p] = qkv_at(at);
      b[p] = qkv_at(at + HALF);
      @unroll for (var s = 1; s < QKV_SPLITS; s++) {
        let more = at + s * u.m * all * 2u * HALF;
        a[p] += qkv_at(more);
        b[p] += qkv_at(more + HALF);
      }
      sum += square(a[p]) + square(b[p]);
    }
  }
  sum = lanes_sum(sum, tid);
  let factor = inverseSqrt(sum / f32(HEAD_DIM) + u.eps);
  if (head < u.heads) { ${rotate("qNorm")} }
  else if (head < u.heads + u.kvHeads) { ${rotate("kNorm")} }
  @if CACHE == "q8_0" {
    @split var high: array<f32, PAIRS>;
    @split var paired: array<f32, PAIRS>;
    @unroll for (var p = 0; p < PAIRS; p++) {
      high[p] = max(largest(a[p]), largest(b[p]));
      high[p] = max(high[p], lane_other(high[p], 1u, tid));
      high[p] = max(high[p], lane_other(high[p], 2u, tid));
    }
    // Scales are stored in pairs: the second is four lanes further, or in this lane.
    @unroll for (var p = 0; p < PAIRS; p++) {
      @if LANES >= 8 { paired[p] = lane_other(high[p], 4u, tid); }
      @else {
        paired[p] = 0.0;
        @if p + 1 < PAIRS { paired[p] = high[p + 1]; }
      }
    }
  }
  if (task / all >= u.m) { return; }
  let kv_head = (head - u.heads) % u.kvHeads; // of a key or value
  ${cacheBase("cache_base", "sequence", "kv_head")}
  ${
    cacheRow("cache_row", {
      base: "cache_base",
      kvHead: "kv_head",
      position: "position",
      word: positionsWord,
    })
  }
  @if CACHE == "q8_0" {
    if (head >= u.heads) {
      if (head < u.heads + u.kvHeads) { ${quantize("k")} } else { ${
    quantize("v")
  } }
    }
  }
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = p * LANES + lane;
    if (i < HALF) {
      if (head < u.heads) {
        let at = (row * u.heads + head) * 2u * HALF + i;
        q_put(at, a[p]);
        q_put(at + HALF, b[p]);
      } else {
        guard(a[p]);
        guard(b[p]);
        @if CACHE != "q8_0" {
        let at = cache_row * 2u * HALF + i;
        if (head < u.heads + u.kvHeads) {
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
}`,
  cases: [
    { ...HEADS_128, lengths: [145], tokens: 9, cache: "f16", norm: "bf16" },
    { ...HEADS_128, lengths: [17], tokens: 5, cache: "f32", norm: "f16" },
    { ...ODD_HEADS, lengths: [0, 9], tokens: 5, cache: "f32", norm: "f32" },
    { ...HEADS_128, lengths: [14, 3], tokens: 5, cache: "q8_0", norm: "bf16" },
    { ...HEADS_96, lengths: [9], tokens: 3, cache: "q8_0", norm: "f32" },
    {
      ...HEADS_128,
      ...{ lengths: [14, 3], tokens: 5, cache: "f16", norm: "bf16", page: 16 },
    },
    {
      ...ODD_HEADS,
      ...{ lengths: [0, 9], tokens: 5, cache: "f32", norm: "f32", page: 2 },
    },
    {
      ...HEADS_96,
      ...{ lengths: [14, 3], tokens: 5, cache: "q8_0", norm: "f32", page: 8 },
    },
    {
      ...HEADS_128,
      ...{ lengths: [9, 3], tokens: 5, cache: "f16", norm: "bf16", parts: 3 },
    },
    {
      ...ODD_HEADS,
      lengths: [9],
      tokens: 5,
      cache: "f32",
      norm: "f32",
      parts: 2,
    },
  ],
  makeCase(given, { device, random, reference }) {
    const sizes = sizesOf(given), { heads, headDim, tokens } = given;
    const { parts = 0 } = given;
    const inputs = reference.attentionInputs(random, sizes, given);
    return inPages(given, {
      what: attentionText(given) + (parts ? `, qkv in ${parts} parts` : ""),
      operands: {
        ...inputs,
        ...(parts ? { qkv: inParts(inputs.qkv, parts, random) } : {}),
        positions: positionsTensor(given.lengths, inputs.angles),
        q: room([sizes.rows, heads * headDim]),
        state: stateTensor(given.lengths.length, heads),
      },
      constants: {
        ...headConstants(headDim, device),
        ...cacheConstant(given.cache),
        QKV_SPLITS: parts,
      },
      uniforms: { heads, first: 0, tokens, eps: EPS },
      expected: () => {
        const after = reference.appended(inputs, sizes);
        return [
          { of: "q", values: after.q, tolerance: SUM },
          ...cacheResults(given, after),
          {
            of: ({ state }) => Array.from(state).slice(0, 4),
            values: [0, 0, 0, 0],
            tolerance: 0,
          },
        ];
      },
    });
  },
});
