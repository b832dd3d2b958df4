/**
 * How stored blocks become planes, as data for kernels/repack.ts: which bits of the blocks
 * each word of a plane is made from. On the CPU, `pack` does the same: there, code for each
 * format is several times as fast as following this description.
 *
 * @module
 */

/** Bits of a word of a plane: `((the word from `byte` on) >>> shift & mask) << by`. */
export interface Field {
  /** Where to read four bytes, which are within one block; need not be aligned. */
  readonly byte: number;
  readonly shift: number;
  readonly mask: number;
  readonly by: number;
}

/** A plane. Its words repeat after some blocks, as do the bytes that they are made from. */
export interface Gather {
  /** Stored bytes after which the fields repeat. */
  readonly bytes: number;
  /** The fields of each word until then. */
  readonly words: readonly (readonly Field[])[];
}

/** Bits in a row, from bit `bit` of a block on. */
export interface Bits {
  readonly bit: number;
  readonly width: number;
}

/**
 * A plane whose blocks are `bits`, one after the other, of blocks of `bytes` stored bytes.
 */
export function gather(bytes: number, bits: readonly Bits[]): Gather {
  const own = bits.reduce((sum, { width }) => sum + width, 0);
  // Blocks until the plane is at a whole word again.
  const blocks = own % 32 === 0 ? 1 : own % 16 === 0 ? 2 : 4;
  const words = Array.from(
    { length: own * blocks / 32 },
    (): Field[] => [],
  );
  for (let block = 0, to = 0; block < blocks; block++) {
    for (const { bit, width } of bits) {
      // Aligned if possible; never past the end of the block.
      const aligned = bytes % 4 === 0 && bit % 32 + width <= 32;
      const first = aligned ? bit >> 5 << 2 : Math.min(bit >> 3, bytes - 4);
      words[to >> 5].push({
        byte: block * bytes + first,
        shift: bit - 8 * first,
        mask: 2 ** width - 1,
        by: to % 32,
      });
      to += width;
    }
  }
  return { bytes: blocks * bytes, words };
}

/** Bytes `at` to `at + count` of a block, in whole words where they are as many. */
export function bytesAt(at: number, count: number): Bits[] {
  const width = Math.min(4, count);
  return Array.from(
    { length: count / width },
    (_, i) => ({ bit: 8 * (at + i * width), width: 8 * width }),
  );
}

/** Where the quants of a block are stored. */
export interface StoredQuants {
  /** The first byte. */
  readonly at: number;
  /**
   * Bytes of a run: the lowest bits of its bytes are the first quants, then come the next
   * ones.
   */
  readonly run: number;
}

/**
 * A plane of quants: `words` words hold a unit, in the order of lib/formats/blocks.ts.
 *
 * @param block the stored size of a block, and its elements
 */
export function gatherQuants(
  { bytes, elements }: { bytes: number; elements: number },
  bits: number,
  words: number,
  { at, run }: StoredQuants,
): Gather {
  const perByte = 8 / bits, unit = words * 4 * perByte;
  const mask = 2 ** bits - 1;
  /** Four elements from `element` on, as bytes at bit `by` of each. */
  const four = (element: number, by: number): Field[] => {
    const inRun = element % (run * perByte);
    const byte = at + (element - inRun) / perByte + inRun % run;
    const shift = Math.floor(inRun / run) * bits;
    if (run >= 4) return [{ byte, shift, mask: mask * 0x01010101, by }];
    // Neighbors are in the same byte.
    return Array.from({ length: 4 }, (_, i) => {
      const first = Math.min(byte, bytes - 4);
      const bit = 8 * (byte - first) + shift + i * bits;
      return { byte: first, shift: bit, mask, by: by + 8 * i };
    });
  };
  const all = Array.from({ length: elements / (4 * perByte) }, (_, word) => {
    const first = Math.floor(word / words) * unit + 4 * (word % words);
    return Array.from(
      { length: perByte },
      (_, slot) => four(first + 4 * words * slot, slot * bits),
    ).flat();
  });
  return { bytes, words: all };
}
