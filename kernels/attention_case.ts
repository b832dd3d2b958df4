/**
 * What the cases of the attention kernels share.
 *
 * @module
 */
import { cacheConstant } from "../lib/dispatch/attention.ts";
import { exactLanes } from "../lib/dispatch/capabilities.ts";
import type { Constants } from "../lib/dispatch/shapes.ts";
import type { Dtype } from "../lib/dtype.ts";
import {
  CACHE_BLOCK,
  cachedToF32,
  type CacheDtype,
  QuantizedHeads,
} from "../lib/formats/cached.ts";
import { type CpuTensor, toF32 } from "../lib/formats/tensor.ts";
import {
  type Attention,
  type Buffers,
  type CaseRandom,
  type CaseTools,
  EPS,
  HALF_ATTENTION,
  type KernelCase,
  type Result,
  room,
  SUM,
  u32,
  u32Tensor,
} from "./case.ts";
import {
  countersAt,
  FLAG_WORDS,
  lengthRows,
  prefillGrid,
  splitAt,
  stateWords,
} from "./heads.ts";

/** A pass over a cache. */
export interface AttentionCase {
  heads: number;
  kvHeads: number;
  headDim: number;
  context: number;
  /** Tokens cached before, per sequence. */
  lengths: readonly number[];
  /** New tokens of each sequence. */
  tokens: number;
  cache: CacheDtype;
  /** Positions per page, a power of 2, if the cache is paged. */
  page?: number;
  /** Type of the norms' weights. */
  norm?: Exclude<Dtype, "u32">;
}

/** A pass of many tokens. */
export interface PrefillCase extends AttentionCase {
  /** Splits of the keys, of a kernel that may have several. */
  splits?: number;
}

/** Heads as in a model. */
export const HEADS_128 = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
/** Heads whose blocks are an odd number. */
export const HEADS_96 = { heads: 4, kvHeads: 2, headDim: 96, context: 160 };
/** An odd number of heads, of an unusual size. */
export const ODD_HEADS = { heads: 3, kvHeads: 1, headDim: 6, context: 40 };

/** The sizes to pass to the reference. */
export function sizesOf(
  { heads, kvHeads, headDim, context, lengths, tokens }: AttentionCase,
): Attention {
  const rows = lengths.length * tokens;
  return {
    heads,
    kvHeads,
    headDim,
    context,
    lengths,
    first: 0,
    tokens,
    rows,
    eps: EPS,
  };
}

/** Random parts of a tensor, which add up to it. */
export function inParts(
  whole: CpuTensor,
  parts: number,
  random: CaseRandom,
): CpuTensor {
  const { length } = whole.data, sum = toF32(whole);
  const { data, ...all } = random.tensor("f32", [parts, ...whole.shape]);
  for (let i = 0; i < length; i++) {
    data[i] = sum[i];
    for (let s = 1; s < parts; s++) data[i] -= data[s * length + i];
  }
  return { ...all, data };
}

/** Describes a case: `4 heads of 128 over 2, 154 keys in f16, norms in bf16`. */
export function attentionText(
  { heads, kvHeads, headDim, lengths, tokens, cache, page, norm }:
    AttentionCase,
): string {
  const keys = lengths.map((length) => length + tokens).join(" and ");
  return `${heads} heads of ${headDim} over ${kvHeads}, ${keys} keys in ${cache}${
    page ? ` in pages of ${page}` : ""
  }${norm ? `, norms in ${norm}` : ""}`;
}

/** The buffer `positions` of heads.ts. */
export function positionsTensor(
  lengths: readonly number[],
  { shape: [context, headDim], data }: CpuTensor,
): CpuTensor {
  const rows = lengthRows(lengths.length, headDim);
  const words = new Uint32Array((rows + context) * headDim).fill(0xdeadbeef);
  words.set(lengths);
  words.set(new Uint32Array(data.slice().buffer), rows * headDim);
  return u32Tensor([rows + context, headDim], words);
}

/** The buffer `state` of heads.ts between passes; leftovers of earlier passes are NaN. */
export function stateTensor(sequences: number, heads: number): CpuTensor {
  const words = new Uint32Array(stateWords(sequences, heads)).fill(0x7fc00000);
  words.fill(0, 0, FLAG_WORDS);
  words.fill(0, countersAt(sequences, heads));
  return u32Tensor([words.length], words);
}

/** Whether a counter in `state` was not reset to 0. */
export const counting = (
  state: ArrayLike<number>,
  sequences: number,
  heads: number,
): boolean =>
  Array.from(state).slice(countersAt(sequences, heads)).some((word) =>
    word !== 0
  );

/** Pages in an arbitrary order, more than are needed, and the table that says which. */
class PagedCase {
  /** Pages per sequence. */
  readonly perSequence: number;
  readonly pages: number;
  readonly #given: AttentionCase;
  readonly #page: number;

  constructor(given: AttentionCase, page: number) {
    this.#given = given;
    this.#page = page;
    this.perSequence = Math.ceil(given.context / page);
    this.pages = this.#count + 3;
  }

  get #count(): number {
    return this.#given.lengths.length * this.perSequence;
  }

  /** The pages of each sequence, one sequence after another. */
  get table(): Uint32Array {
    // 5 and the number of pages have no common factor, so no page is there twice.
    const step = this.pages % 5 === 0 ? 7 : 5;
    return Uint32Array.from(
      { length: this.#count },
      (_, i) => (i * step + 2) % this.pages,
    );
  }

  get constants(): Constants {
    return {
      LOG_PAGE: Math.log2(this.#page),
      SLOTS: this.#given.lengths.length,
      TABLE: this.perSequence,
    };
  }

  /** Copies rows of `width` elements between a cache that is one run and a paged one. */
  #rows(width: number, copy: (run: number, paged: number) => void): void {
    const { kvHeads, context, lengths } = this.#given, { table } = this;
    for (let head = 0; head < lengths.length * kvHeads; head++) {
      const sequence = Math.floor(head / kvHeads);
      for (let position = 0; position < context; position++) {
        const entry = sequence * this.perSequence +
          Math.floor(position / this.#page);
        const row = (table[entry] * kvHeads + head % kvHeads) * this.#page +
          position % this.#page;
        copy((head * context + position) * width, row * width);
      }
    }
  }

  /** Calls `part` for runs of elements per row: in q8_0, quants are followed by scales. */
  #parts(
    part: (width: number, run: number, paged: number) => void,
  ): void {
    const { kvHeads, headDim, context, lengths, cache } = this.#given;
    if (cache !== "q8_0") return part(headDim, 0, 0);
    const run = lengths.length * kvHeads * context;
    const paged = this.pages * kvHeads * this.#page;
    part(headDim / 4, 0, 0);
    part(
      Math.ceil(headDim / (2 * CACHE_BLOCK)),
      run * headDim / 4,
      paged * headDim / 4,
    );
  }

  scatter(tensor: CpuTensor): CpuTensor {
    const { kvHeads } = this.#given, { dtype, shape, data } = tensor;
    const width = shape[3], rows = this.pages * kvHeads * this.#page;
    const all = data.slice(0, 0).constructor as new (n: number) => typeof data;
    const paged = new all(rows * width);
    paged.fill(POISON[dtype as keyof typeof POISON] ?? NaN);
    this.#parts((width, run, to) =>
      this.#rows(width, (from, at) => {
        for (let i = 0; i < width; i++) {
          paged[to + at + i] = data[run + from + i];
        }
      })
    );
    return {
      dtype,
      shape: [this.pages, kvHeads, this.#page, width],
      data: paged,
    };
  }

  gather(paged: ArrayLike<number>): Float64Array {
    const { kvHeads, context, lengths } = this.#given;
    const width = paged.length / (this.pages * kvHeads * this.#page);
    const all = new Float64Array(lengths.length * kvHeads * context * width);
    this.#parts((width, run, from) =>
      this.#rows(width, (to, at) => {
        for (let i = 0; i < width; i++) {
          all[run + to + i] = paged[from + at + i];
        }
      })
    );
    return all;
  }

  /** Puts the table after the lengths at the beginning of `words`. */
  withTable(lengths: ArrayLike<number>): Uint32Array {
    return Uint32Array.from([...Array.from(lengths), ...this.table]);
  }
}

/** NaN, in types whose elements are bits; scales of q8_0 are NaN in pairs. */
const POISON = { f16: 0x7e00, u32: 0x7e007e00 } as const;

/** Turns a case of a cache that is one run into that of a paged one, if `given` says so. */
export function inPages(given: AttentionCase, one: KernelCase): KernelCase {
  if (given.page === undefined) return one;
  const pages = new PagedCase(given, given.page);
  const { k, v, positions, lengths } = one.operands as Record<
    string,
    CpuTensor
  >;
  const { headDim } = given;
  const words = pages.withTable(given.lengths);
  const extended = (): CpuTensor => {
    const begin = lengthRows(given.lengths.length, headDim) * headDim;
    const angles = (positions.data as Uint32Array).subarray(begin);
    const table = pages.perSequence;
    const rows = lengthRows(given.lengths.length, headDim, table);
    const all = new Uint32Array(rows * headDim + angles.length);
    all.fill(0xdeadbeef).set(words);
    all.set(angles, rows * headDim);
    return u32Tensor([all.length / headDim, headDim], all);
  };
  const flat = (buffers: Buffers): Buffers => ({
    ...buffers,
    ...(buffers.k ? { k: pages.gather(buffers.k) } : {}),
    ...(buffers.v ? { v: pages.gather(buffers.v) } : {}),
  });
  return {
    ...one,
    operands: {
      ...one.operands,
      k: pages.scatter(k),
      v: pages.scatter(v),
      ...(positions ? { positions: extended() } : {}),
      ...(lengths ? { lengths: u32Tensor([words.length], words) } : {}),
    },
    constants: { ...one.constants, ...pages.constants },
    expected: () =>
      one.expected().map(({ of, ...rest }) => ({
        ...rest,
        of: (buffers) =>
          typeof of === "string" ? flat(buffers)[of] : of(flat(buffers)),
      })),
  };
}

/**
 * Half a step between quants, plus what f16 may be off by where 127 is multiplied by the
 * scale: a unit in the last place, if it is not rounded to the nearest.
 */
export const HALF_STEP_Q8 = 0.5 + 127 * 2 ** -10;

/** Expected keys and values after the append, as stored in the type of the case. */
export function cacheResults(
  { cache, headDim }: AttentionCase,
  after: Readonly<Record<"k" | "v", ArrayLike<number>>>,
): Result[] {
  return (["k", "v"] as const).map((name): Result => {
    const values = after[name];
    if (cache !== "q8_0") {
      const tolerance = cache === "f16" ? HALF_ATTENTION : SUM;
      return { of: name, values, tolerance };
    }
    return {
      of: (buffers) => {
        const words = Uint32Array.from(buffers[name]);
        const heads = new QuantizedHeads(
          words,
          values.length / headDim,
          headDim,
        );
        const all = new Float32Array(values.length);
        for (let row = 0; row < heads.rows; row++) {
          heads.take(row, all, row * headDim);
        }
        return all;
      },
      values,
      norms: stepsOf(values, headDim),
      tolerance: HALF_STEP_Q8,
    };
  });
}

/** The step between quants of each value. */
export function stepsOf(
  values: ArrayLike<number>,
  headDim: number,
): Float64Array {
  const steps = new Float64Array(values.length);
  const half = headDim / 2, size = CACHE_BLOCK / 2;
  for (let at = 0; at < values.length; at += headDim) {
    for (let block = 0; block < half; block += size) {
      const own = Array.from(
        { length: CACHE_BLOCK },
        (_, i) => at + block + i % size + (i < size ? 0 : half),
      );
      const most = Math.max(...own.map((i) => Math.abs(values[i])));
      for (const i of own) steps[i] = most / 127;
    }
  }
  return steps;
}

/**
 * A case of a prefill kernel with blocks of `ROWS` rows; `constants` are others that only this
 * kernel has.
 */
export function prefillCase(
  given: PrefillCase,
  { device, random, reference }: CaseTools,
  tolerance: number,
  { ROWS, ...constants }: Constants & { ROWS: number },
): KernelCase {
  const sizes = sizesOf(given), { heads, kvHeads, headDim, tokens } = given;
  const { k, v } = reference.attentionInputs(random, sizes, given, tokens);
  const q = random.tensor("f32", [sizes.rows, heads * headDim], 2);
  const group = heads / kvHeads, { splits } = given, { rows: m } = sizes;
  const width = heads * headDim, size = m * width;
  return inPages(given, {
    what: attentionText(given) + (splits ? `, in ${splits} splits` : ""),
    operands: {
      ...{ q, k, v, lengths: u32(...given.lengths) },
      y: room([m * (splits ? 1 + splits : 1), width]),
      ...(splits ? { state: stateTensor(m, heads) } : {}),
    },
    constants: {
      HEAD_DIM: headDim,
      ROWS,
      ...(splits ? { SPLIT: 1 } : {}),
      ...exactLanes(device, 16),
      ...cacheConstant(given.cache),
      ...constants,
    },
    uniforms: { first: 0, tokens, group, scale: headDim ** -0.5 },
    grid: prefillGrid({ m, tokens, group, kvHeads }, ROWS, splits),
    expected: () => {
      const all = {
        q: toF32(q),
        k: cachedToF32(k, headDim),
        v: cachedToF32(v, headDim),
      };
      return [{
        of: ({ y, state }) =>
          splits && splits > 1
            ? merged(Array.from(y).slice(size), state, headDim, splits).values
            : Array.from(y).slice(0, size),
        ...reference.attended(all, sizes),
        tolerance,
      }];
    },
  });
}

/**
 * Merges the results of a decode step's splits: `partial` is `[heads, splits, headDim]`,
 * `state` has the bits of each split's maximum and sum.
 */
export function merged(
  partial: ArrayLike<number>,
  state: ArrayLike<number>,
  headDim: number,
  splits: number,
): { values: Float64Array; norms: Float64Array } {
  const heads = partial.length / splits / headDim;
  const floats = new Float32Array(Uint32Array.from(state).buffer);
  const values = new Float64Array(heads * headDim);
  const norms = new Float64Array(heads * headDim);
  for (let head = 0; head < heads; head++) {
    const at = (split: number) => splitAt(head, splits, split);
    let top = -Infinity, total = 0;
    for (let s = 0; s < splits; s++) top = Math.max(top, floats[at(s)]);
    for (let s = 0; s < splits; s++) {
      const weight = Math.exp(floats[at(s)] - top);
      total += weight * floats[at(s) + 1];
      for (let i = 0; i < headDim; i++) {
        const value = weight * partial[(head * splits + s) * headDim + i];
        values[head * headDim + i] += value;
        norms[head * headDim + i] += Math.abs(value);
      }
    }
    for (let i = head * headDim; i < (head + 1) * headDim; i++) {
      values[i] /= total;
      norms[i] /= total;
    }
  }
  return { values, norms };
}
