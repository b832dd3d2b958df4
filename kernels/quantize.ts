import { packed } from "../lib/formats/matrix.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { quantizerOf } from "../lib/formats/quantize.ts";
import { bytesOf, type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { defineKernel } from "./define.ts";

/** The sources: values of `SOURCE`. */
export const SOURCES = ["f32", "f16", "bf16"] as const;

/** The formats, with their values of `BITS`. */
export const QUANTIZED: Readonly<Record<string, number>> = { q8_0: 8, q4_0: 4 };

/**
 * Quantises blocks of 32 values as Q8_0 or Q4_0, with the bits of lib/formats/quantize.ts:
 * from `x`, blocks `to` and following of the format's planes. A thread has two blocks,
 * whose scales share a word; `to` is even.
 *
 * WGSL allows a division to be off by a few units in the last place, and a multiplication
 * and an addition to be fused. So quotients are corrected with integers, and between a
 * product and a sum stands a `clamp`. Blocks whose values are all below 2⁻¹¹⁸ become
 * zeros, which their scale makes of them anyway. If a value is not finite, `flags[0]` is at
 * least `mark`.
 */
export const quantize = defineKernel<
  { blocks: number; to: number; source: string; format: string }
>({
  name: "quantize",
  buffers: {
    x: "any as raw",
    quants: "inout any as raw",
    scales: "inout any as raw",
    flags: "inout any as atomic",
  },
  uniforms: { blocks: "u32", to: "u32", mark: "u32" },
  constants: { WORKGROUP: 64, SOURCE: 2, BITS: 8 },
  grid: ({ blocks }, { WORKGROUP }) => splitGrid(blocks / 2 / WORKGROUP),
  body: /* wgsl */ `
// Value i of x, as the bits of an f32.
fn bits_of(i: u32) -> u32 {
  if (SOURCE == 0u) { return x[i]; }
  let half = (x[i >> 1u] >> ((i & 1u) * 16u)) & 0xffffu;
  if (SOURCE == 2u) { return half << 16u; }
  let sign = (half & 0x8000u) << 16u;
  let size = half & 0x7fffu;
  if (size >= 0x7c00u) { return sign | 0x7f800000u; }
  if (size < 0x400u) { return sign | bitcast<u32>(f32(size) * 0x1p-24); }
  return sign | ((size << 13u) + (112u << 23u));
}

// size / 127 to nearest, of positive bits from 2^-118 on.
fn by_127(size: u32) -> u32 {
  let m = (size & 0x7fffffu) | 0x800000u;
  let large = (m << 7u) / 127u >= 0x1000000u;
  let n = m << select(7u, 6u, large);
  let q = n / 127u + select(0u, 1u, 2u * (n % 127u) > 127u);
  return (((size >> 23u) - select(7u, 6u, large)) << 23u) + q - 0x800000u;
}

// 1 / size to nearest, of positive bits. The estimate is a few units off; its remainder,
// modulo 2^32, says by how many.
fn inverse(size: u32) -> u32 {
  let m = (size & 0x7fffffu) | 0x800000u;
  var q = u32(0x1p47 / f32(m));
  var rest = bitcast<i32>(0u - q * m);
  for (var i = 0u; i < 4u; i++) {
    let step = select(0, 1, 2 * rest > i32(m)) - select(0, 1, 2 * rest < -i32(m));
    q = bitcast<u32>(bitcast<i32>(q) + step);
    rest -= step * i32(m);
  }
  return ((253u - (size >> 23u)) << 23u) + q - 0x800000u;
}

// To nearest even.
fn half_of(bits: u32) -> u32 {
  let sign = (bits >> 16u) & 0x8000u;
  let e = (bits >> 23u) & 255u;
  if (e > 142u) { return sign | 0x7c00u; }
  let isNormal = e > 112u;
  let m = (bits & 0x7fffffu) | select(0x800000u, 0u, isNormal);
  let shift = select(min(126u - e, 25u), 13u, isNormal);
  let whole = m >> shift;
  let rest = m & ((1u << shift) - 1u);
  let middle = 1u << (shift - 1u);
  let up = rest > middle || (rest == middle && (whole & 1u) == 1u);
  return sign | (select(0u, (e - 112u) << 10u, isNormal) + whole + select(0u, 1u, up));
}

fn eight(i: u32, by: f32) -> u32 {
  let bits = bits_of(i);
  let a = abs(clamp(bitcast<f32>(bits) * by, -128.0, 128.0));
  let t = floor(a);
  let q = u32(t) + select(0u, 1u, a - t >= 0.5); // half away from zero
  return select(q, 256u - q, (bits >> 31u) == 1u) & 255u;
}

fn four(i: u32, by: f32) -> u32 {
  let v = clamp(bitcast<f32>(bits_of(i)) * by, -8.5, 8.5);
  return min(u32(v + 8.5), 15u);
}

// Writes a block's quants; returns its scale.
fn block(begin: u32, at: u32) -> u32 {
  var most = 0u;
  var largest = 0u;
  for (var i = 0u; i < 32u; i++) {
    let bits = bits_of(begin + i);
    let size = bits & 0x7fffffffu;
    if (size > most) { most = size; largest = bits; }
  }
  if (most >= 0x7f800000u) { atomicMax(&flags[0], u.mark); }
  let isTiny = (most >> 23u) <= 8u;
  var d = 0u;
  if (BITS == 8u) { d = select(by_127(most), 0u, isTiny); }
  else {
    let negated = largest ^ 0x80000000u;
    d = select(negated - (3u << 23u), negated & 0x80000000u, isTiny); // / -8
  }
  let size = inverse(d & 0x7fffffffu) | (d & 0x80000000u);
  let by = select(bitcast<f32>(size), 0.0, isTiny);
  if (BITS == 8u) {
    for (var w = 0u; w < 8u; w++) {
      let i = begin + 4u * w;
      quants[at * 8u + w] = eight(i, by) | (eight(i + 1u, by) << 8u) |
        (eight(i + 2u, by) << 16u) | (eight(i + 3u, by) << 24u);
    }
  } else {
    for (var w = 0u; w < 4u; w++) {
      var word = 0u;
      for (var j = 0u; j < 4u; j++) {
        let i = begin + 4u * w + j;
        word |= (four(i, by) | (four(i + 16u, by) << 4u)) << (8u * j);
      }
      quants[at * 4u + w] = word;
    }
  }
  return half_of(d);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let first = 2u * ((wg.y * groups.x + wg.x) * WORKGROUP + tid);
  if (first >= u.blocks) { return; }
  let at = u.to + first;
  var pair = block(first * 32u, at);
  if (first + 1u < u.blocks) { pair |= block(first * 32u + 32u, at + 1u) << 16u; }
  scales[at >> 1u] = pair;
}`,
  cases: SOURCES.flatMap((source) =>
    Object.keys(QUANTIZED).flatMap((format) => [
      { blocks: 77, to: 0, source, format },
      { blocks: 130, to: 6, source, format },
    ])
  ),
  makeCase({ blocks, to, source, format: name }, { random }) {
    const format = formatNamed(name), count = 32 * blocks;
    const x = random.tensor(source as "f32", [count]);
    const at = to * 32, after = 64; // elements that must stay
    const [quants, scales] = format.planes(at + count + after)
      .map(({ rowBytes }) => filled(Math.ceil(rowBytes / 4)));
    return {
      what: `${blocks} blocks of ${source} as ${name}`,
      operands: { x: wordsOf(x), quants, scales, flags: filled(1, 0) },
      constants: {
        SOURCE: SOURCES.indexOf(source as "f32"),
        BITS: QUANTIZED[name],
      },
      uniforms: { blocks, to, mark: 1 },
      expected: () => {
        const stored = new Uint8Array(blocks * format.bytes);
        quantizerOf(format)(toF32(x), stored);
        const planes = packed(format, stored, count, 1);
        return [quants, scales].map((before, i) => {
          const bytes = bytesOf(before).slice();
          const begin = at * planes[i].length / count;
          bytes.set(planes[i], begin);
          // The last of an odd number of scales has a word of its own.
          bytes.fill(
            0,
            begin + planes[i].length,
            aligned(begin + planes[i].length),
          );
          const of = i === 0 ? "quants" : "scales";
          return { of, values: new Uint32Array(bytes.buffer), tolerance: 0 };
        });
      },
    };
  },
});

const aligned = (bytes: number) => 4 * Math.ceil(bytes / 4);

/** Words that show if they are not written. */
function filled(words: number, value = 0xdeadbeef): CpuTensor {
  const data = new Uint32Array(words).fill(value);
  return { dtype: "u32", shape: [words], data };
}

/** A tensor's bytes as words. */
function wordsOf(tensor: CpuTensor): CpuTensor {
  const bytes = bytesOf(tensor);
  const data = new Uint32Array(Math.ceil(bytes.length / 4));
  new Uint8Array(data.buffer).set(bytes);
  return { dtype: "u32", shape: [data.length], data };
}
