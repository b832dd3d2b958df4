/**
 * The model families, looked up by `model_type`. To add one, write its file and list it
 * here.
 *
 * @module
 */
import { ConfigFields, type Qwen3Config } from "../checkpoint/config.ts";
import { jsonText, listed } from "../errors.ts";
import type { Family } from "./family.ts";
import { qwen3 } from "./qwen3.ts";
import { qwen3Moe } from "./qwen3_moe.ts";

const FAMILIES: readonly Family[] = [qwen3, qwen3Moe];

/** Returns the family of a parsed configuration. */
export function familyOf({ modelType }: Qwen3Config): Family {
  const family = FAMILIES.find((family) => family.modelType === modelType);
  if (family) return family;
  throw new Error(
    `Cannot use a model: its model_type is ${
      JSON.stringify(modelType)
    }, must be ${KNOWN}`,
  );
}

/**
 * Interprets a parsed `config.json` as the family that its `model_type` names. Absent
 * fields get the same defaults as in transformers.
 *
 * ```ts
 * import { parseConfig } from "./families.ts";
 *
 * const config = parseConfig({
 *   model_type: "qwen3",
 *   vocab_size: 151936,
 *   hidden_size: 1024,
 *   intermediate_size: 3072,
 *   num_hidden_layers: 28,
 *   num_attention_heads: 16,
 *   num_key_value_heads: 8,
 *   max_position_embeddings: 40960,
 *   rope_theta: 1e6,
 *   rope_scaling: null,
 *   eos_token_id: [151645, 151643],
 * }, "config.json");
 * console.log(config.headDim); // 128
 * ```
 *
 * @param json what JSON.parse returned
 * @param where the file, for errors
 * @throws {Error} if the family is not supported, a size is missing or wrong, or the
 * model needs a feature that is not implemented here
 */
export function parseConfig(json: unknown, where: string): Qwen3Config {
  const fields: ConfigFields = ConfigFields.of(json, where);
  const type = fields.values.model_type;
  const family = FAMILIES.find(({ modelType }) => modelType === type);
  if (family) return family.parseConfig(fields);
  const hint = type === undefined
    ? `; its fields are ${listed(Object.keys(fields.values)) || "none"}`
    : "";
  fields.refuse("model_type", KNOWN + hint);
}

/**
 * Returns the family that a GGUF file's `general.architecture` names.
 *
 * @param where the file, for errors
 * @throws {Error} if it is not supported
 */
export function familyOfGguf(architecture: unknown, where: string): Family {
  const family = FAMILIES.find(({ gguf }) =>
    gguf.architecture === architecture
  );
  if (family) return family;
  const key = "general.architecture";
  if (architecture === undefined) {
    throw new Error(`Cannot use ${where}: it has no ${key}`);
  }
  const known = FAMILIES.map(({ gguf }) => JSON.stringify(gguf.architecture));
  throw new Error(
    `Cannot use ${where}: ${key} is ${jsonText(architecture)}, must be ${
      known.join(" or ")
    }`,
  );
}

const KNOWN = FAMILIES.map(({ modelType }) => JSON.stringify(modelType))
  .join(" or ");
