/**
 * Which constants the kernels of a mixture of experts run with, and why.
 *
 * @module
 */
import { type Format, wideLoad } from "../formats/format.ts";
import { type Capabilities, laneConstants } from "./capabilities.ts";
import { defaultsFor } from "./defaults.ts";
import type { Constants, Epilogue } from "./shapes.ts";

/** A Linear layer of experts, of which each row uses some. */
export interface ExpertShape {
  /** Experts that a row uses. */
  used: number;
  /** Rows of an expert's matrix, gates and ups counted once, and its columns. */
  n: number;
  k: number;
  format: Format;
  /** "add" sums the experts of a row; the others keep them apart. */
  epilogue: Epilogue;
}

/** Constants and why they were chosen. */
export interface ExpertChoice {
  constants: Constants;
  reason: string;
}

/** Maximum loads in flight per row of a matrix, where a lane group sums several experts. */
const MOST_STEPS = 8;

/** Chooses constants for rows that are multiplied one by one, by each of their experts. */
export function chooseExpertGemv(
  { used, k, format, epilogue }: ExpertShape,
  device: Capabilities,
): ExpertChoice {
  const { gemv, source } = defaultsFor(device), sums = epilogue === "add";
  const [unit] = format.loads, whole = wideLoad(format, k) === unit;
  const loads = Math.ceil(k / unit) * (sums ? used : 1);
  const lanes = laneConstants(device, Math.max(4, loads));
  const steps = Math.ceil(loads / 2 ** lanes.LOG_LANES);
  const { WORKGROUP, ROWS, STEPS } = sums
    ? { ...gemv.other, ROWS: 2, STEPS: MOST_STEPS }
    : format.elements > 1 && gemv.blocks
    ? gemv.blocks
    : gemv.gated;
  return {
    constants: {
      WORKGROUP,
      ROWS,
      STEPS: Math.ceil(steps / Math.ceil(steps / STEPS)),
      ...lanes,
      EPILOGUE: epilogue,
    },
    reason: `only the experts that are used are read${
      sums ? ", and summed in order" : ""
    }${
      whole
        ? ""
        : `, element by element, because k = ${k} is not a multiple of ${unit}`
    }; ${source}`,
  };
}
