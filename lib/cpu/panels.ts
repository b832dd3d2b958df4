/**
 * Formats of blocks with their rows in panels: of eight rows, pairs of bytes (or bytes, where
 * a block has a single one) follow one another, those of the first row first. One vector
 * then has as much of each row, and its lanes are sums of different rows, so nothing is added
 * up across lanes.
 *
 * @module
 */
import type { Format, SimdBlocks } from "../formats/format.ts";
import type { BlockFormat } from "./wasm_blocks.ts";
import { isSuper, spanOf } from "./wasm_round.ts";

/** Rows of a panel. */
export const PANEL_ROWS = 8;
/** Rows that the kernels read at once: two panels. */
export const PANELS_ROWS = 2 * PANEL_ROWS;

/** A format whose rows are in panels. */
export interface PanelFormat extends BlockFormat {
  /** The format of the same rows one after another. */
  readonly rows: BlockFormat;
}

/** Whether rows of a format are in panels. */
export const isPanels = (format: Format): format is PanelFormat =>
  "rows" in format;

/** Bytes of one row that follow one another, for each plane. */
export const panelUnits = ({ bits, scaleBytes }: SimdBlocks): (1 | 2)[] => [
  ...bits.map(() => 2 as const),
  ...scaleBytes.map((bytes) => bytes % 2 === 0 ? 2 : 1),
];

/** The format in panels; undefined if the kernels do not read that. */
export function inPanels(format: BlockFormat): PanelFormat | undefined {
  const { simd } = format;
  const one = simd.group === spanOf(simd) && simd.group === simd.elements;
  if (isSuper(simd) || !one || simd.scaleBytes.length > 1) return undefined;
  const units = panelUnits(simd);
  return {
    ...format,
    rows: format,
    unpack(planes, row, k, into) {
      const one = format.planes(k).map(({ rowBytes }, p) =>
        rowOf(planes[p], row, rowBytes, units[p])
      );
      format.unpack(one, 0, k, into);
    },
  };
}

/** Row `row` of a plane in panels. */
function rowOf(
  plane: Uint8Array,
  row: number,
  rowBytes: number,
  unit: number,
): Uint8Array {
  // In whole words, because formats read it as those.
  const out = new Uint8Array(4 * Math.ceil(rowBytes / 4));
  const within = row % PANEL_ROWS, begin = (row - within) * rowBytes;
  for (let i = 0; i < rowBytes; i++) {
    const at = Math.floor(i / unit) * PANEL_ROWS + within;
    out[i] = plane[begin + at * unit + i % unit];
  }
  return out;
}

/** Puts the rows of a panel, which are one after another in `from`, in its order. */
export function interleave(
  from: Uint8Array,
  to: Uint8Array,
  rowBytes: number,
  unit: number,
): void {
  const units = rowBytes / unit;
  for (let r = 0; r < PANEL_ROWS; r++) {
    for (let i = 0; i < units; i++) {
      for (let b = 0; b < unit; b++) {
        to[(i * PANEL_ROWS + r) * unit + b] = from[r * rowBytes + i * unit + b];
      }
    }
  }
}
