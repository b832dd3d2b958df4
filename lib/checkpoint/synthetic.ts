/**
 * Checkpoints of Qwen3's published sizes with computed weights, so that a machine can
 * be benchmarked without a download. Each weight depends on its tensor's name, its
 * index and a seed:
 *
 *     seed' = FNV-1a(name) + seed                              (mod 2³²)
 *     u[i]  = (fmix32(i + seed') >> 8) / 2²³ − 1               in [−1, 1)
 *     w[i]  = bf16(offset + scale · u[i])                      in f32, to nearest even
 *
 * In f16 and f32, w[i] is rounded to these. A tensor of quantised blocks consists of the
 * words fmix32(i + seed'), except that each block's f16 scale is a constant that makes the
 * root mean square of the weights about scale / √3, as above. The scale keeps its random
 * sign; a minimum makes the mean zero.
 *
 * FNV-1a: http://www.isthe.com/chongo/tech/comp/fnv; fmix32: lib/fmix32.ts.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { elements, f32ToF16Bits } from "../dtype.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { setScales } from "../formats/random_blocks.ts";
import { fmix32 } from "../fmix32.ts";
import { familyOf } from "../model/families.ts";
import { listWeights, type WeightSpec } from "../model/family.ts";
import { checkRange } from "./sources.ts";
import { SYNTHETIC_DTYPES, syntheticFormat } from "./synthetic_types.ts";

type Size =
  & Pick<
    Qwen3Config,
    "hiddenSize" | "intermediateSize" | "numHiddenLayers" | "numAttentionHeads"
  >
  & Partial<Qwen3Config>;

// The published checkpoints; those up to 4B tie the LM head to the embedding.
// deno-fmt-ignore
const SIZES = new Map<string, Size>([
  ["0.6b", { hiddenSize: 1024, intermediateSize: 3072, numHiddenLayers: 28, numAttentionHeads: 16 }],
  ["1.7b", { hiddenSize: 2048, intermediateSize: 6144, numHiddenLayers: 28, numAttentionHeads: 16 }],
  ["4b", { hiddenSize: 2560, intermediateSize: 9728, numHiddenLayers: 36, numAttentionHeads: 32 }],
  ["8b", { hiddenSize: 4096, intermediateSize: 12288, numHiddenLayers: 36, numAttentionHeads: 32 }],
  ["14b", { hiddenSize: 5120, intermediateSize: 17408, numHiddenLayers: 40, numAttentionHeads: 40 }],
  ["32b", { hiddenSize: 5120, intermediateSize: 25600, numHiddenLayers: 64, numAttentionHeads: 64 }],
  ["30b-a3b", { modelType: "qwen3_moe", hiddenSize: 2048, intermediateSize: 6144, numHiddenLayers: 48, numAttentionHeads: 32, numKeyValueHeads: 4, experts: { count: 128, used: 8, intermediateSize: 768, normalized: true, denseLayers: [] } }],
]);
/** The sizes that there are, as in `0.6b`. */
export const SYNTHETIC_SIZES: readonly string[] = [...SIZES.keys()];
const TIED = ["0.6b", "1.7b", "4b"];

/** How a synthetic tensor is computed: `bf16(offset + scale · u[i])`. */
export interface SyntheticRule {
  /** `seed'`, a u32 that is added to the index before hashing. */
  seed: number;
  /** The factor of `u[i]`; an f32. */
  scale: number;
  offset: 0 | 1;
}

/**
 * Returns the rule for one tensor. Its weights are computed here or by a kernel.
 *
 * @param kind of the weight that the tensor is part of
 * @param shape as stored: `[rows, columns]` or, for a norm, `[size]`
 * @param seed the checkpoint's seed, a u32
 */
export function syntheticRule(
  name: string,
  kind: WeightSpec["kind"],
  shape: readonly number[],
  seed: number,
): SyntheticRule {
  const own = (fnv1a(name) + seed) >>> 0;
  const rule = (scale: number, offset: 0 | 1) => ({
    seed: own,
    scale: Math.fround(scale),
    offset,
  });
  if (kind === "norm") return rule(0.1, 1);
  if (kind === "embedding") return rule(0.035, 0);
  // Multiplied in the same order as the reference, because each step rounds to float64.
  return rule(1.2 * Math.sqrt(3 / shape[1]) * 0.5, 0);
}

/**
 * Computes weights `begin` to `begin + into.length` of a tensor, as bf16 bits.
 *
 * ```ts
 * import { fillSynthetic, syntheticRule } from "./synthetic.ts";
 *
 * const rule = syntheticRule("model.norm.weight", "norm", [1024], 1);
 * const weights = new Uint16Array(4);
 * fillSynthetic(rule, 0, weights);
 * ```
 */
export function fillSynthetic(
  rule: SyntheticRule,
  begin: number,
  into: Uint16Array,
) {
  const f32 = new Float32Array(1024);
  const bits = new Uint32Array(f32.buffer);
  for (let done = 0; done < into.length; done += f32.length) {
    const count = Math.min(f32.length, into.length - done);
    fillValues(rule, begin + done, f32.subarray(0, count));
    for (let i = 0; i < count; i++) {
      const b = bits[i];
      into[done + i] = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
    }
  }
}

/** Computes weights from `begin` on, in f32. */
function fillValues(
  { seed, scale, offset }: SyntheticRule,
  begin: number,
  into: Float32Array,
) {
  const first = (begin + seed) | 0;
  for (let i = 0; i < into.length; i++) {
    const u = (fmix32((first + i) | 0) >>> 8) * 2 ** -23 - 1; // exact in f32
    into[i] = offset + Math.fround(scale * u); // rounds to f32 twice
  }
}

/** Computes whole blocks in bytes `begin` to `begin + into.length`, both whole words. */
function fillBlocks(
  { seed, scale }: SyntheticRule,
  format: Format,
  begin: number,
  into: Uint8Array,
) {
  const words = new Uint32Array(into.buffer, into.byteOffset, into.length / 4);
  const first = (begin / 4 + seed) | 0;
  for (let i = 0; i < words.length; i++) words[i] = fmix32((first + i) | 0);
  const size = scale / Math.sqrt(3);
  setScales(format, into, () => size, true);
}

/**
 * Generates token ids for benchmarks and tests:
 * `fmix32(i + (seed + count) · 7919) mod vocab`.
 *
 * @returns ids in [0, vocab), `[count]`
 */
export function syntheticTokens(
  seed: number,
  count: number,
  vocab: number,
): Uint32Array<ArrayBuffer> {
  const start = Math.imul(seed + count, 7919);
  return Uint32Array.from(
    { length: count },
    (_, i) => fmix32((i + start) | 0) % vocab,
  );
}

/**
 * Opens `synthetic:qwen3-SIZE?seed=1&layers=N&vocab=N&dtype=bf16`. By default, the seed is
 * 1, and layers and vocabulary are as published. `dtype` is a format, such as `q8_0`, or
 * one of llama.cpp's mixtures, `q4_k_m` and `q5_k_m`; see synthetic_types.ts.
 *
 * ```ts
 * import { parseSynthetic } from "./synthetic.ts";
 *
 * const { config } = parseSynthetic("synthetic:qwen3-0.6b?layers=2");
 * console.log(config.hiddenSize, config.numHiddenLayers); // 1024 2
 * ```
 *
 * @throws {Error} if the size or a parameter is unknown, or a value is out of range
 */
export function parseSynthetic(spec: string): Checkpoint {
  const [, size, query] =
    /^synthetic:qwen3-([^?]*)(?:\?(.*))?$/i.exec(spec.trim()) ?? [];
  const shape = SIZES.get(size?.toLowerCase());
  if (shape === undefined) {
    const [smallest, ...others] = SIZES.keys();
    throw new Error(
      `Cannot open ${JSON.stringify(spec)}: try synthetic:qwen3-${smallest} (${
        others.join(", ")
      })`,
    );
  }
  const { seed, layers, vocab, dtype } = parameters(spec, query);
  const config: Qwen3Config = {
    modelType: "qwen3",
    numKeyValueHeads: 8,
    ...shape,
    numHiddenLayers: layers ?? shape.numHiddenLayers,
    vocabSize: vocab ?? 151936,
    headDim: 128,
    maxPositionEmbeddings: 40960,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: TIED.includes(size.toLowerCase()),
    bosTokenId: null,
    eosTokenIds: [],
  };
  return syntheticCheckpoint(spec, config, seed ?? 1, dtype);
}

/**
 * Creates a checkpoint of any configuration with synthetic weights, for tests and
 * benchmarks.
 *
 * @param dtype one of {@linkcode SYNTHETIC_DTYPES}
 */
export function syntheticCheckpoint(
  name: string,
  config: Qwen3Config,
  seed: number,
  dtype = "bf16",
): Checkpoint {
  const tensors = new Map<string, TensorInfo>();
  const kinds = new Map<string, WeightSpec["kind"]>();
  for (const spec of listWeights(familyOf(config).weights(config))) {
    for (const { name, shape } of spec.tensors) {
      const format = syntheticFormat(dtype, name, spec.kind, config);
      const byteLength = storedRowBytes(format, elements(shape));
      tensors.set(name, { name, format, shape: [...shape], byteLength });
      kinds.set(name, spec.kind);
    }
  }
  return {
    name,
    location: name,
    config,
    generation: {},
    tensors,
    notices: [],
    synthetic: { seed },
    // deno-lint-ignore require-await
    async read(name, begin, into) {
      const tensor = tensors.get(name);
      checkRange(name, tensor?.byteLength, begin, into.length);
      const { shape, format } = tensor!;
      const rule = syntheticRule(name, kinds.get(name)!, shape, seed);
      readBytes(rule, format, begin, into);
    },
    text: () => Promise.resolve(undefined),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/**
 * Computes any range of bytes, even one that begins or ends in the middle of a weight.
 */
function readBytes(
  rule: SyntheticRule,
  format: Format,
  begin: number,
  into: Uint8Array,
) {
  const whole = 4 * format.bytes, end = begin + into.length;
  const first = Math.floor(begin / whole) * whole;
  const last = Math.ceil(end / whole) * whole;
  if (first === begin && last === end && into.byteOffset % 4 === 0) {
    return fillBytes(rule, format, begin, into);
  }
  const bytes = new Uint8Array(last - first);
  fillBytes(rule, format, first, bytes);
  into.set(bytes.subarray(begin - first, end - first));
}

/** Computes bytes from `begin` on, in whole words and weights or blocks. */
function fillBytes(
  rule: SyntheticRule,
  format: Format,
  begin: number,
  into: Uint8Array,
) {
  if (format.elements > 1) return fillBlocks(rule, format, begin, into);
  const { buffer, byteOffset } = into, count = into.length / format.bytes;
  const first = begin / format.bytes;
  if (format.name === "bf16") {
    return fillSynthetic(
      rule,
      first,
      new Uint16Array(buffer, byteOffset, count),
    );
  }
  const values = format.name === "f32"
    ? new Float32Array(buffer, byteOffset, count)
    : new Float32Array(count);
  fillValues(rule, first, values);
  if (format.name === "f32") return;
  const halves = new Uint16Array(buffer, byteOffset, count);
  for (let i = 0; i < count; i++) halves[i] = f32ToF16Bits(values[i]);
}

// The parameters that are numbers, with the minimum and maximum of each.
const PARAMETERS = new Map([
  ["seed", [0, 2 ** 32 - 1]],
  ["layers", [1, 1000]],
  ["vocab", [1, 2 ** 24]],
]);

interface Parameters {
  seed?: number;
  layers?: number;
  vocab?: number;
  dtype?: string;
}

function parameters(spec: string, query = ""): Parameters {
  const refused = (what: string) =>
    new Error(`Cannot open ${JSON.stringify(spec)}: ${what}`);
  const values: Record<string, number> = {};
  let dtype: string | undefined;
  for (const [key, value] of new URLSearchParams(query)) {
    const text = JSON.stringify(value);
    if (key === "dtype") {
      dtype = value.toLowerCase();
      if (SYNTHETIC_DTYPES.includes(dtype)) continue;
      throw refused(
        `dtype is ${text}, must be one of ${SYNTHETIC_DTYPES.join(", ")}`,
      );
    }
    const range = PARAMETERS.get(key);
    if (range === undefined) {
      throw refused(
        `it has no parameter ${JSON.stringify(key)}, only ${
          [...PARAMETERS.keys(), "dtype"].join(", ")
        }`,
      );
    }
    const [least, greatest] = range;
    const number = Number(value);
    if (!/^\d+$/.test(value) || number < least || number > greatest) {
      throw refused(
        `${key} is ${text}, must be a whole number from ${least} to ${greatest}`,
      );
    }
    values[key] = number;
  }
  return { ...values, dtype };
}

function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  return hash >>> 0;
}
