/**
 * What is tuned for a model: each class of shapes that its passes have, in which
 * passes it is timed, and how its results are checked against the CPU.
 *
 * @module
 */
import type { Qwen3Config } from "../../checkpoint/config.ts";
import type { Gpu } from "../../webgpu/device.ts";
import {
  CONTEXT_CLASSES,
  FEW_ROW_CLASSES,
  FEW_ROWS,
  ROW_CLASSES,
} from "../../dispatch/shapes.ts";
import type { KvCache } from "../../model/kv_cache.ts";
import { chooseLinear } from "../../dispatch/linear.ts";
import { chooseDecodeAttention, CONTEXTS } from "../../dispatch/attention.ts";
import type { Ops } from "../../model/ops.ts";
import type { Layer, Weights } from "../../model/family.ts";
import type { Tensor } from "../../webgpu/tensor.ts";
import { type Candidate, tunedNames } from "./candidates.ts";
import {
  attendKey,
  linearKey,
  parseKey,
  type TunedKernel,
  type TuningTarget,
} from "../../dispatch/keys.ts";

/** One class of shapes. */
export interface TuneCase {
  key: string;
  target: TuningTarget;
  /** Which operations it is, as a model person names them. */
  labels: string[];
  /** What runs untuned. */
  now: Candidate;
  /** The pass in which it is timed: tokens, those cached before, and whether with the LM head. */
  rows: number;
  length: number;
  head: boolean;
  /** What is checked: for some rows, or after some numbers of cached tokens. */
  trials: Trial[];
}

/** The model that is tuned, as its cases see it. */
export interface TunedModel {
  readonly gpu: Gpu;
  readonly weights: Weights<Tensor>;
  readonly config: Qwen3Config;
  /** Positions that the cache has room for. */
  readonly context: number;
  readonly cacheDtype: "f16" | "f32";
  /** Rows of a prompt's pass, at most. */
  readonly mostRows: number;
}

/** One check: the same operations on GPU and CPU. */
export interface Trial {
  label: string;
  /** Rows of its inputs. */
  rows: number;
  /** Tokens cached before it. */
  length: number;
  /** Whether products or the cache are in f16. */
  half: boolean;
  /** Records the operations; their results. */
  run<T>(ops: Ops<T>, given: Given<T>): T[];
}

/** What a trial's operations read. */
export interface Given<T> {
  layer: Layer<T>;
  norm: T;
  lmHead: T;
  /** Rows of `hidden` values, to be embedded by `ids`. */
  table: T;
  ids: T;
  /** `[rows, heads · headDim]`, `[rows, intermediate]`, `[rows, (heads + 2 kvHeads) · headDim]` */
  attended: T;
  gated: T;
  qkv: T;
  cache: KvCache<T>;
}

type Linear = "qkv_proj" | "o_proj" | "gate_up_proj" | "down_proj" | "lm_head";

/** What each Linear layer does beside its product. `embed` leaves sums of squares, as a layer before would. */
function runLinear<T>(which: Linear, ops: Ops<T>, given: Given<T>): T[] {
  const { layer, norm, lmHead, table, ids, attended, gated } = given;
  const x = ops.embed(table, ids);
  if (which === "qkv_proj") {
    return [ops.normMatmul(x, layer.inputNorm, layer.qkvProj)];
  }
  if (which === "gate_up_proj") {
    return [ops.normSwiglu(x, layer.postNorm, layer.gateUpProj)];
  }
  if (which === "lm_head") return [ops.normMatmul(x, norm, lmHead)];
  const y = which === "o_proj"
    ? ops.matmulAdd(attended, layer.oProj, x)
    : ops.matmulAdd(gated, layer.downProj, x);
  // The next norm reads what this product left: sums of squares.
  return [y, ops.normMatmul(y, layer.inputNorm, layer.qkvProj)];
}

/** Every case of a model, the most frequent first; `notes` says what there is none for. */
export function casesOf(
  model: TunedModel,
  kernels: readonly TunedKernel[],
): { cases: TuneCase[]; notes: string[] } {
  const cases = new Map<string, TuneCase>(), notes: string[] = [];
  const { gpu, context, config, cacheDtype } = model;
  if (kernels.includes("gemv")) addLinear(cases, model, 1, 1);
  if (kernels.includes("attendDecode")) {
    const { headDim, numAttentionHeads, numKeyValueHeads } = config;
    const group = numAttentionHeads / numKeyValueHeads;
    const choices = chooseDecodeAttention({ headDim, group }, gpu);
    for (const [i, what] of CONTEXT_CLASSES.entries()) {
      const from = CONTEXTS[what];
      const to = CONTEXTS[CONTEXT_CLASSES[i + 1]] ?? Infinity;
      if (from > 0 && context <= from + 1) {
        notes.push(
          `attendDecode ${what}: contexts of ${from} tokens and more are not tuned, there is room for ${context}`,
        );
        continue;
      }
      const key = attendKey(what, headDim, group);
      const most = Math.min(from > 0 ? from + 400 : to, context);
      const lengths = from > 0
        ? [from, most - 2]
        : [0, 37, 130, most - 2].filter((length) => length < most - 1);
      cases.set(key, {
        key,
        target: parseKey(key)!,
        labels: [`attention, ${what} context`],
        now: pick("attendDecode", choices[i].constants),
        rows: 1,
        length: from > 0
          ? Math.min(4 * from, context - 1)
          : Math.min(to, context) / 2,
        head: false,
        // Each token's key and value are read by the one after it.
        trials: lengths.flatMap((length) => [length, length + 1]).map((
          length,
        ) => ({
          label: `attention after ${length} tokens`,
          rows: 1,
          length,
          half: cacheDtype === "f16",
          run: (ops, { qkv, layer, cache }) => [
            ops.attend(qkv, layer.qNorm, layer.kNorm, cache, 0),
          ],
        })),
      });
    }
  }
  const byClass = [
    ["gemvRows", FEW_ROW_CLASSES, 1],
    ["gemm", ROW_CLASSES, FEW_ROWS],
  ] as const;
  for (const [kernel, classes, below] of byClass) {
    if (!kernels.includes(kernel)) continue;
    for (const most of classes.toReversed()) {
      const fewer = classes[classes.indexOf(most) - 1] ?? below;
      const rows = Math.min(most, model.mostRows);
      if (rows > fewer) addLinear(cases, model, rows, fewer + 1);
      else notes.push(`${kernel}: there is no room for ${fewer + 1} rows`);
    }
  }
  return { cases: [...cases.values()], notes };
}

/** Linear layers of a pass of `rows` tokens, checked with `checked` rows of the same class. */
function addLinear(
  cases: Map<string, TuneCase>,
  { gpu, weights }: TunedModel,
  rows: number,
  checked: number,
) {
  const [layer] = weights.layers;
  const all: [Linear, Tensor][] = [
    ["qkv_proj", layer.qkvProj],
    ["gate_up_proj", layer.gateUpProj],
    ["down_proj", layer.downProj],
    ["o_proj", layer.oProj],
    ["lm_head", weights.lmHead],
  ];
  for (const [which, w] of all) {
    const head = which === "lm_head";
    if (head && rows > 1) continue; // logits are wanted for a prompt's last row only
    const [n, k, dtype] = [w.parts[0].rows, w.shape[1], w.dtype as "f32"];
    const swiglu = which === "gate_up_proj";
    const shape = { m: rows, n, k, dtype, swiglu, norm: false };
    const choice = chooseLinear({ ...shape, largest: w.largest }, gpu);
    const half = choice.headroom !== undefined;
    const key = linearKey(choice.kernel, shape, half);
    const trial: Trial = {
      label: which,
      rows: checked,
      length: 0,
      half,
      run: (ops, given) => runLinear(which, ops, given),
    };
    const known = cases.get(key);
    if (known) {
      known.labels.push(which);
      known.trials.push(trial);
      known.head ||= head;
      continue;
    }
    cases.set(key, {
      key,
      target: parseKey(key)!,
      labels: [which],
      now: pick(choice.kernel, choice.constants),
      rows,
      length: rows === 1 ? 64 : 0,
      head,
      trials: [trial],
    });
  }
}

/** The constants that tuning decides, of those that were chosen. */
function pick(
  kernel: TunedKernel,
  constants: Readonly<Record<string, number | string>>,
): Candidate {
  return Object.fromEntries(
    tunedNames(kernel).map((name) => [name, Number(constants[name])]),
  );
}
