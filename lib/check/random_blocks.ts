/**
 * Random blocks of quantised formats: any bits, but scales that weights could have.
 *
 * @module
 */
import type { CaseRandom } from "../../kernels/case.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { setScales } from "../formats/random_blocks.ts";

/**
 * Stored rows of `k` elements in a format of blocks, of up to about `scale`, less in some
 * blocks. So some scales of Q4_K, Q5_K, Q6_K and IQ4_XS are subnormal, as those of small
 * weights are in files: a GPU that reads them as zeros fails the test.
 */
export function randomBlocks(
  random: CaseRandom,
  format: Pick<Format, "name" | "elements" | "bytes">,
  rows: number,
  k: number,
  scale: number,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(rows * storedRowBytes(format, k));
  for (let i = 0; i < out.length; i++) out[i] = random.int(0, 255);
  const size = () =>
    scale * (1 + random.next() / 4) / 2 ** random.int(0, 6) / Math.sqrt(3);
  setScales(format, out, size);
  return out;
}
