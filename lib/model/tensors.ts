/**
 * Finds the tensors that a configuration needs among those of a checkpoint. Names and
 * shapes are compared before anything is read, computed or allocated.
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";
import { listed, quoted } from "../errors.ts";
import { familyOf } from "./families.ts";
import { tensorShapes } from "./family.ts";

/** Where a model's tensors are. */
export interface TensorSelection {
  /** The stored name of each tensor that is needed. */
  names: Map<string, string>;
  /** The stored names of the embedding and of an LM head that is stored though tied. */
  tied?: { embedding: string; head: string };
  /**
   * Set if there is no LM head, neither stored nor tied, and the names are those of a model
   * without one, such as an embedding model's.
   */
  headless?: boolean;
  /** Stored tensors that are not needed. */
  unused: string[];
  /** Tensors that only an index has and that are not needed. */
  lost: string[];
}

/** What transformers calls `base_model_prefix`: the model without its head has no prefix. */
const BASE = "model.";

/** Buffers that transformers used to save and computes itself. */
const COMPUTED = /(^|\.)rotary_emb\.inv_freq$/;

/**
 * Tensors beside `NAME.weight` that scale it or stand for it, and who writes them. The
 * first match counts.
 */
const QUANTISED: readonly [RegExp, string][] = [
  [/\.(qweight|qzeros|g_idx)$/, "GPTQ or AWQ"],
  [/\.weight_(packed|shape|zero_point|g_idx)$/, "compressed-tensors"],
  [/\.weight_scale_inv$/, "FP8 with a scale per block"],
  [/\.weight_scale(_2)?$/, "FP8, INT8 or FP4 with scales"],
  [
    /\.(SCB|weight\.(absmax|quant_map|quant_state\..*|nested_.*))$/,
    "bitsandbytes",
  ],
  [/\.(weight\._(data|scale|shift)|weight_qtype)$/, "Quanto"],
  [/\.(W_q|qmeta)$/, "HQQ"],
  [/\.scales$/, "MLX"],
  [/\.(base_layer\.weight|lora_(A|B)\..*)$/, "LoRA (not merged)"],
];
const SUSPECT = new RegExp(QUANTISED.map(([{ source }]) => source).join("|"));

/**
 * Finds the tensors that a model needs.
 *
 * Names may lack `model.`, as those of an embedding model do, and a tied embedding may
 * be stored as the LM head only: transformers accepts both.
 *
 * @param name of the checkpoint, for errors
 * @param stored shapes by the names in the files
 * @param promised files by tensors that an index wrongly puts there
 * @throws {Error} if tensors are missing or of the wrong shape, or the names show a
 * quantised form; the message names them
 */
export function selectTensors(
  name: string,
  config: Qwen3Config,
  stored: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  promised: ReadonlyMap<string, string> = new Map(),
): TensorSelection {
  const { family, shapes, embedding, head, all, aliases } = wantedBy(config);
  /** The tensor that a stored one is used as; undefined if it is not needed. */
  const neededName = (own: string): string | undefined => {
    if (all.has(own)) return own;
    const other = aliases.get(own);
    return other === undefined || stored.has(other) ? undefined : other;
  };

  const names = new Map<string, string>(), unused: string[] = [];
  for (const own of stored.keys()) {
    const needed = neededName(own);
    if (needed !== undefined) names.set(needed, own);
    else if (!COMPUTED.test(own)) unused.push(own);
  }
  refuseQuantised(name, config, unused);
  if (config.tieWordEmbeddings && !names.has(embedding.name)) {
    const swapped = names.get(head.name);
    if (swapped !== undefined) names.set(embedding.name, swapped);
    names.delete(head.name);
  }
  const missing = [...shapes.keys()].filter((tensor) => !names.has(tensor));
  const headless = missing.length === 1 && missing[0] === head.name &&
    names.get(embedding.name) === embedding.name.slice(BASE.length);
  if (missing.length > 0 && !headless) {
    const without = `it lacks ${
      listed(missing.map((tensor) => {
        const file = promised.get(tensor) ??
          promised.get(tensor.slice(BASE.length));
        return file === undefined ? tensor : `${tensor} (not in ${file})`;
      }))
    }`;
    const layers = `${family.name} with ${config.numHiddenLayers} layers`;
    throw new Error(
      missing.length === 1 && missing[0] === head.name
        ? `Cannot load ${name}: ${without} and config.json has tie_word_embeddings false: without a head there are no logits`
        : `Cannot load ${name}: ${without}${
          unused.length ? ` and it has unknown tensors ${listed(unused)}` : ""
        }, it must have the ${shapes.size} tensors of a ${layers}`,
    );
  }
  for (const [tensor, own] of names) {
    const shape = all.get(tensor)!, found = stored.get(own)!.shape;
    if (found.join() !== shape.join()) {
      throw new Error(
        `Cannot load ${name}: ${own} has shape [${
          quoted(found.join(", "))
        }], config.json requires [${shape.join(", ")}]`,
      );
    }
  }
  const stray = config.tieWordEmbeddings ? names.get(head.name) : undefined;
  const lost = [...promised.keys()].filter((own) =>
    neededName(own) === undefined
  );
  if (stray === undefined) return { names, headless, unused, lost };
  names.delete(head.name);
  const tied = { embedding: names.get(embedding.name)!, head: stray };
  return { names, tied, unused, lost };
}

/** The tensors of a configuration, and optional ones. */
function wantedBy(config: Qwen3Config) {
  const family = familyOf(config), table = family.weights(config);
  const shapes = tensorShapes(table);
  const untied = family.weights({ ...config, tieWordEmbeddings: false });
  const [embedding] = table.embedTokens.tensors;
  const [head] = untied.lmHead.tensors;
  const all = new Map(shapes).set(head.name, head.shape);
  const aliases = aliasesOf(all.keys());
  return { family, shapes, embedding, head, all, aliases };
}

/**
 * Tensors by their names with one `model.` more or less. Looking up stored names
 * this way creates no strings: a header may have millions.
 */
function aliasesOf(names: Iterable<string>): Map<string, string> {
  const aliases = new Map<string, string>();
  for (const name of names) {
    aliases.set(BASE + name, name);
    if (name.startsWith(BASE)) aliases.set(name.slice(BASE.length), name);
  }
  return aliases;
}

/**
 * @param stored names of tensors, in files or in an index
 * @throws {Error} if tensors belong to a quantised form of a weight
 */
export function refuseQuantised(
  name: string,
  config: Qwen3Config,
  stored: Iterable<string>,
): void {
  const { all, aliases } = wantedBy(config);
  for (const own of stored) {
    if (!SUSPECT.test(own)) continue;
    for (const [suffix, form] of QUANTISED) {
      const weight = own.replace(suffix, ".weight");
      if (weight === own) continue;
      if (!all.has(weight) && !aliases.has(weight)) continue;
      throw new Error(
        `Cannot load ${name}: ${
          quoted(own)
        } shows weights stored as ${form}, must be plain numbers`,
      );
    }
  }
}
