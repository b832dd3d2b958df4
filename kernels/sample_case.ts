/**
 * What the cases of the sampling kernels share: logits, and float64 versions of the
 * records, histograms and limits that the kernels pass to one another.
 *
 * @module
 */
export { f32Bits as bitsOf } from "../lib/dtype.ts";
import type { CpuTensor } from "../lib/formats/tensor.ts";
import { LOW } from "../lib/webgpu/wgsl.ts";
import { type CaseRandom, type Reference, u32Tensor } from "./case.ts";
import { BINS, chunkLength, WORKGROUP } from "./sample_scores.ts";
import {
  SETTING_WORDS,
  type Settings,
  settingsRow,
} from "./sample_settings.ts";

/** Rows of logits and how they are split. */
export interface SampleSizes {
  sequences: number;
  vocab: number;
  /** A power of 2. */
  chunks: number;
}

/** Below every score; see ABSENT in sample_scores.ts. */
export const ABSENT = Math.fround(LOW);

/** The u32 key of a score; keys sort like scores. */
export function keyOf(score: number): number {
  const [bits] = new Uint32Array(Float32Array.of(score).buffer);
  if (bits < 0x80000000) return (bits | 0x80000000) >>> 0;
  return bits === 0x80000000 ? bits : ~bits >>> 0;
}

/** The score of a key. */
export function scoreOf(key: number): number {
  const bits = key >= 0x80000000 ? key & 0x7fffffff : ~key;
  return new Float32Array(Uint32Array.of(bits).buffer)[0];
}

/** The f32 with these bits. */
export const floatOf = (bits: number): number =>
  new Float32Array(Uint32Array.of(bits).buffer)[0];

/** An output of u32 words, filled with a value that the kernel must overwrite. */
export const words = (...shape: number[]): CpuTensor => u32Tensor(shape);

/** Calls `visit` with the ids of each chunk, in the order of records. */
export function eachChunk(
  { sequences, vocab, chunks }: SampleSizes,
  visit: (sequence: number, chunk: number, ids: number[]) => void,
): void {
  const length = chunkLength(vocab, chunks);
  for (let s = 0; s < sequences; s++) {
    for (let c = 0; c < chunks; c++) {
      const begin = Math.min(vocab, c * length);
      const end = Math.min(vocab, begin + length);
      visit(s, c, Array.from({ length: end - begin }, (_, i) => begin + i));
    }
  }
}

/** Logits within ±8, two of them equal, and as rows. */
export function logitsOf(
  random: CaseRandom,
  { sequences, vocab }: SampleSizes,
): { logits: CpuTensor; scores: Float32Array[] } {
  const logits = random.tensor("f32", [sequences, vocab], 8);
  logits.data[vocab - 1] = logits.data[0];
  return { logits, scores: rowsOf(logits) };
}

/** The settings of each sequence (sample_settings.ts). */
export function settingsTensor(
  rows: readonly Partial<Settings>[],
): CpuTensor {
  const all = u32Tensor([rows.length, SETTING_WORDS]);
  rows.forEach((row, s) => all.data.set(settingsRow(row), s * SETTING_WORDS));
  return all;
}

/** The rows of an f32 tensor. */
export function rowsOf({ data, shape: [, width] }: CpuTensor): Float32Array[] {
  const all = data as Float32Array;
  return Array.from(
    { length: all.length / width },
    (_, row) => all.slice(row * width, (row + 1) * width),
  );
}

/**
 * Scores near the middle of their bins, whose widths are given by sequence, so that
 * rounding moves none into another bin. Most are in the likely bins.
 */
export function binned(
  random: CaseRandom,
  { sequences, vocab }: SampleSizes,
  widths: readonly number[],
): CpuTensor {
  const data = new Float32Array(sequences * vocab);
  for (let i = 0; i < data.length; i++) {
    const bin = Math.floor(1200 * random.next() ** 2);
    const width = widths[Math.floor(i / vocab)];
    data[i] = -(bin + 0.5 + 0.3 * random.next()) * width;
  }
  for (let s = 0; s < sequences; s++) data[s * vocab + s * 5 % vocab] = 0;
  return { dtype: "f32", shape: [sequences, vocab], data };
}

/** Records `[key, id, 0, 0]` of each chunk's highest score, as argmax leaves them. */
export function highestOf(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
): CpuTensor {
  const records = u32Tensor([sizes.sequences, sizes.chunks, 4]);
  eachChunk(sizes, (s, c, ids) => {
    const best = bestOf(ids, (id) => rows[s][id]);
    records.data.set(
      [keyOf(best.score), best.id, 0],
      (s * sizes.chunks + c) * 4,
    );
  });
  return records;
}

/** The highest score, with the lowest id in a tie; ABSENT and 0 if there is none. */
export function bestOf(
  ids: readonly number[],
  score: (id: number) => number,
): { score: number; id: number } {
  let best = { score: ABSENT, id: 0 };
  for (const id of ids) {
    if (score(id) > best.score) best = { score: score(id), id };
  }
  return best;
}

/** The bin of a score. */
export const binOf = (score: number, top: number, width: number): number =>
  Math.min(BINS - 1, Math.floor((top - score) / width));

/** Tokens in each bin, and their mass in units of 2⁻¹⁹ of that at the bin's upper edge. */
export function histogramOf(
  row: Float32Array,
  width: number,
  temperature: number,
): { count: Float64Array; mass: Float64Array } {
  const count = new Float64Array(BINS), mass = new Float64Array(BINS);
  const top = Math.max(...row);
  for (const x of row) {
    const bin = binOf(x, top, width);
    const share = Math.exp((x - top + bin * width) / temperature);
    count[bin]++;
    mass[bin] += Math.floor(Math.min(share, 1) * 2 ** 19 + 0.5);
  }
  return { count, mass };
}

/** A histogram as its kernel leaves it: `[sequences, 3, BINS]`. */
export function histogramTensor(
  rows: readonly Float32Array[],
  widths: readonly number[],
  temperatures: readonly number[],
): CpuTensor {
  const all = u32Tensor([rows.length, 3, BINS]);
  rows.forEach((row, s) => {
    const { count, mass } = histogramOf(row, widths[s], temperatures[s]);
    const low = mass.map((units) => units % 65536);
    const high = mass.map((units) => Math.floor(units / 65536));
    [low, high, count].forEach((part, i) =>
      all.data.set(Uint32Array.from(part), (3 * s + i) * BINS)
    );
  });
  return all;
}

/** How a row is drawn from: the bins left open, and what is above them. */
export interface Narrowed {
  begin: number;
  end: number;
  /** Tokens and mass above the open bins, and the mass of all. */
  above: number;
  massAbove: number;
  all: number;
  /** The requested top-p, moved so that it equals no sum of bins. */
  p: number;
}

/** Narrows top-k and top-p down to bins, as sample_draw.ts does. */
export function narrow(
  row: Float32Array,
  width: number,
  temperature: number,
  { topK, topP }: { topK: number; topP: number },
): Narrowed {
  const { count, mass } = histogramOf(row, width, temperature);
  const real = mass.map((units, b) =>
    units * 2 ** -19 * Math.exp(-b * width / temperature)
  );
  /** Sums before each bin. */
  const before = (list: Float64Array) => {
    const sums = new Float64Array(BINS + 1);
    list.forEach((value, b) => sums[b + 1] = sums[b] + value);
    return sums;
  };
  const counts = before(count), masses = before(real), all = masses[BINS];
  const reaching = (sums: Float64Array, least: number) => {
    const bin = sums.findIndex((sum, b) => b > 0 && sum >= least) - 1;
    return bin < 0 ? BINS - 1 : bin;
  };
  // Without limits, no bin is left open.
  let p = topP, end = BINS, begin = BINS;
  const settle = (of: number) => {
    const bin = reaching(masses, topP * of);
    p = (masses[bin] + masses[bin + 1]) / 2 / of;
    return bin;
  };
  if (topK) {
    end = reaching(counts, topK);
    begin = topP < 1 ? Math.min(settle(masses[end]), end) : end;
  } else if (topP < 1) begin = end = settle(all);
  return {
    begin,
    end,
    above: counts[begin],
    massAbove: masses[begin],
    all,
    p: Math.fround(p),
  };
}

/** The score by which a token is drawn. */
export const drawScore = (
  reference: Reference,
  { row, id, temperature, seed, step }: {
    row: Float32Array;
    id: number;
    temperature: number;
    seed: number;
    step: number;
  },
  top: number,
): number => (row[id] - top) / temperature + reference.noise(seed, step, id);

/** What sample_top_k.ts finds in a chunk. */
export interface TopKRecord {
  sequence: number;
  bound: number;
  ids: number[];
  top: number;
}

/**
 * Each chunk's tokens that reach the k-th highest of `parts` partial maxima. Thread t
 * holds groups of four tokens; part p is the maximum of threads p, p + parts, ….
 */
export function topKRecords(
  sizes: SampleSizes,
  scores: readonly Float32Array[],
  k: number,
  parts: number,
): TopKRecord[] {
  const records: TopKRecord[] = [];
  eachChunk(sizes, (sequence, _, ids) => {
    const row = scores[sequence], begin = ids[0] ?? 0;
    const maxima = new Float32Array(parts).fill(ABSENT);
    for (const id of ids) {
      const part = Math.floor((id - begin) / 4) % WORKGROUP % parts;
      maxima[part] = Math.max(maxima[part], row[id]);
    }
    const sorted = maxima.toSorted().reverse();
    const bound = Math.max(sorted[k - 1], Math.fround(-2e30));
    records.push({
      sequence,
      bound,
      ids: ids.filter((id) => row[id] >= bound),
      top: sorted[0],
    });
  });
  return records;
}

/** Each chunk's sum of exp(score − highest score of the chunk). */
export function massesOf(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
): number[] {
  const masses: number[] = [];
  eachChunk(sizes, (s, _, ids) => {
    const top = bestOf(ids, (id) => rows[s][id]).score;
    masses.push(
      ids.reduce((sum, id) => sum + Math.exp(rows[s][id] - top), 0),
    );
  });
  return masses;
}

/** Names the settings of rows, as in `temperature 1, top-k 300`. */
export const rowsText = (
  rows: readonly (object | null | undefined)[],
): string =>
  rows.map((row) =>
    row
      ? Object.entries(row).map(([name, value]) =>
        `${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)} ${value}`
      ).join(", ") || "plain"
      : "idle"
  ).join("; ");
