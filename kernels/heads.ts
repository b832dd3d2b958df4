/**
 * What the attention kernels share: Qwen3's per-head RMSNorm of q and k, then RoPE
 * (https://arxiv.org/abs/2104.09864) in the half-split form.
 *
 * @module
 */

/**
 * Heads are handled in elements `E` of VEC values: vec4f where the head size is a
 * multiple of 8, else single floats. LANES threads share a head; each holds PAIRS
 * pairs `(a[p], b[p])`, b half a head after a.
 */
export const HEADS = /* wgsl */ `
@if VEC == 4 { alias E = vec4f; } @else { alias E = f32; }
const HALF = HEAD_DIM / 2u / VEC; // elements in half a head
fn squares(v: E) -> f32 { @if VEC == 4 { return dot(v, v); } @else { return v * v; } }
`;

/**
 * Norms and rotates pair p of a head in place of `a[p]`, `b[p]`, given the sum of
 * squares. `angles` has cos in the first half of a row, sin in the second.
 */
export const ROTATE = (norm: string) => /* wgsl */ `
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = min(p * LANES + lane, HALF - 1u);
    let na = a[p] * scale * ${norm}_at(i);
    let nb = b[p] * scale * ${norm}_at(HALF + i);
    let c = angles_at(position * 2u * HALF + i);
    let s = angles_at(position * 2u * HALF + HALF + i);
    a[p] = na * c - nb * s;
    b[p] = nb * c + na * s;
  }`;

/** What follows from HEAD_DIM and LOG_LANES. */
export function deriveHeads(c: Readonly<Record<string, number | string>>) {
  const LANES = 1 << Number(c.LOG_LANES), VEC = Number(c.VEC);
  return { LANES, PAIRS: Math.ceil(Number(c.HEAD_DIM) / 2 / VEC / LANES) };
}
