import {
  chooseMatrixAttention,
  MATRIX_LANES,
} from "../lib/dispatch/matrices.ts";
import { LOW } from "../lib/webgpu/wgsl.ts";
import {
  type AttentionCase,
  HEADS_128,
  prefillCase,
} from "./attention_case.ts";
import { HALF_ATTENTION } from "./case.ts";
import { attentionCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  cacheBase,
  cacheRow,
  NOT_PAGED,
  prefillBuffers,
  prefillGrid,
  QUANTS,
} from "./heads.ts";

// Eight values each of a tile's keys, or of their values. Quants are not multiplied yet, which
// would wait for them.
const fetch = (x: "k" | "v", first: string) => /* wgsl */ `
  @unroll for (var l = 0; l < LOADS; l++) {
    let item = l * WORKGROUP + tid;
    let eight = item % EIGHTS;
    ${
  cacheRow("row", {
    base: "first_key",
    kvHead: "kv_head",
    position: `min(${first} + item / EIGHTS, keys - 1u)`,
    word: (at) => `lengths[${at}]`,
  })
}
    @if CACHE == "q8_0" {
      let group = 2u * eight % EIGHTS / 4u;
      next[l].low = ${x}[quants_at(row, 2u * eight)];
      next[l].high = ${x}[quants_at(row, 2u * eight + 1u)];
      next[l].scale = scale_of(${x}[scale_at(row, group)], group);
    } @else { next[l] = ${x}_load(row * EIGHTS + eight); }
  }`;

const store = /* wgsl */ `
  @unroll for (var l = 0; l < LOADS; l++) {
    let item = l * WORKGROUP + tid;
    let key = item / EIGHTS;
    @if CACHE == "q8_0" {
      stage[key / 16u][key % 16u * STRIDE + item % EIGHTS] =
        halves(values_of(next[l].low) * next[l].scale, values_of(next[l].high) * next[l].scale);
    } @else { stage[key / 16u][key % 16u * STRIDE + item % EIGHTS] = next[l]; }
  }`;

// Scores of a subgroup's rows for the tile of keys in `stage`, in `scores` after a barrier.
const multiplyKeys = /* wgsl */ `
  @split var score: array<Sum, BLOCKS>;
  // naga does not zero a variable again that is declared in a loop.
  @unroll for (var b = 0; b < BLOCKS; b++) { score[b] = Sum(); }
  @unroll for (var d = 0; d < DEPTH; d++) {
    @unroll for (var b = 0; b < BLOCKS; b++) {
      score[b] = subgroupMatrixMultiplyAccumulate(query[d],
        subgroupMatrixLoad<Right, col_major>(&stage[b], d * 2u, STRIDE), score[b]);
    }
  }
  @unroll for (var b = 0; b < BLOCKS; b++) {
    subgroupMatrixStore<row_major>(&scores[own + b], 0u, score[b], 5u);
  }
  workgroupBarrier();`;

/** Repeats code for the four scores `seen` of each word that a lane has, masked. */
const perScores = (code: string) => /* wgsl */ `
  @unroll for (var b = 0; b < BLOCKS / 2; b++) {
    @unroll for (var i = 0; i < 4; i++) {
      let key = vec4u(k0 + (b * 2u + lane % 2u) * 16u + i * 4u) + vec4u(0u, 1u, 2u, 3u);
      let seen = select(vec4f(${LOW}), bitcast<vec4f>(scores[own + b * 2u + lane % 2u][my_row + i]), key < vec4u(sees));
      ${code}
    }
  }`;

/**
 * The version of attend_prefill.ts for tensor cores, for a cache in f16 or q8_0 and heads of 64
 * or 128 elements. A subgroup has 16 rows and multiplies matrices of 16 × 16 (see
 * gemm_matrix.ts). Keys are read twice: first for the largest score of each row and the sum of
 * exponentials, then for the weights of values. So sums over values need no factor that
 * changes from tile to tile, and stay where lanes cannot reach them. q and the weights are
 * rounded to f16, and all sums are in f32.
 *
 * Two lanes share a row of scores and take blocks of 16 keys in turns. Weights, two words of
 * halves, replace the four words of scores that the same lane read.
 */
export const attendPrefillMatrix = defineKernel<AttentionCase>({
  name: "attendPrefillMatrix",
  buffers: prefillBuffers("unit"),
  uniforms: { first: "u32", tokens: "u32", group: "u32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    ROWS: 64,
    KEYS: 64,
    F16: 1,
    CACHE: "float",
    ...NOT_PAGED,
  },
  derive: (c) => {
    const [headDim, rows, keys] = [c.HEAD_DIM, c.ROWS, c.KEYS].map(Number);
    const WORKGROUP = rows / 16 * MATRIX_LANES, EIGHTS = headDim / 8;
    return {
      WORKGROUP,
      EIGHTS,
      STRIDE: EIGHTS + 1,
      DEPTH: headDim / 16,
      BLOCKS: keys / 16,
      STAGED: Math.max(keys, rows) / 16,
      LOADS: keys * EIGHTS / WORKGROUP,
      QUERIES: rows * EIGHTS / WORKGROUP,
    };
  },
  grid: ({ m, tokens, group, kvHeads }, { ROWS }) =>
    prefillGrid({ m, tokens, group, kvHeads }, ROWS),
  cost: (call) => attentionCost(call),
  body: /* wgsl */ `
${QUANTS}
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
@if CACHE == "q8_0" { struct Stored { low: u32, high: u32, scale: f32 } }
@else { alias Stored = vec4u; }
// Blocks of 16 rows: of queries at first, then of keys or their values.
var<workgroup> stage: array<array<vec4u, 16u * STRIDE>, STAGED>;
// Blocks of 16 × 16, BLOCKS for each subgroup.
var<workgroup> scores: array<array<vec4u, 80>, ROWS / 16u * BLOCKS>;

fn halves(low: vec4f, high: vec4f) -> vec4u {
  return vec4u(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}

// Offset of row r, a (token, head of the group) pair, in q and y.
fn row_at(r: u32, kv_head: u32, sequence: u32) -> u32 {
  let token = sequence * u.tokens + r / u.group;
  return (token * u.kvHeads * u.group + kv_head * u.group + r % u.group) * (HEAD_DIM / 4u);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let kv_head = wg.y;
  let length = lengths[u.first + wg.z];
  ${cacheBase("first_key", "u.first + wg.z", "kv_head")}
  let first_row = (groups.x - 1u - wg.x) * ROWS; // those with most keys begin first
  let rows = u.tokens * u.group;
  let keys = length + min(first_row + ROWS - 1u, rows - 1u) / u.group + 1u;
  @split var next: array<Stored, LOADS>;
  ${fetch("k", "0u")}
  @unroll for (var l = 0; l < QUERIES; l++) {
    let item = l * WORKGROUP + tid;
    let r = item / EIGHTS;
    let at = row_at(min(first_row + r, rows - 1u), kv_head, wg.z) + item % EIGHTS * 2u;
    stage[r / 16u][r % 16u * STRIDE + item % EIGHTS] = halves(q_at(at) * u.scale, q_at(at + 1u) * u.scale);
  }
  workgroupBarrier();
  @split var query: array<Left, DEPTH>;
  @unroll for (var d = 0; d < DEPTH; d++) {
    query[d] = subgroupMatrixLoad<Left, row_major>(&stage[subgroup], d * 2u, STRIDE);
  }
  let own = subgroup * BLOCKS;
  let my_row = lane / 2u * 5u;
  let row = first_row + subgroup * 16u + lane / 2u;
  let sees = length + min(row, rows - 1u) / u.group + 1u; // end of the keys that the row sees
  var top = ${LOW};
  var total = 0.0;
  for (var k0 = 0u; k0 < keys; k0 += KEYS) {
    workgroupBarrier(); // queries or keys have been read
    ${store}
    workgroupBarrier();
    let following = select(0u, k0 + KEYS, k0 + KEYS < keys);
    ${fetch("k", "following")}
    ${multiplyKeys}
    var high = top;
    ${
    perScores(
      "high = max(high, max(max(seen.x, seen.y), max(seen.z, seen.w)));",
    )
  }
    var sum = 0.0;
    ${
    perScores(
      "sum += dot(select(vec4f(), exp(seen - high), key < vec4u(sees)), vec4f(1.0));",
    )
  }
    total = total * exp(top - high) + sum;
    top = high;
  }
  // What the lanes of a row found, together.
  workgroupBarrier();
  scores[own][lane] = vec4u(bitcast<u32>(top), bitcast<u32>(total), 0u, 0u);
  workgroupBarrier();
  let other = bitcast<vec2f>(scores[own][lane ^ 1u].xy);
  let high = max(top, other.x);
  total = total * exp(top - high) + other.y * exp(other.x - high);
  @split var acc: array<Sum, DEPTH>;
  for (var k0 = 0u; k0 < keys; k0 += KEYS) {
    workgroupBarrier(); // values and weights have been read
    ${store}
    workgroupBarrier();
    ${fetch("v", "k0")}
    ${multiplyKeys}
    @split var weight: array<vec4f, BLOCKS * 2>;
    ${
    perScores(
      "weight[b * 4 + i] = select(vec4f(), exp(seen - high), key < vec4u(sees));",
    )
  }
    @unroll for (var b = 0; b < BLOCKS / 2; b++) {
      @unroll for (var h = 0; h < 2; h++) {
        scores[own + b * 2u + lane % 2u][my_row + h] = halves(weight[b * 4 + h * 2], weight[b * 4 + h * 2 + 1]);
      }
    }
    ${store}
    workgroupBarrier();
    ${fetch("k", "k0 + KEYS")}
    @unroll for (var b = 0; b < BLOCKS; b++) {
      {
        let part = subgroupMatrixLoad<Left, row_major>(&scores[own + b], 0u, 5u);
        @unroll for (var d = 0; d < DEPTH; d++) {
          acc[d] = subgroupMatrixMultiplyAccumulate(part,
            subgroupMatrixLoad<Right, row_major>(&stage[b], d * 2u, STRIDE), acc[d]);
        }
      }
    }
  }
  let to = row_at(min(row, rows - 1u), kv_head, wg.z);
  @unroll for (var p = 0; p < DEPTH / BLOCKS; p++) {
    workgroupBarrier();
    @unroll for (var b = 0; b < BLOCKS; b++) {
      subgroupMatrixStore<row_major>(&scores[own + b], 0u, acc[p * BLOCKS + b], 5u);
    }
    workgroupBarrier();
    if (row < rows) {
      @unroll for (var e = 0; e < BLOCKS * 2; e++) {
        let four = e * 2u + lane % 2u;
        y_put(to + p * BLOCKS * 4u + four, bitcast<vec4f>(scores[own + four / 4u][my_row + four % 4u]) / total);
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
  ],
  makeCase(given, tools) {
    const { device } = tools, { heads, kvHeads, tokens, headDim } = given;
    const rows = tokens * heads / kvHeads;
    const choice = chooseMatrixAttention({ rows, headDim }, device);
    if (!device.f16 || typeof choice !== "object") return undefined;
    const made = prefillCase(given, tools, HALF_ATTENTION, choice.constants);
    const { LOG_LANES: _, SUBGROUPS: __, ...constants } = made.constants!;
    return { ...made, constants };
  },
});
