import { toF32 } from "../lib/formats/tensor.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { defineKernel } from "./define.ts";

/**
 * Generates synthetic bf16 weights without an upload: `w[i] = bf16(scale · u[i])`, the
 * rule of lib/checkpoint/synthetic.ts. Each thread makes a word of two weights. The
 * tensor's words from `source` on are written to the buffer's words from `to` on.
 */
export const synthesize = defineKernel<
  { words: number; source: number; to: number }
>({
  name: "synthesize",
  buffers: { w: "inout any as raw" },
  uniforms: {
    seed: "u32",
    scale: "f32",
    source: "u32",
    to: "u32",
    words: "u32",
  },
  constants: { WORKGROUP: 256 },
  grid: ({ words }, { WORKGROUP }) => splitGrid(words / WORKGROUP),
  body: /* wgsl */ `
fn weight(i: u32) -> u32 {
  var h = i + u.seed;
  h = (h ^ (h >> 16u)) * 0x85ebca6bu;
  h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
  h ^= h >> 16u;
  let bits = bitcast<u32>(u.scale * (f32(h >> 8u) * 0x1p-23 - 1.0));
  return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u; // to nearest even
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let i = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  if (i < u.words) { w[u.to + i] = weight(2u * (u.source + i)) | (weight(2u * (u.source + i) + 1u) << 16u); }
}`,
  cases: [{ words: 333, source: 0, to: 0 }, { words: 300, source: 77, to: 9 }],
  makeCase({ words, source, to }, { random, reference }) {
    const rule = { seed: 7, scale: 0.25, offset: 0 as const };
    const size = 2 * (to + words + 5);
    return {
      what: `bf16 [${size}], ${words} words from ${source}`,
      operands: { w: random.tensor("bf16", [size], 0, NaN) },
      uniforms: { seed: rule.seed, scale: rule.scale, source, to, words },
      expected: () => {
        const data = new Uint16Array(2 * words);
        reference.fillSynthetic(rule, 2 * source, data);
        const values = new Float32Array(size).fill(NaN);
        const weights = toF32({ dtype: "bf16", shape: [2 * words], data });
        values.set(weights, 2 * to);
        return [{ of: "w", values, tolerance: 0 }];
      },
    };
  },
});
