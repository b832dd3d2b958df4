import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { LANES } from "../lib/webgpu/wgsl.ts";
import {
  type Buffers,
  EPS,
  type Float,
  FLOATS,
  room,
  u32Tensor,
} from "./case.ts";
import { normCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  BLOCK,
  hasOutlier,
  int8Sizes,
  int8Values,
  IS_NAN,
  LARGEST,
  LEAST,
  PLANES,
} from "./int8_case.ts";
import { partialSquares } from "./linear_case.ts";

/**
 * Rounds rows to integers of 15 bits with a scale per block of 32, for
 * gemv_rows_int8.ts: each element is off by at most 1/32,512 of the largest in its block.
 * An integer is `128 · high + low`, two planes of eight bits. Beside an outlier that would
 * not do; the scale of such a block is negative, and a third plane has what rounding left,
 * in 1/256.
 *
 * Of each row, `y` has plane after plane, in quads of 16 elements. A unit of UNIT elements
 * is what a lane of the next kernel takes; first come the first quads of all units, then
 * the second ones, so that neighboring lanes read neighbors. `scales` has of each block its
 * scale, the sum of its integers, and the sums of their first and second halves.
 *
 * A thread takes four elements, and eight neighbors a block.
 *
 * NORM 1 RMS-norms the rows first; their sums of squares come from the kernel before, as
 * for gemv.ts.
 */
export const toInt8 = defineKernel<{ k: number; unit: number; norm?: Float }>({
  name: "toInt8",
  buffers: ({ NORM }) => ({
    x: "m k as vec4",
    ...(NORM ? { norm: "k as vec4", squares: "m parts as scalar" } : {}),
    y: "out m words as unit",
    scales: "out m numbers as vec4",
  }),
  uniforms: { eps: "f32" },
  constants: { NORM: 0, UNIT: 32, WORKGROUP: 128, LOG_LANES: 5, SUBGROUPS: 1 },
  derive: ({ LOG_LANES, SUBGROUPS, UNIT }, { k }) => {
    if (!SUBGROUPS || Number(LOG_LANES) < 3 || k % BLOCK) {
      throw new Error(
        `Cannot round rows of ${k} to integers: they must be whole blocks of ${BLOCK}, and 8 lanes or more must exchange values`,
      );
    }
    return {
      LANES: 1 << Number(LOG_LANES),
      QUADS: Number(UNIT) / 16,
      UNITS: k / Number(UNIT),
      FOURS: k / 4,
    };
  },
  grid: ({ m, k }, { WORKGROUP }) => [Math.ceil(k / 4 / WORKGROUP), m, 1],
  cost: (call) => {
    const [cost] = normCost(call);
    return [{
      ...cost,
      dtypes: "f32 → 3 × i8",
      bytes: call.m * call.k * (4 + 3.5),
      fused: call.constants.NORM === 1 ? ["RMSNorm"] : [],
    }];
  },
  body: /* wgsl */ `
@if NORM {
  ${LANES}
  var<workgroup> sums: array<f32, WORKGROUP / LANES>;
}

${IS_NAN}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let row = wg.y;
  let four = wg.x * WORKGROUP + tid;
  @if NORM {
    var squared = 0.0;
    for (var i = tid; i < u.parts; i += WORKGROUP) { squared += squares_at(row * u.parts + i); }
    squared = lanes_sum(squared, tid);
    if (tid % LANES == 0u) { sums[tid / LANES] = squared; }
    workgroupBarrier();
    squared = 0.0;
    for (var i = 0u; i < WORKGROUP / LANES; i++) { squared += sums[i]; }
    let factor = inverseSqrt(squared / f32(u.k) + u.eps);
  } @else { let factor = 1.0; }
  let at = min(four, FOURS - 1u);
  @if NORM { let value = x_at(row * FOURS + at) * norm_at(at); } @else { let value = x_at(row * FOURS + at); }
  let each = abs(value);
  var size = max(max(each.x, each.y), max(each.z, each.w));
  var roots = dot(sqrt(each), vec4f(1.0));
  @unroll for (var b = 0; b < 3; b++) {
    size = max(size, subgroupShuffleXor(size, 1u << b));
    roots += subgroupShuffleXor(roots, 1u << b);
  }
  let scaled = value * select(0.0, ${LARGEST}.0 / size, size > ${LEAST});
  let rounded = vec4i(round(scaled));
  var sum = f32(rounded.x + rounded.y + rounded.z + rounded.w);
  @unroll for (var b = 0; b < 2; b++) { sum += subgroupShuffleXor(sum, 1u << b); }
  let other = subgroupShuffleXor(sum, 4u); // of the other half of the block
  if (four >= FOURS) { return; }
  let high = (rounded + vec4i(64)) >> vec4u(7u);
  let quad = four / 4u;
  let place = (row * ${PLANES}u * QUADS + quad % QUADS) * UNITS + quad / QUADS;
  y[place][four % 4u] = pack4xI8(high);
  y[place + QUADS * UNITS][four % 4u] = pack4xI8(rounded - (high << vec4u(7u)));
  y[place + 2u * QUADS * UNITS][four % 4u] = pack4xI8(min(vec4i(round((scaled - vec4f(rounded)) * 256.0)), vec4i(127)));
  if (four % 8u == 0u) {
    let scale = size / ${LARGEST}.0 * factor;
    let signed = select(scale, -scale, ${hasOutlier("size", "roots")});
    scales_put(row * FOURS / 8u + four / 8u, vec4f(select(signed, roots, is_nan(roots)), sum + other, sum, other));
  }
}`,
  cases: [
    { k: 96, unit: 32 },
    { k: 288, unit: 16 },
    { k: 2112, unit: 64, norm: "f32" },
    ...FLOATS.map((norm) => ({ k: 512, unit: 64, norm })),
  ],
  makeCase({ k, unit, norm: dtype }, { device, random, reference }) {
    if (device.subgroupSize < 8) return undefined; // other kernels run
    const m = 3, { words, numbers } = int8Sizes(k);
    const x = random.tensor("f32", [m, k], 1e6);
    x.data.fill(0, k + 32, k + 64); // a block of zeros
    const norm = dtype && random.tensor(dtype, [k], 0.5, 1);
    const floats = toF32(x);
    return {
      what: `[${m}, ${k}] in units of ${unit}${
        dtype ? `, normed by ${dtype}` : ""
      }`,
      operands: {
        x,
        y: u32Tensor([m, words], new Uint32Array(m * words).fill(0x7f7f7f7f)),
        scales: room([m, numbers]),
        ...(norm ? { norm, squares: partialSquares(floats, k) } : {}),
      },
      constants: {
        NORM: norm ? 1 : 0,
        UNIT: unit,
        ...laneConstants(device),
      },
      uniforms: { eps: EPS },
      expected: () => {
        const values = norm
          ? reference.rmsNormed(floats, toF32(norm), EPS)
          : Float64Array.from(floats);
        const largest = values.map((_, at) => {
          const block = at - at % BLOCK;
          return values.subarray(block, block + BLOCK)
            .reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        });
        const read = ({ y, scales }: Buffers) => int8Values(y, scales, k, unit);
        return [{
          of: (buffers) => read(buffers).values,
          values,
          // Half of a step, and what f32 rounds before: an ulp is 0.002 of a step at most.
          norms: largest.map((v) => v + 1e-30),
          tolerance: 0.52 / LARGEST,
        }, {
          of: (buffers) => read(buffers).sumsOff,
          values: new Float64Array(3 * m * k / BLOCK),
          tolerance: 0,
        }];
      },
    };
  },
});
