import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import { EPS, type Float, FLOATS, room, SUM } from "./case.ts";
import { normCost } from "./cost.ts";
import { defineKernel } from "./define.ts";

/**
 * Converts rows to f16 for matmuls in f16. Each row is scaled by a power of two so that
 * its largest value is in [headroom, 2 · headroom): no activation overflows (those of real
 * checkpoints exceed 65,504), small values keep their precision, and scaling back is
 * exact. NORM 1 RMS-norms the row first. One workgroup per row.
 *
 * With SPLITS, the partial results of a gemm that split k, `[splits · m, k]`, are added to the
 * row of `x` first, as sum_splits.ts does, and the row keeps their sum.
 */
export const toF16 = defineKernel<
  { k: number; norm?: Float; splits?: number }
>({
  name: "toF16",
  buffers: ({ SPLITS }) => ({
    ...(SPLITS ? { partial: "any k as vec4" } : {}),
    x: `${SPLITS ? "inout " : ""}m k as vec4`,
    norm: "any as vec4",
    y: "out m k as vec4",
    scales: "out m",
  }),
  uniforms: { eps: "f32", headroom: "f32" },
  constants: { NORM: 0, SPLITS: 0, WORKGROUP: 128, LOG_LANES: 5, SUBGROUPS: 1 },
  derive: ({ LOG_LANES, WORKGROUP }, { k }) => {
    const lanes = 1 << Number(LOG_LANES), threads = Number(WORKGROUP);
    return {
      LANES: lanes,
      ROUNDS: Math.ceil(k / 4 / threads),
      SHARE_STEPS: Math.ceil(threads / lanes / lanes),
    };
  },
  grid: ({ m }) => splitGrid(m),
  cost: (call) => {
    const [cost] = normCost(call), splits = Number(call.constants.SPLITS);
    return [{
      ...cost,
      dtypes: "f32 → f16",
      flops: cost.flops + splits * call.m * call.k,
      bytes: call.m * call.k * (4 + 2 + (splits ? 4 * (splits + 1) : 0)),
      fused: call.constants.NORM === 1 ? ["RMSNorm"] : [],
    }];
  },
  body: /* wgsl */ `
${LANES}
const GROUPS = WORKGROUP / LANES;
var<workgroup> shares: array<vec2f, GROUPS>; // sum of squares, largest value

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= u.m) { return; }
  let lane = tid % LANES;
  let fours = u.k / 4u;
  // All loads come before the first store, to be in flight together; those past the end of the
  // row load its last values again.
  @split var value: array<vec4f, ROUNDS>;
  @if NORM { @split var gain: array<vec4f, ROUNDS>; }
  @unroll for (var r = 0; r < ROUNDS; r++) {
    let i = min(r * WORKGROUP + tid, fours - 1u);
    value[r] = x_at(row * fours + i);
    @unroll for (var s = 0; s < SPLITS; s++) { value[r] += partial_at((s * u.m + row) * fours + i); }
    @if NORM { gain[r] = norm_at(i); }
  }
  var sum = 0.0;
  var high = 0.0;
  @unroll for (var r = 0; r < ROUNDS; r++) {
    let i = r * WORKGROUP + tid;
    @if SPLITS { if (i < fours) { x_put(row * fours + i, value[r]); } }
    sum += select(0.0, dot(value[r], value[r]), i < fours);
    @if NORM { value[r] *= gain[r]; }
    let size = abs(value[r]);
    // Past the end, another thread may have stored its sum already.
    high = select(high, max(high, max(max(size.x, size.y), max(size.z, size.w))), i < fours);
  }
  sum = lanes_sum(sum, tid);
  high = lanes_max(high, tid);
  if (lane == 0u) { shares[tid / LANES] = vec2f(sum, high); }
  workgroupBarrier();
  sum = 0.0;
  high = 0.0;
  @unroll for (var i = 0; i < SHARE_STEPS; i++) {
    let at = i * LANES + lane;
    let share = shares[min(at, GROUPS - 1u)];
    sum += select(0.0, share.x, at < GROUPS);
    high = max(high, share.y);
  }
  sum = lanes_sum(sum, tid);
  high = lanes_max(high, tid);
  // The power of two at or below the largest value, from its exponent bits.
  let unit = bitcast<f32>(clamp(bitcast<u32>(high) & 0x7f800000u, 0x10000000u, 0x7e800000u)) / u.headroom;
  @unroll for (var r = 0; r < ROUNDS; r++) {
    let i = r * WORKGROUP + tid;
    if (i < fours) { y_put(row * fours + i, value[r] / unit); }
  }
  if (tid == 0u) {
    @if NORM { scales[row] = unit * inverseSqrt(sum / f32(u.k) + u.eps); }
    @else { scales[row] = unit; }
  }
}`,
  cases: [
    { k: 76 },
    ...FLOATS.map((norm) => ({ k: 100, norm })),
    { k: 600, norm: "bf16", splits: 3 },
    { k: 1028, splits: 2 },
  ],
  makeCase({ k, norm: dtype, splits }, { device, random, reference }) {
    const m = 3;
    const x = random.tensor("f32", [m, k], 1e6);
    const norm = dtype ? random.tensor(dtype, [k], 0.5, 1) : x;
    const partial = splits && random.tensor("f32", [splits * m, k], 1e6);
    return {
      what: `${splits ? `${splits} splits of ` : ""}[${m}, ${k}]${
        dtype ? `, normed by ${dtype}` : ""
      }`,
      operands: {
        ...(partial ? { partial } : {}),
        x,
        norm,
        y: random.tensor("f16", [m, k], 0, NaN),
        scales: room([m]),
      },
      constants: {
        NORM: dtype ? 1 : 0,
        SPLITS: splits ?? 0,
        ...laneConstants(device),
      },
      uniforms: { eps: EPS, headroom: 64 },
      expected: () => {
        const rows = toF32(x);
        if (partial) {
          toF32(partial).forEach((v, i) => rows[i % (m * k)] += v);
        }
        const values = dtype
          ? reference.rmsNormed(rows, toF32(norm), EPS)
          : Float64Array.from(rows);
        const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        return [
          ...(partial ? [{ of: "x", values: rows, tolerance: SUM }] : []),
          {
            of: ({ y, scales }) =>
              Float64Array.from(
                y,
                (half, i) => half * scales[Math.floor(i / k)],
              ),
            values,
            // f16 keeps 11 bits, down to 2⁻²⁴ of the value that a row is scaled to.
            norms: values.map((v) => Math.abs(v) + 1e-3 * largest),
            tolerance: 2 ** -10.9,
          },
        ];
      },
    };
  },
});
