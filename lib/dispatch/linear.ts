/**
 * Which kernel runs a Linear layer, with which constants, and why: pure functions of
 * shapes and limits, so that every choice can be listed. Attention is in attention.ts,
 * matmuls of any shapes are in matmul.ts.
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
  /** With f16 products: what the largest value of each row is scaled to. */
  headroom?: number;
  /** Splits of k that go to different workgroups and are summed afterwards. */
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
  const defaults = defaultsFor(device);
  if (shape.m === 1) return chooseGemv(shape, device, defaults);
  return shape.m <= FEW_ROWS
    ? chooseGemvRows(shape, device, defaults)
    : chooseGemm(shape, device, defaults);
}

function chooseGemvRows(
  shape: LinearShape,
  device: Capabilities,
  defaults: Defaults,
): LinearChoice {
  const { m, n, k, norm, swiglu } = shape;
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
      EPILOGUE: epilogueOf(swiglu),
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

function chooseGemv(
  shape: LinearShape,
  device: Capabilities,
  defaults: Defaults,
): LinearChoice {
  const { n, k, format, norm, swiglu } = shape, [unit] = format.loads;
  const tuned = device.tuned?.get(linearKey("gemv", shape));
  const whole = wideLoad(format, k) === unit;
  const units = Math.ceil(k / unit);
  const fusedNorm = norm && whole;
  const lanes = laneConstants(device, Math.max(4, units));
  const steps = Math.ceil(units / 2 ** lanes.LOG_LANES);
  const givers = whole && lanes.SUBGROUPS ? 2 ** lanes.LOG_LANES : 0;
  const gemv = gemvConstants(n, steps, swiglu, givers, defaults);
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
      EPILOGUE: epilogueOf(swiglu),
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

function chooseGemm(
  shape: LinearShape,
  device: Capabilities,
  defaults: Defaults,
): LinearChoice {
  const { m, n, k, swiglu } = shape;
  const tunedHalf = device.tuned?.get(linearKey("gemm", shape, true));
  const half = { ...tileFor(m, n, defaults, true), ...tunedHalf };
  const headroom = headroomOf(shape, Number(half.BK));
  const tuned = headroom
    ? tunedHalf
    : device.tuned?.get(linearKey("gemm", shape));
  const tile = headroom ? half : { ...tileFor(m, n, defaults), ...tuned };
  const splits = swiglu ? 1 : splitsOfK(m, n, k, tile);
  const reasons = [`${m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`];
  if (headroom) reasons.push("f16 products, rows scaled into range");
  if (splits > 1) reasons.push(`${splits} splits of k to fill the GPU`);
  reasons.push(origin(tuned, defaults));
  return {
    kernel: "gemm",
    constants: {
      ...tile,
      EPILOGUE: epilogueOf(swiglu),
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

const epilogueOf = (swiglu: boolean): Epilogue => swiglu ? "swiglu" : "store";

/** Half of what f16 holds, rounded to a power of 2: sums of products must stay below. */
const F16_SUM = 32768;

/**
 * What the largest value of a row is scaled to for f16, so that `BK` products with the
 * largest weight fit f16; undefined where that cannot be, or was not measured.
 */
function headroomOf(
  { k, largest }: LinearShape,
  BK: number,
): number | undefined {
  if (largest === undefined || k % 4 !== 0) return undefined;
  const most = F16_SUM / (BK * largest);
  return most >= 1
    ? 2 ** Math.min(14, Math.floor(Math.log2(most)) - 1)
    : undefined;
}

/**
 * Rows and loads per thread: many rows share x where there are enough of them, and all
 * loads of a row are in flight at once as far as registers allow. The limits between
 * the classes come from sweeps (bench/log.md, "gemv constants"). `givers`: lanes that
 * can pass one another x, by the unit.
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

/** Workgroups that keep a large GPU busy (bench/log.md, "Split k"). */
const ENOUGH_WORKGROUPS = 256;

/** Splits of k, where there are too few tiles of m × n to fill a GPU. */
function splitsOfK(m: number, n: number, k: number, tile: Constants): number {
  const tiles = Math.ceil(m / Number(tile.BM)) * Math.ceil(n / Number(tile.BN));
  const wanted = Math.floor(ENOUGH_WORKGROUPS / tiles);
  return Math.max(1, Math.min(8, wanted, Math.floor(k / 256)));
}
