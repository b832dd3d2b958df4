/**
 * WGSL shared by the attention kernels: Qwen3's per-head RMSNorm of q and k, then RoPE
 * (https://arxiv.org/abs/2104.09864) in the half-split form.
 *
 * @module
 */

/**
 * Heads are processed in elements `E` of VEC values: vec4f if the head size is a multiple
 * of 8, otherwise single floats. `guard` sets `flags[0]` if the cache cannot hold a value.
 */
export const HEADS = /* wgsl */ `
@if VEC == 4 { alias E = vec4f; } @else { alias E = f32; }
const HALF = HEAD_DIM / 2u / VEC; // elements in half a head
fn squares(v: E) -> f32 { @if VEC == 4 { return dot(v, v); } @else { return v * v; } }
fn guard(v: E) {
  @if K_DTYPE == "f16" { if (!all(abs(v) <= vec4f(65504.0))) { flags[0] = 1u; } }
}
`;

/**
 * Norms a pair by `factor` and its weights, then rotates it by an angle given as cosine
 * and sine, in place.
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
