/**
 * What attention in a decode step does with keys and values in q8_0.
 *
 * @module
 */
import { NORM_PLACE } from "./heads.ts";
import { LEAST } from "./int8_case.ts";

/** The largest integer that q is rounded to: two bytes, 256 · high + low. */
const LARGEST = 127 * 256 + 127;

/**
 * WGSL: rounds what a lane has of a head's q to integers. What they count is a part of the largest
 * value of a unit, which two neighboring lanes have; without subgroups, of all that lanes have.
 */
export const ROUND_QUERY = /* wgsl */ `
    @unroll for (var p = 0; p < NORM_PAIRS; p++) {
      let i = ${NORM_PLACE};
      let a = x[2 * (r * NORM_PAIRS + p)];
      let b = x[2 * (r * NORM_PAIRS + p) + 1];
      let most = unit_max(select(0.0, max(largest(a), largest(b)), i < HALF), tid);
      let steps = select(0.0, ${LARGEST}.0 / most, most > ${LEAST});
      if (i < HALF && norm_group + r * NORM_GROUPS < GROUP) {
        integers[n * HALF + i] = vec4u(bytes_of(a * steps), bytes_of(b * steps));
        if (i % PER == 0u) { counts[(n * HALF + i) / PER] = most / ${LARGEST}.0; }
      }
    }`;

/**
 * WGSL: a lane's part of the scores of a tile of keys, which are multiplied as they are stored:
 * of q's 16 bits, by the high bytes and by the low ones. Converting keys to floats took longer
 * than reading them ("Keys in Q8_0 as integers").
 */
export const SCORE_INTEGERS = /* wgsl */ `
    @unroll for (var i = 0; i < UNITS; i++) {
      let first = (i * KEY_LANES + key_lane) * PER;
      @unroll for (var g = 0; g < GROUP; g++) {
        @split var q: array<vec4u, PER>;
        @unroll for (var n = 0; n < PER; n++) { q[n] = integers[g * HALF + min(first + n, HALF - 1u)]; }
        @unroll for (var s = 0; s < STEPS; s++) {
          var high = 0;
          var low = 0;
          @unroll for (var n = 0; n < PER; n++) {
            high += dot4I8Packed(q[n].x, ks[s * UNITS + i][n]) + dot4I8Packed(q[n].z, ks[s * UNITS + i][PER + n]);
            low += dot4I8Packed(q[n].y, ks[s * UNITS + i][n]) + dot4I8Packed(q[n].w, ks[s * UNITS + i][PER + n]);
          }
          score[g * STEPS + s] += kd[s * UNITS + i] * (count[g * UNITS + i] * f32((high << 8u) + low));
        }
      }
    }`;

/** WGSL: what a lane's integers of q count; nothing past the end of a head. */
export const COUNTS = /* wgsl */ `
  @split var count: array<f32, GROUP * UNITS>;
  @unroll for (var g = 0; g < GROUP; g++) {
    @unroll for (var i = 0; i < UNITS; i++) {
      let unit = i * KEY_LANES + key_lane;
      count[g * UNITS + i] = select(0.0, counts[g * (HALF / PER) + min(unit, HALF / PER - 1u)], unit < HALF / PER);
    }
  }`;

/** WGSL: functions of the others. */
export const Q8_0 = /* wgsl */ `
@if CACHE == "q8_0" {
fn unit_max(v: f32, tid: u32) -> f32 {
  @if SUBGROUPS { return max(v, subgroupShuffleXor(v, 1u)); } @else { return lanes_max(v, tid); }
}
// Four elements of q as their high and their low bytes.
fn bytes_of(steps: vec4f) -> vec2u {
  let whole = vec4i(round(steps));
  let high = (whole + vec4i(128)) >> vec4u(8u);
  return vec2u(pack4xI8(high), pack4xI8(whole - (high << vec4u(8u))));
}
// The largest size of the 32 values of a block; 0 if there is no such block.
fn block_size(begin: u32, block: u32) -> f32 {
  var most = 0.0;
  for (var e = 4u * block; e < min(4u * block + 4u, HALF); e++) {
    most = max(most, max(largest(vectors[begin + e]), largest(vectors[begin + HALF + e])));
  }
  return most;
}
}`;

/**
 * WGSL: stores the new key and value. Thread i makes a unit, both halves of which have eight
 * values, and a fourth of the threads also store the scales of two blocks.
 */
export const QUANTIZE_NEW = /* wgsl */ `
    for (var i = spare; i < HALF; i += WORKGROUP) {
      let unit = i % (HALF / PER);
      let base = (GROUP + i / (HALF / PER)) * WIDTH;
      let block = unit / 2u;
      let most = block_size(base, block);
      let made = vec4u(
        quantized(vectors[base + 2u * unit], most), quantized(vectors[base + 2u * unit + 1u], most),
        quantized(vectors[base + HALF + 2u * unit], most), quantized(vectors[base + HALF + 2u * unit + 1u], most));
      let scale = scale_at(new_row, block);
      let scales = scales_word(most, block_size(base, block + 1u));
      if (i < HALF / PER) {
        k[new_row * (HALF / PER) + unit] = made;
        if (unit % 4u == 0u) { k[scale / 4u][scale % 4u] = scales; }
      } else {
        v[new_row * (HALF / PER) + unit] = made;
        if (unit % 4u == 0u) { v[scale / 4u][scale % 4u] = scales; }
      }
    }`;
