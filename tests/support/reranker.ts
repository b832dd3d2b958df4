/** Small rerankers as GGUF files, with random weights in f32. */
import {
  type Entry,
  SMALL,
  tokenizerEntries,
  writeGguf,
  type WrittenTensor,
} from "./gguf.ts";
import type { Random } from "./random.ts";

const STORIES = new URL("../../models/stories-3m/", import.meta.url);
const HIDDEN = 64, INNER = 96, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 16;

/** The prompt that llama.cpp's converter writes into a reranker's file. */
export const RERANK_TEMPLATE = `<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

`;

/** What distinguishes the files. */
export interface RerankerParts {
  /** Whether there is `cls.output.weight`, as in files that llama.cpp's converter makes. */
  classifier?: boolean;
  /** The rerank template. */
  template?: string;
  /** Leaves the tokens yes and no out. */
  silent?: boolean;
  entries?: readonly Entry[];
  tensors?: readonly WrittenTensor[];
}

/** Writes such a file: the story model's vocabulary with yes and no after it. */
export async function writeReranker(
  random: Random,
  { classifier, template, silent, entries = [], tensors = [] }: RerankerParts,
): Promise<Uint8Array<ArrayBuffer>> {
  const json = JSON.parse(
    await Deno.readTextFile(new URL("tokenizer.json", STORIES)),
  );
  if (!silent) Object.assign(json.model.vocab, { yes: 2048, no: 2049 });
  const rows = 2050;
  const tensor = (
    name: string,
    dimensions: number[],
    offset = 0,
  ): WrittenTensor => {
    const size = dimensions.reduce((a, b) => a * b);
    const scale = offset ? 0.3 : 2 / Math.sqrt(dimensions[0]);
    const { data } = random.tensor("f32", [size], scale, offset);
    const bytes = new Uint8Array((data as Float32Array<ArrayBuffer>).buffer);
    return { name: `${name}.weight`, dimensions, type: 0, bytes };
  };
  const q = HEADS * HEAD_DIM, kv = KV_HEADS * HEAD_DIM;
  const layers = [0, 1].flatMap((i) => [
    tensor(`blk.${i}.attn_norm`, [HIDDEN], 1),
    tensor(`blk.${i}.attn_q`, [HIDDEN, q]),
    tensor(`blk.${i}.attn_k`, [HIDDEN, kv]),
    tensor(`blk.${i}.attn_v`, [HIDDEN, kv]),
    tensor(`blk.${i}.attn_q_norm`, [HEAD_DIM], 1),
    tensor(`blk.${i}.attn_k_norm`, [HEAD_DIM], 1),
    tensor(`blk.${i}.attn_output`, [q, HIDDEN]),
    tensor(`blk.${i}.ffn_norm`, [HIDDEN], 1),
    tensor(`blk.${i}.ffn_gate`, [HIDDEN, INNER]),
    tensor(`blk.${i}.ffn_up`, [HIDDEN, INNER]),
    tensor(`blk.${i}.ffn_down`, [INNER, HIDDEN]),
  ]);
  const sizes: Record<string, number> = {
    "qwen3.block_count": 2,
    "qwen3.context_length": 512,
    "qwen3.embedding_length": HIDDEN,
    "qwen3.feed_forward_length": INNER,
    "qwen3.attention.head_count": HEADS,
    "qwen3.attention.head_count_kv": KV_HEADS,
    "qwen3.attention.key_length": HEAD_DIM,
    "qwen3.attention.value_length": HEAD_DIM,
  };
  const own = SMALL.map((entry): Entry =>
    entry[0] in sizes ? [entry[0], "u32", sizes[entry[0]]] : entry
  );
  const marks: Entry[] = [
    ...classifier ? [["qwen3.pooling_type", "u32", 4] as Entry] : [],
    ...template === undefined ? [] : [
      ["tokenizer.chat_templates", "list", ["string", ["rerank"]]] as Entry,
      ["tokenizer.chat_template.rerank", "string", template] as Entry,
    ],
  ];
  return writeGguf([
    ...own,
    ...tokenizerEntries(json, rows),
    ["tokenizer.ggml.eos_token_id", "u32", 0],
    ...marks,
    ...entries,
  ], [
    tensor("token_embd", [HIDDEN, rows]),
    ...layers,
    tensor("output_norm", [HIDDEN], 1),
    ...classifier ? [tensor("cls.output", [HIDDEN, 2])] : [],
    ...tensors,
  ]);
}
