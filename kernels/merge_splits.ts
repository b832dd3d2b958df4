import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { headVector } from "../lib/dispatch/precision.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES, LOW } from "../lib/webgpu/wgsl.ts";
import { merged, stateTensor } from "./attention_case.ts";
import { type Buffers, HALF_ROUNDED, halfNorms, room, SUM } from "./case.ts";
import { defineKernel } from "./define.ts";
import { splitAt, STATE } from "./heads.ts";
import { bitsOf } from "./sample_case.ts";

interface MergeCase {
  m: number;
  heads: number;
  headDim: number;
  splits: number;
  /** Whether the result is in f16. */
  half?: boolean;
}

/**
 * Merges the splits of attend_decode.ts (`state[1]` of them, at most MOST) on devices
 * whose storage barrier does not reach beyond a workgroup, so that attend_decode.ts cannot
 * merge them itself. One workgroup per head. SLICES threads share an element, each with
 * BATCH splits in flight; the first loads are issued before the weights are known. The
 * results of the splits follow `y` in its buffer. HALF_Y: see attend_decode.ts.
 */
export const mergeSplits = defineKernel<MergeCase>({
  name: "mergeSplits",
  buffers: ({ VEC, HALF_Y }) => ({
    state: "any",
    y: `inout any as ${VEC === 4 ? "vec4" : "scalar"}`,
    ...(HALF_Y ? { halfY: "out any as vec4" } : {}),
  }),
  // Heads of all rows.
  uniforms: { heads: "u32" },
  constants: {
    HEAD_DIM: 128,
    VEC: 4,
    WORKGROUP: 256,
    MOST: 64,
    BATCH: 4,
    HALF_Y: 0,
    LOG_LANES: 5,
    SUBGROUPS: 0,
  },
  derive: (c) => {
    const WIDTH = Number(c.HEAD_DIM) / Number(c.VEC);
    const LANES = 1 << Number(c.LOG_LANES);
    return {
      WIDTH,
      LANES,
      COLUMNS: Math.min(WIDTH, Number(c.WORKGROUP)),
      SLICES: Math.max(1, Math.floor(Number(c.WORKGROUP) / WIDTH)),
      OWN: Math.ceil(Number(c.MOST) / LANES),
    };
  },
  grid: ({ heads }) => splitGrid(heads),
  cost: (call) => {
    const { numAttentionHeads, headDim } = call.context.config;
    const width = numAttentionHeads * headDim;
    return call.whole({
      name: "attention merge",
      group: "attention",
      shape: `[${call.m}, ${width}]`,
      bytes: 8 * call.m * width,
    });
  },
  body: /* wgsl */ `
${LANES}
${STATE}
@if VEC == 4 { alias E = vec4f; } @else { alias E = f32; }
var<workgroup> weights: array<f32, OWN * LANES>;
var<workgroup> sums: array<E, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let head = min(wg.y * groups.x + wg.x, u.heads - 1u);
  let splits = state[1];
  let partial = (u.heads + head * splits) * WIDTH;
  let column = tid % COLUMNS;
  let slice = tid / COLUMNS;
  @split var value: array<E, BATCH>;
  @unroll for (var i = 0; i < BATCH; i++) {
    value[i] = y_at(partial + min(i * SLICES + slice, splits - 1u) * WIDTH + column);
  }
  // Each lane group computes the weights of all splits.
  let lane = tid % LANES;
  @split var top: array<f32, OWN>;
  @split var sum: array<f32, OWN>;
  var high = ${LOW};
  @unroll for (var i = 0; i < OWN; i++) {
    let split = i * LANES + lane;
    top[i] = ${LOW};
    if (split < splits) {
      top[i] = bitcast<f32>(state[split_of(head, splits, split)]);
      sum[i] = bitcast<f32>(state[split_of(head, splits, split) + 1u]);
    }
    high = max(high, top[i]);
  }
  high = lanes_max(high, tid);
  var total = 0.0;
  @unroll for (var i = 0; i < OWN; i++) {
    top[i] = exp(top[i] - high);
    total += top[i] * sum[i];
    if (tid < LANES) { weights[i * LANES + lane] = top[i]; }
  }
  total = lanes_sum(total, tid);
  workgroupBarrier();
  for (var begin = 0u; begin < WIDTH; begin += COLUMNS) {
    var acc = E();
    for (var s = slice; s < splits; s += SLICES * BATCH) {
      if (begin > 0u || s > slice) {
        @unroll for (var i = 0; i < BATCH; i++) {
          let at = partial + min(s + i * SLICES, splits - 1u) * WIDTH;
          value[i] = y_at(at + min(begin + column, WIDTH - 1u));
        }
      }
      @unroll for (var i = 0; i < BATCH; i++) {
        let split = s + i * SLICES;
        if (split < splits) { acc += value[i] * weights[split]; }
      }
    }
    sums[tid] = acc;
    workgroupBarrier();
    if (tid < COLUMNS && begin + tid < WIDTH) {
      @unroll for (var r = 1; r < SLICES; r++) { acc += sums[r * COLUMNS + tid]; }
      @if HALF_Y { halfY_put(head * WIDTH + begin + tid, acc / total); }
      @else { y_put(head * WIDTH + begin + tid, acc / total); }
    }
    workgroupBarrier();
  }
}`,
  cases: [
    { m: 3, heads: 4, headDim: 128, splits: 2 },
    { m: 1, heads: 4, headDim: 128, splits: 64 },
    { m: 2, heads: 4, headDim: 128, splits: 3, half: true },
    { m: 2, heads: 3, headDim: 6, splits: 5 },
  ],
  makeCase({ m, heads, headDim, splits, half }, { device, random }) {
    const all = m * heads, size = all * headDim;
    const partial = toF32(random.tensor("f32", [all * splits, headDim]));
    const y = room([m * (1 + splits), heads * headDim]);
    y.data.set(partial, size);
    const state = stateTensor(m, heads);
    state.data[1] = splits;
    for (let head = 0; head < all; head++) {
      for (let s = 0; s < splits; s++) {
        const [top, sum] = [20 * random.next(), 2 + random.next()];
        state.data.set([bitsOf(top), bitsOf(sum)], splitAt(head, splits, s));
      }
    }
    return {
      what: `${splits} splits of [${m}, ${heads}, ${headDim}]${
        half ? ", as f16" : ""
      }`,
      operands: {
        state,
        y,
        ...(half
          ? { halfY: random.tensor("f16", [m, heads * headDim], 0, NaN) }
          : {}),
      },
      constants: {
        HALF_Y: half ? 1 : 0,
        HEAD_DIM: headDim,
        VEC: headVector(headDim),
        ...laneConstants(device),
      },
      uniforms: { heads: all },
      expected: () => {
        const of = ({ y, halfY = y }: Buffers) =>
          Array.from(halfY).slice(0, size);
        const whole = merged(partial, state.data, headDim, splits);
        const norms = half ? halfNorms(whole.norms) : whole.norms;
        return [{
          ...{ ...whole, of, norms },
          tolerance: half ? HALF_ROUNDED : SUM,
        }];
      },
    };
  },
});
