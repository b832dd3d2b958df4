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
 * Norms a pair by `factor` and its weights, then rotates it by an angle of which
 * cosine and sine are given, in place.
 */
export const turnPair = (
  [a, b]: [string, string],
  [gainA, gainB]: [string, string],
  [cos, sin]: [string, string],
) => /* wgsl */ `
    let na = ${a} * factor * ${gainA};
    let nb = ${b} * factor * ${gainB};
    ${a} = na * ${cos} - nb * ${sin};
    ${b} = nb * ${cos} + na * ${sin};`;

/**
 * Norms and rotates every pair of a head in place of `a[p]`, `b[p]`, given the
 * factor. `angles` has cos in the first half of a row, sin in the second.
 */
export const ROTATE = (norm: string) => /* wgsl */ `
  @unroll for (var p = 0; p < PAIRS; p++) {
    let i = min(p * LANES + lane, HALF - 1u);
    let c = angles_at(position * 2u * HALF + i);
    let s = angles_at(position * 2u * HALF + HALF + i);
    ${
  turnPair(["a[p]", "b[p]"], [`${norm}_at(i)`, `${norm}_at(HALF + i)`], [
    "c",
    "s",
  ])
}
  }`;

/** What follows from HEAD_DIM and LOG_LANES. */
export function deriveHeads(c: Readonly<Record<string, number | string>>) {
  const LANES = 1 << Number(c.LOG_LANES), VEC = Number(c.VEC);
  return { LANES, PAIRS: Math.ceil(Number(c.HEAD_DIM) / 2 / VEC / LANES) };
}
