/**
 * llama.cpp opens the GGUF files that are written here, and computes the same. Needs Node,
 * and QWEN3_LLAMA_CPP: a folder in which `npm install --ignore-scripts node-llama-cpp` was
 * run (670 MB).
 */
import { assert, assertEquals } from "@std/assert";
import { loadQwen3 } from "../mod.ts";
import { FILE_TYPES, quantizeModel } from "../lib/tools/quantize.ts";

const FOLDER = Deno.env.get("QWEN3_LLAMA_CPP");
const STORY = new URL("../models/stories-3m/", import.meta.url).pathname;
const SCRIPT = new URL("support/llama_cpp.mjs", import.meta.url).pathname;
const TEXTS = [
  "Once upon a time, there was",
  "It's  7 o'clock!\n\nOK?",
  "Ünïcode 模型",
];
const GREEDY = 16;

interface Answer {
  /** After each token, of each id. */
  probabilities: number[][];
  greedy: number[];
  tokens: number[][];
}

/** Asks about several files; the answers are in their order. */
async function ask(
  files: readonly string[],
  ids: readonly number[],
): Promise<Answer[]> {
  const job = JSON.stringify({ files, ids, count: GREEDY, texts: TEXTS });
  const { code, stdout, stderr } = await new Deno.Command("node", {
    args: [SCRIPT, FOLDER!, job],
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals(code, 0, text(stderr));
  return text(stdout).trim().split("\n").map((line) => JSON.parse(line));
}

function softmax(logits: Float32Array): Float64Array {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(logits, (x) => Math.exp(x - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/**
 * Half the sum of |p - q|, the mean over positions. llama.cpp rounds activations to 8 bits
 * for quantised types, and to 8 bits of fraction for bf16.
 */
const bound = (type: string) => /^f(16|32)$/.test(type) ? 2e-3 : 2e-2;

async function compare(
  type: string,
  file: string,
  ids: readonly number[],
  { probabilities, greedy, tokens }: Answer,
): Promise<void> {
  using qwen = await loadQwen3(file, { device: "cpu", precision: "f32" });
  assertEquals(
    tokens,
    TEXTS.map((text) =>
      qwen.tokenizer.encode(text, { addSpecialTokens: false })
    ),
  );
  const logits = await qwen.logits(ids, { all: true });
  const size = qwen.config.vocabSize;
  let distance = 0;
  for (let i = 0; i < ids.length; i++) {
    const own = softmax(logits.subarray(i * size, (i + 1) * size));
    own.forEach((p, id) => {
      distance += Math.abs(p - probabilities[i][id]) / 2 / ids.length;
    });
  }
  assert(distance <= bound(type), `${type}: the distance is ${distance}`);
  // Greedy tokens are the same until two are nearly as likely.
  for (const [step, id] of greedy.entries()) {
    const all = softmax(await qwen.logits([...ids, ...greedy.slice(0, step)]));
    const most = all.reduce((a, b) => Math.max(a, b));
    assert(
      all[id] >= most - 2 * bound(type),
      `${type}, step ${step}: ${id} has probability ${
        all[id]
      }, the most likely ${most}`,
    );
  }
}

if (FOLDER !== undefined) {
  Deno.test("llama.cpp runs the story model in every type", async (test) => {
    const folder = await Deno.makeTempDir();
    try {
      const types = FILE_TYPES.map(({ name }) => name);
      const files = types.map((type) => `${folder}/${type}.gguf`);
      for (const [i, type] of types.entries()) {
        await quantizeModel(STORY, files[i], { type });
      }
      using qwen = await loadQwen3(STORY, { device: "cpu" });
      const ids = qwen.tokenizer.encode("Once upon a time, a dog and a cat");
      const answers = await ask(files, ids);
      for (const [i, type] of types.entries()) {
        await test.step(type, () => compare(type, files[i], ids, answers[i]));
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}
