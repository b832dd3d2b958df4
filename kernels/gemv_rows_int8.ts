import { laneConstants, mostBuffers } from "../lib/dispatch/capabilities.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { defaultsFor } from "../lib/dispatch/defaults.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { toF32 } from "../lib/formats/tensor.ts";
import { BLOCKS, room, rowSums, SUM } from "./case.ts";
import { linearCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  BEGINNING,
  deriveEnding,
  ENDING,
  ENDING_MEMORY,
  fewRowsNeeds,
  rowParts,
  ROWS_OF_X,
  rowsGrid,
  X_ROW,
} from "./gemv_rows.ts";
import { W_ROW } from "./gemv.ts";
import { BLOCK, int8Values, PLANES, roundRows } from "./int8_case.ts";
import {
  BEFORE,
  type LinearCase,
  linearText,
  SECOND_ROWS,
  stacked,
} from "./linear_case.ts";
import { ofSecond, withSecond } from "./second_part.ts";

// Adds what the third plane has of block b: few blocks need it, so it is apart.
const addRest = /* wgsl */ `
  @unroll for (var m = 0; m < M; m++) {
    if ((outliers[b] & (1u << u32(m))) != 0u) {
      let step = abs(scales_at(x_row(first, m) * BLOCKS + (unit * UNIT + b * 32u) / 32u).x) / 256.0;
      @split var rest: array<vec4u, 2>;
      @unroll for (var q = 0; q < QUADS / BLOCKS_OF_UNIT; q++) {
        rest[q] = x[((x_row(first, m) * PLANES + 2u) * QUADS + b * 2u + q) * UNITS + unit];
      }
      @unroll for (var n = 0; n < GROUPS_OF_UNIT / BLOCKS_OF_UNIT; n++) {
        @if MIN {
          var total = 0;
          @unroll for (var f = 0; f < GROUP_FOURS; f++) {
            total += dot4I8Packed(0x01010101u, rest[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
          }
          let sum = f32(total);
        }
        @unroll for (var i = 0; i < ROWS; i++) {
          var dots = 0;
          @unroll for (var f = 0; f < GROUP_FOURS; f++) {
            dots += dot4I8Packed(bytes[i * FOURS + (b * GROUPS_OF_UNIT / BLOCKS_OF_UNIT + n) * GROUP_FOURS + f], rest[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
          }
          let product = f32(dots);
          acc[m * ROWS + i] += scale[i * GROUPS_OF_UNIT + b * GROUPS_OF_UNIT / BLOCKS_OF_UNIT + n] * step * product;
          @if MIN { acc[m * ROWS + i] -= least[i * GROUPS_OF_UNIT + b * GROUPS_OF_UNIT / BLOCKS_OF_UNIT + n] * (step * sum); }
        }
      }
    }
  }`;

/** Constants that depend on a format's integers. */
const OF_FORMAT = [
  "GROUPS_OF_UNIT",
  "GROUP_FOURS",
  "HALVES",
  "OFFSET",
  "MIN",
] as const;

/** Variables whose sizes depend on those. */
const SIZED = ["scale", "least"];

function deriveQuants(format: string, unit: number, prefix = ""): Constants {
  const { group = unit, offset = 0, min = false } =
    formatNamed(format).integers ?? {};
  const values: Record<typeof OF_FORMAT[number], number> = {
    GROUPS_OF_UNIT: unit / group,
    GROUP_FOURS: group / 4,
    HALVES: group === BLOCK / 2 ? 1 : 0,
    OFFSET: offset,
    MIN: min ? 1 : 0,
  };
  return Object.fromEntries(
    OF_FORMAT.map((name) => [prefix + name, values[name]]),
  );
}

// Adds up the products of a lane's share of k.
const MULTIPLY = /* wgsl */ `
  @split var base: array<u32, ROWS>;
  @unroll for (var i = 0; i < ROWS; i++) { base[i] = w_row(g, i) * UNITS; }
  for (var turn = 0u; turn < TURNS; turn++) {
    let c = turn * SLICES + slice;
    let unit = min(c * LANES + lane, UNITS - 1u);
    @split var words: array<w_Words, ROWS>;
    @unroll for (var i = 0; i < ROWS; i++) { words[i] = w_words(base[i] + unit); }
    @if STAGED {
      workgroupBarrier();
      @unroll for (var r = 0; r < STAGE_ROUNDS; r++) {
        let at = r * WORKGROUP + tid;
        if (at < M * 2u * QUADS * SPAN) {
          let plane = x_row(first, at / (2u * QUADS * SPAN)) * PLANES * QUADS + at / SPAN % (2u * QUADS);
          staged[at] = x[plane * UNITS + min(turn * SPAN + at % SPAN, UNITS - 1u)];
        }
      }
      @unroll for (var r = 0; r < BLOCK_ROUNDS; r++) {
        let at = r * WORKGROUP + tid;
        if (at < M * SPAN_BLOCKS) {
          let block = min(turn * SPAN_BLOCKS + at % SPAN_BLOCKS, BLOCKS - 1u);
          staged_blocks[at] = scales_at(x_row(first, at / SPAN_BLOCKS) * BLOCKS + block);
        }
      }
      workgroupBarrier();
    }
    @split var bytes: array<u32, ROWS * FOURS>;
    @split var scale: array<f32, ROWS * GROUPS_OF_UNIT>;
    @if MIN { @split var least: array<f32, ROWS * GROUPS_OF_UNIT>; }
    @unroll for (var i = 0; i < ROWS; i++) {
      let factors = w_factors(words[i].scales, base[i] + unit);
      @unroll for (var n = 0; n < GROUPS_OF_UNIT; n++) {
        // Units past the end of the row are multiplied by zero.
        @if EXACT { scale[i * GROUPS_OF_UNIT + n] = w_scale[n](factors); }
        @else { scale[i * GROUPS_OF_UNIT + n] = select(0.0, w_scale[n](factors), c * LANES + lane < UNITS); }
        @if MIN {
          @if EXACT { least[i * GROUPS_OF_UNIT + n] = w_min[n](factors); }
          @else { least[i * GROUPS_OF_UNIT + n] = select(0.0, w_min[n](factors), c * LANES + lane < UNITS); }
        }
      }
      // Quants as signed bytes: those up to 127 less the offset, without a carry between bytes.
      @unroll for (var f = 0; f < FOURS; f++) {
        @if OFFSET > 0 { bytes[i * FOURS + f] = ((w_bytes[f](words[i]) | 0x80808080u) - OFFSET * 0x01010101u) ^ 0x80808080u; }
        @else { bytes[i * FOURS + f] = w_bytes[f](words[i]); }
      }
    }
    // Of each block of 32, the rows of x that have an outlier in it, as bits.
    @split var outliers: array<u32, BLOCKS_OF_UNIT>;
    @unroll for (var b = 0; b < BLOCKS_OF_UNIT; b++) { outliers[b] = 0u; }
    @unroll for (var m = 0; m < M; m++) {
      @split var high: array<vec4u, QUADS>;
      @split var low: array<vec4u, QUADS>;
      @unroll for (var q = 0; q < QUADS; q++) {
        @if STAGED {
          high[q] = staged[(m * 2 * QUADS + q) * SPAN + slice * LANES + lane];
          low[q] = staged[((m * 2 + 1) * QUADS + q) * SPAN + slice * LANES + lane];
        } @else {
          high[q] = x[(x_row(first, m) * PLANES * QUADS + q) * UNITS + unit];
          low[q] = x[((x_row(first, m) * PLANES + 1u) * QUADS + q) * UNITS + unit];
        }
      }
      @split var block: array<vec4f, BLOCKS_OF_UNIT>;
      @unroll for (var b = 0; b < BLOCKS_OF_UNIT; b++) {
        @if STAGED { block[b] = staged_blocks[m * SPAN_BLOCKS + ((slice * LANES + lane) * UNIT + b * 32u) / 32u]; }
        @else { block[b] = scales_at(x_row(first, m) * BLOCKS + (unit * UNIT + b * 32u) / 32u); }
        outliers[b] |= select(0u, 1u << u32(m), block[b].x < 0.0);
        block[b].x = abs(block[b].x);
      }
      @unroll for (var n = 0; n < GROUPS_OF_UNIT; n++) {
        @if MIN {
          @if HALVES { let sum = block[n / 2].x * block[n / 2][2u + n % 2u]; }
          @else { let sum = block[n].x * block[n].y; }
        }
        @unroll for (var i = 0; i < ROWS; i++) {
          var upper = 0;
          var lower = 0;
          @unroll for (var f = 0; f < GROUP_FOURS; f++) {
            upper += dot4I8Packed(bytes[i * FOURS + n * GROUP_FOURS + f], high[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
            lower += dot4I8Packed(bytes[i * FOURS + n * GROUP_FOURS + f], low[(n * GROUP_FOURS + f) / 4][(n * GROUP_FOURS + f) % 4]);
          }
          acc[m * ROWS + i] += scale[i * GROUPS_OF_UNIT + n] * block[n * GROUP_FOURS / 8].x * f32((upper << 7u) + lower);
          @if MIN { acc[m * ROWS + i] -= least[i * GROUPS_OF_UNIT + n] * sum; }
        }
      }
    }
    @unroll for (var b = 0; b < BLOCKS_OF_UNIT; b++) {
      if (outliers[b] != 0u) { ${addRest} }
    }
  }`;

/**
 * A few rows times a matrix of quantised blocks, `y = x · wᵀ`, multiplied as integers: four
 * products and their sum are one instruction (`dot4I8Packed`).
 *
 * `x` comes from to_int8.ts: integers of 15 bits in two planes of eight, with a scale per
 * block of 32, and more bits in a third plane for blocks with an outlier. A lane takes whole
 * units of `w`, so it computes their factors once for all rows of `x`. A sum over a group of
 * elements with one scale is exact; what quants are less, and their minimum, multiply sums
 * of `x`.
 *
 * A workgroup takes M rows of `x`; others take the next ones. All 16 rows of a batch in one
 * would take the registers of threads in flight, and much more code.
 *
 * Lanes share rows of `w` and exchange their sums as in gemv_rows.ts, with the same
 * epilogues.
 */
export const gemvRowsInt8 = defineKernel<LinearCase>({
  name: "gemvRowsInt8",
  buffers: ({ EPILOGUE, TWO }) => ({
    w: "n k as unit",
    ...(TWO ? { v: "nv k as unit" } : {}),
    x: "m words as unit",
    scales: "m numbers as vec4",
    y: "inout any as scalar",
    ...(EPILOGUE === "add" ? { squares: "out m parts" } : {}),
  }),
  uniforms: { stride: "u32", column: "u32" },
  constants: {
    M: 2,
    WORKGROUP: 128,
    ROWS: 4,
    LOG_LANES: 5,
    APART: 0,
    SUBGROUPS: 1,
    SLICES: 1,
    STAGED: 0,
    NORM: 0,
    EPILOGUE: "store",
    TWO: 0,
  },
  derive: (c, { m, k, parts }) => {
    const { integers, name } = formatNamed(String(c.W_DTYPE));
    if (!integers || k % BLOCK || c.NORM) {
      throw new Error(
        `Cannot multiply rows of ${k} by ${name} as integers${
          c.NORM ? " and norm them" : ""
        }: quants must be integers, and rows whole blocks of ${BLOCK} that were normed before`,
      );
    }
    const unit = Number(c.W_UNIT), lanes = 1 << Number(c.LOG_LANES);
    if (
      c.TWO && (c.V_UNIT !== unit || !formatNamed(String(c.V_DTYPE)).integers)
    ) {
      throw new Error(
        `Cannot multiply by ${name} and ${c.V_DTYPE} in one dispatch: their units are ${unit} and ${c.V_UNIT}, must be equal, and quants integers`,
      );
    }
    const units = k / unit, M = Number(c.M), threads = Number(c.WORKGROUP);
    // What all slices take at once.
    const span = lanes * Number(c.SLICES), blocks = span * unit / BLOCK;
    if (c.STAGED && blocks % 1) {
      throw new Error(
        `Cannot copy ${span} units of ${unit} to workgroup memory: they must be whole blocks of ${BLOCK}`,
      );
    }
    return {
      ...deriveEnding(c),
      UNIT: unit,
      UNITS: units,
      SPAN: span,
      TURNS: Math.ceil(units / span),
      EXACT: units % span === 0 ? 1 : 0,
      SPAN_BLOCKS: blocks,
      STAGE_ROUNDS: Math.ceil(M * unit / 8 * span / threads),
      BLOCK_ROUNDS: Math.ceil(M * blocks / threads),
      PLANES,
      WHOLE: m % Number(c.M) ? 0 : 1, // no workgroup has rows of x to spare
      QUADS: unit / 16, // vec4u of a plane in a unit
      FOURS: unit / 4,
      ...deriveQuants(name, unit),
      ...(c.TWO ? deriveQuants(String(c.V_DTYPE), unit, "V_") : {}),
      BLOCKS: k / BLOCK,
      BLOCKS_OF_UNIT: Math.ceil(unit / BLOCK),
      PARTS: parts ?? 0,
    };
  },
  tuning: {
    of: "linear",
    grid: {
      M: ROWS_OF_X,
      WORKGROUP: [32, 64, 128, 256],
      ROWS: [1, 2, 4, 8],
      SLICES: [1, 2, 4, 8],
    },
    settle: ({ m }: LinearTarget, given) => ({
      ...given,
      M: Math.min(given.M, m),
    }),
    needs(target: LinearTarget, given, device) {
      const units = target.k / target.format.loads[0];
      const lanes = 2 ** laneConstants(device, units).LOG_LANES;
      return fewRowsNeeds(target, given, lanes, device);
    },
  },
  grid: rowsGrid,
  cost: (call) =>
    withSecond(call, linearCost(call, "scales", "w")).map((cost) => ({
      ...cost,
      dtypes: cost.dtypes.replace(/^f32/, "3 × i8"),
      bytes: cost.bytes - call.m * call.k * (4 - 3.5),
    })),
  body: /* wgsl */ `
${ENDING_MEMORY}
@if STAGED {
  var<workgroup> staged: array<vec4u, M * 2 * QUADS * SPAN>;
  var<workgroup> staged_blocks: array<vec4f, M * SPAN_BLOCKS>;
}

${W_ROW}
@if TWO { ${ofSecond(W_ROW)} }

${X_ROW}

${BEGINNING}
  @if TWO {
    if (second) {
      ${ofSecond(MULTIPLY, [...OF_FORMAT, ...SIZED])}
    } else {
      ${MULTIPLY}
    }
  } @else { ${MULTIPLY} }
  ${ENDING}
}`,
  cases: [
    ...BLOCKS.map((w) => ({ m: 3, n: 37, k: 768, w })),
    { m: 3, n: 38, k: 96, w: "q4_0", epilogue: "add" },
    { m: 16, n: 38, k: 4096, w: "q4_k", epilogue: "swiglu" },
    { m: 17, n: 38, k: 1024, w: "q6_k", epilogue: "add" },
    { m: 9, n: 38, k: 1024, w: "q4_k", second: "q6_k" },
  ],
  makeCase(given, { device, random, reference }) {
    const { m, k, w: dtype, second, epilogue = "store" } = given;
    const n = given.n + (second ? SECOND_ROWS : 0);
    const { integers, loads: [unit] } = formatNamed(dtype);
    if (!integers) return undefined;
    const width = epilogue === "swiglu" ? n / 2 : n;
    const x = toF32(random.tensor("f32", [m, k], 2));
    x[k - 20] = 1000; // an outlier
    const { planes, scales } = roundRows(x, k, unit);
    const w = random.matrix(dtype, [given.n, k]);
    const v = second ? random.matrix(second, [SECOND_ROWS, k]) : undefined;
    const planesOf = (name: string) => formatNamed(name).planes(k).length;
    const buffers = planesOf(dtype) + (second ? planesOf(second) : 0) + 3;
    if (second && buffers > mostBuffers(device)) return undefined;
    const constants = {
      M: Math.min(m, defaultsFor(device).gemvRowsInt8.together),
      WORKGROUP: 64,
      SLICES: 1,
      ROWS: 4,
      EPILOGUE: epilogue,
      TWO: second ? 1 : 0,
      ...laneConstants(device, k / unit),
    };
    const left = rowParts(n, constants);
    return {
      what: linearText(given),
      operands: {
        w,
        ...(v ? { v } : {}),
        x: planes,
        scales,
        y: room([m, width], epilogue === "add" ? BEFORE : NaN),
        squares: room([m, left]),
      },
      constants,
      uniforms: { stride: width, column: 0 },
      expected: () => {
        const rows = int8Values(
          planes.data as Uint32Array,
          toF32(scales),
          k,
          unit,
        ).values;
        const product = reference.linear(rows, stacked(w, v), { m, n, k });
        const y = reference.epilogue(epilogue, product, n, BEFORE);
        const results = [{ of: "y", ...y, tolerance: SUM }];
        if (epilogue !== "add") return results;
        const squares = rowSums("values", n)({
          values: y.values.map((value) => value * value),
        });
        return [...results, {
          of: rowSums("squares", left),
          values: squares,
          norms: squares,
          tolerance: SUM,
        }];
      },
    };
  },
});
