import { MOST_BIASES } from "../lib/dispatch/sampling.ts";
import { u32Tensor } from "./case.ts";
import { samplingCost } from "./cost.ts";
import { defineKernel } from "./define.ts";
import {
  rowsOf,
  rowsText,
  type SampleSizes,
  settingsTensor,
} from "./sample_case.ts";
import { STANDINS, WORKGROUP } from "./sample_scores.ts";
import { SETTINGS_CONTRACT, settingsOf } from "./sample_settings.ts";

interface AdjustCase extends Omit<SampleSizes, "chunks"> {
  /** By sequence; undefined leaves its logits alone. */
  rows: readonly (AdjustRow | undefined)[];
}

interface AdjustRow {
  repetition?: number;
  presence?: number;
  frequency?: number;
  /** The number of biases. */
  biases?: number;
  masked?: boolean;
}

/**
 * Changes logits before sampling, in place: adds biases, applies the penalties to tokens by
 * their history (`historyOf` in lib/model/sampling.ts), and makes those that `allowed`, a bit per token, leaves out -Infinity.
 * Rows whose settings ask for nothing stay as they are, and so do logits that are not
 * finite.
 */
export const sampleAdjust = defineKernel<AdjustCase>({
  name: "sampleAdjust",
  buffers: {
    logits: "inout sequences vocab as raw",
    ...SETTINGS_CONTRACT,
    history: "sequences vocab",
    biases: "sequences room any",
    allowed: "sequences words",
  },
  constants: { WORKGROUP, PER_WORKGROUP: 4 * WORKGROUP },
  grid: ({ vocab, sequences }, { PER_WORKGROUP }) => [
    Math.ceil(vocab / PER_WORKGROUP),
    sequences,
    1,
  ],
  cost: samplingCost,
  body: /* wgsl */ `
${STANDINS}
${
    settingsOf(
      "adjusts",
      "biases",
      "repetition",
      "presence",
      "frequency",
      "masked",
    )
  }
const INFINITE = 0x7f800000u;
fn finite(bits: u32) -> bool { return (bits & INFINITE) != INFINITE; }
fn bounded(x: f32) -> u32 { return bitcast<u32>(clamp(x, -HIGHEST, HIGHEST)); }

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let sequence = wg.y;
  if (adjusts_of(sequence) == 0u) { return; }
  let row = sequence * u.vocab;
  let begin = wg.x * PER_WORKGROUP;
  let end = min(begin + PER_WORKGROUP, u.vocab);
  let count = biases_of(sequence);
  for (var i = tid; i < count; i += WORKGROUP) {
    let bias = (sequence * u.room + i) * 2u;
    let id = biases[bias];
    if (id >= begin && id < end && finite(logits[row + id])) {
      logits[row + id] = bounded(bitcast<f32>(logits[row + id]) + bitcast<f32>(biases[bias + 1u]));
    }
  }
  storageBarrier();
  let repetition = repetition_of(sequence);
  let presence = presence_of(sequence);
  let frequency = frequency_of(sequence);
  let penalizes = repetition != 1.0 || presence != 0.0 || frequency != 0.0;
  let masked = masked_of(sequence) > 0u;
  for (var id = begin + tid; id < end; id += WORKGROUP) {
    let bits = logits[row + id];
    if (finite(bits)) {
      let known = history[row + id];
      if (penalizes && known > 0u) {
        let times = known & 0x7fffffffu;
        var x = bitcast<f32>(bits);
        x = select(x / repetition, x * repetition, x < 0.0);
        x -= frequency * f32(times) + select(0.0, presence, times > 0u);
        logits[row + id] = bounded(x);
      }
      if (masked && ((allowed[sequence * u.words + id / 32u] >> (id % 32u)) & 1u) == 0u) {
        logits[row + id] = 0xff800000u;
      }
    }
  }
}`,
  cases: [
    { sequences: 1, vocab: 5003, rows: [{ repetition: 1.3 }] },
    // Neutral penalties leave a logit of 3e38 where it is.
    { sequences: 8, vocab: 64, rows: Array(8).fill({ masked: true }) },
    {
      sequences: 5,
      vocab: 2050,
      rows: [
        { presence: 0.7, frequency: -0.3, biases: 300 },
        undefined,
        { masked: true },
        { repetition: 0.8, biases: MOST_BIASES },
        {
          repetition: 1.1,
          presence: -2,
          frequency: 2,
          biases: 5,
          masked: true,
        },
      ],
    },
  ],
  makeCase(given, { random, reference }) {
    const { sequences, vocab, rows } = given, length = Math.ceil(vocab / 32);
    const logits = random.tensor("f32", [sequences, vocab], 8);
    // The GPU flips the sign of a score at 0 only where the reference does.
    rows.forEach((_, s) => {
      [-Infinity, Infinity, NaN, 3e38].forEach((x, i) =>
        logits.data[s * vocab + (s + i) % vocab] = x
      );
    });
    const history = new Uint32Array(sequences * vocab).map(() =>
      random.int(0, 3) ? 0 : random.int(0, 4) + random.int(0, 1) * 0x80000000
    );
    const allowed = new Uint32Array(sequences * length)
      .map(() => random.int(0, 2 ** 32 - 1));
    const biases = u32Tensor([sequences, MOST_BIASES, 2]);
    const logitBias = rows.map((row, s) => {
      const all = new Map<number, number>();
      while (all.size < Math.min(row?.biases ?? 0, vocab)) {
        all.set(random.int(0, vocab - 1), Math.fround(100 * random.next()));
      }
      const floats = new Float32Array(biases.data.buffer);
      [...all].forEach(([id, bias], i) => {
        const at = 2 * (s * MOST_BIASES + i);
        biases.data[at] = id;
        floats[at + 1] = bias;
      });
      return Object.fromEntries(all);
    });
    return {
      what: `[${sequences}, ${vocab}], ${rowsText(rows)}`,
      operands: {
        logits,
        settings: settingsTensor(rows.map((row, s) => ({
          ...row,
          adjusts: row ? 1 : 0,
          biases: Object.keys(logitBias[s]).length,
          masked: row?.masked ? 1 : 0,
        }))),
        history: u32Tensor([sequences, vocab], history),
        biases,
        allowed: u32Tensor([sequences, length], allowed),
      },
      expected: () => {
        const values = rowsOf(logits).flatMap((x, s) => {
          const row = rows[s];
          if (!row) return [...x];
          const { repetition = 1, presence = 0, frequency = 0 } = row;
          const rule = {
            temperature: 1,
            seed: 0,
            repetitionPenalty: Math.fround(repetition),
            presencePenalty: Math.fround(presence),
            frequencyPenalty: Math.fround(frequency),
            logitBias: logitBias[s],
          };
          return [...reference.adjusted(
            x,
            rule,
            history.subarray(s * vocab, (s + 1) * vocab),
            row.masked
              ? allowed.subarray(s * length, (s + 1) * length)
              : undefined,
          )];
        });
        const norms = values.map((x) => Math.max(100, Math.abs(x)));
        return [{ of: "logits", values, norms, tolerance: 1e-6 }];
      },
    };
  },
});
