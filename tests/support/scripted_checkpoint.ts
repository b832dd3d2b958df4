/** Checkpoints that write a given reply to any prompt. */
import { type TempCheckpoint, tempFolder } from "./temp_checkpoint.ts";

/** The token that ends a scripted reply. */
export const END = "<|im_end|>";

/** A reply, and what goes with it. */
export interface Script {
  /** The text of the reply; texts of special tokens in it become those. */
  reply: string;
  /** The chat template; every prompt must end with a line break. */
  template?: string;
  /** Texts of special tokens other than {@linkcode END}. */
  special?: string[];
  /** Whether END ends the text. Default: true. */
  eos?: boolean;
  /** Whether END is marked special. Default: true. */
  specialEnd?: boolean;
}

/**
 * Writes such a checkpoint. Every token is followed by one that depends on it alone: the
 * embedding of token i is the unit vector i, the layer adds nothing, and row j of the
 * output has a one where its predecessor has one.
 */
export async function scriptedCheckpoint(
  { reply, template, special = [], eos = true, specialEnd = true }: Script,
): Promise<TempCheckpoint> {
  const hidden = [END, ...special];
  const pieces = differentPieces(reply, hidden);
  const bytes = byteCharacters();
  const added = [...new Set([...hidden, ...pieces])];
  const id = (piece: string) => bytes.length + added.indexOf(piece);
  const chain = [10, ...pieces.map(id), ...(eos ? [id(END)] : [])];
  const size = Math.ceil((bytes.length + added.length) / 32) * 32;
  const embedding = new Float32Array(size * size);
  const output = new Float32Array(size * size);
  for (let i = 0; i < size; i++) embedding[i * size + i] = 1;
  for (let i = 1; i < chain.length; i++) {
    output[chain[i] * size + chain[i - 1]] = 1;
  }
  const files: Record<string, string | Uint8Array | undefined> = {
    "config.json": JSON.stringify({
      model_type: "qwen3",
      vocab_size: size,
      hidden_size: size,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      head_dim: 32,
      rms_norm_eps: 1e-6,
      rope_theta: 10000,
      max_position_embeddings: 4096,
      tie_word_embeddings: false,
      torch_dtype: "float32",
      eos_token_id: eos ? [id(END)] : [],
    }),
    "generation_config.json": JSON.stringify({
      do_sample: false,
      ...(eos && { eos_token_id: id(END) }),
    }),
    "model.safetensors": safetensors({
      "model.embed_tokens.weight": [[size, size], embedding],
      "lm_head.weight": [[size, size], output],
      "model.norm.weight": [[size], new Float32Array(size).fill(1)],
      ...layer(size),
    }),
    "tokenizer.json": JSON.stringify({
      version: "1.0",
      added_tokens: added.map((content) => ({
        id: id(content),
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: hidden.includes(content) && (specialEnd || content !== END),
      })),
      normalizer: null,
      pre_tokenizer: {
        type: "ByteLevel",
        add_prefix_space: false,
        trim_offsets: false,
        use_regex: true,
      },
      post_processor: null,
      decoder: { type: "ByteLevel" },
      model: {
        type: "BPE",
        vocab: Object.fromEntries(bytes.map((token, i) => [token, i])),
        merges: [],
      },
    }),
    "tokenizer_config.json": JSON.stringify(
      specialEnd ? { eos_token: END } : {},
    ),
    "chat_template.jinja": template,
  };
  return await tempFolder(files);
}

/** Cuts a text into tokens that all differ, with special tokens as they are. */
function differentPieces(text: string, special: string[]): string[] {
  const pieces = new Set<string>();
  while (text !== "") {
    const token = special.find((one) => text.startsWith(one));
    let length = token?.length ?? 3;
    if (token === undefined) {
      while (length < text.length && pieces.has(text.slice(0, length))) {
        length++;
      }
      const next = special.map((one) => text.indexOf(one)).filter((at) =>
        at > 0
      );
      length = Math.min(length, ...next);
    }
    let piece = text.slice(0, length);
    // The tokens of bytes are single characters.
    const unusable = () => pieces.has(piece) || piece.length === 1;
    if (unusable() && token === undefined) {
      const last = [...pieces].at(-1) ?? "";
      pieces.delete(last);
      piece = last + piece;
    }
    if (unusable()) {
      throw new Error(
        `Cannot script a reply: ${
          JSON.stringify(piece)
        } occurs twice in it, or is a single character`,
      );
    }
    pieces.add(piece);
    text = text.slice(length);
  }
  return [...pieces];
}

/** Weights of a layer that adds nothing. */
function layer(hidden: number): Tensors {
  const zeros = (...shape: number[]): Tensors[string] => [
    shape,
    new Float32Array(shape.reduce((a, b) => a * b)),
  ];
  const ones = (n: number): Tensors[string] => [
    [n],
    new Float32Array(n).fill(1),
  ];
  const tensors: Tensors = {
    "input_layernorm": ones(hidden),
    "post_attention_layernorm": ones(hidden),
    "self_attn.q_proj": zeros(32, hidden),
    "self_attn.k_proj": zeros(32, hidden),
    "self_attn.v_proj": zeros(32, hidden),
    "self_attn.o_proj": zeros(hidden, 32),
    "self_attn.q_norm": ones(32),
    "self_attn.k_norm": ones(32),
    "mlp.gate_proj": zeros(32, hidden),
    "mlp.up_proj": zeros(32, hidden),
    "mlp.down_proj": zeros(hidden, 32),
  };
  return Object.fromEntries(
    Object.entries(tensors).map((
      [name, tensor],
    ) => [`model.layers.0.${name}.weight`, tensor]),
  );
}

type Tensors = Record<string, [shape: number[], data: Float32Array]>;

function safetensors(tensors: Tensors): Uint8Array {
  const header: Record<string, unknown> = {};
  let bytes = 0;
  for (const [name, [shape, data]] of Object.entries(tensors)) {
    header[name] = {
      dtype: "F32",
      shape,
      data_offsets: [bytes, bytes += data.byteLength],
    };
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(json.length / 8) * 8;
  const file = new Uint8Array(8 + padded + bytes).fill(0x20, 8, 8 + padded);
  new DataView(file.buffer).setBigUint64(0, BigInt(padded), true);
  file.set(json, 8);
  let at = 8 + padded;
  for (const [, data] of Object.values(tensors)) {
    file.set(new Uint8Array(data.buffer), at);
    at += data.byteLength;
  }
  return file;
}

/** The character that stands for each byte in a byte-level vocabulary. */
function byteCharacters(): string[] {
  let free = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 0x20 && byte < 0x7f) ||
      (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(printable ? byte : free++);
  });
}
