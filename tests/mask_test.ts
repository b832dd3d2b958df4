/** Masks say which tokens may come next, and every way of sampling obeys them. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import {
  type GenerateOptions,
  loadQwen3,
  type Qwen3,
  type TokenMask,
} from "../mod.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { eachDevice, gpuTest } from "./support/gpu.ts";

const PROMPT = "Once upon a time";

/** Allows the lists of `allowed` by turns; where one is empty, anything. */
class Turns implements TokenMask {
  readonly accepted: number[] = [];
  asked = 0;

  constructor(readonly allowed: readonly (readonly number[])[]) {}

  fill(bits: Uint32Array): boolean {
    assert(bits.every((word) => word === 0));
    this.asked++;
    const ids = this.allowed[this.accepted.length % this.allowed.length];
    for (const id of ids) bits[id >>> 5] |= 1 << (id & 31);
    return ids.length > 0;
  }

  accept(tokenId: number): void {
    this.accepted.push(tokenId);
  }
}

/** Tokens of digits alone. */
function digitsOf(qwen: Qwen3): number[] {
  return Array.from({ length: qwen.config.vocabSize }, (_, id) => id)
    .filter((id) => /^ ?[0-9]+$/.test(qwen.tokenizer.decode([id])));
}

const WAYS: GenerateOptions[] = [
  { temperature: 0 },
  { temperature: 0, presencePenalty: 2, frequencyPenalty: 2 },
  { temperature: 1, topK: 20, topP: 0.95 },
  { temperature: 3, topK: 60 },
  { temperature: 2, topK: 100, topP: 0.9 },
  { temperature: 1, topK: 0, topP: 0.5 },
  { temperature: 2, topK: 0, minP: 0.01 },
  { temperature: 5, topK: 0 },
];

eachDevice("every way of sampling obeys a mask", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const digits = digitsOf(qwen);
  assert(digits.length > 1, `${digits}`);
  const plain = await qwen.generate(PROMPT, { temperature: 0, maxTokens: 9 });
  assert(!plain.tokenIds.some((id) => digits.includes(id)));
  for (const way of WAYS) {
    const mask = new Turns([digits]);
    const options = { ...way, seed: 3, maxTokens: 9, mask };
    const { tokenIds, text } = await qwen.generate(PROMPT, options);
    assert(tokenIds.every((id) => digits.includes(id)), JSON.stringify(way));
    assert(/^[0-9 ]+$/.test(text));
    assertEquals([mask.accepted, mask.asked], [tokenIds, 9]);
  }
});

eachDevice(
  "what a mask allows may depend on the tokens before",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device, precision: "f32" });
    const [first, second, third] = [[40], [50, 51, 52], []];
    for (const way of WAYS) {
      const mask = new Turns([first, second, third]);
      const run = qwen.generate(PROMPT, {
        ...way,
        ...{ seed: 5, maxTokens: 12, ignoreEos: true, logprobs: 20, mask },
      });
      const pieces = await Array.fromAsync(run);
      const ids = run.tokenIds;
      assertEquals(mask.accepted, ids);
      assertEquals(ids.length, 12);
      for (const [i, { logprobs }] of pieces.entries()) {
        const allowed = mask.allowed[i % 3], tops = logprobs!.top;
        if (allowed.length === 0) { // anything may come
          assertEquals(tops.length, 20);
          continue;
        }
        assert(allowed.includes(ids[i]), `${i}: ${ids}`);
        assertEquals(tops.map(({ tokenId }) => tokenId).sort(), allowed);
        const all = tops.reduce(
          (sum, { logprob }) => sum + Math.exp(logprob),
          0,
        );
        assertAlmostEquals(all, 1, 1e-5);
      }
    }
  },
);

eachDevice("a mask that allows nothing is an error", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const nothing = { fill: () => true, accept: () => {} };
  for (const way of WAYS) {
    await assertRejects(
      async () => await qwen.generate(PROMPT, { ...way, mask: nothing }),
      Error,
      "Cannot generate: the logits for position 5 (token 0 of the reply) are -Infinity for every token that the mask allows, at least one must be finite",
    );
  }
  const mask = new Turns([[40], [41], [42]]);
  const later = {
    fill: (bits: Uint32Array) =>
      mask.fill(mask.asked < 2 ? bits : bits.slice()),
    accept: (id: number) => mask.accept(id),
  };
  const run = qwen.generate(PROMPT, { temperature: 0, mask: later });
  await assertRejects(
    async () => await run,
    Error,
    "(token 2 of the reply) are -Infinity for every token that the mask allows",
  );
  assertEquals(run.tokenIds, [40, 41]);
});

eachDevice(
  "an end token or a stop string ends a masked run",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const [eos] = qwen.config.eosTokenIds, digits = digitsOf(qwen);
    const mask = new Turns([digits, digits, [eos]]);
    const reply = await qwen.generate(PROMPT, { temperature: 0, mask });
    assertEquals([reply.finishReason, reply.tokenIds.length], ["stop", 3]);
    assertEquals([mask.accepted, mask.asked], [reply.tokenIds, 3]);
  },
);

eachDevice("a mask leaves the rest of a batch alone", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const prompts = [[400, 20], [300, 21, 22], [100]], steps = 6;
  for (const way of WAYS) {
    const sampling = resolveSampling({ ...way, seed: 4 });
    const run = async (masks: readonly (Turns | undefined)[]) => {
      const ids: number[][] = prompts.map(() => []);
      const chunks = qwen.runner.generate(
        prompts,
        ...[sampling, steps, undefined, 0, masks] as const,
      );
      for await (const chunk of chunks) {
        for (const [i, id] of chunk.entries()) {
          ids[i % prompts.length].push(id);
          masks[i % prompts.length]?.accept(id);
        }
      }
      return ids;
    };
    const plain = await run([]);
    const mask = new Turns([[40], [50, 51, 52]]);
    const [first, second, third] = await run([undefined, mask, undefined]);
    assertEquals([first, third], [plain[0], plain[2]], JSON.stringify(way));
    assertEquals([mask.accepted.length, mask.asked], [steps, steps]);
    for (const [i, id] of second.entries()) {
      assert(mask.allowed[i % 2].includes(id));
    }
  }
});

gpuTest("debug checks a masked run", async () => {
  using qwen = await loadQwen3(undefined, { device: "gpu", debug: true });
  for (const way of WAYS.slice(1, 3)) {
    const mask = new Turns([[40], [50, 51], []]);
    const options = { ...way, seed: 1, maxTokens: 4, mask };
    const { tokenIds } = await qwen.generate(PROMPT, options);
    assertEquals(tokenIds[0], 40);
    assert([50, 51].includes(tokenIds[1]));
  }
});

Deno.test("what is no mask is refused", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const refuse = (mask: unknown, message: string) =>
    assertThrows(
      () => qwen.generate(PROMPT, { mask: mask as TokenMask }),
      Error,
      `Cannot generate: ${message}`,
    );
  refuse([1], "mask is a list of 1, must be a plain object");
  refuse({ accept: () => {} }, "mask.fill is undefined, must be a function");
  refuse({ fill: () => true }, "mask.accept is undefined, must be a function");
  const mask = new Turns([[1]]);
  assertThrows(
    () => qwen.generateBatch([PROMPT, "A dog"], { mask }),
    Error,
    "Cannot generate: mask is a Turns, must be left out for 2 prompts, since it follows a single text",
  );
});
