/** The public API: loadQwen3, generate, logits, and their errors. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { f32ToBf16Bits } from "../lib/dtype.ts";
import { errorText } from "../lib/errors.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import {
  DEFAULT_MODEL,
  DeviceError,
  type GenerateOptions,
  loadQwen3,
  type Message,
  NoAdapterError,
  OptionError,
  type Qwen3,
  type Run,
} from "../mod.ts";
import {
  generateGreedily,
  readGolden,
  relativeError,
} from "./support/golden.ts";
import { eachDevice, gpuTest, someOf } from "./support/gpu.ts";
import { copyCheckpoint, withLargeValues } from "./support/temp_checkpoint.ts";
import { HARDWARE, NO_ADAPTER, wrapGpu } from "./support/wrapped_gpu.ts";
import { slowTest } from "./support/quick.ts";

const TINY = new URL("fixtures/tiny-tied-bf16/", import.meta.url).href;
const PROMPT = "Once upon a time";
const GREEDY: GenerateOptions = { temperature: 0, maxTokens: 24 };

/** Reads a run to its end. */
async function read(run: Run): Promise<string> {
  let text = "";
  for await (const piece of run) text += piece.text;
  return text;
}

eachDevice("a prompt is text or token ids", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const ids = qwen.tokenizer.encode(PROMPT);
  assertEquals(ids, [0, 453, 469, 259, 417]);
  const words = qwen.generate(PROMPT, GREEDY),
    byId = qwen.generate(ids, GREEDY);
  const text = await read(words);
  assertEquals(
    text,
    ", there was a little girl named Lily. She loved to play outside near the river. One day, Lily saw a",
  );
  assertEquals([await read(byId), byId.tokenIds], [text, words.tokenIds]);
  assertEquals(words.finishReason, "length");
  assertEquals(words.stats.promptTokens, 5);
  assertEquals(words.stats.tokens, 24);
  assertEquals(words.stats.sampling.temperature, 0);
  assertEquals(qwen.tokenizer.decode(words.tokenIds), text);
  assertEquals(qwen.fallbacks, []);
  for (
    const rate of [
      "timeToFirstTokenMs",
      "prefillTokensPerSecond",
      "decodeTokensPerSecond",
    ] as const
  ) {
    assert(words.stats[rate] > 0, rate);
  }
  assert(
    words.stats.summary.startsWith(
      `${qwen.device.adapter}: 5 prompt tokens at `,
    ),
  );
});

Deno.test("one token has no rate in the summary", async () => {
  using qwen = await loadQwen3(DEFAULT_MODEL, { device: "cpu" });
  const { stats } = await qwen.generate([453], { maxTokens: 1 });
  assertMatch(
    stats.summary,
    /: 1 prompt token at [\d.]+\/s, 1 token after \d+ ms$/,
  );
});

Deno.test("a conversation goes through the checkpoint's chat template", async () => {
  const template =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if enable_thinking is defined and not enable_thinking %}(quick){% endif %}<assistant>";
  await using chat = await copyCheckpoint(DEFAULT_MODEL, {
    "chat_template.jinja": template,
  });
  using qwen = await loadQwen3(chat.path, { device: "cpu" });
  const options = { ...GREEDY, maxTokens: 8 };
  const expect = async (run: Run, rendered: string) => {
    const ids = qwen.tokenizer.encode(rendered, { addSpecialTokens: false });
    assertEquals(run.stats.promptTokens, ids.length);
    assertEquals(await read(run), await read(qwen.generate(ids, options)));
  };
  const messages: Message[] = [
    { role: "system", content: "Be kind." },
    { role: "user", content: PROMPT },
  ];
  const generate = (prompt: string | Message[], more: GenerateOptions = {}) =>
    qwen.generate(prompt, { ...options, ...more });
  await expect(
    generate(messages),
    `<system>Be kind.\n<user>${PROMPT}\n<assistant>`,
  );
  await expect(generate(PROMPT), `<user>${PROMPT}\n<assistant>`);
  await expect(
    generate(PROMPT, { system: "Be kind.", thinking: false }),
    `<system>Be kind.\n<user>${PROMPT}\n(quick)<assistant>`,
  );
  // raw skips the template but keeps the tokenizer's first token.
  await expect(generate(PROMPT, { raw: true }), `<|endoftext|>${PROMPT}`);
  assertThrows(
    () => generate(PROMPT, { raw: true, system: "Be kind." }),
    Error,
    "Cannot generate: a system message needs a chat template, and raw skips it",
  );
});

Deno.test("without a chat template messages and a system message are refused", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  assertThrows(
    () => qwen.generate([{ role: "user", content: "Hi" }]),
    Error,
    "Cannot generate: messages need a chat template",
  );
  assertThrows(
    () => qwen.generate("Hi", { system: "Be kind." }),
    Error,
    "Cannot generate: a system message needs a chat template",
  );
});

eachDevice(
  "the text ends before a stop string, across any token boundaries",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const whole = await read(qwen.generate(PROMPT, GREEDY));
    for (const stop of ["Lily", " named L", ["never", "girl named"], "."]) {
      const run = qwen.generate(PROMPT, { ...GREEDY, stop });
      const text = await read(run);
      const first = [stop].flat().map((one) => whole.indexOf(one))
        .filter((at) => at >= 0);
      assertEquals(text, whole.slice(0, Math.min(...first)));
      assertEquals(run.finishReason, "stop");
    }
    const run = qwen.generate(PROMPT, { ...GREEDY, stop: "nowhere" });
    assertEquals([await read(run), run.finishReason], [whole, "length"]);
  },
);

eachDevice(
  "every end-of-text id ends the text unless ignoreEos is set",
  async (device) => {
    using plain = await loadQwen3(undefined, { device });
    const run = plain.generate(PROMPT, GREEDY);
    const text = await read(run), ids = run.tokenIds;
    // Two ordinary tokens as end-of-text ids; the first to appear ends the text.
    const ends = [ids[9], ids[5]];
    await using changed = await copyCheckpoint(DEFAULT_MODEL, {
      "generation_config.json": JSON.stringify({ eos_token_id: ends }),
    });
    using qwen = await loadQwen3(changed.path, { device });
    const short = qwen.generate(PROMPT, GREEDY);
    const first = ids.findIndex((id) => ends.includes(id));
    assertEquals(
      await read(short),
      plain.tokenizer.decode(ids.slice(0, first)),
    );
    assertEquals(short.finishReason, "stop");
    assertEquals(short.tokenIds, ids.slice(0, first + 1));
    const long = qwen.generate(PROMPT, { ...GREEDY, ignoreEos: true });
    assertEquals([await read(long), long.finishReason], [text, "length"]);
  },
);

Deno.test("a checkpoint's limits and stop strings hold unless options say otherwise", async () => {
  const load = async (generation: Record<string, unknown>) => {
    const notices: string[] = [];
    await using changed = await copyCheckpoint(DEFAULT_MODEL, {
      "generation_config.json": JSON.stringify(generation),
    });
    const qwen = await loadQwen3(changed.path, {
      device: "cpu",
      onNotice: (notice) => notices.push(notice),
    });
    return { qwen, notices, path: changed.path };
  };
  const lengths = async (qwen: Qwen3, options: GenerateOptions = {}) => {
    const run = qwen.generate(PROMPT, { temperature: 0, ...options });
    const text = await read(run);
    return { tokens: run.tokenIds.length, text, why: run.finishReason };
  };
  {
    const { qwen, notices } = await load({ max_new_tokens: 6, max_length: 20 });
    using _ = qwen;
    assertEquals((await lengths(qwen)).tokens, 6);
    assertEquals((await lengths(qwen, { maxTokens: 8 })).tokens, 8);
    assertEquals(notices, []);
  }
  {
    // The prompt has 5 tokens.
    const { qwen, notices, path } = await load({
      max_length: 9,
      min_new_tokens: 3,
      num_beams: 2,
    });
    using _ = qwen;
    assertEquals((await lengths(qwen)).tokens, 4);
    assertThrows(
      () => qwen.generateBatch([PROMPT, PROMPT.repeat(4)]),
      RangeError,
      "Cannot generate: prompt 1 has 17 tokens, must have fewer than max_length of the checkpoint, 9",
    );
    assertEquals(notices, [
      `Ignoring unsupported generation settings of ${path}: min_new_tokens (3), num_beams (2)`,
    ]);
  }
  {
    const { qwen } = await load({ stop_strings: ["Lily", "never"] });
    using _ = qwen;
    assertEquals(await lengths(qwen, { maxTokens: 40 }), {
      tokens: 8,
      text: ", there was a little girl named ",
      why: "stop",
    });
    const own = await lengths(qwen, { maxTokens: 40, stop: "girl" });
    assertEquals(own.text, ", there was a little ");
    const none = await lengths(qwen, { maxTokens: 12, stop: [] });
    assertEquals(none.why, "length");
  }
});

Deno.test("stop strings of a checkpoint without a tokenizer are refused", async () => {
  await using changed = await copyCheckpoint(TINY, {
    "generation_config.json": JSON.stringify({ stop_strings: "END" }),
  });
  using qwen = await loadQwen3(changed.path, { device: "cpu" });
  assertThrows(
    () => qwen.generate([1, 2]),
    Error,
    `Cannot generate: stop strings need a tokenizer, ${changed.path} has no tokenizer.json`,
  );
  qwen.generate([1, 2], { stop: [] });
});

Deno.test("a seed reproduces a text on the CPU", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const options = { temperature: 1, topK: 0, maxTokens: 20 };
  const run = qwen.generate(PROMPT, options);
  const text = await read(run);
  const { seed } = run.stats.sampling;
  assertEquals(await read(qwen.generate(PROMPT, { ...options, seed })), text);
  const others = new Set<string>();
  for (const other of [1, 2, 3]) {
    others.add(await read(qwen.generate(PROMPT, { ...options, seed: other })));
  }
  assertEquals(others.size, 3);
});

gpuTest("GPU and CPU sample the same tokens from a seed", async () => {
  // In f32, logits differ by rounding alone, far less than the noise of draws.
  using onGpu = await loadQwen3(undefined, { device: "gpu", precision: "f32" });
  using onCpu = await loadQwen3(undefined, { device: "cpu" });
  for (
    const sampling of [
      { temperature: 1, topK: 0, seed: 1 },
      { temperature: 0.8, topK: 20, topP: 0.9, seed: 2 },
      { temperature: 1.2, minP: 0.05, repetitionPenalty: 1.3, seed: 3 },
      { seed: 4 }, // the checkpoint's own defaults
    ]
  ) {
    const options = { ...sampling, maxTokens: 24 };
    const gpu = onGpu.generate(PROMPT, options);
    const cpu = onCpu.generate(PROMPT, options);
    assertEquals(await read(gpu), await read(cpu), JSON.stringify(sampling));
    assertEquals(gpu.tokenIds, cpu.tokenIds);
    assertEquals(gpu.stats.sampling, cpu.stats.sampling);
  }
});

eachDevice(
  "a signal ends a run with the text so far, and another can run",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const whole = await read(qwen.generate(PROMPT, GREEDY));
    const abort = new AbortController();
    const run = qwen.generate(PROMPT, { temperature: 0, signal: abort.signal });
    let text = "";
    for await (const piece of run) {
      text += piece.text;
      if (run.tokenIds.length === 6) abort.abort();
    }
    assertEquals(run.finishReason, "aborted");
    assert(run.tokenIds.length === 6 && whole.startsWith(text), text);

    const never = qwen.generate(PROMPT, { signal: AbortSignal.abort() });
    assertEquals([await read(never), never.finishReason], ["", "aborted"]);
    assertEquals(await read(qwen.generate(PROMPT, GREEDY)), whole);
  },
);

eachDevice(
  "leaving a run early ends it, and another can run",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const whole = await read(qwen.generate(PROMPT, GREEDY));
    const left = qwen.generate(PROMPT, GREEDY);
    for await (const _ of left) break;
    assertEquals([left.finishReason, left.tokenIds.length], ["aborted", 1]);
    assertEquals(await read(qwen.generate(PROMPT, GREEDY)), whole);
    await assertRejects(
      () => read(left),
      Error,
      "Cannot iterate over a run: it was iterated over",
    );
  },
);

eachDevice("the context limits prompt and text", async (device) => {
  using qwen = await loadQwen3(undefined, { device, context: 16 });
  assertEquals(qwen.context, 16);
  const ids = Array.from({ length: 12 }, (_, i) => i + 300);
  const run = qwen.generate(ids, { temperature: 0, ignoreEos: true });
  await read(run);
  assertEquals([run.tokenIds.length, run.finishReason], [4, "length"]);
  using roomy = await loadQwen3(undefined, { device, context: 64 });
  const expected = await generateGreedily(roomy, ids, 4);
  assertEquals(run.tokenIds, expected.tokenIds);
  const more = qwen.generate(ids, {
    temperature: 0,
    ignoreEos: true,
    maxTokens: 5,
  });
  assertEquals([(await more).tokenIds.length, more.finishReason], [
    4,
    "length",
  ]);
  for (const maxTokens of [undefined, 5, 6, 100]) {
    using small = await loadQwen3(undefined, { device, context: 8 });
    const { tokenIds, finishReason } = await small.generate([1, 2, 3], {
      maxTokens,
      ignoreEos: true,
    });
    assertEquals([tokenIds.length, finishReason], [5, "length"]);
  }

  const full = Array.from({ length: 16 }, (_, i) => i + 300);
  assertThrows(
    () => qwen.generate(full),
    RangeError,
    "Cannot generate: the prompt has 16 tokens, the context of 16 has room for no reply",
  );
  const last = await generateGreedily(qwen, full.slice(1), 9);
  assertEquals(last.tokenIds.length, 1);
  assertEquals((await qwen.logits(full)).length, qwen.config.vocabSize);
  const long = [...full, 1];
  assertThrows(
    () => qwen.generate(long),
    RangeError,
    "Cannot generate: the prompt has 17 tokens, the context has room for 16",
  );
  await assertRejects(
    () => qwen.logits(long),
    RangeError,
    "Cannot compute logits: the prompt has 17 tokens, the context has room for 16",
  );
});

Deno.test("generate refuses options out of range before it runs", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const refused: [GenerateOptions, string][] = [
    [{ temperature: -1 }, "temperature is -1, must be a number of at least 0"],
    [{ temperature: NaN }, "temperature is NaN"],
    [{ topK: 1.5 }, "topK is 1.5, must be an integer of at least 0"],
    [{ topP: 0 }, "topP is 0, must be above 0 and at most 1"],
    [{ minP: 2 }, "minP is 2, must be from 0 to 1"],
    [{ repetitionPenalty: 0 }, "repetitionPenalty is 0"],
    [{ seed: -1 }, "seed is -1, must be an integer from 0 to 4294967295"],
    [{ maxTokens: 0 }, "maxTokens is 0, must be an integer of at least 1"],
    [{ maxTokens: Infinity }, "maxTokens is Infinity"],
    [{ stop: "" }, "a stop string must be one or more whole characters"],
  ];
  for (const [options, message] of refused) {
    const error = assertThrows(
      () => qwen.generate(PROMPT, options),
      OptionError,
      message,
    );
    assertEquals([error.option], Object.keys(options));
  }
  for (const prompt of ["", []]) {
    assertThrows(
      () => qwen.generate(prompt),
      Error,
      "Cannot generate: the prompt is empty, it must have at least one token",
    );
  }
  for (const id of [-1, 2048, 0.5, NaN]) {
    assertThrows(
      () => qwen.generate([1, id]),
      RangeError,
      `Cannot generate: token 1 of the prompt is ${id}, ids must be integers from 0 to 2047`,
    );
    await assertRejects(() => qwen.logits([1, id]), RangeError, `is ${id}`);
  }
  await assertRejects(() => qwen.logits([]), Error, "the prompt is empty");
});

Deno.test("loadQwen3 refuses unknown devices, precisions and contexts", async () => {
  const load = (options: unknown) => () =>
    loadQwen3(undefined, options as Parameters<typeof loadQwen3>[1]);
  await assertRejects(
    load({ device: "tpu" }),
    Error,
    'device is "tpu", must be auto, gpu or cpu',
  );
  await assertRejects(
    load({ precision: "f64" }),
    Error,
    'precision is "f64", must be auto or f32',
  );
  for (const context of [0, -1, 1.5, NaN, 1025]) {
    await assertRejects(
      load({ device: "cpu", context }),
      OptionError,
      `context is ${context}, must be ${
        context > 1 && Number.isInteger(context)
          ? "from 1 to 1024"
          : "an integer of at least 1"
      }`,
    );
  }
});

slowTest(
  "a prompt far too long is refused without encoding all of it",
  async () => {
    using qwen = await loadQwen3(undefined, { device: "cpu" });
    const message =
      "Cannot generate: the prompt has more than 65536 tokens, the context has room for 1024";
    for (const part of ["a", " ", "word ", "\n", "中", "<|endoftext|>"]) {
      const prompt = part.repeat(1e7 / part.length);
      assertThrows(() => qwen.generate(prompt), RangeError, message);
    }
    const most = 3, { tokenizer } = qwen;
    assertEquals(tokenizer.encode("Once upon", { most }).length, 3);
    assertThrows(
      () => tokenizer.encode("Once upon a time", { most }),
      RangeError,
      "Cannot encode a text: it has more than 3 tokens",
    );
    assertThrows(
      () => tokenizer.encode(5 as unknown as string),
      TypeError,
      "Cannot encode text: the text is 5, must be a string",
    );
    assertThrows(
      () => tokenizer.decode(5 as unknown as number[]),
      TypeError,
      "Cannot decode tokens: the list of ids is 5, must be a list",
    );
  },
);

/** An error of a wrong argument, or of the option that the last of `args` has alone. */
function assertArgumentError(
  error: unknown,
  args: readonly unknown[],
  message: string,
): void {
  const options = args.at(-1);
  if (args.length > 1 && options !== null && typeof options === "object") {
    assert(error instanceof OptionError, String(error));
    assertEquals([error.option], Object.keys(options));
  } else assert(error instanceof TypeError, String(error));
  assertStringIncludes(error.message, message);
}

/** Arguments of wrong types, as JavaScript may pass them, and their errors. */
function assertTypes(
  call: (...args: never[]) => unknown,
  wrong: [args: unknown[], message: string][],
): void {
  for (const [args, message] of wrong) {
    const called = () => (call as (...args: unknown[]) => unknown)(...args);
    assertArgumentError(assertThrows(called), args, message);
  }
}

Deno.test("errors of loading are printable lines of fewer than 2,000 characters", async () => {
  const long = "n".repeat(5000), control = "\x1b[2J\u202e\x9b\r\n";
  for (
    const model of [
      ...[control, `owner/${long}`, `/tmp/${control}`, `/tmp/${long}`],
      ...[`http://127.0.0.1:1/${long}`, `synthetic:${long}`],
      ...[`synthetic:qwen3-0.6b?${control}=1`, `ftp://x/${control}`],
    ]
  ) {
    for (const context of [undefined, 0]) {
      const { message } = await assertRejects(
        () => loadQwen3(model, { context, device: "cpu", readTimeout: 0.1 }),
        Error,
      );
      assertMatch(message, /^Cannot (load|open|read) /);
      assertEquals(message, errorText(message));
    }
  }
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  const ids = [control + long] as unknown as number[];
  const { message } = await assertRejects(() => qwen.logits(ids), Error);
  assertMatch(message, /^Cannot compute logits: token 0 of the prompt is "/);
  assertEquals(message, errorText(message));
});

gpuTest("a model whose notice makes the caller throw is freed", async () => {
  await using changed = await copyCheckpoint(DEFAULT_MODEL, {
    "generation_config.json": JSON.stringify({ num_beams: 4 }),
  });
  const { gpu, devices } = wrapGpu(HARDWARE);
  const own = new Error("Enough");
  const error = await assertRejects(() =>
    loadQwen3(changed.path, {
      device: "gpu",
      gpu,
      onNotice() {
        throw own;
      },
    })
  );
  assertEquals(error, own);
  assertEquals(devices.length, 1);
  await devices[0].lost; // or the test never ends
});

Deno.test("arguments of wrong types are refused like wrong values", async () => {
  for (
    const [args, message] of [
      [[42], "Cannot load a model: its name is 42, must be a string"],
      [[null], "Cannot load a model: its name is null"],
      [[new URL(DEFAULT_MODEL)], "its name is a URL"],
      [
        [{ device: "cpu" }],
        "Cannot load a model: its name is missing, must come before the options",
      ],
      [[{ divice: "cpu" }], "its name is missing, must come before the opt"],
      [[["x"]], "Cannot load a model: its name is a list of 1, must be a str"],
      [
        [TINY, null],
        "the options argument is null, must be a plain object",
      ],
      [[TINY, "gpu"], 'the options argument is "gpu", must be a plain'],
      [[TINY, { device: 5 }], "device is 5, must be a string"],
      [[TINY, { context: "5" }], 'context is "5", must be a number'],
      [[TINY, { onNotice: "x" }], 'onNotice is "x", must be a function'],
      [[TINY, { onProgress: {} }], "onProgress is an object"],
      [[TINY, { signal: {} }], "signal is an object, must be an AbortSignal"],
      [[TINY, { gpu: 5 }], "gpu is 5, must be a WebGPU implementation"],
      [[TINY, { debug: 1 }], "debug is 1, must be true or false"],
    ] as const
  ) {
    const load = loadQwen3 as (...args: unknown[]) => Promise<Qwen3>;
    const error = await assertRejects(() => load(...args));
    assertArgumentError(error, args, message);
  }

  using qwen = await loadQwen3(TINY, { device: "cpu" });
  const must = "must be a string, a list of messages or a list of token ids";
  assertTypes(qwen.generate.bind(qwen), [
    [[42], `Cannot generate: the prompt is 42, ${must}`],
    [[undefined], `the prompt is undefined, ${must}`],
    [[null], `the prompt is null, ${must}`],
    [[{ messages: [] }], `the prompt is an object, ${must}`],
    [
      [{ role: "user", content: "Hi" }],
      "Cannot generate: the prompt is a message, must be a list of messages: wrap it in [ ]",
    ],
    [[["a", "b"]], 'item 0 of the prompt is "a", must be a message (generateB'],
    [
      [[{ role: "user" }, "b"]],
      'item 1 of the prompt is "b", must be a messag',
    ],
    [[[1, "b"]], 'item 1 of the prompt is "b", must be a token id'],
    [[[null]], "item 0 of the prompt is null, must be a message"],
    [[new Set([1])], `the prompt is a Set, ${must}`],
    [[[1], 5], "the options argument is 5, must be a plain object"],
    [[[1], { maxTokens: "5" }], 'maxTokens is "5", must be a number'],
    [[[1], { stop: 5 }], "stop is 5, a stop string must be"],
    [[[1], { stop: ["a", null] }], "stop is null, a stop string"],
    [[[1], { ignoreEos: "yes" }], 'ignoreEos is "yes", must be true or false'],
    [[[1], { system: 5 }], "system is 5, must be a string"],
    [[[1], { signal: 5 }], "signal is 5, must be an AbortSignal"],
  ]);
  assertTypes(qwen.generateBatch.bind(qwen), [
    [["x"], 'the list of prompts is "x", must be a list'],
    [[null], "the list of prompts is null, must be a list"],
    [[[5]], `the prompt is 5, ${must}`],
    [
      [[{ role: "user", content: "Hi" }]],
      "the prompt is a message, must be a list of messages: wrap it in [ ]",
    ],
  ]);
  for (const [ids, message] of [[null, "null"], [{}, "an object"]] as const) {
    await assertRejects(
      () => qwen.logits(ids as unknown as number[]),
      TypeError,
      `Cannot compute logits: the prompt is ${message}, must be a list`,
    );
  }
});

eachDevice(
  "logits of all positions equal those after each prefix",
  async (device) => {
    using qwen = await loadQwen3(TINY, { device, precision: "f32" });
    const { vocabSize } = qwen.config;
    const { cases } = await readGolden("tiny-tied-bf16");
    const ids = cases.find(({ name }) => name === "longer")!.tokenIds;
    const all = await qwen.logits(ids, { all: true });
    assertEquals(all.length, ids.length * vocabSize);
    for (const n of [1, 2, 13, 255, 256, 257, 300]) {
      const one = await qwen.logits(ids.slice(0, n));
      const row = all.subarray((n - 1) * vocabSize, n * vocabSize);
      const error = relativeError(row, one);
      assert(error < 1e-5, `after ${n} tokens they differ by ${error}`);
    }
  },
);

eachDevice(
  "a checkpoint without a tokenizer takes and returns token ids",
  async (device) => {
    using qwen = await loadQwen3(TINY, { device });
    assertEquals(qwen.hasTokenizer, false);
    const run = qwen.generate([1, 2, 3], { maxTokens: 3, temperature: 0 });
    const pieces = await Array.fromAsync(run);
    assertEquals(pieces.map(({ text }) => text), ["", "", ""]);
    assertEquals(pieces.map(({ tokenId }) => tokenId), run.tokenIds);
    const refusal = "has no tokenizer.json, so a prompt must be token ids";
    assertThrows(() => qwen.generate("words"), Error, refusal);
    assertThrows(
      () => qwen.generate([1], { stop: "x" }),
      Error,
      `Cannot generate: stop strings need a tokenizer, ${TINY} has no tokenizer.json`,
    );
    assertThrows(() => qwen.tokenizer, Error, refusal);
  },
);

eachDevice("the device lists every choice with its reason", async (device) => {
  using qwen = await loadQwen3(undefined, { device });
  const { kind, adapter, choices } = qwen.device;
  assertEquals(kind, device);
  assert(adapter.length > 2);
  const whats = choices.map(({ what }) => what);
  assertEquals(whats[0], "device");
  const expected = device === "cpu" ? ["context", "CPU kernels", "threads"] : [
    "shader-f16",
    "timestamp-query",
    "subgroups",
    "matmuls of many rows",
    "KV cache",
    "context",
  ];
  for (const what of expected) assert(whats.includes(what), what);
  for (const { what, value, reason } of choices) {
    assert(value && reason.length > 10, `${what}: ${value}, ${reason}`);
    assert(!/undefined|NaN|\[object/.test(value + reason), value + reason);
  }
});

gpuTest(
  "runs free their memory, and disposing frees the device",
  async () => {
    const qwen = await loadQwen3(undefined, { device: "gpu" });
    const { runner } = qwen;
    assert(runner instanceof GpuRunner);
    const { gpu } = runner;
    const lengths = [9, 10, 11, 12, 13, 14, 15, 16, 9];
    const runAll = async () => {
      for (const length of lengths) {
        const ids = Array.from({ length }, (_, i) => i + 300);
        await generateGreedily(qwen, ids, 2);
      }
      return gpu.allocated;
    };
    const once = await runAll();
    assert(once > 6e6, `${once} bytes are less than the weights`);
    assertEquals(await runAll(), once);
    qwen[Symbol.dispose]();
    assertEquals(gpu.allocated, 0);
    await gpu.device.lost; // resolves because the device is gone
  },
);

Deno.test("scaling bf16 weights by a power of two is exact", () => {
  assertEquals(f32ToBf16Bits(1.5) + (3 << 7), f32ToBf16Bits(12));
});

gpuTest(
  "a value beyond f16 switches the cache to f32 once, with no token lost",
  async () => {
    await using checkpoint = await withLargeValues(TINY);
    const { cases } = await readGolden("tiny-tied-bf16");
    using exact = await loadQwen3(checkpoint.path, {
      device: "gpu",
      precision: "f32",
    });
    const caches = (qwen: Qwen3) =>
      qwen.device.choices.filter(({ what }) => what === "KV cache");
    for (const first of ["logits", "generate"] as const) {
      using qwen = await loadQwen3(checkpoint.path, { device: "gpu" });
      assertEquals(caches(qwen).map(({ value }) => value), ["f16"]);
      for (const { tokenIds, logits, greedy } of cases) {
        const compare = async () => {
          const actual = await qwen.logits(tokenIds);
          const error = relativeError(actual, await exact.logits(tokenIds));
          assert(error < 1e-3, `${error} from the f32 run`);
          assert(relativeError(actual, logits) < 1e-3);
        };
        if (first === "logits") await compare();
        const run = await generateGreedily(qwen, tokenIds, 3);
        const expected = await generateGreedily(exact, tokenIds, 3);
        assertEquals(run, expected);
        if (tokenIds.length === 1) {
          assertEquals(
            run.tokenIds,
            greedy.slice(0, 3),
          );
        }
        await compare();
      }
      assertEquals(caches(qwen).map(({ value }) => value), ["f16", "f32"]);
      assertMatch(caches(qwen)[1].reason, /exceeded 65,504/);
      assertEquals(qwen.fallbacks, []);
    }
  },
);

gpuTest("weights larger than a binding are split", async () => {
  // Its embedding has 73,728 bytes, q, k and v 110,592, gate and up 61,440.
  const { model, cases } = await readGolden("tiny-sharded-f16");
  const { gpu } = wrapGpu({ limits: { maxStorageBufferBindingSize: 49152 } });
  using qwen = await loadQwen3(model, { device: "gpu", precision: "f32", gpu });
  assert(qwen.runner instanceof GpuRunner);
  const { embedTokens, layers: [layer] } = qwen.runner.weights;
  assertEquals(embedTokens.parts.length, 2);
  assertEquals(layer.qkvProj.parts.length, 3);
  assertEquals(layer.gateUpProj.parts.length, 2);
  // One layer's keys take 768 bytes per position.
  const { value, reason } = qwen.device.choices
    .find(({ what }) => what === "context")!;
  assertEquals(value, "64 tokens");
  assertMatch(reason, /binds at most 49152 bytes of one layer's keys/);
  for (const { tokenIds, logits, greedy } of cases) {
    if (tokenIds.length > 64) continue;
    const error = relativeError(await qwen.logits(tokenIds), logits);
    assert(error < 1e-4, `${tokenIds.length} tokens: ${error}`);
    const steps = Math.min(4, 64 - tokenIds.length);
    if (steps === 0) continue; // no room for a reply
    const run = await generateGreedily(qwen, tokenIds, steps);
    assertEquals(run.tokenIds, greedy.slice(0, steps));
  }
  await assertRejects(
    () => loadQwen3(model, { device: "gpu", gpu, context: 512 }),
    DeviceError,
    "binds at most 49152",
  );
});

for (const dtype of someOf(["bf16", "q4_k_m", "mxfp4"], 1)) {
  gpuTest(
    `synthetic weights in ${dtype} are the same on device and host`,
    async () => {
      const model = `synthetic:qwen3-0.6b?layers=1&vocab=1024&dtype=${dtype}`;
      const { gpu } = wrapGpu({
        limits: { maxStorageBufferBindingSize: 1 << 20 },
      });
      using split = await loadQwen3(model, { device: "gpu", gpu, context: 64 });
      using onCpu = await loadQwen3(model, { device: "cpu", context: 64 });
      const ids = [1, 2, 3, 1023];
      const onGpu = await split.logits(ids);
      const error = relativeError(onGpu, await onCpu.logits(ids));
      assert(error < 2e-3, `${error}`);
      const last = onGpu.slice(-1024), most = Math.max(...last);
      assert(most > 0 && most < 100, `${most}`);
      assertEquals(new Set(last).size, 1024);
    },
  );
}

Deno.test("without an adapter gpu is refused and auto takes the CPU", async () => {
  const gpu = NO_ADAPTER;
  await assertRejects(
    () => loadQwen3(TINY, { device: "gpu", gpu }),
    NoAdapterError,
    "Cannot open a GPU: no WebGPU adapter here; install the GPU's ",
  );
  const notices: string[] = [];
  const onNotice = (notice: string) => void notices.push(notice);
  using qwen = await loadQwen3(TINY, { gpu, onNotice });
  assertEquals(qwen.device.kind, "cpu");
  assertEquals(qwen.device.choices[0].reason, "no WebGPU adapter here");
  assertEquals(notices, ["Running on cpu: no WebGPU adapter here."]);
  // What was asked for needs no notice.
  using asked = await loadQwen3(TINY, { gpu, device: "cpu", onNotice });
  assertEquals([asked.device.kind, notices.length], ["cpu", 1]);
});

gpuTest(
  "a device lost before the first token: auto continues on the CPU, with one notice",
  async () => {
    const { gpu, devices } = wrapGpu(HARDWARE);
    const notices: string[] = [];
    using qwen = await loadQwen3(undefined, {
      gpu,
      onNotice: (notice) => notices.push(notice),
    });
    assertEquals([qwen.device.kind, qwen.device.adapter], ["gpu", "Test GPU"]);
    devices[0].destroy();
    const run = qwen.generate(PROMPT, { ...GREEDY, maxTokens: 6 });
    assertEquals(await read(run), ", there was a little girl");
    assertEquals(notices.length, 1);
    assertMatch(notices[0], /^Continuing on the CPU: the device was lost /);
    assert(notices[0].length <= 100, notices[0]);
    assertEquals(qwen.device.kind, "cpu");
    assertMatch(qwen.device.choices[0].reason, /the device was lost/);
    assertMatch(run.stats.summary, /^CPU /);
  },
);

gpuTest(
  "a lost device: gpu throws, and so does auto after the first token",
  async () => {
    for (const device of ["gpu", "auto"] as const) {
      const { gpu, devices } = wrapGpu(HARDWARE);
      using qwen = await loadQwen3(undefined, { device, gpu });
      const run = qwen.generate(PROMPT, { temperature: 0 });
      if (device === "gpu") devices[0].destroy();
      await assertRejects(
        async () => {
          for await (const _ of run) devices[0].destroy();
        },
        DeviceError,
        "Cannot go on with Test GPU: the device was lost",
      );
      assertEquals(qwen.device.kind, "gpu");
    }
  },
);
