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
  rowsText,
  type SampleSizes,
  scoreOf,
  settingsTensor,
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
  LOGITS_CONTRACT,
  recordWords,
  ROW_TOP,
  SAMPLE_CONSTANTS,
  SCORES,
} from "./sample_scores.ts";
import { binWidth, SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

interface DrawCase extends SampleSizes {
  /** By sequence. */
  rows: readonly {
    /** 0 for a greedy sequence. */
    temperature: number;
    topK?: number;
    topP?: number;
    minP?: number;
  }[];
}

/**
 * Draws a token from each chunk: the one with the highest
 * `(score − top) / temperature + gumbel` among those that reach min-p.
 *
 * HISTOGRAM first narrows the limits of top-k and top-p down to a few bins. Tokens above
 * these bins take part in the draw, tokens in them become candidates `[key, id]` that
 * sample_finish.ts decides on, and tokens below are excluded. Without top-k and top-p, no
 * bins are left open.
 *
 * Records are `[key of the draw, id, candidates, top]`; in a row that cannot be sampled
 * from, they begin with the key of its highest score. With HISTOGRAM, each also describes
 * what is above the bins: `[tokens, mass, mass of all, upper edge of the bins]`, all f32
 * except the count.
 */
export const sampleDraw = defineKernel<DrawCase>({
  name: "sampleDraw",
  buffers: (c) => ({
    ...LOGITS_CONTRACT,
    ...SETTINGS_CONTRACT,
    highest: "sequences chunks any",
    step: "sequences",
    records: "out sequences chunks any",
    ...(c.HISTOGRAM
      ? {
        histogram: "sequences sums bins",
        candidates: "out sequences chunks room any",
      }
      : {}),
  }),
  constants: { ...SAMPLE_CONSTANTS, BINS, HISTOGRAM: 0 },
  derive: (c, dims) => ({
    ...deriveChunk(c, dims),
    LOG_WORKGROUP: Math.log2(Number(c.WORKGROUP)),
    OWN: Number(c.BINS) / Number(c.WORKGROUP),
    RECORD: recordWords(c.HISTOGRAM === 1),
  }),
  grid: ({ chunks, sequences }) => [chunks, sequences, 1],
  cost: samplingCost,
  body: /* wgsl */ `
${SCORES}
${ROW_TOP}
${BEST}
${GUMBEL}
${settingsOf("temperature", "noise", "lowest", "seed", "k", "p", "width")}
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
  return vec2f(f32(histogram[base + 2u * BINS]), units * 0x1p-19f * exp(-f32(b) * width_of(sequence) / temperature));
}

// note_first() notes a bin; noted() is the first bin that any thread has noted.
fn note_first(which: u32, b: u32) { atomicMax(&last_bins[which], BINS - b); }
fn noted(which: u32) -> u32 { return min(BINS - atomicLoad(&last_bins[which]), BINS - 1u); }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  ${LOAD_SCORES}
  let top = row_top(sequence, tid);
  let temperature = temperature_of(sequence);
  let width = width_of(sequence);
  let record = (sequence * u.chunks + chunk) * RECORD;
  @if HISTOGRAM {
    @split var upto: array<vec2f, OWN + 1>; // sums before each of this thread's bins, and after the last
    upto[0] = vec2f();
    @unroll for (var i = 0; i < OWN; i++) { upto[i + 1] = upto[i] + bin_sums(sequence, tid * OWN + i, temperature); }
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
    let k = k_of(sequence);
    let p = p_of(sequence);
    var end = BINS;
    var survivors = all; // a lower bound of the mass that passes top-k
    if (k > 0u) {
      @unroll for (var i = 0; i < OWN; i++) {
        if (u32(start.x + upto[i + 1].x) >= k) { note_first(0u, tid * OWN + i); }
      }
      workgroupBarrier();
      end = noted(0u);
      @unroll for (var i = 0; i < OWN; i++) { if (end == tid * OWN + i) { before[0] = start + upto[i]; } }
      workgroupBarrier();
      survivors = before[0].y;
    } else if (p < 1.0) {
      @unroll for (var i = 0; i < OWN; i++) {
        if (start.y + upto[i + 1].y >= p * all * 1.00001) { note_first(0u, tid * OWN + i); }
      }
      workgroupBarrier();
      end = noted(0u);
    }
    var begin = end;
    if (p < 1.0) {
      @unroll for (var i = 0; i < OWN; i++) {
        if (start.y + upto[i + 1].y >= p * survivors * 0.99999) { note_first(1u, tid * OWN + i); }
      }
      workgroupBarrier();
      begin = min(noted(1u), end);
    }
    @unroll for (var i = 0; i < OWN; i++) { if (begin == tid * OWN + i) { before[1] = start + upto[i]; } }
    workgroupBarrier();
    if (tid == 0u) {
      records[record + 4u] = u32(before[1].x);
      records[record + 5u] = bitcast<u32>(before[1].y);
      records[record + 6u] = bitcast<u32>(all);
      records[record + 7u] = bitcast<u32>(top - f32(begin) * width);
    }
    let base = (sequence * u.chunks + chunk) * u.room;
  }

  let key = step_key(seed_of(sequence), step[sequence]);
  let lowest = lowest_of(sequence);
  let noise = noise_of(sequence);
  var score = ABSENT;
  var id = 0u;
  @unroll for (var i = 0; i < STEPS; i++) {
    @unroll for (var c = 0; c < 4; c++) {
      if (x[i][c] > ABSENT) {
        let token = first + i * 4u * WORKGROUP + c;
        var sure = true;
        @if HISTOGRAM {
          let b = bin_of(x[i][c], top, width);
          sure = b < begin;
          if (b >= begin && b <= end) {
            let at = (base + atomicAdd(&count, 1u)) * 2u;
            candidates[at] = order(x[i][c]);
            candidates[at + 1u] = token;
          }
        }
        let scaled = (x[i][c] - top) / temperature;
        if (sure && scaled >= lowest) {
          let noisy = scaled + noise * gumbel(key, token);
          if (noisy > score) { score = noisy; id = token; }
        }
      }
    }
  }
  let best = workgroup_best(score, id, tid);
  if (tid == 0u) {
    records[record] = select(best.x, order(top), fault_of(top, 0u) != 0u);
    records[record + 1u] = best.y;
    @if HISTOGRAM { records[record + 2u] = atomicLoad(&count); } @else { records[record + 2u] = 0u; }
    records[record + 3u] = order(top);
  }
}`,
  cases: [
    {
      sequences: 2,
      vocab: 5003,
      chunks: 8,
      rows: [{ temperature: 0.7, minP: 0.01 }, { temperature: 0 }],
    },
    {
      sequences: 1,
      vocab: 5003,
      chunks: 8,
      rows: [{ temperature: 1, topP: 0.9 }],
    },
    {
      sequences: 2,
      vocab: 1024,
      chunks: 1,
      rows: [{ temperature: 2, topK: 200 }, { temperature: 0.8, topK: 90 }],
    },
    {
      sequences: 4,
      vocab: 5003,
      chunks: 8,
      rows: [
        { temperature: 1, topK: 300, topP: 0.6 },
        { temperature: 0 },
        { temperature: 1.2, minP: 0.01 },
        { temperature: 0.5, topP: 0.7 },
      ],
    },
  ],
  makeCase(given, { device, random, reference }) {
    const { sequences, vocab, chunks } = given, seed = 4_000_000_000;
    const draws = given.rows.map((row, s): Draw => {
      const { temperature, topK = 0, topP = 1, minP = 0 } = row;
      const greedy = temperature === 0;
      return {
        noise: greedy ? 0 : 1,
        temperature: temperature || 1,
        topK: greedy ? 1 : topK,
        topP,
        lowest: Math.max(Math.log(minP), ABSENT),
        width: binWidth(temperature),
        seed: seed + s,
        step: 3 + s,
      };
    });
    const widths = draws.map(({ width }) => width);
    const logits = binned(random, given, widths), rows = rowsOf(logits);
    const histogram = given.rows.some(({ topK, topP }) => topK || topP);
    const bins = rows.map((row, s) =>
      narrow(row, widths[s], draws[s].temperature, draws[s])
    );
    return {
      what: `[${sequences}, ${vocab}] in ${chunks} chunks, ${
        rowsText(given.rows)
      }`,
      operands: {
        logits,
        settings: settingsTensor(
          draws.map(({ topK: k, ...draw }, s) => ({
            ...draw,
            k,
            p: bins[s].p,
          })),
        ),
        highest: highestOf(given, rows),
        step: u32(...draws.map(({ step }) => step)),
        records: words(sequences, chunks, recordWords(histogram)),
        histogram: histogramTensor(
          rows,
          widths,
          draws.map(({ temperature }) => temperature),
        ),
        candidates: words(sequences, chunks, chunkLength(vocab, chunks), 2),
      },
      constants: { ...laneConstants(device), HISTOGRAM: histogram ? 1 : 0 },
      expected: () => [
        ...drawn(given, rows, histogram ? bins : undefined, draws, reference),
        ...(histogram
          ? [
            ...leftOpen(given, rows, bins, widths),
            aboveOf(given, bins, widths),
          ]
          : []),
      ],
    };
  },
});

/** How a sequence is drawn from. */
interface Draw {
  noise: number;
  temperature: number;
  topK: number;
  topP: number;
  lowest: number;
  width: number;
  seed: number;
  step: number;
}

/** Each chunk's best draw among the tokens above the open bins. */
function drawn(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
  bins: readonly Narrowed[] | undefined,
  draws: readonly Draw[],
  reference: Reference,
): Result[] {
  const record = recordWords(bins !== undefined);
  const score = (s: number, id: number) => {
    const row = rows[s], { temperature, lowest, width, noise } = draws[s];
    const sure = !bins || binOf(row[id], 0, width) < bins[s].begin;
    if (!sure || row[id] / temperature < lowest) return ABSENT;
    return noise === 0
      ? row[id]
      : drawScore(reference, { ...draws[s], row, id }, 0);
  };
  const best: number[] = [], sequences: number[] = [];
  eachChunk(sizes, (s, _, ids) => {
    sequences.push(s);
    best.push(bestOf(ids, (id) => score(s, id)).score);
  });
  const norms = best.map((value) => Math.max(1, Math.abs(value)));
  const close = { values: best, norms, tolerance: 2e-5 };
  return [{
    of: ({ records }) => best.map((_, i) => scoreOf(records[record * i])),
    ...close,
  }, {
    // The score of the token drawn: if several are nearly equal, any of them will do.
    of: ({ records }) =>
      best.map((value, i) => {
        const id = records[record * i + 1];
        if (value !== ABSENT) return score(sequences[i], id);
        return id === 0 ? ABSENT : NaN;
      }),
    ...close,
  }, {
    of: ({ records }) => best.map((_, i) => scoreOf(records[record * i + 3])),
    values: best.map(() => 0),
    tolerance: 0,
  }];
}

/** The candidates of each chunk: all tokens of the open bins, in any order. */
function leftOpen(
  sizes: SampleSizes,
  rows: readonly Float32Array[],
  bins: readonly Narrowed[],
  widths: readonly number[],
): Result[] {
  const room = chunkLength(sizes.vocab, sizes.chunks),
    record = recordWords(true);
  const open: number[][] = [];
  eachChunk(sizes, (s, _, ids) => {
    const { begin, end } = bins[s];
    const bin = (id: number) => binOf(rows[s][id], 0, widths[s]);
    open.push(ids.filter((id) => bin(id) >= begin && bin(id) <= end));
  });
  return [{
    of: ({ records }) => open.map((_, i) => records[record * i + 2]),
    values: open.map(({ length }) => length),
    tolerance: 0,
  }, {
    of: ({ candidates, records }) =>
      open.flatMap((_, i) =>
        Array.from(
          { length: records[record * i + 2] },
          (_, j) => candidates[2 * (i * room + j) + 1],
        ).sort((a, b) => a - b)
      ),
    values: open.flat(),
    tolerance: 0,
  }];
}

/** What is above the open bins, in each record. */
function aboveOf(
  { chunks }: SampleSizes,
  bins: readonly Narrowed[],
  widths: readonly number[],
): Result {
  const record = recordWords(true);
  // Nothing reads what is above if no bins are open.
  const shown = bins.flatMap((found, s) =>
    found.begin < BINS
      ? Array.from({ length: chunks }, (_, c) => ({
        ...found,
        at: (s * chunks + c) * record + 4,
        edge: -found.begin * widths[s],
      }))
      : []
  );
  return {
    of: ({ records }) =>
      shown.flatMap(({ at }) => [
        records[at],
        floatOf(records[at + 1]),
        floatOf(records[at + 2]),
        floatOf(records[at + 3]),
      ]),
    values: shown.flatMap(({ above, massAbove, all, edge }) => [
      above,
      massAbove,
      all,
      edge,
    ]),
    norms: shown.flatMap(({ above, all }) => [above, all, all, 1]),
    tolerance: 1e-5,
  };
}
