/**
 * Checkpoints of Qwen3's published sizes with computed weights, so that a machine can
 * be benchmarked without a download. Each weight depends on its tensor's name, its
 * index and a seed:
 *
 *     seed' = FNV-1a(name) + seed                              (mod 2³²)
 *     u[i]  = (fmix32(i + seed') >> 8) / 2²³ − 1               in [−1, 1)
 *     w[i]  = bf16(offset + scale · u[i])                      in f32, to nearest even
 *
 * FNV-1a: http://www.isthe.com/chongo/tech/comp/fnv; fmix32: lib/fmix32.ts.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { elements } from "../dtype.ts";
import { bf16 } from "../formats/bf16.ts";
import { fmix32 } from "../fmix32.ts";
import { familyOf } from "../model/families.ts";
import { listWeights, type WeightSpec } from "../model/family.ts";
import { checkRange } from "./sources.ts";

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
  { seed, scale, offset }: SyntheticRule,
  begin: number,
  into: Uint16Array,
) {
  const f32 = new Float32Array(1024);
  const bits = new Uint32Array(f32.buffer);
  for (let done = 0; done < into.length; done += f32.length) {
    const count = Math.min(f32.length, into.length - done);
    const first = (begin + done + seed) | 0;
    for (let i = 0; i < count; i++) {
      const u = (fmix32((first + i) | 0) >>> 8) * 2 ** -23 - 1; // exact in f32
      f32[i] = offset + Math.fround(scale * u); // rounds to f32 twice
    }
    for (let i = 0; i < count; i++) {
      const b = bits[i];
      into[done + i] = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
    }
  }
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
 * Opens `synthetic:qwen3-SIZE?seed=1&layers=N&vocab=N`. By default, the seed is 1, and
 * layers and vocabulary are as published.
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
    const last = others.pop();
    throw new Error(
      `Cannot open ${JSON.stringify(spec)}: try synthetic:qwen3-${smallest}, ${
        others.map((size) => `-${size}`).join(", ")
      } or -${last}`,
    );
  }
  const { seed, layers, vocab } = parameters(spec, query);
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
  return syntheticCheckpoint(spec, config, seed ?? 1);
}

/**
 * Creates a checkpoint of any configuration with synthetic weights, for tests and
 * benchmarks.
 */
export function syntheticCheckpoint(
  name: string,
  config: Qwen3Config,
  seed: number,
): Checkpoint {
  const tensors = new Map<string, TensorInfo>();
  const kinds = new Map<string, WeightSpec["kind"]>();
  for (const spec of listWeights(familyOf(config).weights(config))) {
    for (const { name, shape } of spec.tensors) {
      const byteLength = 2 * elements(shape);
      tensors.set(name, { name, format: bf16, shape: [...shape], byteLength });
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
      const { shape } = tensor!;
      const rule = syntheticRule(name, kinds.get(name)!, shape, seed);
      readBytes(rule, begin, into);
    },
    text: () => Promise.resolve(undefined),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/**
 * Computes any range of bytes, even one that begins or ends in the middle of a weight.
 */
function readBytes(rule: SyntheticRule, begin: number, into: Uint8Array) {
  if (begin % 2 === 0 && into.length % 2 === 0 && into.byteOffset % 2 === 0) {
    const weights = new Uint16Array(
      into.buffer,
      into.byteOffset,
      into.length / 2,
    );
    return fillSynthetic(rule, begin / 2, weights);
  }
  const first = Math.floor(begin / 2);
  const weights = new Uint16Array(Math.ceil((begin + into.length) / 2) - first);
  fillSynthetic(rule, first, weights);
  const skip = begin - 2 * first;
  into.set(new Uint8Array(weights.buffer, skip, into.length));
}

// The parameters, with the minimum and maximum of each.
const PARAMETERS = new Map([
  ["seed", [0, 2 ** 32 - 1]],
  ["layers", [1, 1000]],
  ["vocab", [1, 2 ** 24]],
]);

function parameters(
  spec: string,
  query = "",
): { seed?: number; layers?: number; vocab?: number } {
  const values: Record<string, number> = {};
  for (const [key, value] of new URLSearchParams(query)) {
    const range = PARAMETERS.get(key);
    if (range === undefined) {
      throw new Error(
        `Cannot open ${JSON.stringify(spec)}: it has no parameter ${
          JSON.stringify(key)
        }, only ${[...PARAMETERS.keys()].join(", ")}`,
      );
    }
    const [least, greatest] = range;
    const number = Number(value);
    if (!/^\d+$/.test(value) || number < least || number > greatest) {
      throw new Error(
        `Cannot open ${JSON.stringify(spec)}: ${key} is ${
          JSON.stringify(value)
        }, must be a whole number from ${least} to ${greatest}`,
      );
    }
    values[key] = number;
  }
  return values;
}

function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    hash = Math.imul(hash ^ byte, 0x01000193);
  }
  return hash >>> 0;
}
