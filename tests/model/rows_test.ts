/** Rows of texts, used as an engine does. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type GenerateOptions,
  loadQwen3,
  MemoryError,
  type Qwen3,
} from "../../mod.ts";
import { CpuRows } from "../../lib/cpu/rows.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import type { Rows, RowText } from "../../lib/model/rows.ts";
import {
  type SampledTokens,
  type Sampling,
  type TokenMask,
  validToken,
} from "../../lib/model/sampling.ts";
import { eachDevice, gpuTest } from "../support/gpu.ts";

/** A text with all the pages that it will need. */
class Text implements RowText {
  readonly tokens: number[];
  readonly promptTokens: number;

  constructor(
    prompt: readonly number[],
    readonly pages: readonly number[],
    readonly sampling: Sampling,
    readonly mask?: TokenMask,
  ) {
    this.tokens = [...prompt];
    this.promptTokens = prompt.length;
  }

  get generated(): number[] {
    return this.tokens.slice(this.promptTokens);
  }

  take(ids: SampledTokens): void {
    this.tokens.push(...ids.map(validToken));
    for (const id of ids) this.mask?.accept(id);
  }
}

/** Allows one token in `every`, and another one after each. */
function turning(every: number): TokenMask {
  let count = 0;
  return {
    fill(bits) {
      for (let id = count % every; id < 2048; id += every) {
        bits[id >>> 5] |= 1 << (id & 31);
      }
      return true;
    },
    accept: () => void count++,
  };
}

const PROMPTS = [[400, 20], [300, 21, 22], [100, 5, 6, 7]];
const WAYS: GenerateOptions[] = [
  { temperature: 0, logprobs: 1 },
  { temperature: 1, seed: 3, repetitionPenalty: 1.2, frequencyPenalty: 0.5 },
];

async function alone(qwen: Qwen3, prompt: number[], options: GenerateOptions) {
  const run = await qwen.generate(prompt, { ...options, ignoreEos: true });
  return { ids: [...run.tokenIds], sampling: run.stats.sampling };
}

/** Decodes up to `steps` steps of each text; returns the tokens by row. */
async function decoded(
  rows: Rows,
  texts: readonly (Text | undefined)[],
  steps: number,
  goesOn?: () => boolean,
) {
  const count = await rows.decode(texts, steps, goesOn);
  const ids = await rows.take();
  assert(ids);
  texts.forEach((text, row) => text?.take(ids[row]));
  return { count, ids };
}

gpuTest("a text with a mask takes the first of several steps", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu", precision: "f32" });
  for (const way of WAYS) {
    const options = { ...way, maxTokens: 24 };
    const { ids: free, sampling } = await alone(qwen, PROMPTS[0], options);
    const { ids: masked } = await alone(qwen, PROMPTS[1], {
      ...options,
      mask: turning(7),
    });
    using rows = await qwen.runner.rows({ slots: 2, context: 64 });
    const texts = [
      new Text(PROMPTS[0], [0, 1], sampling),
      new Text(PROMPTS[1], [2, 3], sampling, turning(7)),
    ];
    for (const text of texts) {
      await rows.read([{ text, begin: 0, end: text.tokens.length - 1 }]);
    }
    for (const steps of [8, 1, 5, 3]) {
      const { count, ids } = await decoded(rows, texts, steps);
      assertEquals([count, ids.map(({ length }) => length)], [steps, [
        steps,
        1,
      ]]);
      if (way.logprobs === undefined) continue;
      assertEquals(ids.map(({ logprobs }) => logprobs!.length), [steps, 1]);
    }
    assertEquals(texts[0].generated, free.slice(0, 17));
    // Alone, it takes one at a time.
    const { count } = await decoded(rows, [texts[1]], 8);
    assertEquals(count, 1);
    await decoded(rows, [texts[1], texts[0]], 6);
    assertEquals(texts[1].generated, masked.slice(0, 6));
    assertEquals(texts[0].generated, free.slice(0, 23));
  }
});

eachDevice("parts of texts are read together", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const options = { temperature: 0, maxTokens: 4, reuse: false };
  const prompt = (length: number, from: number) =>
    Array.from({ length }, (_, i) => 300 + (7 * from + 5 * i) % 700);
  using rows = await qwen.runner.rows({ slots: 8, context: 192 });
  const { page } = rows;
  // The last one goes on after a page of the one before, which others' pages surround.
  const prompts = [5, 20, 33, 150, 2, page + 9].map(prompt);
  prompts.push([...prompts[5].slice(0, page), ...prompt(12, 99)]);
  let pages = 3;
  const texts: Text[] = [], expected: number[][] = [];
  for (const tokens of prompts) {
    const { ids, sampling } = await alone(qwen, tokens, options);
    expected.push(ids);
    const count = Math.ceil((tokens.length + 4) / page);
    const own = Array.from({ length: count }, () => pages++);
    if (texts.length === 6) own[0] = texts[5].pages[0];
    texts.push(new Text(tokens, own, sampling));
  }
  const { embed } = GpuOps.prototype, shapes: number[] = [];
  GpuOps.prototype.embed = function (table, tokens) {
    shapes.push(tokens.shape[0]);
    return embed.call(this, table, tokens);
  };
  try {
    await rows.read(texts.map((text, i) => {
      const end = text.tokens.length - 1;
      return { text, begin: i === 6 ? page : 0, end };
    }));
  } finally {
    GpuOps.prototype.embed = embed;
  }
  // Three padded to 32, rounded up to four; 149; two padded to 64; one that waits for them.
  if (device === "gpu") assertEquals(shapes, [4 * 32, 160, 2 * 64, 12]);
  for (let i = 0; i < 4; i++) {
    const padded = device === "gpu" ? [...texts, undefined] : texts;
    await decoded(rows, padded, 1);
  }
  assertEquals(texts.map(({ generated }) => generated), expected);
});

gpuTest("steps end when they are told to", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu", precision: "f32" });
  const options = { temperature: 0, maxTokens: 40 };
  const { ids: expected, sampling } = await alone(qwen, PROMPTS[2], options);
  using rows = await qwen.runner.rows({ slots: 2, context: 64 });
  const text = new Text(PROMPTS[2], [0, 1], sampling);
  await rows.read([{ text, begin: 0, end: text.tokens.length - 1 }]);
  for (const pieces of [0, 1, 2]) {
    let left = pieces;
    const { count, ids } = await decoded(rows, [text], 12, () => left-- > 0);
    assert(count >= 1 + pieces && count <= 3 * (1 + pieces), `${count}`);
    assertEquals(ids[0].length, count);
  }
  const { generated } = text;
  assertEquals(generated, expected.slice(0, generated.length));
});

eachDevice("pages are added, and the others stay", async (device) => {
  const all = ["f32", "q8_0", "f16"] as const;
  for (const kv of device === "cpu" ? all.slice(0, 2) : all) {
    using qwen = await loadQwen3(undefined, { device, precision: "f32", kv });
    const options = { temperature: 0, maxTokens: 30 };
    const prompt = Array.from({ length: 50 }, (_, i) => 300 + i);
    const { ids, sampling } = await alone(qwen, prompt, options);
    const size = { slots: 2, context: 192, firstTexts: [96] };
    using rows = await qwen.runner.rows(size);
    const { page } = rows;
    assertEquals([rows.pages, rows.mostPages], [96 / page, 384 / page]);
    const pages = [1, 0, ...page < 48 ? [2] : []];
    const text = new Text(prompt, pages, sampling);
    await rows.read([{ text, begin: 0, end: 49 }]);
    const decode = async (tokens: number) => {
      const steps = device === "cpu" ? 1 : tokens;
      for (let i = 0; i < tokens; i += steps) {
        await decoded(rows, [text], steps);
      }
    };
    await decode(4);
    await rows.grow(7);
    assertEquals(rows.pages, 7);
    pages.push(6);
    await decode(20);
    assertEquals(text.generated, ids.slice(0, 24), kv);
  }
});

gpuTest("a cache that can't be widened stays", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu" });
  const options = { temperature: 0, maxTokens: 20 }, [prompt] = PROMPTS;
  const { ids, sampling } = await alone(qwen, prompt, options);
  using rows = await qwen.runner.rows({ slots: 2, context: 64 });
  const text = new Text(prompt, [0, 1], sampling);
  await rows.read([{ text, begin: 0, end: prompt.length - 1 }]);
  await decoded(rows, [text], 8);
  const { create } = GpuKvCache;
  GpuKvCache.create = () => Promise.reject(new MemoryError("no memory"));
  try {
    await assertRejects(() => rows.widen(), MemoryError, "no memory");
  } finally {
    GpuKvCache.create = create;
  }
  await decoded(rows, [text], 8);
  assertEquals(text.generated, ids.slice(0, 16));
});

Deno.test("on the CPU, pages that do not fit are a MemoryError and leave nothing", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const options = { temperature: 0, maxTokens: 20 }, [prompt] = PROMPTS;
  const { ids, sampling } = await alone(qwen, prompt, options);
  using rows = await qwen.runner.rows({ slots: 2, context: 96 });
  assert(rows instanceof CpuRows);
  const text = new Text(prompt, [0], sampling);
  await rows.read([{ text, begin: 0, end: prompt.length - 1 }]);
  await decoded(rows, [text], 1);
  // As if memory ran out between two layers.
  Object.assign(rows, { requireRoom: () => {} });
  const { ops } = rows, { tensor } = ops, { memoryBytes } = qwen;
  let made = 0;
  ops.tensor = (dtype, shape) =>
    tensor.call(ops, dtype, ++made === 3 ? [2 ** 31] : shape);
  const grow = async () => await rows.grow(4);
  await assertRejects(grow, MemoryError, "Cannot allocate a tensor of ");
  const once = qwen.memoryBytes;
  for (let i = 0; i < 10; i++) {
    made = 0;
    await assertRejects(grow, MemoryError);
  }
  assertEquals([made, qwen.memoryBytes], [3, once]);
  assert(once >= memoryBytes);
  ops.tensor = tensor;
  await rows.grow(4);
  await decoded(rows, [text], 1);
  assertEquals(text.generated, ids.slice(0, 2));
});
