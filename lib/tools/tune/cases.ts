/**
 * What is tuned for a model: each class of shapes in its passes, the pass in which it
 * is timed, and how its results are checked against the CPU.
 *
 * @module
 */
import type { CacheDtype } from "../../formats/cached.ts";
import type { Format } from "../../formats/format.ts";
import { type Matrix, rowsHeld } from "../../formats/matrix.ts";
import { TUNED_KERNELS } from "../../../kernels/list.ts";
import type { Qwen3Config } from "../../checkpoint/config.ts";
import type { Gpu } from "../../webgpu/device.ts";
import {
  type Constants,
  CONTEXT_CLASSES,
  FEW_ROW_CLASSES,
  FEW_ROWS,
  ROW_CLASSES,
} from "../../dispatch/shapes.ts";
import type { KvCache } from "../../model/kv_cache.ts";
import { chooseLinear } from "../../dispatch/linear.ts";
import { chooseDecodeAttention, CONTEXTS } from "../../dispatch/attention.ts";
import {
  chooseExpertGemm,
  chooseExpertGemv,
  groupsRows,
  groupTile,
} from "../../dispatch/experts.ts";
import type { Ops } from "../../model/ops.ts";
import type { Layer, Weights } from "../../model/family.ts";
import type { Tensor } from "../../webgpu/tensor.ts";
import {
  attendKey,
  expertKey,
  linearKey,
  parseKey,
  type TuningTarget,
} from "../../dispatch/keys.ts";
import type { Candidate, Tunable } from "../../dispatch/limits.ts";
import { tunedConstants } from "./candidates.ts";

/** A class of shapes. */
export interface TuneCase {
  key: string;
  kernel: Tunable;
  target: TuningTarget;
  /** The operations it covers, as model code names them. */
  labels: string[];
  /** The default. */
  now: Candidate;
  /** The pass in which it is timed: its tokens, the tokens cached before it, and whether it ends with the LM head. */
  rows: number;
  length: number;
  head: boolean;
  checks: Check[];
}

/** The part of a tuned model that its cases depend on. */
export interface TunedModel {
  readonly gpu: Gpu;
  readonly weights: Weights<Matrix<Tensor>>;
  /** How many of its layers, the first ones, store their weights differently. */
  readonly kinds: number;
  readonly config: Qwen3Config;
  /** Positions that the cache has room for. */
  readonly context: number;
  readonly cacheDtype: CacheDtype;
  /** Most rows in a pass of a prompt. */
  readonly mostRows: number;
}

/** Operations that run on the GPU and on the CPU. */
export interface Check {
  label: string;
  /** Which of the loaded layers they are of. */
  layer: number;
  /** Rows of its inputs. */
  rows: number;
  /** Tokens cached before it. */
  length: number;
  /** The coarsest type that the matmul or the cache rounds to. */
  rounded: CacheDtype;
  /** Records the operations and returns their results. */
  run<T>(ops: Ops<T>, given: Given<T>): T[];
}

/** Inputs of a check's operations. */
export interface Given<T> {
  layer: Layer<Matrix<T>>;
  norm: Matrix<T>;
  lmHead: Matrix<T>;
  /** Rows of `hidden` values that `ids` select. */
  table: Matrix<T>;
  ids: T;
  /** `[rows, heads · headDim]`, `[rows, intermediate]`, `[rows, (heads + 2 kvHeads) · headDim]` */
  attended: T;
  gated: T;
  qkv: T;
  /** `[rows, experts]`, and `[rows · used, width of an expert]`; one column without experts. */
  scores: T;
  parted: T;
  cache: KvCache<T>;
}

type Linear = "qkv_proj" | "o_proj" | "gate_up_proj" | "down_proj" | "lm_head";

/**
 * A Linear layer with what is fused around it. `embed` leaves the sums of squares that
 * the layer before would leave.
 */
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
  // The next norm reads the sums of squares that this matmul left.
  return [y, ops.normMatmul(y, layer.inputNorm, layer.qkvProj)];
}

/** A Linear layer of experts with what is fused around it. */
function runExperts<T>(
  which: "gate_up_proj" | "down_proj",
  ops: Ops<T>,
  { layer, table, ids, scores, parted }: Given<T>,
): T[] {
  const x = ops.embed(table, ids), chosen = ops.chooseExperts(scores);
  if (which === "gate_up_proj") {
    return [ops.expertsSwiglu(x, layer.postNorm, layer.gateUpProj, chosen)];
  }
  const y = ops.expertsAdd(parted, layer.downProj, chosen, x);
  return [y, ops.normMatmul(y, layer.inputNorm, layer.qkvProj)];
}

/** Every case of a model, the most frequent first; `notes` says which have none. */
export function casesOf(
  model: TunedModel,
  kernels: readonly string[],
): { cases: TuneCase[]; notes: string[] } {
  const cases = new Map<string, TuneCase>(), notes: string[] = [];
  const asked = (name: string) =>
    kernels.includes(name)
      ? TUNED_KERNELS.find((kernel) => kernel.name === name)
      : undefined;
  const attend = asked("attendDecode");
  for (const kernel of [asked("gemv"), asked("gemvInt8")]) {
    if (kernel) addLinear(cases, model, kernel, 1, 1);
  }
  for (const name of ["expertGemv", "expertGemvInt8"]) {
    const kernel = asked(name);
    if (kernel) addExperts(cases, model, kernel, 1, 1);
  }
  if (attend) addAttention(cases, notes, model, attend);
  // Classes of rows, and the rows below the first.
  const byRows = [
    ["gemvRows", FEW_ROW_CLASSES, 1],
    ["gemvRowsInt8", FEW_ROW_CLASSES, 1],
    ["gemm", ROW_CLASSES, FEW_ROWS],
    ["gemmMatrix", ROW_CLASSES, FEW_ROWS],
  ] as const;
  for (const [name, classes, below] of byRows) {
    const kernel = asked(name);
    if (!kernel) continue;
    for (const most of classes.toReversed()) {
      const fewer = classes[classes.indexOf(most) - 1] ?? below;
      const rows = Math.min(most, model.mostRows);
      if (rows > fewer) addLinear(cases, model, kernel, rows, fewer + 1);
      else notes.push(`${name}: there is no room for ${fewer + 1} rows`);
    }
  }
  for (const name of ["expertGemm", "expertGemmMatrix"]) {
    const grouped = asked(name);
    for (const [rows, fewest] of grouped ? groupedPasses(model) : []) {
      addExperts(cases, model, grouped!, rows, fewest);
    }
  }
  return { cases: [...cases.values()], notes };
}

/** The most and the fewest rows of passes that group rows by expert, by their tiles. */
function groupedPasses(
  { config: { experts }, mostRows }: TunedModel,
): [most: number, fewest: number][] {
  if (!experts) return [];
  const { count, used } = experts;
  const passes = new Map<number, [most: number, fewest: number]>();
  for (let rows = 1; rows <= mostRows; rows++) {
    if (!groupsRows(rows, experts)) continue;
    const tile = groupTile(rows * used, count);
    passes.set(tile, [rows, passes.get(tile)?.[1] ?? rows]);
  }
  return [...passes.values()].reverse();
}

/** Linear layers of experts, in passes of `rows` tokens; checked with `checked` rows. */
function addExperts(
  cases: Map<string, TuneCase>,
  { gpu, weights, kinds, config }: TunedModel,
  kernel: Tunable,
  rows: number,
  checked: number,
) {
  const { experts, hiddenSize } = config;
  if (!experts) return;
  const { count, used, intermediateSize } = experts;
  for (const [layer, own] of weights.layers.slice(0, kinds).entries()) {
    if (!own.router) continue;
    for (
      const [which, w, n] of [
        ["gate_up_proj", own.gateUpProj, intermediateSize],
        ["down_proj", own.downProj, hiddenSize],
      ] as const
    ) {
      for (const { format, twin } of w.parts) {
        const swiglu = which === "gate_up_proj";
        // Gates and ups in different types are rare, and are not tuned.
        if (rows === 1 && swiglu && twin === undefined) continue;
        const found = expertChoice(kernel, {
          ...{ rows, used, count, n, k: w.k, format, largest: w.largest },
          swiglu,
        }, gpu);
        if (found === undefined) continue;
        const { key, constants, half } = found;
        const check: Check = {
          label: which,
          layer,
          rows: checked,
          length: 0,
          rounded: half ? "f16" : "f32",
          run: (ops, given) => runExperts(which, ops, given),
        };
        addCheck(cases, key, check, { kernel, constants, rows });
      }
    }
  }
}

/** What runs a Linear layer of experts; undefined if it is another kernel. */
function expertChoice(
  { name }: Tunable,
  { rows, used, count, swiglu, ...shape }: {
    rows: number;
    used: number;
    count: number;
    n: number;
    k: number;
    format: Format;
    largest?: number;
    swiglu: boolean;
  },
  gpu: Gpu,
): { key: string; constants: Constants; half: boolean } | undefined {
  if (name === "expertGemm" || name === "expertGemmMatrix") {
    const pairs = rows * used;
    const choice = chooseExpertGemm({ ...shape, pairs, experts: count }, gpu);
    if (choice.kernel !== name) return undefined;
    const { constants, headroom } = choice, half = headroom !== undefined;
    const tile = { ...shape, m: Number(constants.BM), swiglu: false };
    return { key: expertKey(name, tile, half), constants, half };
  }
  const epilogue = swiglu ? "swiglu" : "add";
  const { kernel, constants } = chooseExpertGemv(
    { ...shape, m: rows, used, epilogue },
    gpu,
  );
  if (kernel !== name) return undefined;
  const key = expertKey(kernel, { ...shape, m: used, swiglu });
  return { key, constants, half: false };
}

/** Attention of a decode step, for each class of contexts. */
function addAttention(
  cases: Map<string, TuneCase>,
  notes: string[],
  { gpu, context, config, cacheDtype }: TunedModel,
  kernel: Tunable,
) {
  const { headDim, numAttentionHeads, numKeyValueHeads } = config;
  const group = numAttentionHeads / numKeyValueHeads;
  const shape = {
    ...{ headDim, group, kvHeads: numKeyValueHeads },
    cache: cacheDtype,
  };
  const choices = chooseDecodeAttention(shape, gpu);
  for (const [i, what] of CONTEXT_CLASSES.entries()) {
    const from = CONTEXTS[what];
    const to = CONTEXTS[CONTEXT_CLASSES[i + 1]] ?? Infinity;
    if (from > 0 && context <= from + 1) {
      notes.push(
        `${kernel.name} ${what}: contexts of ${from} tokens and more are not tuned, the cache has room for ${context}`,
      );
      continue;
    }
    const key = attendKey(what, headDim, group, cacheDtype);
    const most = Math.min(from > 0 ? from + 400 : to, context);
    const lengths = from > 0
      ? [from, most - 2]
      : [0, 37, 130, most - 2].filter((length) => length < most - 1);
    cases.set(key, {
      key,
      kernel,
      target: parseKey(key)!,
      labels: [`attention, ${what} context`],
      now: tunedConstants(kernel, choices[i].constants),
      rows: 1,
      length: from > 0
        ? Math.min(4 * from, context - 1)
        : Math.min(to, context) / 2,
      head: false,
      // Each token's key and value are read by the one after it.
      checks: lengths.flatMap((length) => [length, length + 1]).map((
        length,
      ) => ({
        label: `attention after ${length} tokens`,
        layer: 0,
        rows: 1,
        length,
        rounded: cacheDtype,
        run: (ops, { qkv, layer, cache }) => [
          ops.attend(qkv, layer.qNorm, layer.kNorm, cache, 0),
        ],
      })),
    });
  }
}

/** Linear layers of a pass of `rows` tokens, checked with `checked` rows of the same class. */
function addLinear(
  cases: Map<string, TuneCase>,
  { gpu, weights, kinds }: TunedModel,
  kernel: Tunable,
  rows: number,
  checked: number,
) {
  const head: Linearity = { which: "lm_head", w: weights.lmHead, layer: 0 };
  const all = weights.layers.slice(0, kinds).flatMap((own, layer) =>
    ([
      ["qkv_proj", own.qkvProj],
      // Experts have kernels of their own.
      ["gate_up_proj", own.router ? undefined : own.gateUpProj],
      ["down_proj", own.router ? undefined : own.downProj],
      ["o_proj", own.oProj],
    ] as const).flatMap(([which, w]): Linearity[] =>
      w ? [{ which, w, layer }] : []
    )
  );
  // A prompt needs the logits of its last row only.
  if (rows === 1) all.push(head);
  for (const { which, w, layer } of all) {
    for (const part of w.parts) {
      const n = rowsHeld(part), { format } = part;
      const swiglu = which === "gate_up_proj";
      const shape = { m: rows, n, k: w.k, format, swiglu, norm: false };
      const { largest, exact } = w;
      const choice = chooseLinear({ ...shape, largest, exact }, gpu);
      if (choice.kernel !== kernel.name) continue; // another kernel of few rows
      const half = choice.headroom !== undefined;
      const key = linearKey(choice.kernel, shape, half);
      const check: Check = {
        label: which,
        layer,
        rows: checked,
        length: 0,
        rounded: half ? "f16" : "f32",
        run: (ops, given) => runLinear(which, ops, given),
      };
      const { constants } = choice;
      addCheck(cases, key, check, { kernel, constants, rows });
      cases.get(key)!.head ||= which === "lm_head";
    }
  }
}

/** Adds a check to the case of `key`, unless that has one with this label. */
function addCheck(
  cases: Map<string, TuneCase>,
  key: string,
  check: Check,
  { kernel, constants, rows }: {
    kernel: Tunable;
    constants: Constants;
    rows: number;
  },
): void {
  const known = cases.get(key), { label } = check;
  if (known === undefined) {
    cases.set(key, {
      key,
      kernel,
      target: parseKey(key)!,
      labels: [label],
      now: tunedConstants(kernel, constants),
      rows,
      length: rows === 1 ? 64 : 0,
      head: false,
      checks: [check],
    });
  } else if (!known.labels.includes(label)) {
    known.labels.push(label);
    known.checks.push(check);
  }
}

/** A Linear layer of a loaded layer. */
interface Linearity {
  which: Linear;
  w: Matrix<Tensor>;
  layer: number;
}
