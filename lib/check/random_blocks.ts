/**
 * Random blocks of quantized formats: any bits, but scales that weights could have.
 *
 * @module
 */
import type { CaseRandom } from "../../kernels/case.ts";
import { f32ToF16Bits } from "../dtype.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";

/** Where a block has f16 scales and minimums, and how large for elements of up to about 1. */
const SCALES: Record<string, [at: number, size: number][]> = {
  q8_0: [[0, 2 ** -7]],
  q4_0: [[0, 2 ** -3]],
  q4_1: [[0, 2 ** -3], [2, -1]],
  q5_0: [[0, 2 ** -4]],
  q5_1: [[0, 2 ** -4], [2, -1]],
  q2_k: [[80, 2 ** -4], [82, 2 ** -4]],
  q3_k: [[108, 2 ** -7]],
  q4_k: [[0, 2 ** -9], [2, 2 ** -6]],
  q5_k: [[0, 2 ** -10], [2, 2 ** -6]],
  q6_k: [[208, 2 ** -12]],
  iq4_nl: [[0, 2 ** -7]],
  iq4_xs: [[0, 2 ** -12]],
};

/**
 * Stored rows of `k` elements in a format of blocks, of up to about `scale`, less in some
 * blocks. So some scales of Q4_K, Q5_K, Q6_K and IQ4_XS are subnormal, as those of small
 * weights are in files: a GPU that reads them as zeros fails the test.
 */
export function randomBlocks(
  random: CaseRandom,
  { name, elements, bytes }: Pick<Format, "name" | "elements" | "bytes">,
  rows: number,
  k: number,
  scale: number,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(rows * storedRowBytes({ elements, bytes }, k));
  for (let i = 0; i < out.length; i++) out[i] = random.int(0, 255);
  const view = new DataView(out.buffer);
  for (let at = 0; at < out.length; at += bytes) {
    const less = random.int(0, 6);
    if (name === "mxfp4") { // an exponent
      out[at] = 125 + Math.round(Math.log2(scale)) - less;
    }
    for (const [place, size] of SCALES[name] ?? []) {
      const own = scale * size * (1 + random.next() / 4) / 2 ** less;
      view.setUint16(at + place, f32ToF16Bits(own), true);
    }
  }
  return out;
}
