/**
 * Writes a checkpoint as a GGUF for llama.cpp: configuration and weights, without a
 * tokenizer. Floats become f16, quantised blocks stay as they are. `synthetic:` models get
 * exactly the weights that our runs use.
 *
 *   deno run -A bench/peers/make_gguf.ts synthetic:qwen3-0.6b /tmp/model.gguf
 *   deno run -A bench/peers/make_gguf.ts 'synthetic:qwen3-8b?dtype=q4_k_m' /tmp/model.gguf
 *
 * The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import type {
  Checkpoint,
  TensorInfo,
} from "../../lib/checkpoint/checkpoint.ts";
import { ggufTypeCode } from "../../lib/checkpoint/gguf.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import {
  bf16ToF32,
  elements,
  f16ToF32,
  f32ToF16Bits,
} from "../../lib/dtype.ts";
import { f16 } from "../../lib/formats/f16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { type Format, storedRowBytes } from "../../lib/formats/format.ts";
import { runTask } from "../../tasks/flags.ts";

const ALIGNMENT = 32, CHUNK = 1 << 24;
/** Codes of the format for types of values and tensors. */
const U32 = 4, F32 = 6, BOOL = 7, TEXT = 8;

/** Tensor names of transformers, and llama.cpp's for them. */
const NAMES: [pattern: RegExp, name: string][] = [
  [/^model\.embed_tokens/, "token_embd"],
  [/^model\.norm/, "output_norm"],
  [/^lm_head/, "output"],
  [/^model\.layers\.(\d+)\.self_attn\.([qkv])_proj/, "blk.$1.attn_$2"],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj/, "blk.$1.attn_output"],
  [/^model\.layers\.(\d+)\.self_attn\.([qk])_norm/, "blk.$1.attn_$2_norm"],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj/, "blk.$1.ffn_$2"],
  [/^model\.layers\.(\d+)\.input_layernorm/, "blk.$1.attn_norm"],
  [/^model\.layers\.(\d+)\.post_attention_layernorm/, "blk.$1.ffn_norm"],
];

function peerName(name: string): string {
  const [pattern, replacement] = NAMES.find(([pattern]) => pattern.test(name))!;
  return name.replace(pattern, replacement);
}

type Value = [kind: number, value: number | string | boolean];

function metadata(config: Qwen3Config): Record<string, Value> {
  return {
    "general.architecture": [TEXT, "qwen3"],
    "general.alignment": [U32, ALIGNMENT],
    "qwen3.block_count": [U32, config.numHiddenLayers],
    "qwen3.context_length": [U32, config.maxPositionEmbeddings],
    "qwen3.embedding_length": [U32, config.hiddenSize],
    "qwen3.feed_forward_length": [U32, config.intermediateSize],
    "qwen3.attention.head_count": [U32, config.numAttentionHeads],
    "qwen3.attention.head_count_kv": [U32, config.numKeyValueHeads],
    "qwen3.attention.key_length": [U32, config.headDim],
    "qwen3.attention.value_length": [U32, config.headDim],
    "qwen3.attention.layer_norm_rms_epsilon": [F32, config.rmsNormEps],
    "qwen3.rope.freq_base": [F32, config.ropeTheta],
    "qwen3.vocab_size": [U32, config.vocabSize],
    "tokenizer.ggml.model": [TEXT, "none"],
    "tokenizer.ggml.add_bos_token": [BOOL, false],
  };
}

/** Collects little-endian numbers and strings. */
class Writer {
  readonly #parts: Uint8Array[] = [];
  number(bytes: number, write: (view: DataView) => void) {
    const view = new DataView(new ArrayBuffer(bytes));
    write(view);
    this.#parts.push(new Uint8Array(view.buffer));
  }
  u32 = (value: number) => this.number(4, (v) => v.setUint32(0, value, true));
  u64 = (value: number) =>
    this.number(8, (v) => v.setBigUint64(0, BigInt(value), true));
  text(value: string) {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.#parts.push(bytes);
  }
  value([kind, value]: Value) {
    this.u32(kind);
    if (kind === TEXT) this.text(String(value));
    else if (kind === U32) this.u32(Number(value));
    else if (kind === BOOL) this.number(1, (v) => v.setUint8(0, Number(value)));
    else this.number(4, (v) => v.setFloat32(0, Number(value), true));
  }
  /** Everything, padded to the alignment. */
  async bytes(): Promise<Uint8Array> {
    const all = await new Blob(this.#parts as BlobPart[]).bytes();
    const padded = new Uint8Array(aligned(all.length));
    padded.set(all);
    return padded;
  }
}

const aligned = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** What a tensor is written as. Norms become f32, as llama.cpp requires. */
const typeOf = ({ shape, format }: TensorInfo): Format =>
  shape.length === 1 ? f32 : format.elements > 1 ? format : f16;

async function header({ config, tensors }: Checkpoint): Promise<Uint8Array> {
  const writer = new Writer();
  const entries = Object.entries(metadata(config));
  writer.u32(0x46554747); // "GGUF"
  writer.u32(3);
  writer.u64(tensors.size);
  writer.u64(entries.length);
  for (const [key, value] of entries) {
    writer.text(key);
    writer.value(value);
  }
  let offset = 0;
  for (const tensor of tensors.values()) {
    const { name, shape } = tensor, type = typeOf(tensor);
    writer.text(peerName(name));
    writer.u32(shape.length);
    shape.toReversed().forEach(writer.u64); // the fastest dimension first
    writer.u32(ggufTypeCode(type));
    writer.u64(offset);
    offset += aligned(storedRowBytes(type, elements(shape)));
  }
  return await writer.bytes();
}

// A lookup table from every bf16 to f16.
const bf16AsF16 = Uint16Array.from(
  { length: 1 << 16 },
  (_, bits) => f32ToF16Bits(bf16ToF32(bits)),
);

/** Converts stored `bytes` to f16 or f32, unless they have the type. */
function converted(
  bytes: Uint8Array<ArrayBuffer>,
  from: string,
  to: string,
): Uint8Array {
  if (from === to) return bytes;
  const { buffer } = bytes;
  const out = from === "f32"
    ? new Float32Array(buffer, 0, bytes.length / 4)
    : new Uint16Array(buffer, 0, bytes.length / 2);
  if (to === "f32") {
    const value = from === "f16" ? f16ToF32 : bf16ToF32;
    return new Uint8Array(Float32Array.from(out, value).buffer);
  }
  if (from === "bf16") {
    for (let i = 0; i < out.length; i++) out[i] = bf16AsF16[out[i]];
    return bytes;
  }
  return new Uint8Array(Uint16Array.from(out, f32ToF16Bits).buffer);
}

await runTask({
  usage: "deno run -A bench/peers/make_gguf.ts MODEL FILE",
  flags: {},
}, async ({ words: [model, path] }) => {
  if (path === undefined) {
    throw new Error(
      "Cannot write a GGUF: an argument is missing, must be make_gguf.ts MODEL FILE",
    );
  }
  await using checkpoint = await openCheckpoint(model);
  if (checkpoint.config.ropeScaling) {
    throw new Error(
      `Cannot write ${model} as GGUF: it scales RoPE, must be a model without scaling`,
    );
  }
  using file = await Deno.create(path);
  const write = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) {
      at += await file.write(bytes.subarray(at));
    }
  };
  await write(await header(checkpoint));
  for (const tensor of checkpoint.tensors.values()) {
    const { name, format, byteLength } = tensor, to = typeOf(tensor).name;
    let written = 0;
    for (let begin = 0; begin < byteLength; begin += CHUNK) {
      const bytes = new Uint8Array(Math.min(CHUNK, byteLength - begin));
      await checkpoint.read(name, begin, bytes);
      const out = converted(bytes, format.name, to);
      await write(out);
      written += out.length;
    }
    await write(new Uint8Array(aligned(written) - written));
  }
  const { size } = await file.stat();
  console.error(`${path}: ${(size / 1e6).toFixed(0)} MB`);
  return 0;
});
