/** Writes GGUF files, right or wrong ones. */

/** Codes of the kinds of values. */
export const KIND = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  list: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;
export type Kind = keyof typeof KIND;

/** A key with its value; a list has the kind of its elements in front. */
export type Entry =
  | [key: string, kind: Exclude<Kind, "list">, value: unknown]
  | [key: string, kind: "list", value: [Kind, readonly unknown[]]];

/** A tensor as it is described; its data are `bytes`. */
export interface WrittenTensor {
  name: string;
  /** Innermost first, as in the file. */
  dimensions: readonly number[];
  type: number;
  bytes: Uint8Array;
  /** From the data section; by default after the tensor before. */
  offset?: number;
}

/** A growing buffer of bytes. */
class Bytes {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  length = 0;

  #room(count: number): number {
    if (this.length + count > this.#bytes.length) {
      const more = new Uint8Array(2 * (this.length + count));
      more.set(this.#bytes);
      this.#bytes = more;
      this.#view = new DataView(more.buffer);
    }
    this.length += count;
    return this.length - count;
  }

  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  pad(alignment: number): void {
    this.raw(new Uint8Array((alignment - this.length % alignment) % alignment));
  }

  u64(value: number | bigint): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  u32(value: number): void {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.raw(bytes);
  }

  value(kind: Kind, value: unknown): void {
    if (kind === "string") return this.string(value as string);
    if (kind === "list") {
      const [inner, list] = value as [Kind, unknown[]];
      this.u32(KIND[inner]);
      this.u64(list.length);
      for (const one of list) this.value(inner, one);
      return;
    }
    const bytes = kind === "bool" ? 1 : Number(kind.slice(1)) / 8;
    const at = this.#room(bytes), view = this.#view;
    const number = Number(value);
    if (kind === "f32") view.setFloat32(at, number, true);
    else if (kind === "f64") view.setFloat64(at, number, true);
    else if (bytes === 8) view.setBigUint64(at, BigInt(number), true);
    else if (bytes === 4) view.setUint32(at, number, true);
    else if (bytes === 2) view.setUint16(at, number, true);
    else view.setUint8(at, number);
  }

  take(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.length);
  }
}

/** A GGUF file of version 3. */
export function writeGguf(
  entries: readonly Entry[],
  tensors: readonly WrittenTensor[],
  alignment = 32,
): Uint8Array<ArrayBuffer> {
  const file = new Bytes();
  file.raw(new TextEncoder().encode("GGUF"));
  file.u32(3);
  file.u64(tensors.length);
  file.u64(entries.length);
  for (const [key, kind, value] of entries) {
    file.string(key);
    file.u32(KIND[kind]);
    file.value(kind, value);
  }
  let due = 0;
  for (const { name, dimensions, type, bytes, offset } of tensors) {
    file.string(name);
    file.u32(dimensions.length);
    for (const size of dimensions) file.u64(size);
    file.u32(type);
    file.u64(offset ?? due);
    due = Math.ceil((due + bytes.length) / alignment) * alignment;
  }
  file.pad(alignment);
  for (const { bytes } of tensors) {
    file.raw(bytes);
    file.pad(alignment);
  }
  return file.take();
}

/** A tensor of zeros in Q8_0. */
export function zeros(
  name: string,
  columns: number,
  rows: number,
): WrittenTensor {
  const bytes = new Uint8Array(rows * columns / 32 * 34);
  return { name, dimensions: [columns, rows], type: 8, bytes };
}

/** A vector of ones in F32. */
export function ones(name: string, columns: number): WrittenTensor {
  const bytes = new Uint8Array(new Float32Array(columns).fill(1).buffer);
  return { name, dimensions: [columns], type: 0, bytes };
}

/** The metadata of a model with one layer of width 32. */
export const SMALL: readonly Entry[] = [
  ["general.architecture", "string", "qwen3"],
  ["qwen3.block_count", "u32", 1],
  ["qwen3.context_length", "u32", 64],
  ["qwen3.embedding_length", "u32", 32],
  ["qwen3.feed_forward_length", "u32", 32],
  ["qwen3.attention.head_count", "u32", 1],
  ["qwen3.attention.head_count_kv", "u32", 1],
  ["qwen3.attention.key_length", "u32", 32],
  ["qwen3.attention.value_length", "u32", 32],
  ["qwen3.attention.layer_norm_rms_epsilon", "f32", 1e-6],
  ["qwen3.rope.freq_base", "f32", 1e6],
];

/** The tensors of a model with one layer of width 32. */
export function smallTensors(vocab: number): WrittenTensor[] {
  const square = ["attn_q", "attn_k", "attn_v", "attn_output"];
  const inner = ["ffn_gate", "ffn_up", "ffn_down"];
  const norms = ["attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"];
  const at = (name: string) => `blk.0.${name}.weight`;
  return [
    zeros("token_embd.weight", 32, vocab),
    ones("output_norm.weight", 32),
    ...[...square, ...inner].map((name) => zeros(at(name), 32, 32)),
    ...norms.map((name) => ones(at(name), 32)),
  ];
}

/** A tokenizer.json, as far as GGUF files hold it. */
export interface TokenizerJson {
  model: { vocab: Record<string, number>; merges: (string | string[])[] };
  added_tokens: { id: number; content: string; special: boolean }[];
}

/** The metadata that llama.cpp's converter makes of a tokenizer.json. */
export function tokenizerEntries(
  { model, added_tokens: added }: TokenizerJson,
  rows: number,
): Entry[] {
  const tokens = Array.from({ length: rows }, (_, id) => `[PAD${id}]`);
  const types: number[] = new Array(rows).fill(5);
  for (const [token, id] of Object.entries(model.vocab)) {
    tokens[id] = token;
    types[id] = 1;
  }
  for (const { id, content, special } of added) {
    tokens[id] = content;
    // Its rule for tokens that look like it.
    types[id] = special || /^<\|.*\|>$/.test(content) ? 3 : 4;
  }
  const merges = model.merges.map((merge) =>
    typeof merge === "string" ? merge : merge.join(" ")
  );
  return [
    ["tokenizer.ggml.model", "string", "gpt2"],
    ["tokenizer.ggml.pre", "string", "qwen2"],
    ["tokenizer.ggml.tokens", "list", ["string", tokens]],
    ["tokenizer.ggml.token_type", "list", ["i32", types]],
    ["tokenizer.ggml.merges", "list", ["string", merges]],
  ];
}
