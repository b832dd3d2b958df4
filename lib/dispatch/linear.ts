/**
 * Which kernel runs a Linear layer, with which constants, and why: pure functions of
 * shapes and limits, so that every choice and every refusal can be listed. Attention:
 * choose_attention.ts, products of any shapes: choose_matmul.ts.
 *
 * @module
 */
import { type Capabilities, laneConstants } from "./capabilities.ts";
import { wideLoad } from "../formats/format.ts";
import {
  type Constants,
  type Epilogue,
  FEW_ROWS,
  type LinearShape,
} from "./shapes.ts";
import { type Defaults, defaultsFor, tileFor } from "./defaults.ts";
import { linearKey } from "./keys.ts";

/** A kernel, its constants, and the reason. */
export interface LinearChoice {
  kernel: "gemv" | "gemvRows" | "gemm";
  constants: Constants;
  /** Whether the kernel norms the rows itself; else rmsNorm runs before it. */
  fusedNorm: boolean;
  /** Products in f16: rows are scaled so that their largest value is about this. */
  headroom?: number;
  /** Runs of k that go to different workgroups, summed afterwards. */
  splits: number;
  reason: string;
}

/** Where constants come from, as the end of a reason. */
export const origin = (tuned: Constants | undefined, { source }: Defaults) =>
  tuned ? "tuned for this adapter" : source;

/** Chooses the kernel of a Linear layer. */
export function chooseLinear(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, norm, swiglu } = shape;
  const EPILOGUE: Epilogue = swiglu ? "swiglu" : "store";
  const defaults = defaultsFor(device);
  if (m > 1 && m <= FEW_ROWS) {
    const tuned = device.tuned?.get(linearKey("gemvRows", shape));
    const { narrow, other, sums } = defaults.gemvRows;
    const row = n <= 2048 ? narrow : other;
    return {
      kernel: "gemvRows",
      constants: {
        ...row,
        ROWS: Math.min(row.ROWS, 2 ** Math.floor(Math.log2(sums / m))),
        ...laneConstants(device, Math.max(4, Math.ceil(k / 4))),
        ...tuned,
        M: m,
        EPILOGUE,
        NORM: norm ? 1 : 0,
      },
      fusedNorm: norm,
      splits: 1,
      reason: `${m} rows: the matrix is read once for all of them${
        k % 4
          ? `, element by element, because k = ${k} is not a multiple of 4`
          : ""
      }; ${origin(tuned, defaults)}`,
    };
  }
  if (m === 1) {
    const tuned = device.tuned?.get(linearKey("gemv", shape));
    const { format } = shape, [unit] = format.loads;
    const whole = wideLoad(format, k) === unit;
    const units = Math.ceil(k / unit);
    const fusedNorm = norm && whole;
    const lanes = laneConstants(device, Math.max(4, units));
    const steps = Math.ceil(units / 2 ** lanes.LOG_LANES);
    const gemv = gemvConstants(
      n,
      steps,
      swiglu,
      whole && lanes.SUBGROUPS ? 2 ** lanes.LOG_LANES : 0,
      defaults,
    );
    const { copied = 0 } = defaults.gemv;
    // A texture holds the one plane of a format whose loads take 16 bytes.
    const [{ rowBytes }, ...others] = format.planes(k);
    const copies = shape.fixed && gemv.SPREAD === "rows" && !others.length &&
      rowBytes === 16 * units && n * rowBytes <= copied;
    return {
      kernel: "gemv",
      constants: {
        ...gemv,
        ...(copies ? { W_IN: "texture" } : {}),
        EPILOGUE,
        NORM: fusedNorm ? 1 : 0,
        ...lanes,
        ...tuned,
      },
      fusedNorm,
      splits: 1,
      reason: `1 row: the matrix is read once${
        whole
          ? ""
          : `, element by element, because k = ${k} is not whole 16-byte units`
      }${copies ? ", from a texture, which loads faster here" : ""}; ${
        origin(tuned, defaults)
      }`,
    };
  }
  const tunedHalf = device.tuned?.get(linearKey("gemm", shape, true));
  const half = { ...tileFor(m, n, defaults, true), ...tunedHalf };
  // BK products of a row's largest value with the largest weight must fit f16.
  const most = shape.largest === undefined
    ? 0
    : 32768 / (Number(half.BK) * shape.largest);
  const headroom = most >= 1 && k % 4 === 0
    ? 2 ** Math.min(14, Math.floor(Math.log2(most)) - 1)
    : undefined;
  const tuned = headroom
    ? tunedHalf
    : device.tuned?.get(linearKey("gemm", shape));
  const tile = headroom ? half : { ...tileFor(m, n, defaults), ...tuned };
  const splits = swiglu ? 1 : splitsOfK(m, n, k, tile);
  const reasons = [`${m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`];
  if (headroom) reasons.push("f16 products, rows scaled into range");
  if (splits > 1) reasons.push(`k in ${splits} runs to fill the GPU`);
  reasons.push(origin(tuned, defaults));
  return {
    kernel: "gemm",
    constants: {
      ...tile,
      EPILOGUE,
      F16: headroom ? 1 : 0,
      SCALED: headroom ? 1 : 0,
      SPLITS: splits,
    },
    fusedNorm: false,
    headroom,
    splits,
    reason: reasons.join("; "),
  };
}

/**
 * Rows and loads per thread: many rows share x where there are enough of them, all
 * loads of a row are in flight at once as far as registers go. `givers`: lanes
 * that can give one another x, by the unit.
 */
function gemvConstants(
  n: number,
  steps: number,
  swiglu: boolean,
  givers: number,
  { gemv }: Defaults,
): Constants {
  const { own, ...row } = n >= 32768
    ? gemv.tall
    : swiglu
    ? gemv.gated
    : n <= 2048 && steps <= 8
    ? gemv.narrow
    : gemv.other;
  if (own && givers) {
    return { SPREAD: "rows", WORKGROUP: givers, ROWS: own, STEPS: 1 };
  }
  return { ...row, STEPS: Math.ceil(steps / Math.ceil(steps / row.STEPS)) };
}

/** Workgroups that keep a large GPU busy. */
const ENOUGH_WORKGROUPS = 256;

/** Into how many runs k is cut, where tiles of m × n alone are too few. */
function splitsOfK(m: number, n: number, k: number, tile: Constants): number {
  const tiles = Math.ceil(m / Number(tile.BM)) * Math.ceil(n / Number(tile.BN));
  const wanted = Math.floor(ENOUGH_WORKGROUPS / tiles);
  return Math.max(1, Math.min(8, wanted, Math.floor(k / 256)));
}
