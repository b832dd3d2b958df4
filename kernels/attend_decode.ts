import {
  chooseDecodeAttention,
  decodeBytes,
  LEAVING_BUFFERS,
} from "../lib/dispatch/attention.ts";
import { laneConstants, mostBuffers } from "../lib/dispatch/capabilities.ts";
import type { AttendTarget } from "../lib/dispatch/keys.ts";
import { isPowerOf2, MOST_IN_FLIGHT } from "../lib/dispatch/limits.ts";
import {
  type Constants,
  CONTEXT_CLASSES,
  type ContextClass,
  ROUNDED_BLOCK,
} from "../lib/dispatch/shapes.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import type { Grid } from "../lib/webgpu/kernel.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";
import {
  type AttentionCase,
  attentionText,
  cacheResults,
  counting,
  HEADS_128,
  HEADS_96,
  inPages,
  inParts,
  merged,
  ODD_HEADS,
  positionsTensor,
  sizesOf,
  stateTensor,
} from "./attention_case.ts";
import {
  type Buffers,
  EPS,
  type Expected,
  HALF_ROUNDED,
  halfNorms,
  QUERY_SUM,
  type Result,
  room,
  SUM,
  u32Tensor,
} from "./case.ts";
import { attentionCost, projectedCost } from "./cost.ts";
import {
  deriveProject,
  LOAD_WEIGHTS,
  PROJECT,
  projectedCase,
} from "./attend_project.ts";
import {
  COUNTS,
  Q8_0,
  QUANTIZE_NEW,
  ROUND_QUERY,
  SCORE_INTEGERS,
} from "./attend_q8_0.ts";
import { defineKernel } from "./define.ts";
import {
  HALF_A_STEP,
  LEFT,
  ROUND_FOUR,
  roundedSizes,
  stepsOff,
} from "./rounded_row.ts";
import {
  angle,
  cacheBase,
  cacheRow,
  COUNTERS,
  HEADS,
  NORM_PLACE,
  NOT_PAGED,
  POSITIONS,
  positionsWord,
  QUANTS,
  STATE,
  turnPair,
} from "./heads.ts";

// Index of a lane's pair p within half a head.
const PLACE = "(p / PER * KEY_LANES + key_lane) * PER + p % PER";

const cachedRow = (name: string, position: string) =>
  cacheRow(name, {
    base: "first_row",
    kvHead: "kv_head",
    position,
    word: positionsWord,
  });

// Loads a tile of keys or values, starting at `at` and ending with the split.
const fetch = (x: string, at: string) => /* wgsl */ `
  @unroll for (var s = 0; s < STEPS; s++) {
    ${cachedRow("row", `min(${at} + s * KEYS + key_group, last)`)}
    @unroll for (var i = 0; i < UNITS; i++) {
      let unit = min(i * KEY_LANES + key_lane, HALF / PER - 1u);
      @if CACHE == "q8_0" {
        ${x}s[s * UNITS + i] = ${x}[row * (HALF / PER) + unit];
        let scale = scale_at(row, unit / 2u);
        ${x}d[s * UNITS + i] = scale_of(${x}[scale / 4u][scale % 4u], unit / 2u);
      } @else {
        let at = row * (WIDTH / PER) + unit;
        ${x}s[(s * UNITS + i) * 2] = ${x}_unit(at);
        ${x}s[(s * UNITS + i) * 2 + 1] = ${x}_unit(at + HALF / PER);
      }
    }
  }`;

// Half h of the pair p that a lane has of the key or value of step s.
const cachedPair = (x: string, h: number) =>
  `(@if CACHE == "q8_0" { values_of(${x}s[s * UNITS + p / PER][${h} * 2 + p % PER]) } @else { element(${x}s[(s * UNITS + p / PER) * 2 + ${h}], p % PER) })`;

// A lane's part of the scores of a tile of keys.
const FLOATS = /* wgsl */ `
    @unroll for (var p = 0; p < PAIRS; p++) {
      let i = ${PLACE};
      let at = min(i, HALF - 1u);
      @split var q: array<E, 2 * GROUP>;
      @unroll for (var g = 0; g < GROUP; g++) {
        q[2 * g] = vectors[g * WIDTH + at];
        q[2 * g + 1] = vectors[g * WIDTH + at + HALF];
      }
      @unroll for (var s = 0; s < STEPS; s++) {
        let a = ${cachedPair("k", 0)};
        let b = ${cachedPair("k", 1)};
        @unroll for (var g = 0; g < GROUP; g++) {
          score[g * STEPS + s] += select(0.0, dot_of(q[2 * g], a) + dot_of(q[2 * g + 1], b), i < HALF);
        }
      }
    }`;

// Declares a sum over 2^log neighboring lanes; without subgroups over LANES.
const sumOver = (name: string, log: string) => /* wgsl */ `
fn ${name}(v: f32, tid: u32) -> f32 {
  @if SUBGROUPS {
    var s = v;
    @unroll for (var b = 0; b < ${log}; b++) { s += subgroupShuffleXor(s, 1u << b); }
    return s;
  } @else { return lanes_sum(v, tid); }
}`;

// Sums what the threads that share an element of the result have of it.
const ADD_PARTS = /* wgsl */ `
    @unroll for (var b = 0; b < LOG_PARTS; b++) {
      all += subgroupShuffleXor(all, LANES >> (b + 1u));
      sum += subgroupShuffleXor(sum, LANES >> (b + 1u));
    }`;

// The highest of what these threads have.
const highestPart = (x: string) => /* wgsl */ `
    @unroll for (var b = 0; b < LOG_PARTS; b++) { ${x} = max(${x}, subgroupShuffleXor(${x}, LANES >> (b + 1u))); }`;

// Declares which element of the result a thread shares, and with which part of the sums.
const ELEMENT = /* wgsl */ `
    let i = min(first + column, GROUP * WIDTH - 1u);
    let own = first + column < GROUP * WIDTH && part == 0u;
    let g = i / WIDTH;
    let head = row * heads + wg.y * GROUP + g;`;

const fetchAll = (x: string) => /* wgsl */ `
  let ${x}_units = min(arrayLength(&${x}), left);
  left -= ${x}_units;
  for (var i = worker; i < ${x}_units; i += workers * 8u) {
    @unroll for (var j = 0; j < 8; j++) {
      let unit = ${x}[min(i + workers * j, ${x}_units - 1u)];
      @if ${x.toUpperCase()}_VIEW == "unit" { seen ^= bitcast<vec4u>(unit); }
      @else { seen.x ^= bitcast<u32>(unit); }
    }
  }`;

/**
 * The grid of a step: `splits` splits of the keys, `shares` workgroups for all kv heads,
 * and at least `fetchers` more that read ahead.
 */
export const decodeGrid = (
  splits: number,
  shares: number,
  rows: number,
  fetchers: number,
): Grid => [splits, shares + Math.ceil(fetchers / splits / rows), rows];

/** A decode step in the layout of a class of contexts. */
interface DecodeCase extends AttentionCase {
  layout: ContextClass;
  splits: number;
  /** Whether the kernel merges the splits itself; such a case is skipped if it cannot. */
  merge?: boolean;
  /** Whether the row is rounded for the next kernel; skipped where that would not be done. */
  leaves?: boolean;
  /** Parts that qkv is left in, to be added up. */
  parts?: number;
  /** Whether the result is in f16; skipped where the kernel cannot merge or bind so much. */
  half?: boolean;
  /** Format and rows of o_proj, if the kernel multiplies by it; skipped where lanes cannot. */
  project?: readonly [format: string, n: number];
}

const HALF_STEP = {
  ...HEADS_128,
  lengths: [145],
  tokens: 1,
  cache: "f16",
  norm: "bf16",
} as const;
const ODD_STEP = {
  ...ODD_HEADS,
  lengths: [33],
  tokens: 1,
  cache: "f32",
  norm: "f32",
} as const;
const BATCH_STEP = {
  ...HEADS_128,
  lengths: [145, 20, 99],
  tokens: 1,
  cache: "f32",
  norm: "f16",
} as const;

/** What attention that multiplies nothing leaves in `y`, and in `left`. */
function ownResults(
  { headDim, splits, merge, leaves, half, cache }: DecodeCase,
  attended: Expected,
): Result[] {
  const size = attended.values.length;
  const own = ({ y, halfY = y }: Buffers) => Array.from(halfY).slice(0, size);
  const apart = splits > 1 && !merge; // merged by another kernel
  return [
    {
      of: ({ y, state, ...more }) =>
        apart
          ? merged(Array.from(y).slice(size), state, headDim, splits).values
          : own({ y, ...more }),
      ...attended,
      ...(half && !apart
        ? { norms: halfNorms(attended.norms), tolerance: HALF_ROUNDED }
        : { tolerance: cache === "q8_0" ? QUERY_SUM : SUM }),
    },
    ...(leaves
      ? [{
        of: ({ y, left }: Buffers) =>
          stepsOff(Uint32Array.from(left), own({ y })),
        values: new Float64Array(size),
        tolerance: HALF_A_STEP,
      }]
      : []),
  ];
}

/** Throws if the kernel cannot do what LEAVES or PROJECT ask for. */
function requireRow(c: Constants, m: number, kvHeads: number): void {
  const HEAD_DIM = Number(c.HEAD_DIM);
  if (
    c.LEAVES && !c.PROJECT &&
    (m > 1 || HEAD_DIM % ROUNDED_BLOCK || !c.SUBGROUPS || !c.MERGE)
  ) {
    throw new Error(
      `Cannot round ${m} × ${kvHeads} heads of ${HEAD_DIM}: there must be one row, heads of whole blocks of ${ROUNDED_BLOCK}, lanes that exchange values, and no other kernel that merges splits`,
    );
  }
  if (c.PROJECT && (m > 1 || c.VEC !== 4)) {
    throw new Error(
      `Cannot project ${m} rows of heads of ${HEAD_DIM} in attendDecode: there must be one row, and heads of multiples of 8`,
    );
  }
}

/**
 * Attention of one new token per sequence over its KV cache. The same dispatch norms
 * and rotates q and k and appends k and v to the cache. A workgroup takes one kv head,
 * GROUP of its query heads (SHARES workgroups take all of them), and one of `splits`
 * splits of the keys (flash decoding, https://pytorch.org/blog/flash-decoding/).
 *
 * NORM_LANES threads norm and rotate a vector: q of each head, and the new key and value,
 * which they leave in workgroup memory. Then a key group of KEY_LANES threads shares a key.
 * Each thread holds pairs of elements half a head apart, of q, the key, the value and the
 * result, so norm, RoPE and scores need sums over these lanes only. Splits take turns at
 * tiles of STEPS keys per key group, each of which has a running maximum (online softmax,
 * https://arxiv.org/abs/1805.02867). Their results are summed by shuffles within a lane
 * group of LANES, then, with the new value, over the workgroup after the second of two
 * barriers.
 *
 * With one split the result is written directly. With several, their results
 * `[m, heads, splits, headDim]` go behind the `m` rows of `y`, maxima and sums into `state`
 * (heads.ts). The last workgroup of a head to count itself there merges them (MERGE 1), or
 * merge_splits.ts does, which finds the number of splits in `state[1]`.
 *
 * Keys in q8_0 are multiplied as integers, by q as integers; see attend_q8_0.ts.
 *
 * `qkv` may be QKV_SPLITS parts, which a gemm that split k has left to be added up.
 * With HALF_Y, the result is also for a matmul in f16, and is in `halfY` instead of `y`: as
 * values were cached in f16, they and their averages fit.
 *
 * With PROJECT, it multiplies the result by o_proj too; see attend_project.ts.
 *
 * The kernel has few workgroups and leaves memory idle, so FETCHERS extra workgroups read
 * the matrices `next` and `after` into the cache, up to AHEAD units of 16 bytes.
 */
export const attendDecode = defineKernel<DecodeCase>({
  name: "attendDecode",
  buffers: (
    { VEC, FETCHERS, HEAD_DIM, CACHE, LEAVES, PROJECT, QKV_SPLITS, HALF_Y },
  ) => {
    const view = VEC === 4 ? "vec4" : "scalar";
    // Units of 16 bytes if half a head is a whole number of them.
    const cache = CACHE === "q8_0"
      ? "any as quad"
      : `headDim as ${Number(HEAD_DIM) % 16 === 0 ? "unit" : view}`;
    return {
      qkv: `${QKV_SPLITS ? "qkvSplits " : ""}m width as ${view}`,
      qNorm: `headDim as ${view}`,
      kNorm: `headDim as ${view}`,
      positions: `rows headDim as ${view}`,
      k: `inout sequences kvHeads context ${cache}`,
      v: `inout sequences kvHeads context ${cache}`,
      ...(PROJECT
        ? {
          w: "n k as unit",
          y: "inout m n",
          ...(LEAVES ? { nextNorm: "n as vec4" } : { squares: "out m parts" }),
          pieces: "inout any as atomic",
        }
        : { y: `inout any as ${view}` }),
      ...(HALF_Y ? { halfY: "out any as vec4" } : {}),
      state: "inout any as atomic",
      ...(LEAVES ? { left: "out any as quad" } : {}),
      ...(FETCHERS ? { next: "any as unit", after: "any as unit" } : {}),
    };
  },
  uniforms: { firstSequence: "u32", eps: "f32", scale: "f32" },
  constants: {
    HEAD_DIM: 128,
    GROUP: 2,
    SHARES: 1,
    VEC: 4,
    WORKGROUP: 128,
    LOG_LANES: 5,
    SUBGROUPS: 1,
    LOG_KEY_LANES: 3,
    STEPS: 2,
    MERGE: 0,
    LEAVES: 0,
    PROJECT: 0,
    BATCH: 4,
    FETCHERS: 0,
    AHEAD: 0,
    QKV_SPLITS: 0,
    HALF_Y: 0,
    CACHE: "float",
    ...NOT_PAGED,
  },
  derive: (c, { m, kvHeads, n, k, parts }) => {
    const VEC = Number(c.VEC), HEAD_DIM = Number(c.HEAD_DIM);
    const leaves = !!c.LEAVES;
    requireRow(c, m, kvHeads);
    const LOG_KEY_LANES = Number(c.LOG_KEY_LANES);
    // Without subgroups, key groups exchange sums through workgroup memory.
    const LOG_LANES = c.SUBGROUPS ? Number(c.LOG_LANES) : LOG_KEY_LANES;
    const KEY_LANES = 1 << LOG_KEY_LANES, LANES = 1 << LOG_LANES;
    const WORKGROUP = Number(c.WORKGROUP), GROUP = Number(c.GROUP);
    // Elements per load, of each half of a head.
    const PER = c.CACHE === "q8_0"
      ? 2
      : c.K_VIEW === "unit"
      ? Number(c.K_UNIT) / 4
      : 1;
    const WIDTH = HEAD_DIM / VEC; // elements in a head
    const UNITS = Math.ceil(WIDTH / 2 / PER / KEY_LANES);
    const ELEMENTS = 2 * UNITS * PER; // per lane
    const LOG_KEY_GROUPS = LOG_LANES - LOG_KEY_LANES;
    const SCATTER = ELEMENTS % (1 << LOG_KEY_GROUPS) === 0 ? 1 : 0;
    const LANE_GROUPS = WORKGROUP / LANES;
    // Lanes that norm a vector, a pair of elements at a time.
    const LOG_NORM_LANES = c.SUBGROUPS
      ? Math.min(LOG_LANES, Math.ceil(Math.log2(WIDTH / 2)))
      : LOG_LANES;
    const NORM_LANES = 1 << LOG_NORM_LANES;
    const NORM_GROUPS = WORKGROUP / NORM_LANES;
    // Threads that share an element of the result; four neighbors must have a block.
    const PARTS = c.SUBGROUPS
      ? Math.max(
        1,
        Math.min(
          ...[4, LANES / 4, LANE_GROUPS],
          2 ** Math.floor(Math.log2(WORKGROUP / (GROUP * WIDTH))),
        ),
      )
      : 1;
    return {
      LOG_LANES,
      LANES,
      KEY_LANES,
      KEYS: WORKGROUP / KEY_LANES, // keys per step
      PER,
      WIDTH,
      UNITS,
      LOADS: c.CACHE === "q8_0" ? UNITS : 2 * UNITS,
      PAIRS: ELEMENTS / 2,
      ELEMENTS,
      LOG_KEY_GROUPS,
      SCATTER,
      KEPT: SCATTER ? ELEMENTS >> LOG_KEY_GROUPS : ELEMENTS,
      LANE_GROUPS,
      LOG_NORM_LANES,
      NORM_LANES,
      NORM_GROUPS,
      NORM_PAIRS: Math.ceil(WIDTH / 2 / NORM_LANES),
      ROUNDS: Math.ceil((GROUP + 2) / NORM_GROUPS),
      PARTS,
      LOG_PARTS: Math.log2(PARTS),
      ...(c.PROJECT
        ? deriveProject(c, {
          ...{ columns: GROUP * HEAD_DIM, k, n, parts, lanes: LANES },
          groups: kvHeads * Number(c.SHARES),
        })
        : {}),
      ...(leaves && !c.PROJECT
        ? {
          LEFT_BLOCKS: kvHeads * Number(c.SHARES) * GROUP * HEAD_DIM /
            ROUNDED_BLOCK,
        }
        : {}),
    };
  },
  tuning: {
    of: "attention",
    grid: {
      WORKGROUP: [64, 128, 256, 512],
      SHARES: [1, 2, 4],
      LOG_KEY_LANES: [1, 2, 3, 4],
      STEPS: [1, 2, 4],
    },
    needs({ headDim, group, cache }: AttendTarget, constants, device) {
      const { WORKGROUP, SHARES, LOG_KEY_LANES, STEPS } = constants;
      const { LOG_LANES, SUBGROUPS } = laneConstants(device);
      const keyLanes = 2 ** LOG_KEY_LANES;
      const lanes = SUBGROUPS ? 2 ** LOG_LANES : keyLanes;
      const heads = group / SHARES;
      const { once, laneGroup } = decodeBytes(headDim, heads, cache);
      // A lane holds its part of q and of the sum per head, and of k and v per step.
      const values = headDim / keyLanes * (2 * heads + STEPS);
      const most = 4 * MOST_IN_FLIGHT;
      return {
        threads: WORKGROUP,
        bytes: once + WORKGROUP / lanes * laneGroup +
          (SUBGROUPS ? 0 : 4 * WORKGROUP),
        problem: group % SHARES
          ? `SHARES is ${SHARES}, must divide the ${group} query heads of a kv head`
          : keyLanes > lanes
          ? `${keyLanes} lanes share a key, subgroups have ${device.subgroupSize}`
          : !isPowerOf2(WORKGROUP) || WORKGROUP < lanes
          ? `WORKGROUP is ${WORKGROUP}, must be a power of 2 and at least ${lanes}`
          : 2 * keyLanes > headDim
          ? `${keyLanes} lanes share a key of ${headDim} values`
          : values > most
          ? `${values} values in a lane, at most ${most} fit registers`
          : undefined,
      };
    },
  },
  grid: ({ kvHeads, m, n }, { SHARES, FETCHERS, PROJECT }) =>
    decodeGrid(
      PROJECT ? Math.ceil(n / PROJECT) : 1,
      kvHeads * SHARES,
      m,
      FETCHERS,
    ),
  cost(call) {
    const costs = attentionCost(call, ["q_norm, k_norm, RoPE, KV append"]);
    return call.constants.PROJECT ? projectedCost(call, costs) : costs;
  },
  body: /* wgsl */ `
${LANES}
${HEADS}
${STATE}
const TILE = STEPS * KEYS;
const LOW = ${LOW}; // below every score
var<workgroup> sums: array<E, LANE_GROUPS * GROUP * WIDTH>;
var<workgroup> stat: array<vec2f, (LANE_GROUPS + 1u) * GROUP>; // maximum and sum of weights
var<workgroup> vectors: array<E, (GROUP + 2u) * WIDTH>; // q of each head, the new key and value
@if CACHE == "q8_0" {
var<workgroup> integers: array<vec4u, GROUP * HALF>; // q: high and low bytes of both halves
var<workgroup> counts: array<f32, GROUP * HALF / PER>; // what those of a unit count
}
@if MERGE || PROJECT { var<workgroup> before: u32; }
@if PROJECT && LEAVES { var<workgroup> results: array<f32, PROJECT>; }

${QUANTS}
@if CACHE == "q8_0" {
  alias Unit = vec4u;
} @else { @if K_VIEW == "unit" {
  alias Unit = k_Raw;
  fn k_unit(at: u32) -> Unit { return k_load(at); }
  fn v_unit(at: u32) -> Unit { return v_load(at); }
  @if PER == 2 {
    fn element(unit: Unit, n: u32) -> E { if (n == 1u) { return k_four[1](unit); } return k_four[0](unit); }
    fn unit(a: E, b: E) -> Unit {
      return vec4u(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
    }
  } @else {
    fn element(unit: Unit, n: u32) -> E { return k_four[0](unit); }
    fn unit(a: E, b: E) -> Unit { return a; }
  }
  fn k_keep(at: u32, a: E, b: E) { k[at] = unit(a, b); }
  fn v_keep(at: u32, a: E, b: E) { v[at] = unit(a, b); }
} @else {
  alias Unit = E;
  fn k_unit(at: u32) -> Unit { return k_at(at); }
  fn v_unit(at: u32) -> Unit { return v_at(at); }
  fn element(unit: Unit, n: u32) -> E { return unit; }
  fn k_keep(at: u32, a: E, b: E) { k_put(at, a); }
  fn v_keep(at: u32, a: E, b: E) { v_put(at, a); }
} }

@if FETCHERS {
// Reads the next weights to bring them into the cache. The XOR is compared with an
// arbitrary constant so that the compiler keeps the loads.
fn fetch(worker: u32, workers: u32) {
  var seen = vec4u();
  var left = AHEAD;
  ${fetchAll("next")}
  ${fetchAll("after")}
  if (all(seen == vec4u(0x9e3779b9u, 0x7f4a7c15u, 0xf39cc060u, 0x5cedc834u))) { atomicStore(&state[3], 1u); }
}
}

fn dot_of(a: E, b: E) -> f32 { @if VEC == 4 { return dot(a, b); } @else { return a * b; } }
${sumOver("key_sum", "LOG_KEY_LANES")}
${sumOver("norm_sum", "LOG_NORM_LANES")}

${Q8_0}
@if LEAVES {
${ROUND_FOUR}
${LEFT}
}
@if PROJECT == 0 {
// Writes a result. All lanes call it: four neighbors have a block that is rounded.
fn finish(at: u32, value: E, own: bool) {
  @if LEAVES {
    let made = round_four(value);
    if (own) { left_put(at, made); }
  }
  @if HALF_Y { if (own) { halfY_put(at, value); } }
  @else { if (own) { y_put(at, value); } }
}
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
  let sequence = u.firstSequence + row;
  ${POSITIONS("sequence")}
  let position = past;
  let heads = u.kvHeads * SHARES * GROUP;
  let lane = tid % LANES;
  let lane_group = tid / LANES;
  let key_lane = tid % KEY_LANES;
  let key_group = tid / KEY_LANES;
  ${cacheBase("first_row", "sequence", "kv_head")}
  // Splits take turns at tiles of keys; the last one also takes the new token. The first tile
  // of each can be loaded before the position is known.
  @if PROJECT { let split = 0u; let splits = 1u; } @else { let split = wg.x; let splits = groups.x; }
  let begin = split * TILE;
  let stride = splits * TILE;
  let last_split = split + 1u == splits;
  // Loads past the end read any key that there is.
  @if LOG_PAGE { let last = max(position, 1u) - 1u; } @else { let last = u.context - 1u; }

  // All loads are issued before the first use. A conditional block waits at its end for
  // the loads in it, so threads past the end load a key that they do not use instead.
  let norm_lane = tid % NORM_LANES;
  let norm_group = tid / NORM_LANES;
  @split var x: array<E, ROUNDS * 2 * NORM_PAIRS>;
  @split var gain: array<E, ROUNDS * 2 * NORM_PAIRS>;
  @split var turned: array<E, 2 * NORM_PAIRS>;
  @unroll for (var r = 0; r < ROUNDS; r++) {
    let n = min(norm_group + r * NORM_GROUPS, GROUP + 1u);
    let head = select(heads + (n - GROUP) * u.kvHeads + kv_head, wg.y * GROUP + n, n < GROUP);
    @unroll for (var p = 0; p < NORM_PAIRS; p++) {
      let i = min(${NORM_PLACE}, HALF - 1u);
      let at = row * (u.width / VEC) + head * WIDTH + i;
      x[2 * (r * NORM_PAIRS + p)] = qkv_at(at);
      x[2 * (r * NORM_PAIRS + p) + 1] = qkv_at(at + HALF);
      @unroll for (var s = 1; s < QKV_SPLITS; s++) {
        let more = at + s * u.m * (u.width / VEC);
        x[2 * (r * NORM_PAIRS + p)] += qkv_at(more);
        x[2 * (r * NORM_PAIRS + p) + 1] += qkv_at(more + HALF);
      }
      gain[2 * (r * NORM_PAIRS + p)] = select(kNorm_at(i), qNorm_at(i), n < GROUP);
      gain[2 * (r * NORM_PAIRS + p) + 1] = select(kNorm_at(i + HALF), qNorm_at(i + HALF), n < GROUP);
    }
  }
  @split var ks: array<Unit, STEPS * LOADS>;
  @split var vs: array<Unit, STEPS * LOADS>;
  @if CACHE == "q8_0" {
    @split var kd: array<f32, STEPS * UNITS>;
    @split var vd: array<f32, STEPS * UNITS>;
  }
  ${fetch("k", "begin")}
  ${fetch("v", "begin")}${LOAD_WEIGHTS}
  @unroll for (var p = 0; p < NORM_PAIRS; p++) {
    let at = position * 2u * HALF + min(${NORM_PLACE}, HALF - 1u);
    turned[2 * p] = ${angle("at")};
    turned[2 * p + 1] = ${angle("at + HALF")};
  }

  @unroll for (var r = 0; r < ROUNDS; r++) {
    let n = min(norm_group + r * NORM_GROUPS, GROUP + 1u);
    var squared = 0.0;
    @unroll for (var p = 0; p < NORM_PAIRS; p++) {
      let inside = ${NORM_PLACE} < HALF;
      squared += select(0.0, square(x[2 * (r * NORM_PAIRS + p)]) + square(x[2 * (r * NORM_PAIRS + p) + 1]), inside);
    }
    let factor = inverseSqrt(norm_sum(squared, tid) / f32(HEAD_DIM) + u.eps);
    let scale = select(1.0, u.scale, n < GROUP);
    let stays = n > GROUP; // the value
    @unroll for (var p = 0; p < NORM_PAIRS; p++) {
      let i = ${NORM_PLACE};
      var a = x[2 * (r * NORM_PAIRS + p)];
      var b = x[2 * (r * NORM_PAIRS + p) + 1];
      ${
    turnPair(
      ["a", "b"],
      ["gain[2 * (r * NORM_PAIRS + p)]", "gain[2 * (r * NORM_PAIRS + p) + 1]"],
      ["turned[2 * p]", "turned[2 * p + 1]"],
    )
  }
      x[2 * (r * NORM_PAIRS + p)] = select(a * scale, x[2 * (r * NORM_PAIRS + p)], stays);
      x[2 * (r * NORM_PAIRS + p) + 1] = select(b * scale, x[2 * (r * NORM_PAIRS + p) + 1], stays);
      if (i < HALF && norm_group + r * NORM_GROUPS < GROUP + 2u) {
        vectors[n * WIDTH + i] = x[2 * (r * NORM_PAIRS + p)];
        vectors[n * WIDTH + HALF + i] = x[2 * (r * NORM_PAIRS + p) + 1];
      }
    }
    @if CACHE == "q8_0" {${ROUND_QUERY}
    }
  }
  workgroupBarrier();

  // The score of the new key, which is used before it is rounded to the cache's type.
  @unroll for (var r = 0; r < ROUNDS; r++) {
    let n = norm_group + r * NORM_GROUPS;
    var dots = 0.0;
    @unroll for (var p = 0; p < NORM_PAIRS; p++) {
      let at = GROUP * WIDTH + min(${NORM_PLACE}, HALF - 1u);
      let both = dot_of(x[2 * (r * NORM_PAIRS + p)], vectors[at]) + dot_of(x[2 * (r * NORM_PAIRS + p) + 1], vectors[at + HALF]);
      dots += select(0.0, both, ${NORM_PLACE} < HALF);
    }
    let score = norm_sum(dots, tid);
    if (norm_lane == 0u && n < GROUP) {
      stat[LANE_GROUPS * GROUP + n] = vec2f(select(LOW, score, last_split), select(0.0, 1.0, last_split));
    }
  }

  @if CACHE == "q8_0" {${COUNTS}
  }
  @split var acc: array<E, GROUP * ELEMENTS>;
  @split var top: array<f32, GROUP>;
  @split var total: array<f32, GROUP>;
  @unroll for (var g = 0; g < GROUP; g++) { top[g] = LOW; }

  for (var t0 = begin; t0 < position; t0 += stride) {
    @split var score: array<f32, GROUP * STEPS>;
    // naga zeros a variable once, not in each round.
    @unroll for (var i = 0; i < GROUP * STEPS; i++) { score[i] = 0.0; }
    @if CACHE == "q8_0" {${SCORE_INTEGERS}} @else {${FLOATS}}
    @unroll for (var s = 0; s < STEPS; s++) {
      @unroll for (var g = 0; g < GROUP; g++) { score[g * STEPS + s] = key_sum(score[g * STEPS + s], tid); }
    }
    @unroll for (var g = 0; g < GROUP; g++) {
      var high = top[g];
      @unroll for (var s = 0; s < STEPS; s++) {
        high = select(high, max(high, score[g * STEPS + s]), t0 + s * KEYS + key_group < position);
      }
      if (high > top[g]) {
        let shrink = exp(top[g] - high);
        top[g] = high;
        total[g] *= shrink;
        @unroll for (var e = 0; e < ELEMENTS; e++) { acc[g * ELEMENTS + e] *= shrink; }
      }
    }
    @unroll for (var s = 0; s < STEPS; s++) {
      if (t0 + s * KEYS + key_group < position) {
        @unroll for (var g = 0; g < GROUP; g++) {
          let weight = exp(score[g * STEPS + s] - top[g]);
          total[g] += weight;
          @unroll for (var p = 0; p < PAIRS; p++) {
            @if CACHE == "q8_0" { let factor = weight * vd[s * UNITS + p / PER]; } @else { let factor = weight; }
            acc[g * ELEMENTS + 2 * p] += factor * ${cachedPair("v", 0)};
            acc[g * ELEMENTS + 2 * p + 1] += factor * ${cachedPair("v", 1)};
          }
        }
      }
    }
    if (t0 + stride < position) {
      ${fetch("k", "t0 + stride")}
      ${fetch("v", "t0 + stride")}
    }
  }

  // Each exchange halves the sums that a key group of the lane group still holds.
  var kept = 0u;
  @unroll for (var b = 0; b < LOG_KEY_GROUPS; b++) {
    if ((lane & (LANES >> (b + 1u))) != 0u) { kept += ELEMENTS >> (b + 1u); }
  }
  @unroll for (var g = 0; g < GROUP; g++) {
    @if LOG_KEY_GROUPS > 0 {
      var high = top[g];
      @unroll for (var b = 0; b < LOG_KEY_GROUPS; b++) { high = max(high, subgroupShuffleXor(high, LANES >> (b + 1u))); }
      let shrink = exp(top[g] - high);
      top[g] = high;
      total[g] *= shrink;
      @unroll for (var e = 0; e < ELEMENTS; e++) { acc[g * ELEMENTS + e] *= shrink; }
      @unroll for (var b = 0; b < LOG_KEY_GROUPS; b++) {
        total[g] += subgroupShuffleXor(total[g], LANES >> (b + 1u));
        @if SCATTER {
          let upper = (lane & (LANES >> (b + 1u))) != 0u;
          @unroll for (var e = 0; e < ELEMENTS >> (b + 1); e++) {
            let other = select(acc[g * ELEMENTS + e + (ELEMENTS >> (b + 1))], acc[g * ELEMENTS + e], upper);
            let own = select(acc[g * ELEMENTS + e], acc[g * ELEMENTS + e + (ELEMENTS >> (b + 1))], upper);
            acc[g * ELEMENTS + e] = own + subgroupShuffleXor(other, LANES >> (b + 1u));
          }
        } @else {
          @unroll for (var e = 0; e < ELEMENTS; e++) {
            acc[g * ELEMENTS + e] += subgroupShuffleXor(acc[g * ELEMENTS + e], LANES >> (b + 1u));
          }
        }
      }
    }
    if (lane == 0u) { stat[lane_group * GROUP + g] = vec2f(top[g], total[g]); }
    if (SCATTER == 1u || lane < KEY_LANES) {
      @unroll for (var e = 0; e < KEPT; e++) {
        let n = select(0u, kept, SCATTER == 1u) + e;
        let p = n / 2u;
        let i = ${PLACE};
        if (i < HALF) { sums[(lane_group * GROUP + g) * WIDTH + n % 2u * HALF + i] = acc[g * ELEMENTS + e]; }
      }
    }
  }
  workgroupBarrier();
  @if PROJECT { let appends = wg.x == 0u; } @else { let appends = last_split; }
  if (appends && wg.y % SHARES == 0u) {
    // Other threads than those that have results below.
    let spare = WORKGROUP - 1u - tid;
    ${cachedRow("new_row", "position")}
    @if CACHE == "q8_0" {${QUANTIZE_NEW}
    }
    for (var i = spare; i < 2u * WIDTH / PER; i += WORKGROUP) {
      let a = vectors[GROUP * WIDTH + i * PER];
      let b = vectors[GROUP * WIDTH + i * PER + PER - 1u];
      guard(a);
      guard(b);
      @if CACHE != "q8_0" {
        let at = new_row * (WIDTH / PER) + i % (WIDTH / PER);
        if (i < WIDTH / PER) { k_keep(at, a, b); } else { v_keep(at, a, b); }
      }
    }
  }
  let partial = u.m * heads * WIDTH;
  let part = lane / (LANES / PARTS);
  let column = lane_group * (LANES / PARTS) + lane % (LANES / PARTS);
  for (var first = 0u; first < GROUP * WIDTH; first += WORKGROUP / PARTS) {
${ELEMENT}
    let fresh = stat[LANE_GROUPS * GROUP + g];
    var high = fresh.x;
    @unroll for (var j = 0; j < LANE_GROUPS / PARTS; j++) { high = max(high, stat[(j * PARTS + part) * GROUP + g].x); }
${highestPart("high")}
    var all = 0.0;
    var sum = E();
    @unroll for (var j = 0; j < LANE_GROUPS / PARTS; j++) {
      let at = (j * PARTS + part) * GROUP;
      let weight = exp(stat[at + g].x - high);
      all += weight * stat[at + g].y;
      sum += weight * sums[at * WIDTH + i];
    }
${ADD_PARTS}
    let weight = exp(fresh.x - high) * fresh.y;
    all += weight;
    sum += weight * vectors[(GROUP + 1u) * WIDTH + i % WIDTH];
    @if PROJECT {
      if (own) { vectors[i] = sum / all; } // in place of q
    } @else {
      if (splits == 1u) { finish(head * WIDTH + i % WIDTH, sum / all, own); }
      else if (own) {
        y_put(partial + (head * splits + split) * WIDTH + i % WIDTH, sum);
        if (i % WIDTH == 0u) {
          let at = split_of(head, splits, split);
          atomicStore(&state[at], bitcast<u32>(high));
          atomicStore(&state[at + 1u], bitcast<u32>(all));
        }
      }
    }
  }
  @if PROJECT {
${PROJECT}
  } @else { @if MERGE {
    if (groups.x > 1u) {
      // Each workgroup writes its results before it is counted, so the last one counted
      // sees all results. No workgroup waits.
      storageBarrier();
      ${COUNTERS("heads")}
      let counter = counters + row * heads + wg.y * GROUP;
      if (tid == 0u) { before = atomicAdd(&state[counter], 1u); }
      if (workgroupUniformLoad(&before) + 1u == groups.x) {
        storageBarrier();
        if (tid == 0u) { atomicStore(&state[counter], 0u); } // ready for the next step
        for (var first = 0u; first < GROUP * WIDTH; first += WORKGROUP / PARTS) {
${ELEMENT}
          let at = partial + head * groups.x * WIDTH + i % WIDTH;
          var high = LOW;
          var all = 0.0;
          var sum = E();
          for (var s0 = part; s0 < groups.x; s0 += PARTS * BATCH) {
            @split var have: array<E, BATCH>;
            @split var most: array<f32, BATCH>;
            @split var many: array<f32, BATCH>;
            @unroll for (var j = 0; j < BATCH; j++) {
              let s = min(s0 + j * PARTS, groups.x - 1u);
              most[j] = bitcast<f32>(atomicLoad(&state[split_of(head, groups.x, s)]));
              many[j] = bitcast<f32>(atomicLoad(&state[split_of(head, groups.x, s) + 1u]));
              have[j] = y_at(at + s * WIDTH);
            }
            var higher = high;
            @unroll for (var j = 0; j < BATCH; j++) { higher = max(higher, most[j]); }
            let shrink = exp(high - higher);
            high = higher;
            all *= shrink;
            sum *= shrink;
            @unroll for (var j = 0; j < BATCH; j++) {
              if (s0 + j * PARTS < groups.x) {
                let weight = exp(most[j] - high);
                all += weight * many[j];
                sum += weight * have[j];
              }
            }
          }
          var highest = high;
${highestPart("highest")}
          let shrink = exp(high - highest);
          all *= shrink;
          sum *= shrink;
${ADD_PARTS}
          finish(head * WIDTH + i % WIDTH, sum / all, own);
        }
      }
    }
  } @else {
    if (tid == 0u) { atomicStore(&state[1], groups.x); } // for mergeSplits
  } }
}`,
  cases: [
    ...CONTEXT_CLASSES.flatMap((layout): DecodeCase[] => {
      const half = { ...HALF_STEP, layout }, odd = { ...ODD_STEP, layout };
      return [
        { ...half, splits: 1 },
        { ...half, splits: 2 },
        { ...half, splits: 5 },
        { ...half, splits: 5, merge: true },
        { ...odd, splits: 1 },
        { ...odd, splits: 3 },
        { ...odd, splits: 3, merge: true },
        { ...half, cache: "q8_0", splits: 1 },
        { ...half, cache: "q8_0", splits: 5, merge: true },
        { ...half, ...HEADS_96, cache: "q8_0", splits: 3 },
      ];
    }),
    ...(["short", "middle", "long"] as const).map((layout): DecodeCase => ({
      ...HALF_STEP,
      ...{ layout, splits: layout === "short" ? 1 : 5, leaves: true },
      merge: layout !== "short",
      cache: layout === "long" ? "q8_0" : "f16",
    })),
    ...(["f32", "f16", "bf16", "q8_0", "q4_k"] as const).map(
      (format, i): DecodeCase => ({
        ...{ ...HALF_STEP, layout: "short", splits: 1 },
        project: [format, 64 + 7 * i],
      }),
    ),
    {
      ...{ ...HALF_STEP, cache: "q8_0", layout: "short", splits: 1 },
      ...{ project: ["bf16", 32], page: 16 },
    },
    {
      ...{ ...HALF_STEP, layout: "short", splits: 1 },
      ...{ project: ["q4_k", 80], leaves: true },
    },
    ...(["short", "middle", "long"] as const).map((layout, i): DecodeCase => ({
      ...{ ...BATCH_STEP, cache: "f16", layout, splits: 1 + i % 2 },
      ...{ merge: i === 1, half: true, parts: 2 + i },
    })),
    { ...ODD_STEP, layout: "short", splits: 1, parts: 3 },
    { ...HALF_STEP, layout: "long", splits: 2, half: true },
    // A batch whose sequences have different lengths.
    { ...BATCH_STEP, layout: "short", splits: 2 },
    { ...BATCH_STEP, layout: "short", splits: 2, merge: true },
    { ...BATCH_STEP, cache: "q8_0", layout: "short", splits: 2 },
    { ...BATCH_STEP, layout: "short", splits: 1, page: 16 },
    { ...BATCH_STEP, cache: "f16", layout: "long", splits: 5, page: 8 },
    { ...BATCH_STEP, layout: "middle", splits: 5, merge: true, page: 32 },
    { ...BATCH_STEP, cache: "q8_0", layout: "long", splits: 2, page: 32 },
    { ...ODD_STEP, layout: "middle", splits: 3, merge: true, page: 2 },
  ],
  makeCase(given, { device, random, reference }) {
    const { heads, kvHeads, headDim, layout, splits, merge = false } = given;
    const { leaves = false, project, parts = 0, half } = given;
    const k = heads * headDim;
    const sizes = sizesOf(given), { rows } = sizes, group = heads / kvHeads;
    const choices = chooseDecodeAttention({
      ...{ headDim, group, rows, cache: given.cache },
      next: leaves
        ? { k, formats: [formatNamed("q8_0")], largest: 1 }
        : undefined,
    }, device);
    const choice = choices[CONTEXT_CLASSES.indexOf(layout)];
    if (merge && !choice.merges) return undefined;
    if (half && mostBuffers(device) < LEAVING_BUFFERS) return undefined;
    const possible = project ? choice.constants.SUBGROUPS : choice.leaves;
    if ((project || leaves) && !possible) return undefined;
    const inputs = reference.attentionInputs(random, sizes, given);
    // Reading the next weights ahead must not change the result.
    const { ahead } = choice, fetchers = ahead ? 4 : 0;
    const groups = kvHeads * choice.shares;
    const projected = project && projectedCase(
      random.matrix(project[0], [project[1], k]),
      {
        ...{ columns: k / groups, groups, constants: choice.constants },
        nextNorm: leaves
          ? random.tensor("bf16", [project[1]], 0.5, 1)
          : undefined,
      },
      reference,
    );
    const weights = () => random.tensor("bf16", [64, 128]);
    return inPages(given, {
      what: `${attentionText(given)}, laid out for a ${layout} context` +
        (splits > 1 ? `, in ${splits} splits` : "") +
        (merge ? ", merged" : "") + (leaves ? ", rounded" : "") +
        (parts ? `, qkv in ${parts} parts` : "") + (half ? ", as f16" : "") +
        (project ? `, multiplied by ${project[0]} [${project[1]}, ${k}]` : ""),
      operands: {
        ...inputs,
        ...(parts ? { qkv: inParts(inputs.qkv, parts, random) } : {}),
        ...(half ? { halfY: random.tensor("f16", [rows, k], 0, NaN) } : {}),
        positions: positionsTensor(given.lengths, inputs.angles),
        y: room([rows * (1 + splits), k]),
        state: stateTensor(rows, heads),
        ...(leaves ? { left: u32Tensor([1, roundedSizes(k).words]) } : {}),
        ...projected?.operands,
        ...(ahead ? { next: weights(), after: weights() } : {}),
      },
      constants: {
        ...choice.constants,
        ...ahead,
        MERGE: merge || leaves && !project ? 1 : 0,
        LEAVES: leaves ? 1 : 0,
        QKV_SPLITS: parts,
        HALF_Y: half ? 1 : 0,
        PROJECT: projected?.PROJECT ?? 0,
      },
      uniforms: { firstSequence: 0, eps: EPS, scale: headDim ** -0.5 },
      grid: decodeGrid(projected?.blocks ?? splits, groups, rows, fetchers),
      expected: () => {
        const after = reference.appended(inputs, sizes);
        const attended = reference.attended(after, sizes);
        return [
          ...(projected?.expected(attended) ?? ownResults(given, attended)),
          ...cacheResults(given, after),
          { of: ({ state }) => [state[0]], values: [0], tolerance: 0 },
          {
            of: ({ state }) => [Number(counting(state, rows, heads))],
            values: [0],
            tolerance: 0,
          },
        ];
      },
    });
  },
});
