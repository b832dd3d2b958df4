/**
 * Which format each tensor of a model gets when it is quantised: llama.cpp's rules, so
 * that a name means the same in both.
 *
 * @module
 */
import { type Checkpoint, CLASSIFIER, type TensorInfo } from "./checkpoint.ts";
import { described } from "../errors.ts";
import type { Format } from "../formats/format.ts";
import { formatNamed } from "../formats/mod.ts";
import { familyOf } from "../model/families.ts";

/** A way to quantise a model. */
export interface Quantization {
  /** Its name in options, such as `q4_k_m`. */
  readonly name: string;
  /** The code that files have as `general.file_type`; llama.cpp's. */
  readonly fileType: number;
  /** The format of most matrices. */
  readonly most: string;
  /** The format of the LM head, or of the embedding that serves as one. */
  readonly head: string;
  /** The format of the matrices that matter most; `most` if that is absent. */
  readonly more?: string;
}

const quantization = (
  name: string,
  fileType: number,
  head = "q6_k",
  most = name,
  more?: string,
): Quantization => ({ name, fileType, most, head, more });

/** What `--quantize` takes. */
export const QUANTIZATIONS: readonly Quantization[] = [
  quantization("q8_0", 7, "q8_0"),
  quantization("q6_k", 18),
  quantization("q5_k_m", 17, "q6_k", "q5_k", "q6_k"),
  quantization("q5_k", 16),
  quantization("q5_1", 9),
  quantization("q5_0", 8),
  quantization("q4_k_m", 15, "q6_k", "q4_k", "q6_k"),
  quantization("q4_k", 14),
  quantization("q4_1", 3),
  quantization("q4_0", 2),
  quantization("q3_k", 11),
  quantization("q2_k", 10),
];

/** What a file can hold besides: numbers that are not quantised. */
export const PLAIN: readonly Quantization[] = [
  quantization("bf16", 32, "bf16"),
  quantization("f16", 1, "f16"),
  quantization("f32", 0, "f32"),
];

/** The names of quantisations, for messages and help. */
export const quantizationNames = (
  among: readonly Quantization[] = QUANTIZATIONS,
): string => among.map(({ name }) => name).join(", ");

/** Finds a quantisation by its name in any case; undefined if there is none. */
export function quantizationNamed(
  name: string,
  among: readonly Quantization[] = QUANTIZATIONS,
): Quantization | undefined {
  return among.find((one) => one.name === name.toLowerCase());
}

/** Formats for rows that are not whole blocks of 256. */
const OF_32: Readonly<Record<string, string>> = {
  q6_k: "q8_0",
  q5_k: "q5_1",
  q4_k: "q5_0",
  q3_k: "q4_0",
  q2_k: "q4_0",
};

/** The format itself, or the next that rows of `k` elements are whole blocks of. */
function fitting(name: string, k: number): Format {
  const format = formatNamed(name);
  if (k % format.elements === 0) return format;
  const other = OF_32[name];
  return formatNamed(other !== undefined && k % 32 === 0 ? other : "f16");
}

/** Matrices whose errors matter most, in {@linkcode matters} of the layers. */
const SENSITIVE = /^blk\.(\d+)\.(attn_v|ffn_down(_exps)?)\.weight$/;
/** Routers of experts, whose errors would change which are used. */
const ROUTER = /\.ffn_gate_inp\./;

/** The first and the last eighth of the layers, and every third between. */
export function matters(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor(7 * layers / 8) ||
    (layer - eighth) % 3 === 2;
}

/**
 * The formats of tensors that change, by name. Vectors, routers and a reranker's
 * classifier stay as they are.
 *
 * @throws {Error} if tensors are quantised already
 */
export function quantizedFormats(
  { name, config, tensors }: Pick<Checkpoint, "name" | "config" | "tensors">,
  { name: type, most, head, more = most }: Quantization,
): Map<string, Format> {
  const { gguf } = familyOf(config), layers = config.numHiddenLayers;
  const headName = config.tieWordEmbeddings ? gguf.embedding : gguf.head;
  const formats = new Map<string, Format>();
  for (const info of tensors.values()) {
    const own = gguf.tensor(info.name);
    if (!isMatrix(info, own)) continue;
    const [, layer] = SENSITIVE.exec(own) ?? [];
    const wanted = own === headName
      ? head
      : layer !== undefined && matters(Number(layer), layers)
      ? more
      : most;
    const format = fitting(wanted, info.shape.at(-1)!);
    if (info.format === format) continue;
    if (info.format.elements > 1) {
      throw new Error(
        `Cannot quantise ${name} as ${type}: ${own} is stored as ${info.format.name} already, must be bf16, f16 or f32`,
      );
    }
    formats.set(info.name, format);
  }
  return formats;
}

/** Whether a tensor is quantised, by its name in GGUF files. */
export const isMatrix = ({ name, shape }: TensorInfo, own: string): boolean =>
  shape.length > 1 && name !== CLASSIFIER && !ROUTER.test(own);

/** What a name that is not one must be, for messages: such as those that it may mean. */
export function likely(
  name: string,
  among: readonly Quantization[] = QUANTIZATIONS,
): string {
  const begin = name.toLowerCase().slice(0, 2);
  const close = among.filter((one) => one.name.startsWith(begin));
  const isClose = close.length > 0 && close.length < among.length;
  return `such as ${isClose ? quantizationNames(close) : "q8_0, q4_k_m"}`;
}

/** The rest of a message about a name that is not one. */
export const notOneOf = (
  name: string,
  among: readonly Quantization[] = QUANTIZATIONS,
): string => `${described(name)}, must be ${likely(name, among)}`;

/**
 * The formats of tensors that change in a GGUF file, where vectors and routers are f32.
 *
 * @throws {Error} as {@linkcode quantizedFormats}
 */
export function fileFormats(
  checkpoint: Pick<Checkpoint, "name" | "config" | "tensors">,
  way: Quantization,
): Map<string, Format> {
  const formats = quantizedFormats(checkpoint, way), f32 = formatNamed("f32");
  const { gguf } = familyOf(checkpoint.config);
  for (const info of checkpoint.tensors.values()) {
    const isOther = !isMatrix(info, gguf.tensor(info.name));
    if (isOther && info.format !== f32) formats.set(info.name, f32);
  }
  return formats;
}
