/**
 * A checkpoint as files, to measure how they are read. Synthetic checkpoints are
 * written to a temporary folder.
 *
 * @module
 */
import type { Checkpoint } from "../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { cleanOnSignal } from "../tasks/interrupts.ts";
import { Unmeasurable } from "./report.ts";

const CHUNK = 1 << 24;

/** A folder with a checkpoint; disposing it, or Ctrl-C, deletes a temporary folder. */
export class CheckpointFolder implements AsyncDisposable {
  readonly #cleaning?: Disposable;

  private constructor(
    readonly path: string,
    readonly temporary: boolean,
  ) {
    if (!temporary) return;
    this.#cleaning = cleanOnSignal(() =>
      Deno.removeSync(path, { recursive: true })
    );
  }

  /** @throws {Unmeasurable} if the checkpoint is on a server. */
  static async of(model: string): Promise<CheckpointFolder> {
    await using checkpoint = await openCheckpoint(model);
    const { location, synthetic, tensors } = checkpoint;
    if (/^https?:/.test(location)) {
      throw new Unmeasurable(`${location} is not a folder on this machine`);
    }
    if (!synthetic) return new CheckpointFolder(location, false);
    for (const { format } of tensors.values()) {
      if (format.safetensors) continue;
      throw new Unmeasurable(`safetensors files cannot hold ${format.name}`);
    }
    const path = await Deno.makeTempDir({ prefix: "bench-" });
    const folder = new CheckpointFolder(path, true);
    try {
      await write(checkpoint, path);
      return folder;
    } catch (error) {
      await folder[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#cleaning?.[Symbol.dispose]();
    if (this.temporary) await Deno.remove(this.path, { recursive: true });
  }
}

async function write({ config, tensors, read }: Checkpoint, path: string) {
  const { experts } = config;
  await Deno.writeTextFile(
    `${path}/config.json`,
    JSON.stringify({
      model_type: config.modelType,
      vocab_size: config.vocabSize,
      hidden_size: config.hiddenSize,
      intermediate_size: config.intermediateSize,
      num_hidden_layers: config.numHiddenLayers,
      num_attention_heads: config.numAttentionHeads,
      num_key_value_heads: config.numKeyValueHeads,
      head_dim: config.headDim,
      max_position_embeddings: config.maxPositionEmbeddings,
      rms_norm_eps: config.rmsNormEps,
      rope_theta: config.ropeTheta,
      tie_word_embeddings: config.tieWordEmbeddings,
      ...experts && {
        num_experts: experts.count,
        num_experts_per_tok: experts.used,
        moe_intermediate_size: experts.intermediateSize,
        norm_topk_prob: experts.normalized,
        mlp_only_layers: experts.denseLayers,
      },
    }),
  );
  let end = 0;
  const header = Object.fromEntries(
    Array.from(tensors.values(), ({ name, format, shape, byteLength }) => {
      const data_offsets = [end, end += byteLength];
      return [name, { dtype: format.safetensors, shape, data_offsets }];
    }),
  );
  // Padded as the format's reference writer does, so that the data is aligned.
  const text = JSON.stringify(header);
  const head = new TextEncoder().encode(
    text.padEnd(Math.ceil(text.length / 8) * 8),
  );
  using file = await Deno.create(`${path}/model.safetensors`);
  const put = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) {
      at += await file.write(bytes.subarray(at));
    }
  };
  const size = new DataView(new ArrayBuffer(8));
  size.setBigUint64(0, BigInt(head.length), true);
  await put(new Uint8Array(size.buffer));
  await put(head);
  for (const { name, byteLength } of tensors.values()) {
    for (let begin = 0; begin < byteLength; begin += CHUNK) {
      const bytes = new Uint8Array(Math.min(CHUNK, byteLength - begin));
      await read(name, begin, bytes);
      await put(bytes);
    }
  }
}
