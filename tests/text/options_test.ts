/** Options are checked as strictly as flags, wherever they are taken. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { givenOptions, meant } from "../../lib/text/options.ts";
import {
  gemm,
  loadQwen3,
  matmul,
  openDevice,
  OptionError,
  renderChat,
  Tensor,
} from "../../mod.ts";
import { gpuTest } from "../support/gpu.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url).href;

/** Calls something with options that its types do not allow. */
// deno-lint-ignore no-explicit-any
type Anything = any;

Deno.test("names of other libraries and misspelled ones are understood", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  const names: Record<string, string> = {
    max_tokens: "maxTokens",
    maxtokens: "maxTokens",
    maxToken: "maxTokens",
    max_new_tokens: "maxTokens",
    max_completion_tokens: "maxTokens",
    maxOutputTokens: "maxTokens",
    num_predict: "maxTokens",
    n_predict: "maxTokens",
    top_k: "topK",
    topk: "topK",
    topp: "topP",
    top_p: "topP",
    "min-p": "minP",
    temprature: "temperature",
    repetition_penalty: "repetitionPenalty",
    repeat_penalty: "repetitionPenalty",
    stop_strings: "stop",
    stop_sequences: "stop",
    stops: "stop",
    enable_thinking: "thinking",
    system_prompt: "system",
    abortSignal: "signal",
    ignore_eos: "ignoreEos",
  };
  for (const [name, ours] of Object.entries(names)) {
    const error = assertThrows(
      () => qwen.generate([1], { [name]: 1 } as Anything),
      OptionError,
      `Cannot generate: the option ${name} is unknown, did you mean ${ours}?`,
    );
    assertEquals(error.option, name);
  }
  assertThrows(
    () => qwen.generate([1], { stream: true } as Anything),
    OptionError,
    "the option stream is unknown, iterate over the run to stream its text",
  );
  for (const name of ["n_ctx", "num_ctx", "context_length", "contxt"]) {
    await assertRejects(
      () => loadQwen3(TINY, { [name]: 64 } as Anything),
      OptionError,
      `Cannot load ${TINY}: the option ${name} is unknown, did you mean context?`,
    );
  }
});

Deno.test("an unknown name that is close to nothing lists what there is", () => {
  const error = assertThrows(
    () =>
      givenOptions(
        "Cannot go",
        { wxyz: 1 },
        { a: "flag", b: "text" } as Anything,
      ),
    OptionError,
  );
  assertEquals(
    error.message,
    "Cannot go: the option wxyz is unknown, must be one of a, b",
  );
  // A name of another library is of no use where its meaning does not exist.
  assertEquals(meant("max_tokens", ["signal", "all"]), undefined);
  assertEquals(meant("abortSignal", ["signal", "all"]), "signal");
  // Nor is what every object has.
  assertEquals(meant("constructor", ["signal"]), undefined);
  const hidden = assertThrows(
    () => givenOptions("Cannot go", { "\x1b[2J": 1 }, {} as Anything),
    OptionError,
  );
  assert(!hidden.message.includes("\x1b"), hidden.message);
});

Deno.test("every function that takes options refuses unknown ones", async () => {
  await assertRejects(
    () => loadQwen3(TINY, { divice: "cpu" } as Anything),
    OptionError,
    "the option divice is unknown, did you mean device?",
  );
  await assertRejects(
    () => openDevice({ GPU: navigator.gpu } as Anything),
    OptionError,
    "Cannot open a GPU: the option GPU is unknown, did you mean gpu?",
  );
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  const batch = () =>
    qwen.generateBatch([[1], [2]], { max_tokens: 1 } as Anything);
  assertThrows(batch, OptionError, "Cannot generate: the option max_tokens is");
  await assertRejects(
    () => qwen.logits([1], { al: true } as Anything),
    OptionError,
    "Cannot compute logits: the option al is unknown, must be one of all, signal",
  );
  using stories = await loadQwen3(undefined, { device: "cpu" });
  const { tokenizer } = stories;
  assertThrows(
    () => tokenizer.encode("Hi", { add_special_tokens: false } as Anything),
    OptionError,
    "Cannot encode text: the option add_special_tokens is unknown, did you mean addSpecialTokens?",
  );
  assertThrows(
    () => tokenizer.decode([1], { skip_special_tokens: true } as Anything),
    OptionError,
    "Cannot decode tokens: the option skip_special_tokens is unknown, did you mean skipSpecialTokens?",
  );
  const template = "{% for m in messages %}{{ m.content }}{% endfor %}";
  const chat = [{ role: "user", content: "Hi" }] as const;
  assertThrows(
    () =>
      renderChat(template, chat, { add_generation_prompt: true } as Anything),
    OptionError,
    "Cannot render a chat: the option add_generation_prompt is unknown, did you mean addGenerationPrompt?",
  );
});

gpuTest("matmul and its kernels refuse unknown options", (gpu, trial) => {
  const a = trial.own(Tensor.create(gpu, "f32", [2, 2]));
  for (const multiply of [matmul, gemm]) {
    assertThrows(
      () => multiply(a, a, { transpose_b: true } as Anything),
      OptionError,
      "the option transpose_b is unknown, did you mean transposeB?",
    );
  }
});

Deno.test("an unknown option is refused even if it is null", () => {
  const options = { max_tokens: null } as Record<string, unknown>;
  assertThrows(
    () => givenOptions("Cannot go", options, { maxTokens: "number" }),
    OptionError,
    "Cannot go: the option max_tokens is unknown, did you mean maxTokens?",
  );
  const absent: object = { max_tokens: undefined, maxTokens: null };
  assertEquals(
    givenOptions("Cannot go", absent, { maxTokens: "number" } as Anything),
    {},
  );
});

Deno.test("undefined and null are absent, everywhere", async () => {
  const nothing = { context: null, gpu: undefined, max_tokens: undefined };
  using qwen = await loadQwen3(TINY, { device: "cpu", ...nothing } as Anything);
  assertEquals(qwen.context, 512);
  const names = [
    ...["maxTokens", "stop", "ignoreEos", "system", "thinking", "tools", "raw"],
    ...["signal", "temperature", "topK", "topP", "minP", "repetitionPenalty"],
    "seed",
  ];
  const plain = await qwen.generate([1, 2], { maxTokens: 3 });
  for (const value of [null, undefined]) {
    const absent = Object.fromEntries(names.map((name) => [name, value]));
    const run = qwen.generate([1, 2], { ...absent, maxTokens: 3 } as Anything);
    assertEquals((await run).tokenIds, plain.tokenIds);
    const { seed: _, ...sampling } = run.stats.sampling;
    const { seed: __, ...expected } = plain.stats.sampling;
    assertEquals(sampling, expected);
    await qwen.logits([1], { all: value, signal: value } as Anything);
  }
});

Deno.test("an argument that is not an object of options is refused", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  const wrong: [unknown, string][] = [
    [null, "null"],
    ["x", '"x"'],
    [[], "a list"],
    // Objects, but what they hold is not in properties.
    [Promise.resolve({ maxTokens: 1 }), "a Promise"],
    [AbortSignal.abort(), "an AbortSignal"],
    [new Map([["maxTokens", 1]]), "a Map"],
  ];
  for (const [options, what] of wrong) {
    const message = `the options argument is ${what}`;
    assertThrows(
      () => qwen.generate([1], options as Anything),
      TypeError,
      `Cannot generate: ${message}`,
    );
    await assertRejects(
      () => qwen.logits([1], options as Anything),
      TypeError,
      `Cannot compute logits: ${message}`,
    );
    await assertRejects(
      () => loadQwen3(TINY, options as Anything),
      TypeError,
      message,
    );
    await assertRejects(
      () => openDevice(options as Anything),
      TypeError,
      `Cannot open a GPU: ${message}`,
    );
  }
});

Deno.test("options may be any object with properties", async () => {
  using qwen = await loadQwen3(TINY, { device: "cpu" });
  class Options {
    maxTokens = 2;
  }
  for (
    const options of [
      new Options(),
      Object.freeze({ maxTokens: 2 }),
      Object.create({ maxTokens: 2 }),
      Object.assign(Object.create(null), { maxTokens: 2 }),
    ]
  ) {
    assertEquals((await qwen.generate([1], options)).tokenIds.length, 2);
  }
});
