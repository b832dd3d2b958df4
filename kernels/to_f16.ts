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
  derive: ({ LOG_LANES }) => ({ LANES: 1 << Number(LOG_LANES) }),
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
var<workgroup> squares: array<f32, WORKGROUP / LANES>;
var<workgroup> largest: array<f32, WORKGROUP / LANES>;

fn normed(row: u32, i: u32) -> vec4f {
  @if NORM { return x_at(row * (u.k / 4u) + i) * norm_at(i); }
  @else { return x_at(row * (u.k / 4u) + i); }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let at = wg.y * groups.x + wg.x;
  let row = min(at, u.m - 1u);
  var sum = 0.0;
  var high = 0.0;
  @if SPLITS { if (at >= u.m) { return; } } // nothing is added twice
  for (var i = tid; i < u.k / 4u; i += WORKGROUP) {
    @if SPLITS {
      var v = x_at(row * (u.k / 4u) + i);
      @unroll for (var s = 0; s < SPLITS; s++) { v += partial_at((s * u.m + row) * (u.k / 4u) + i); }
      x_put(row * (u.k / 4u) + i, v);
    } @else { let v = x_at(row * (u.k / 4u) + i); }
    sum += dot(v, v);
    let size = abs(normed(row, i));
    high = max(high, max(max(size.x, size.y), max(size.z, size.w)));
  }
  sum = lanes_sum(sum, tid);
  high = lanes_max(high, tid);
  if (tid % LANES == 0u) {
    squares[tid / LANES] = sum;
    largest[tid / LANES] = high;
  }
  workgroupBarrier();
  sum = 0.0;
  high = 0.0;
  for (var i = 0u; i < WORKGROUP / LANES; i++) {
    sum += squares[i];
    high = max(high, largest[i]);
  }
  // The power of two at or below the largest value, from its exponent bits.
  let unit = bitcast<f32>(clamp(bitcast<u32>(high) & 0x7f800000u, 0x10000000u, 0x7e800000u)) / u.headroom;
  if (at >= u.m) { return; }
  for (var i = tid; i < u.k / 4u; i += WORKGROUP) { y_put(row * (u.k / 4u) + i, normed(row, i) / unit); }
  if (tid == 0u) {
    @if NORM { scales[row] = unit * inverseSqrt(sum / f32(u.k) + u.eps); }
    @else { scales[row] = unit; }
  }
}`,
  cases: [
    { k: 76 },
    ...FLOATS.map((norm) => ({ k: 100, norm })),
    { k: 600, norm: "bf16", splits: 3 },
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
