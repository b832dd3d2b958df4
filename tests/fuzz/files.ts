/** Damages the files of a checkpoint, each in its own way. */
import { createHash } from "node:crypto";
import type { Random } from "../support/random.ts";
import { anyValue, damage, damageText, Raw, type Tree, write } from "./json.ts";

type Json = Record<string, Tree>;

const CONFIG = [
  ...["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"],
  ...["num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"],
  ...["max_position_embeddings", "rope_theta", "rope_scaling", "hidden_act"],
  ...["rope_parameters", "tie_word_embeddings", "eos_token_id", "layer_types"],
  ...["bos_token_id", "attention_bias", "use_sliding_window", "model_type"],
  ...["sliding_window", "quantization_config", "do_sample", "max_length"],
];
const ROPE = [
  ...["rope_type", "type", "factor", "original_max_position_embeddings"],
  ...["attention_factor", "beta_fast", "beta_slow", "mscale", "truncate"],
];
const GENERATION = [
  ...["do_sample", "temperature", "top_k", "top_p", "min_p", "eos_token_id"],
  ...["repetition_penalty", "max_new_tokens", "max_length", "stop_strings"],
  ...["num_beams", "bad_words_ids", "sequence_bias", "typical_p", "min_length"],
];
const TOKENIZER = [
  ...["added_tokens", "normalizer", "pre_tokenizer", "post_processor"],
  ...["decoder", "model", "truncation", "version"],
];
const TOKENIZER_CONFIG = [
  ...["bos_token", "eos_token", "pad_token", "unk_token", "chat_template"],
  ...["add_bos_token", "add_eos_token", "added_tokens_decoder"],
  ...["additional_special_tokens", "extra_special_tokens"],
  ...["split_special_tokens", "clean_up_tokenization_spaces"],
];

const SCHEMA = [
  ...["type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "properties"],
  ...["patternProperties", "additionalProperties", "propertyNames", "required"],
  ...["minProperties", "maxProperties", "items", "prefixItems", "minItems"],
  ...["maxItems", "minimum", "maximum", "exclusiveMinimum", "multipleOf"],
  ...["minLength", "maxLength", "pattern", "format", "not", "$id", "$anchor"],
];

/** JSON with some of its places damaged. */
function damaged(
  text: string,
  random: Random,
  names: readonly string[],
): string {
  if (random.int(0, 9) === 0) return damageText(text, random);
  const tree = JSON.parse(text);
  for (let i = random.pick([1, 1, 1, 2, 4]); i > 0; i--) {
    damage(tree, random, names);
  }
  return write(tree);
}

export function damageConfig(text: string, random: Random): string {
  if (random.int(0, 3) > 0) return damaged(text, random, CONFIG);
  const json: Json = JSON.parse(text);
  const rope: Json = {
    rope_type: "yarn",
    factor: 4,
    original_max_position_embeddings: 64,
  };
  damage(rope, random, ROPE);
  json[random.pick(["rope_scaling", "rope_parameters"])] = rope;
  return write(json);
}

export const damageGeneration = (text: string, random: Random): string =>
  damaged(text, random, GENERATION);

/** Regular expressions that are wrong, or take long. */
const PATTERNS = [
  ...["(a+)+$", "(a|a)*b", "(.*)*x", "(?:\\s|\\s+)+$", ".*.*.*=", "\\p{L}+"],
  ...["(", "[", "a{5,2}", "(?<=a+)b", "\\1", "(a)\\1", "", "a*", "\\b", "$"],
  ...["(?i:e)|.", "[[:alpha:]&&[^a]]+", "x{1000}{1000}", "(?>a+)b", "\\X"],
  ...["(".repeat(4000), "[".repeat(500), "(?:".repeat(1500) + ")".repeat(1500)],
  ...["(?:(?:(?:e*)*)*)*$", "(?=(\\w+)+!)", "(?<!(\\w|\\w\\w)*x)e"],
];

/** Damages tokenizer.json; most of it is the vocabulary, which gets its own damage. */
export function damageTokenizer(text: string, random: Random): string {
  if (random.int(0, 9) === 0) return damageText(text, random);
  const json = JSON.parse(text);
  const { vocab, merges } = json.model;
  const token = () => random.pick(Object.keys(vocab));
  switch (random.int(0, 7)) {
    case 0:
      delete vocab[token()];
      break;
    case 1:
      vocab[token()] = random.int(0, 1) ? vocab[token()] : anyValue(random);
      break;
    case 2:
      merges[random.int(0, merges.length - 1)] = random.pick([
        anyValue(random),
        `${token()} ${token()}`,
        [token(), token()],
      ]);
      break;
    case 3:
      json.added_tokens.push({
        id: random.pick([0, 5, 2048, 2049, 1e9, anyValue(random)]),
        content: random.pick(["<x>", " ", "e", token(), anyValue(random)]),
        [random.pick(["lstrip", "rstrip", "single_word", "normalized"])]: true,
        special: random.pick([true, false, anyValue(random)]),
      });
      break;
    case 4:
    case 5:
      json.pre_tokenizer.pretokenizers[0] = {
        type: random.pick(["Split", "Split", "Digits", "Metaspace"]),
        pattern: random.pick([
          { Regex: random.pick(PATTERNS) },
          { String: random.pick(["", " ", "e", "\ud800"]) },
          anyValue(random),
        ]),
        behavior: random.pick([
          ...["Isolated", "Removed", "MergedWithNext", "Contiguous"],
          anyValue(random),
        ]),
        invert: random.pick([false, true]),
      };
      break;
    case 6:
      json.normalizer = random.pick<Tree>([
        { type: random.pick(["NFKC", "Lowercase", "StripAccents", "Nmt"]) },
        {
          type: "Replace",
          pattern: { Regex: random.pick(PATTERNS) },
          content: random.pick<Tree>(["", "xx", anyValue(random)]),
        },
        {
          type: "Sequence",
          normalizers: [{ type: "Strip" }, anyValue(random)],
        },
      ]);
      break;
    default: {
      const { model, ...rest } = json;
      const { vocab, merges, ...small } = model;
      rest.model = small;
      damage(rest, random, TOKENIZER);
      if (typeof rest.model === "object" && rest.model) {
        rest.model.vocab ??= vocab;
        rest.model.merges ??= merges;
      }
      return write(rest);
    }
  }
  return write(json);
}

/** A template like those of chat checkpoints. */
const CHATML =
  "{%- if tools %}{{- tools | tojson }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}{%- for call in message.tool_calls or [] %}{{- call.function.name ~ (call.function.arguments | tojson) }}{%- endfor %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/** Templates that are wrong, loop or print without end, or access what they must not. */
const TEMPLATES = [
  CHATML,
  "{% for i in range(1000000000) %}{% endfor %}",
  "{% for i in range(100000000) %}x{% endfor %}",
  "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
  "{{ 'x' * 1000000000 }}",
  "{{ 'ab' | center(1000000000) }}",
  "{{ [0] * 1000000000 }}",
  "{{ range(10000000000) | list | length }}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
  "{{ 10 ** 10 ** 10 }}",
  "{{ messages[99].content }}",
  "{{ messages.constructor.constructor('return Deno')() }}",
  "{{ ''.__class__.__mro__ }}",
  "{{ raise_exception('no') }}",
  "{{ raise_exception('\\n' * 100000) }}",
  "{{ undefined_function() }}",
  "{{ messages | no_such_filter }}",
  "{% if %}",
  "{{",
  "{% for %}",
  "{% endfor %}",
  "{#",
  "",
  "{{ " + "(".repeat(5000) + ")".repeat(5000) + " }}",
  "{% if true %}".repeat(3000),
  "{{ " + "1+".repeat(20_000) + "1 }}",
  "{{ " + "not ".repeat(5000) + "true }}",
  "{{ messages | tojson(indent=1000000) }}",
  "{{ strftime_now('%Y' * 100000) }}",
  "{% include 'x' %}",
  "{% break %}",
  "{{ {}.a.b.c }}",
  "{{ messages[0]['content'].split('') }}",
  "{{ messages[0].content.replace('', 'x' * 100000) }}",
  "{% generation %}x{% endgeneration %}",
];

export function damageTokenizerConfig(text: string, random: Random): string {
  if (random.int(0, 1)) return damaged(text, random, TOKENIZER_CONFIG);
  const json: Json = JSON.parse(text);
  json.chat_template = chatTemplate(random);
  return write(json);
}

export function chatTemplate(random: Random): string {
  const template = random.pick(TEMPLATES);
  return random.int(0, 2) ? template : damageText(template, random);
}

/** A valid template in half of the cases. */
export const someTemplate = (random: Random): string =>
  random.int(0, 1) ? CHATML : chatTemplate(random);

const DTYPES = [
  ...["BF16", "F16", "F32", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "X"],
];

/** Damages a safetensors file: its length, its header or its data. */
export function damageSafetensors(
  file: Uint8Array,
  random: Random,
): Uint8Array<ArrayBuffer> {
  const view = new DataView(file.buffer, file.byteOffset);
  const length = Number(view.getBigUint64(0, true));
  const text = new TextDecoder().decode(file.subarray(8, 8 + length));
  const data = file.subarray(8 + length);
  switch (random.int(0, 7)) {
    case 0:
      return joined(
        random.pick([
          ...[0n, 1n, 2n, BigInt(length - 1), BigInt(length + 1)],
          ...[BigInt(file.length), BigInt(file.length - 8), 2n ** 32n],
          ...[2n ** 63n, 2n ** 64n - 1n, 100_000_001n],
        ]),
        text,
        data,
      );
    case 1:
      return file.slice(0, random.int(0, file.length));
    case 2: {
      const longer = new Uint8Array(file.length + random.pick([1, 8, 4096]));
      longer.set(file);
      return longer;
    }
    case 3: {
      // Weights that are NaN, infinite, huge or noise.
      const changed = Uint8Array.from(data);
      const begin = random.int(0, data.length - 1);
      const end = random.pick([begin + 2, begin + 64, data.length]);
      const byte = random.pick([0xff, 0x7f, 0x00, 0x80, undefined]);
      for (let at = begin; at < Math.min(end, data.length); at++) {
        changed[at] = byte ?? random.int(0, 255);
      }
      return joined(undefined, text, changed);
    }
    case 4:
      return joined(undefined, damageText(text, random), data);
    default:
      return joined(undefined, damageHeader(text, random), data);
  }
}

/**
 * Damages a GGUF file: lengths, counts, kinds, types and offsets in its header (the first
 * `header` bytes), whose 32-bit words are mostly small; or its data.
 */
export function damageGguf(
  file: Uint8Array,
  header: number,
  random: Random,
): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from(file);
  const view = new DataView(bytes.buffer);
  switch (random.int(0, 7)) {
    case 0:
      return bytes.slice(0, random.int(0, random.pick([header, file.length])));
    case 1: {
      // Some bytes are left out or put in, so that all after them is shifted.
      const at = random.int(4, header), count = random.pick([1, 4, 8, 32]);
      const cut = random.int(0, 1) === 0;
      const changed = new Uint8Array(bytes.length + (cut ? -count : count));
      changed.set(bytes.subarray(0, at));
      changed.set(bytes.subarray(cut ? at + count : at), cut ? at : at + count);
      return changed;
    }
    case 2: {
      const begin = random.int(header, file.length - 1);
      const byte = random.pick([0xff, 0x7f, 0x00, 0x80]);
      return bytes.fill(byte, begin, begin + random.pick([2, 64, file.length]));
    }
    default:
  }
  for (let i = random.pick([1, 1, 1, 2, 5]); i > 0; i--) {
    const at = random.int(4, header - 8);
    switch (random.int(0, 4)) {
      case 0:
        bytes[at] ^= 1 << random.int(0, 7);
        break;
      case 1:
        bytes[at] = random.int(0, 255);
        break;
      case 2:
        view.setUint32(at, random.pick([0, 1, 2, 8, 9, 12, 39, 2 ** 31]), true);
        break;
      case 3:
        view.setBigUint64(
          at,
          random.pick([
            0n,
            1n,
            2n ** 32n,
            2n ** 53n,
            2n ** 63n,
            2n ** 64n - 1n,
          ]),
          true,
        );
        break;
      case 4: {
        // A name or a text; a key that is another one's.
        const from = random.int(24, header - 16),
          to = random.int(24, header - 16);
        bytes.copyWithin(to, from, from + random.pick([4, 8, 12]));
      }
    }
  }
  return bytes;
}

function damageHeader(text: string, random: Random): string {
  const header: Record<string, Json> = JSON.parse(text);
  const names = Object.keys(header).filter((name) => name !== "__metadata__");
  const name = random.pick(names);
  const entry = header[name];
  const offsets = entry.data_offsets as number[];
  const shape = entry.shape as number[];
  switch (random.int(0, 11)) {
    case 0:
      entry.dtype = random.pick(DTYPES);
      break;
    case 1:
      offsets[random.int(0, 1)] = random.pick([
        ...[0, -1, 1, 2 ** 40, 2 ** 53, 0.5, offsets[0] + 1, offsets[1] - 1],
      ]);
      break;
    case 2:
      shape[random.int(0, shape.length - 1)] = random.pick([
        ...[0, 1, -1, 2 ** 31, 2 ** 53, 1.5, shape[0] * 2],
      ]);
      break;
    case 3:
      entry.shape = random.pick<Tree>([
        [],
        [...shape].reverse(),
        [...shape, 1],
        Array(10_000).fill(1),
        anyValue(random),
      ]);
      break;
    case 4: {
      const other = header[random.pick(names)];
      [entry.data_offsets, other.data_offsets] = [
        other.data_offsets,
        entry.data_offsets,
      ];
      break;
    }
    case 5:
      delete header[name];
      break;
    case 6:
      header[random.pick(["x", "__proto__ ", `${name}.`, name.slice(6)])] =
        entry;
      if (random.int(0, 1)) delete header[name];
      break;
    case 7: {
      const count = random.pick([100, 5000, 30_000]), end = offsets[1];
      const more = Array.from(
        { length: count },
        (_, i) =>
          `"extra.${i}":{"dtype":"F32","shape":[0],"data_offsets":[${end},${end}]}`,
      );
      return `${write(header).slice(0, -1)},${more.join(",")}}`;
    }
    case 8:
      // Escapes: one character of a name, or very many.
      return write(header).replaceAll(
        random.int(0, 1) ? "model" : "layers",
        (word) =>
          [...word].map((c) => `\\u00${c.charCodeAt(0).toString(16)}`).join(""),
      );
    case 9:
      header["__metadata__"] = random.pick<Tree>([
        { a: new Raw(`"${"\\n".repeat(200_000)}"`) },
        anyValue(random),
        { a: anyValue(random) },
      ]) as Json;
      break;
    default:
      damage(header, random, ["dtype", "shape", "data_offsets", name]);
  }
  return write(header);
}

function joined(
  length: bigint | undefined,
  header: string,
  data: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + bytes.length + data.length);
  new DataView(file.buffer).setBigUint64(
    0,
    length ?? BigInt(bytes.length),
    true,
  );
  file.set(bytes, 8);
  file.set(data, 8 + bytes.length);
  return file;
}

/** Damages model.safetensors.index.json. */
export function damageIndex(text: string, random: Random): string {
  const json = JSON.parse(text);
  const names = Object.keys(json.weight_map);
  const name = random.pick(names);
  switch (random.int(0, 5)) {
    case 0:
      json.weight_map[name] = random.pick<Tree>([
        ...["../model.safetensors", "/etc/passwd", "http://127.0.0.1:1/x", ""],
        ...["model-00001-of-00015.safetensors", "a%2e", "config.json", "a?b#c"],
        anyValue(random),
      ]);
      break;
    case 1:
      delete json.weight_map[name];
      break;
    case 2:
      json.weight_map[random.pick(["x", "lm_head.weight", ""])] =
        json.weight_map[name];
      break;
    default:
      return damaged(text, random, ["weight_map", "metadata"]);
  }
  return write(json);
}

/** Damages a file of tuned constants. */
export const damageWebIndex = (text: string, random: Random): string =>
  damaged(text, random, [
    ...["version", "url", "used", "generation", "files", "id", "size"],
    ...["etag", "modified", "sha256", "asked", "config.json", "../x"],
  ]);

export const damageTuning = (text: string, random: Random): string =>
  damaged(text, random, ["version", "adapter", "kernels", "constants"]);

/** A JSON schema with keywords of all kinds. */
const WHOLE_SCHEMA = {
  $defs: {
    node: {
      type: "object",
      properties: { next: { $ref: "#/$defs/node" }, n: { type: "integer" } },
      maxProperties: 2,
    },
    name: { type: "string", minLength: 1, maxLength: 40, pattern: "^[a-z]+$" },
  },
  type: ["object", "array", "null"],
  properties: {
    name: { $ref: "#/$defs/name" },
    node: { $ref: "#/$defs/node", description: "a list" },
    age: { type: "number", minimum: 0, exclusiveMaximum: 150, multipleOf: 0.5 },
    kind: { enum: ["a", "b", 1, null, { x: [1] }] },
    when: { type: "string", format: "date-time" },
    one: {
      oneOf: [
        { properties: { t: { const: 1 } }, required: ["t"], type: "object" },
        { properties: { t: { const: 2 } }, required: ["t"], type: "object" },
      ],
    },
    both: { allOf: [{ type: "integer" }, { minimum: 3 }, { maximum: 30 }] },
  },
  required: ["name", "age"],
  patternProperties: { "^x": { type: "string" }, "y$": { maxLength: 3 } },
  additionalProperties: { anyOf: [{ type: "boolean" }, { type: "null" }] },
  propertyNames: { maxLength: 20 },
  minProperties: 2,
  items: { type: "string" },
  prefixItems: [{ type: "integer" }],
  minItems: 1,
  maxItems: 1000,
};

/** Schemas that take long if nothing bounds the work. */
const LONG_SCHEMAS: readonly (() => Tree)[] = [
  () => ({
    allOf: Array.from({ length: 30 }, (_, i) => ({
      anyOf: [{ minimum: i }, { maxLength: i }, { minItems: i }],
    })),
  }),
  () => ({ oneOf: Array.from({ length: 3000 }, (_, i) => ({ const: i })) }),
  () => ({ enum: Array.from({ length: 50_000 }, (_, i) => `${i}`) }),
  () => ({
    properties: Object.fromEntries(
      Array.from({ length: 5000 }, (_, i) => [`p${i}`, { type: "integer" }]),
    ),
  }),
  () => ({ type: "string", pattern: "(a|b)*a(a|b){12}", maxLength: 500 }),
  () => ({ type: "string", pattern: "^(?:\\p{L}{1,50}\\s?){1,40}$" }),
  () => ({ type: "string", minLength: 1e15 }),
  () => ({ type: "array", items: { type: "null" }, minItems: 1e15 }),
  () => ({
    patternProperties: Object.fromEntries(
      ["(a|b)*a(a|b){9}", "(a|b)*b(a|b){9}", "x{0,400}y"].map((k) => [k, {}]),
    ),
    type: "object",
  }),
  () => {
    let schema: Tree = { type: "null" };
    for (let i = 0; i < 9; i++) {
      schema = { anyOf: [schema, { type: "array", items: schema }] };
    }
    return schema;
  },
];

/** The text of a JSON schema that is damaged or takes long. */
export function damageSchema(random: Random): string {
  if (random.int(0, 5) === 0) return write(random.pick(LONG_SCHEMAS)());
  if (random.int(0, 5) === 0) {
    return write({
      type: "string",
      pattern: random.pick(PATTERNS),
      ...random.pick([{}, { maxLength: 300 }]),
    });
  }
  return damaged(JSON.stringify(WHOLE_SCHEMA), random, SCHEMA);
}

/** A saved chat with a damaged header whose checksum is right, or with any damage. */
export function damageChat(
  file: Uint8Array<ArrayBuffer>,
  random: Random,
): Uint8Array<ArrayBuffer> {
  const begin = 16, view = new DataView(file.buffer, file.byteOffset);
  const end = begin + view.getUint32(12, true);
  const text = new TextDecoder().decode(file.subarray(begin, end));
  const header = new TextEncoder().encode(damaged(text, random, [
    ...["messages", "system", "tools", "text", "tokenIds", "model", "cache"],
    ...["tokens", "dtype", "role", "content", "fingerprint", "tool_calls"],
  ]));
  const body = file.subarray(end, -32);
  const all = new Uint8Array(begin + header.length + body.length + 32);
  all.set(file.subarray(0, begin));
  all.set(header, begin);
  all.set(body, begin + header.length);
  new DataView(all.buffer).setUint32(12, header.length, true);
  const hash = createHash("sha256").update(all.subarray(0, -32)).digest();
  all.set(hash, all.length - 32);
  if (random.int(0, 3) === 0) {
    all[random.int(0, all.length - 1)] ^= 1 << random.int(0, 7);
  }
  return random.int(0, 7) ? all : all.slice(0, random.int(0, all.length));
}
