import { laneConstants } from "../lib/dispatch/capabilities.ts";
import { type Reference, type Result, u32 } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  ABSENT,
  bestOf,
  binned,
  binOf,
  drawScore,
  eachChunk,
  floatOf,
  highestOf,
  histogramTensor,
  narrow,
  type Narrowed,
  rowsOf,
  type SampleSizes,
  scoreOf,
  words,
} from "./sample_case.ts";
import { BIN } from "./sample_histogram.ts";
import {
  BEST,
  BINS,
  chunkLength,
  deriveChunk,
  GUMBEL,
  LOAD_SCORES,
  logitsContract,
  ROW_TOP,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";

interface DrawCase extends SampleSizes {
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
}

/**
 * Draws a token from each chunk: the one with the highest
 * `(score − top) / temperature + gumbel` among those that reach min-p.
 *
 * HISTOGRAM first narrows the limits of top-k and top-p down to a few bins. Tokens above
 * these bins take part in the draw, tokens in them become candidates `[key, id]` that
 * sample_finish.ts decides on, and tokens below are excluded. Records are
 * `[key of the draw, id, candidates, 0]`; in a row that cannot be sampled from, they begin
 * with the key of its highest score. `limits` describes what is above the bins:
 * `[top, tokens above, mass above, mass of all, upper edge]`, all f32 except the count.
 */
export const sampleDraw = defineKernel<DrawCase>({
  name: "sampleDraw",
  buffers: (c) => ({
    ...logitsContract(c),
    highest: "sequences chunks any",
    step: "sequences",
    records: "out sequences chunks any",
    ...(c.HISTOGRAM
      ? {
        histogram: "sequences sums bins",
        candidates: "out sequences chunks room any",
        limits: "out sequences any",
      }
      : {}),
  }),
  uniforms: {
    penalty: "f32",
    temperature: "f32",
    lowest: "f32",
    seed: "u32",
    width: "f32",
    k: "u32",
    p: "f32",
  },
  constants: { ...SAMPLE_CONSTANTS, BINS, HISTOGRAM: 0, TOP_K: 0, TOP_P: 0 },
  derive: (c, dims) => ({
    ...deriveChunk(c, dims),
    LOG_WORKGROUP: Math.log2(Number(c.WORKGROUP)),
    OWN: Number(c.BINS) / Number(c.WORKGROUP),
  }),
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${ROW_TOP}
${BEST}
${GUMBEL}
@if HISTOGRAM {
${BIN}
var<workgroup> running: array<vec2f, WORKGROUP>;
var<workgroup> last_bins: array<atomic<u32>, 2>;
var<workgroup> before: array<vec2f, 2>;
var<workgroup> count: atomic<u32>;

// Number of tokens in bin b, and their mass.
fn bin_sums(sequence: u32, b: u32, temperature: f32) -> vec2f {
  let base = sequence * u.sums * BINS + b;
  let units = f32(histogram[base + BINS]) * 65536.0 + f32(histogram[base]);
  return vec2f(f32(histogram[base + 2u * BINS]), units * 0x1p-19f * exp(-f32(b) * u.width / temperature));
}

// note_first() notes a bin; noted() is the first bin that any thread has noted.
fn note_first(which: u32, b: u32) { atomicMax(&last_bins[which], BINS - b); }
fn noted(which: u32) -> u32 { return min(BINS - atomicLoad(&last_bins[which]), BINS - 1u); }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  let top = row_top(sequence, tid);
  @if HISTOGRAM {
    @split var upto: array<vec2f, OWN + 1>; // sums before each of this thread's bins, and after the last
    upto[0] = vec2f();
    @unroll for (var i = 0; i < OWN; i++) { upto[i + 1] = upto[i] + bin_sums(sequence, tid * OWN + i, u.temperature); }
    var sum = upto[OWN];
    @unroll for (var i = 0; i < LOG_WORKGROUP; i++) {
      running[tid] = sum;
      workgroupBarrier();
      if (tid >= (1u << i)) { sum += running[tid - (1u << i)]; }
      workgroupBarrier();
    }
    running[tid] = sum;
    workgroupBarrier();
    let all = running[WORKGROUP - 1u].y;
    var start = vec2f();
    if (tid > 0u) { start = running[tid - 1u]; }
    // Bins begin … end stay open; top-p keeps a margin for the rounding of sums.
    var end = 0u;
    var survivors = all; // a lower bound of the mass that passes top-k
    @if TOP_K {
      @unroll for (var i = 0; i < OWN; i++) {
        if (u32(start.x + upto[i + 1].x) >= u.k) { note_first(0u, tid * OWN + i); }
      }
      workgroupBarrier();
      end = noted(0u);
      @unroll for (var i = 0; i < OWN; i++) { if (end == tid * OWN + i) { before[0] = start + upto[i]; } }
      workgroupBarrier();
      survivors = before[0].y;
    } @else {
      @unroll for (var i = 0; i < OWN; i++) {
        if (start.y + upto[i + 1].y >= u.p * all * 1.00001) { note_first(0u, tid * OWN + i); }
      }
      workgroupBarrier();
      end = noted(0u);
    }
    var begin = end;
    @if TOP_P {
      @unroll for (var i = 0; i < OWN; i++) {
        if (start.y + upto[i + 1].y >= u.p * survivors * 0.99999) { note_first(1u, tid * OWN + i); }
      }
      workgroupBarrier();
      begin = min(noted(1u), end);
    }
    @unroll for (var i = 0; i < OWN; i++) { if (begin == tid * OWN + i) { before[1] = start + upto[i]; } }
    workgroupBarrier();
    if (chunk == 0u && tid == 0u) {
      limits[sequence * 8u] = bitcast<u32>(top);
      limits[sequence * 8u + 1u] = u32(before[1].x);
      limits[sequence * 8u + 2u] = bitcast<u32>(before[1].y);
      limits[sequence * 8u + 3u] = bitcast<u32>(all);
      limits[sequence * 8u + 4u] = bitcast<u32>(top - f32(begin) * u.width);
    }
    let base = (sequence * u.chunks + chunk) * u.room;
  }

  let key = step_key(u.seed + sequence, step[sequence]);
  var score = ABSENT;
  var id = 0u;
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > ABSENT) {
        let token = first + i * 4u * WORKGROUP + c;
        var sure = true;
        @if HISTOGRAM {
          let b = bin_of(x[i][c], top);
          sure = b < begin;
          if (b >= begin && b <= end) {
            let at = (base + atomicAdd(&count, 1u)) * 2u;
            candidates[at] = order(x[i][c]);
            candidates[at + 1u] = token;
          }
        }
        let scaled = (x[i][c] - top) / u.temperature;
        if (sure && scaled >= u.lowest) {
          let noisy = scaled + gumbel(key, token);
          if (noisy > score) { score = noisy; id = token; }
        }
      }
    }
  }
  let best = workgroup_best(score, id, tid);
  if (tid == 0u) {
    let record = (sequence * u.chunks + chunk) * 4u;
    records[record] = select(best.x, order(top), fault_of(top) != 0u);
    records[record + 1u] = best.y;
    @if HISTOGRAM { records[record + 2u] = atomicLoad(&count); } @else { records[record + 2u] = 0u; }
  }
}`,
  cases: [
    { sequences: 2, vocab: 5003, chunks: 8, temperature: 0.7, minP: 0.01 },
    { sequences: 1, vocab: 5003, chunks: 8, temperature: 1, topP: 0.9 },
    { sequences: 2, vocab: 1024, chunks: 1, temperature: 2, topK: 200 },
    {
      sequences: 1,
      vocab: 5003,
      chunks: 8,
      temperature: 1,
      topK: 300,
      topP: 0.6,
    },
  ],
  makeCase(given, { device, random, reference }) {
    const { sequences, vocab, chunks, temperature } = given;
    const { topK = 0, topP = 1, minP = 0 } = given, seed = 4_000_000_000;
    const width = 32 * Math.max(temperature, 1) / BINS;
    const logits = binned(random, given, width), rows = rowsOf(logits);
    const histogram = topK > 0 || topP < 1;
    const bins = rows.map((row) =>
      narrow(row, width, temperature, { topK, topP })
    );
    const steps = rows.map((_, s) => 3 + s);
    const lowest = Math.max(Math.log(minP), ABSENT);
    return {
      what:
        `[${sequences}, ${vocab}] in ${chunks} chunks, temperature ${temperature}` +
        (topK ? `, top-k ${topK}` : "") + (topP < 1 ? `, top-p ${topP}` : "") +
        (minP ? `, min-p ${minP}` : ""),
      operands: {
        logits,
        highest: highestOf(given, rows),
        step: u32(...steps),
        records: words(sequences, chunks, 4),
        histogram: histogramTensor(rows, width, temperature),
        candidates: words(sequences, chunks, chunkLength(vocab, chunks), 2),
        limits: words(sequences, 8),
      },
      constants: {
        ...laneConstants(device),
        HISTOGRAM: histogram ? 1 : 0,
        TOP_K: topK ? 1 : 0,
        TOP_P: topP < 1 ? 1 : 0,
      },
      uniforms: {
        penalty: 1,
        temperature,
        lowest,
        seed,
        width,
        k: topK,
        p: bins[0].p,
      },
      expected: () => {
        const draw = { temperature, lowest, seed, steps, width };
        return [
          ...drawn(given, rows, histogram ? bins : undefined, draw, reference),
          ...(histogram
            ? [...leftOpen(given, rows, bins, width), limitsOf(bins, width)]
            : []),
        ];
      },
    };
  },
});

/** How the tokens of a step are drawn. */
interface Draw {
  temperature: number;
  lowest: number;
  seed: number;
  /** By sequence. */
  steps: readonly number[];
  width: number;
}

/** Each chunk's best draw among the tokens above the open bins. */
function drawn(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
  bins: readonly Narrowed[] | undefined,
  { temperature, lowest, seed, steps, width }: Draw,
  reference: Reference,
): Result[] {
  const score = (s: number, id: number) => {
    const row = rows[s], step = steps[s];
    const sure = !bins || binOf(row[id], 0, width) < bins[s].begin;
    const draw = { row, id, temperature, seed: (seed + s) >>> 0, step };
    return sure && row[id] / temperature >= lowest
      ? drawScore(reference, draw, 0)
      : ABSENT;
  };
  const best: number[] = [], sequences: number[] = [];
  eachChunk(sizes, (s, _, ids) => {
    sequences.push(s);
    best.push(bestOf(ids, (id) => score(s, id)).score);
  });
  const norms = best.map((value) => Math.max(1, Math.abs(value)));
  const close = { values: best, norms, tolerance: 2e-5 };
  return [{
    of: ({ records }) => best.map((_, i) => scoreOf(records[4 * i])),
    ...close,
  }, {
    // The score of the token drawn: if several are nearly equal, any of them will do.
    of: ({ records }) =>
      best.map((value, i) => {
        const id = records[4 * i + 1];
        if (value !== ABSENT) return score(sequences[i], id);
        return id === 0 ? ABSENT : NaN;
      }),
    ...close,
  }];
}

/** The candidates of each chunk: all tokens of the open bins, in any order. */
function leftOpen(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
  bins: readonly Narrowed[],
  width: number,
): Result[] {
  const room = chunkLength(sizes.vocab, sizes.chunks);
  const open: number[][] = [];
  eachChunk(sizes, (s, _, ids) => {
    const { begin, end } = bins[s];
    const bin = (id: number) => binOf(rows[s][id], 0, width);
    open.push(ids.filter((id) => bin(id) >= begin && bin(id) <= end));
  });
  return [{
    of: ({ records }) => open.map((_, i) => records[4 * i + 2]),
    values: open.map(({ length }) => length),
    tolerance: 0,
  }, {
    of: ({ candidates, records }) =>
      open.flatMap((_, i) =>
        Array.from(
          { length: records[4 * i + 2] },
          (_, j) => candidates[2 * (i * room + j) + 1],
        ).sort((a, b) => a - b)
      ),
    values: open.flat(),
    tolerance: 0,
  }];
}

/** What is above the open bins. */
function limitsOf(bins: readonly Narrowed[], width: number): Result {
  return {
    of: ({ limits }) =>
      bins.flatMap((_, s) => [
        floatOf(limits[8 * s]),
        limits[8 * s + 1],
        floatOf(limits[8 * s + 2]),
        floatOf(limits[8 * s + 3]),
        floatOf(limits[8 * s + 4]),
      ]),
    values: bins.flatMap(({ above, massAbove, all, begin }) => [
      0,
      above,
      massAbove,
      all,
      -begin * width,
    ]),
    norms: bins.flatMap(({ above, all }) => [1, above, all, all, 1]),
    tolerance: 1e-5,
  };
}
