import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type GenerationDefaults,
  ignoredNotice,
  newTokenLimit,
  parseGeneration,
} from "../../lib/checkpoint/generation_config.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { copyCheckpoint } from "../support/temp_checkpoint.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);
const parse = (json: unknown) =>
  parseGeneration(json, "here/generation_config.json");

Deno.test("parseGeneration reads the file published with Qwen3", () => {
  assertEquals(
    parse({
      bos_token_id: 151643,
      do_sample: true,
      eos_token_id: [151645, 151643],
      pad_token_id: 151643,
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      transformers_version: "4.51.0",
    }),
    {
      doSample: true,
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      eosTokenIds: [151645, 151643],
    },
  );
});

Deno.test("parseGeneration reads limits, stop strings and penalties; null is absent", () => {
  assertEquals(
    parse({
      max_length: 2048,
      max_new_tokens: 512,
      stop_strings: ["\n\n", "User:"],
      min_p: 0,
      repetition_penalty: 1.1,
    }),
    {
      maxLength: 2048,
      maxNewTokens: 512,
      stopStrings: ["\n\n", "User:"],
      minP: 0,
      repetitionPenalty: 1.1,
    },
  );
  assertEquals(parse({ stop_strings: "END" }), { stopStrings: ["END"] });
  assertEquals(
    parse({ temperature: null, max_new_tokens: null, eos_token_id: null }),
    {},
  );
  // Without sampling, transformers does not read the temperature.
  assertEquals(parse({ temperature: 0 }), { temperature: 0 });
});

Deno.test("wrong types and values out of range are refused by file and field", () => {
  const refused: [Record<string, unknown>, string][] = [
    [{ top_k: "20" }, 'top_k is "20", must be a number'],
    [{ top_k: -1 }, "top_k is -1, must be an integer of at least 0"],
    [{ top_k: 1.5 }, "top_k is 1.5, must be an integer of at least 0"],
    [{ top_p: 7 }, "top_p is 7, must be above 0 and at most 1"],
    [{ top_p: 0 }, "top_p is 0, must be above 0 and at most 1"],
    [{ min_p: -0.1 }, "min_p is -0.1, must be from 0 to 1"],
    [{ temperature: -1 }, "temperature is -1, must be a number of at least 0"],
    [{ temperature: true }, "temperature is true, must be a number"],
    [
      { do_sample: true, temperature: 0 },
      "temperature is 0, must be above 0, because do_sample is true",
    ],
    [{ do_sample: 1 }, "do_sample is 1, must be true or false"],
    [
      { repetition_penalty: 0 },
      "repetition_penalty is 0, must be from 0.001 to 1000",
    ],
    [
      { max_new_tokens: 0 },
      "max_new_tokens is 0, must be a positive whole number",
    ],
    [{ max_new_tokens: "9" }, 'max_new_tokens is "9"'],
    [{ max_length: 1.5 }, "max_length is 1.5, must be a positive whole number"],
    [{ max_length: [20] }, "max_length is [20]"],
    [
      { stop_strings: ["a", ""] },
      'stop_strings is ["a",""], must be a string or a list of strings, none of them empty',
    ],
    [{ stop_strings: 5 }, "stop_strings is 5"],
    [{ stop_strings: "\ud800" }, 'stop_strings is "\\ud800"'],
    [{ eos_token_id: -1 }, "eos_token_id is -1, must be a token id"],
    [{ eos_token_id: [1, "</s>"] }, 'eos_token_id is [1,"</s>"]'],
  ];
  for (const [json, message] of refused) {
    assertThrows(
      () => parse(json),
      Error,
      `Cannot use here/generation_config.json: ${message}`,
    );
  }
  // JSON has no Infinity, but 1e999 reads as one.
  assertThrows(
    () => parse(JSON.parse('{ "temperature": 1e999 }')),
    Error,
    "temperature is Infinity, must be a number of at least 0",
  );
  assertThrows(() => parse([]), Error, "it holds a list, must be an object");
});

Deno.test("settings that would change the text but are not supported are listed", () => {
  const changing: Record<string, unknown> = {
    min_length: 10,
    min_new_tokens: 1,
    max_time: 3.5,
    num_beams: 4,
    num_beam_groups: 2,
    num_return_sequences: 2,
    diversity_penalty: 0.5,
    constraints: [{}],
    force_words_ids: [[1]],
    penalty_alpha: 0.6,
    dola_layers: "low",
    prompt_lookup_num_tokens: 3,
    assistant_early_exit: 4,
    use_mtp: true,
    top_h: 0.4,
    typical_p: 0.9,
    epsilon_cutoff: 3e-4,
    eta_cutoff: 3e-4,
    encoder_repetition_penalty: 1.2,
    no_repeat_ngram_size: 3,
    encoder_no_repeat_ngram_size: 3,
    bad_words_ids: [[5], [6, 7]],
    forced_bos_token_id: 0,
    forced_eos_token_id: [2],
    forced_decoder_ids: [[1, 2]],
    remove_invalid_values: true,
    exponential_decay_length_penalty: [10, 1.1],
    suppress_tokens: [1],
    begin_suppress_tokens: [0],
    sequence_bias: [[[1, 2], -5]],
    token_healing: true,
    guidance_scale: 1.5,
    watermarking_config: { bias: 2 },
  };
  const { ignored, ...rest } = parse({ ...changing, top_k: 5 });
  assertEquals(rest, { topK: 5 });
  assertEquals(
    ignored?.map(({ field }) => field).sort(),
    Object.keys(changing).sort(),
  );
  assertEquals(
    ignoredNotice(parse({ num_beams: 4, bad_words_ids: [[5]] }), "/models/x"),
    "Ignoring unsupported generation settings of /models/x: num_beams (4), bad_words_ids ([[5]])",
  );
  const long = parse({ bad_words_ids: Array(1e5).fill([151643]) });
  assert(ignoredNotice(long, "x")!.length < 200);
});

Deno.test("neutral values, and settings of other methods, are not listed", () => {
  const neutral = {
    // What transformers 4 writes for every field in its defaults.
    min_length: 0,
    early_stopping: false,
    num_beams: 1,
    num_beam_groups: 1,
    num_return_sequences: 1,
    diversity_penalty: 0,
    length_penalty: 1,
    typical_p: 1,
    epsilon_cutoff: 0,
    eta_cutoff: 0.0,
    encoder_repetition_penalty: 1,
    no_repeat_ngram_size: 0,
    encoder_no_repeat_ngram_size: 0,
    bad_words_ids: null,
    forced_bos_token_id: null,
    forced_eos_token_id: null,
    remove_invalid_values: false,
    exponential_decay_length_penalty: null,
    suppress_tokens: null,
    begin_suppress_tokens: [],
    sequence_bias: {},
    guidance_scale: 1,
    token_healing: false,
    watermarking_config: null,
    use_mtp: false,
    // They change no text.
    renormalize_logits: true,
    use_cache: false,
    cache_implementation: "static",
    output_scores: true,
    return_dict_in_generate: true,
    num_assistant_tokens: 20,
    decoder_start_token_id: 1,
    pad_token_id: 3,
    _from_model_config: true,
    of_some_other_program: 7,
  };
  assertEquals(parse(neutral), {});
  assertEquals(ignoredNotice({}, "x"), undefined);
});

Deno.test("max_new_tokens wins over max_length, which counts the prompt", () => {
  const limit = (defaults: GenerationDefaults, prompt = 8) =>
    newTokenLimit(defaults, prompt, "the prompt");
  assertEquals(limit({}), undefined);
  assertEquals(limit({ maxLength: 20 }), 12);
  assertEquals(limit({ maxLength: 9 }), 1);
  assertEquals(limit({ maxNewTokens: 30 }), 30);
  assertEquals(limit({ maxLength: 20, maxNewTokens: 30 }), 30);
  assertEquals(limit({ maxLength: 5, maxNewTokens: 30 }), 30);
  assertThrows(
    () => limit({ maxLength: 8 }),
    RangeError,
    "Cannot generate: the prompt has 8 tokens, must have fewer than max_length of the checkpoint, 8, unless maxTokens is set",
  );
});

Deno.test("config.json counts only without generation_config.json", async () => {
  const config = JSON.parse(
    await Deno.readTextFile(new URL("config.json", TINY)),
  );
  const old = JSON.stringify({
    ...config,
    do_sample: true,
    top_k: 7,
    max_length: 40,
    no_repeat_ngram_size: 2,
  });
  const open = async (generation: string | undefined) => {
    await using folder = await copyCheckpoint(TINY, {
      "config.json": old,
      "generation_config.json": generation,
    });
    await using checkpoint = await openCheckpoint(folder.path);
    const { eosTokenIds: _, ...defaults } = checkpoint.generation;
    return defaults;
  };
  assertEquals(await open(undefined), {
    doSample: true,
    topK: 7,
    maxLength: 40,
    ignored: [{ field: "no_repeat_ngram_size", value: "2" }],
  });
  assertEquals(await open('{ "top_p": 0.5 }'), { topP: 0.5 });
  await using folder = await copyCheckpoint(TINY, {
    "config.json": JSON.stringify({ ...config, top_p: 5 }),
    "generation_config.json": undefined,
  });
  const error = await openCheckpoint(folder.path).then(
    () => undefined,
    (error) => error,
  );
  assertEquals(
    error?.message,
    `Cannot use ${folder.path}/config.json: top_p is 5, must be above 0 and at most 1`,
  );
});
