/** Reference outputs of transformers in tests/fixtures, and how to compare with them. */
import { AssertionError } from "@std/assert";
import type { Qwen3 } from "../../mod.ts";
import { syntheticTokens } from "../../lib/checkpoint/synthetic.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url);

/** One prompt, what transformers computes for it in f32, and the error of its bf16 run. */
export interface GoldenCase {
  name: string;
  tokenIds: number[];
  /** Logits after the last token, `[vocab]`. */
  logits: Float32Array;
  /** ‖Δ‖ / ‖logits‖ of transformers in bf16. */
  bf16Error: number;
  greedy: number[];
  /** The difference between the two largest logits, for each greedy step. */
  greedyGap: number[];
  /** The greedy text, if there is a tokenizer. */
  text?: string;
}

/** A fixture: the model to load, and its cases. */
export interface Golden {
  name: string;
  model: string;
  cases: GoldenCase[];
  // deno-lint-ignore no-explicit-any
  json: any;
}

/** Reads `fixtures/<folder>/golden.json`, for the checkpoint next to it unless `model` is given. */
export async function readGolden(
  folder: string,
  model = new URL(`${folder}/`, FIXTURES).href,
): Promise<Golden> {
  return await read(folder, `${folder}/golden`, () => model);
}

/** Reads `fixtures/synthetic/<name>.json`, for a synthetic checkpoint. */
export async function readSyntheticGolden(name: string): Promise<Golden> {
  return await read(name, `synthetic/${name}`, ({ seed, config }) => {
    const size = /^qwen3-[\d.]+b/.exec(name)![0];
    const { num_hidden_layers: layers, vocab_size: vocab } = config;
    return `synthetic:${size}?seed=${seed}&layers=${layers}&vocab=${vocab}`;
  });
}

async function read(
  name: string,
  path: string,
  // deno-lint-ignore no-explicit-any
  modelOf: (json: any) => string,
): Promise<Golden> {
  const json = JSON.parse(
    await Deno.readTextFile(new URL(`${path}.json`, FIXTURES)),
  );
  const file = await Deno.readFile(new URL(`${path}.safetensors`, FIXTURES));
  const headerBytes = Number(new DataView(file.buffer).getBigUint64(0, true));
  const data = 8 + headerBytes;
  const header = JSON.parse(new TextDecoder().decode(file.slice(8, data)));
  const cases: GoldenCase[] = [];
  for (const one of json.cases) {
    const [begin, end] = header[one.name].data_offsets;
    cases.push({
      name: one.name,
      tokenIds: one.input_ids ?? [
        ...syntheticTokens(json.seed, one.length, json.config.vocab_size),
      ],
      logits: new Float32Array(file.slice(data + begin, data + end).buffer),
      bf16Error: one.torch_bf16_relative_error,
      greedy: one.greedy,
      greedyGap: one.greedy_gap,
      text: one.text,
    });
  }
  return { name, model: modelOf(json), cases, json };
}

/** ‖actual − expected‖ / ‖expected‖ */
export function relativeError(
  actual: Float32Array,
  expected: Float32Array,
): number {
  if (actual.length !== expected.length) {
    throw new AssertionError(
      `lengths differ: ${actual.length} and ${expected.length}`,
    );
  }
  let difference = 0, norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** The largest |actual − expected|. */
export function largestError(
  actual: Float32Array,
  expected: Float32Array,
): number {
  return expected.reduce(
    (max, e, i) => Math.max(max, Math.abs(actual[i] - e)),
    0,
  );
}

/** Generates greedily and ignores end-of-text tokens. */
export async function generateGreedily(
  qwen: Qwen3,
  prompt: string | number[],
  maxTokens: number,
): Promise<{ tokenIds: number[]; text: string }> {
  const run = qwen.generate(prompt, {
    maxTokens,
    temperature: 0,
    ignoreEos: true,
  });
  let text = "";
  for await (const piece of run) text += piece.text;
  return { tokenIds: run.tokenIds, text };
}

/**
 * Asserts that greedy tokens are the reference's first ones. The comparison ends at a
 * different token if the reference's two best logits are within `margin` there.
 */
export function assertGreedy(
  actual: readonly number[],
  { name, greedy, greedyGap }: GoldenCase,
  margin: number,
): void {
  const step = actual.findIndex((id, i) => id !== greedy[i]);
  if (step < 0 || greedyGap[step] <= margin) return;
  throw new AssertionError(
    `${name}: step ${step} gave ${actual[step]}, expected ${
      greedy[step]
    }, whose logit is ${greedyGap[step]} ahead; rounding explains ${margin}`,
  );
}

/** exp of the mean negative log-likelihood of all tokens except each text's first. */
export async function perplexity(
  qwen: Qwen3,
  texts: readonly number[][],
): Promise<number> {
  const { vocabSize } = qwen.config;
  let loss = 0, tokens = 0;
  for (const ids of texts) {
    const all = await qwen.logits(ids, { all: true });
    for (let i = 1; i < ids.length; i++) {
      const logits = all.subarray((i - 1) * vocabSize, i * vocabSize);
      const max = logits.reduce((a, b) => Math.max(a, b));
      const sum = logits.reduce((sum, x) => sum + Math.exp(x - max), 0);
      loss += max + Math.log(sum) - logits[ids[i]];
    }
    tokens += ids.length - 1;
  }
  return Math.exp(loss / tokens);
}
