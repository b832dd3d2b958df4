/**
 * Turns timed dispatches into a breakdown by operation.
 *
 * @module
 */
import type { Dispatch } from "../../webgpu/plan.ts";
import { type Cost, type CostContext, type Costed, costsOf } from "./costs.ts";
import type { Operation, Peaks, Phase } from "./report.ts";

/** A dispatch, or an op of the CPU, and its time. */
export interface Sample {
  dispatch: Costed & Pick<Dispatch, "reason">;
  context: CostContext;
  /** Workgroups. */
  workgroups: number;
  /** Absent if it could not be timed by itself. */
  ms?: number;
  /** How many identical ones it stands for; 1 by default. */
  runs?: number;
  /** Set if they cannot be derived from the dispatch. */
  costs?: readonly Cost[];
}

/** Names a sample on the timeline by its label; a tied head has the embedding's label. */
export function timelineName({ dispatch, context, costs }: Sample): string {
  const [{ name }] = costs ?? costsOf(dispatch, context);
  return name === "lm_head" ? name : dispatch.label;
}

/** Operations of `steps` timed steps, averaged per step, in order of appearance. */
export function operationsOf(
  samples: readonly Sample[],
  steps: number,
  peaks?: Peaks,
): Operation[] {
  const found = new Map<string, Operation>();
  const main = new Map<string, string>(); // where helpers of an operation go
  const wholes = wholeRows(samples);
  for (const sample of samples) {
    const { dispatch, context, costs = costsOf(dispatch, context) } = sample;
    const n = wholes.get(sample);
    for (let cost of costs) {
      if (n !== undefined) {
        const whole = { ...dispatch, dims: { ...dispatch.dims, n } };
        cost = { ...cost, shape: costsOf(whole, context)[0].shape };
      }
      // The number of keys grows with each step, so attention is keyed by name alone.
      let key = cost.group === "attention" && context.tokens === 1
        ? cost.name
        : `${cost.name} ${cost.shape}`;
      if (cost.matmul) main.set(cost.name, key);
      else key = main.get(cost.name) ?? key;
      let operation = found.get(key);
      if (!operation) {
        operation = begin(dispatch, cost);
        found.set(key, operation);
      }
      add(operation, sample, cost);
    }
  }
  const operations = [...found.values()];
  for (const operation of operations) {
    operation.calls /= steps;
    operation.flops /= steps;
    operation.bytes /= steps;
    if (operation.ms !== undefined) operation.ms /= steps;
  }
  share(operations);
  for (const operation of operations) rate(operation, peaks);
  return operations;
}

/** Total rows of each weight that is split over bindings, by the dispatches that read it. */
function wholeRows(samples: readonly Sample[]): Map<Sample, number> {
  const wholes = new Map<Sample, number>();
  let run: Sample[] = [];
  for (const sample of samples) {
    const { label, kernel, dims: { n } } = sample.dispatch;
    const before = run[0]?.dispatch;
    if (kernel === "unpack") continue; // once for each part
    if (label === before?.label && kernel === "sumSplits") continue;
    const goes = label === before?.label && kernel === before.kernel &&
      n !== undefined && sample.context === run[0].context;
    run = goes ? [...run, sample] : [sample];
    if (!goes) continue;
    const rows = run.reduce((sum, { dispatch }) => sum + dispatch.dims.n, 0);
    for (const part of run) wholes.set(part, rows);
  }
  return wholes;
}

/** Sets each operation's share of the total time. */
function share(operations: readonly Operation[]): void {
  const total = operations.reduce((sum, { ms }) => sum + (ms ?? 0), 0);
  for (const operation of operations) {
    if (operation.ms === undefined) continue;
    operation.share = total > 0 ? operation.ms / total : 0;
  }
}

/**
 * Adds a last operation for the time of a step outside all others. It has a share if it
 * is `real`: also spent in an unprofiled run.
 */
export function withBetween(
  operations: Operation[],
  stepMs: number,
  { name, reason, calls, real }: {
    name: string;
    reason: string;
    calls: number;
    real: boolean;
  },
): { operations: Operation[]; betweenMs: number } {
  const inside = operations.reduce((sum, { ms = 0 }) => sum + ms, 0);
  const betweenMs = Math.max(0, stepMs - inside);
  const between: Operation = {
    name,
    group: "other",
    matmul: false,
    shape: "",
    dtypes: "",
    kernel: "none",
    fused: [],
    constants: {},
    reason,
    calls,
    workgroups: 0,
    ms: betweenMs,
    flops: 0,
    bytes: 0,
  };
  if (real) share([...operations, between]);
  return { operations: [...operations, between], betweenMs };
}

/** A phase timed by the CPU's wall clock. */
export function wallPhase(
  name: Phase["name"],
  tokens: number,
  ms: number,
  samples: readonly Sample[],
  sampledSteps: number,
  between: { name: string; reason: string },
): Phase {
  const calls = samples.reduce((sum, { runs = 1 }) => sum + runs, 0);
  const dispatches = Math.round(calls / sampledSteps);
  const { operations, betweenMs } = withBetween(
    operationsOf(samples, sampledSteps),
    ms,
    { ...between, calls: dispatches, real: true },
  );
  return {
    name,
    tokens,
    sampledSteps,
    ms,
    profiledMs: ms,
    factor: 1,
    betweenMs,
    dispatches,
    ...totals(operations),
    operations,
  };
}

function begin(dispatch: Sample["dispatch"], cost: Cost): Operation {
  const { kernel, constants, reason } = dispatch;
  const { name, group, matmul, shape, dtypes } = cost;
  return {
    name,
    group,
    matmul,
    shape,
    dtypes,
    kernel,
    fused: [
      ...cost.fused ?? [],
      ...(cost.part < 1
        ? ["scores, softmax and values in one kernel; time split by FLOPs"]
        : []),
    ],
    constants,
    reason,
    calls: 0,
    workgroups: 0,
    threads: numeric(constants.THREADS ?? constants.WORKGROUP),
    flops: 0,
    bytes: 0,
  };
}

function add(
  operation: Operation,
  { dispatch: { kernel }, workgroups, ms, runs = 1 }: Sample,
  cost: Cost,
): void {
  if (!operation.kernel.split(" + ").includes(kernel)) {
    operation.kernel += ` + ${kernel}`;
  }
  // A dispatch that only sums the splits of a matmul is not a call of its own.
  if (cost.matmul || !operation.matmul) operation.calls += runs;
  if (cost.matmul) operation.shape = spanned(operation.shape, cost.shape);
  operation.workgroups = Math.max(operation.workgroups, workgroups);
  operation.flops += runs * cost.flops;
  operation.bytes += runs * cost.bytes;
  if (ms !== undefined) {
    operation.ms = (operation.ms ?? 0) + runs * ms * cost.part;
  }
}

/** `[1, 6, 1, 64] × [1, 2, 64, 13 … 58]` from the shapes of several steps. */
function spanned(from: string, to: string): string {
  const sizes = /\d+(?: … \d+)?/g;
  const ends = to.match(sizes)!;
  let at = 0;
  return from.replaceAll(sizes, (size) => {
    const [first] = size.split(" … "), end = ends[at++];
    return first === end ? size : `${first} … ${end}`;
  });
}

/** Least time to read an operation's bytes, at the rate of buffers or textures. */
export function memoryMs(
  { bytes, constants }: Pick<Operation, "bytes" | "constants">,
  { readGBps, bufferGBps = readGBps }: Peaks,
): number {
  const rate = constants.W_IN === "texture" ? readGBps : bufferGBps;
  return bytes / rate / 1e6;
}

/** Sets an operation's rates, and the adapter's limit that bounds it. */
function rate(operation: Operation, peaks?: Peaks): void {
  const { flops, bytes, ms, constants } = operation;
  if (!ms) return;
  operation.tflops = flops / ms / 1e9;
  operation.gbps = bytes / ms / 1e6;
  if (!peaks || flops + bytes === 0) return;
  const half = constants.F16 === 1 && peaks.f16TFLOPS !== undefined;
  const rate = half ? peaks.f16TFLOPS! : peaks.f32TFLOPS;
  const compute = flops / rate / 1e9, memory = memoryMs(operation, peaks);
  operation.bound = memory >= compute ? "memory" : half ? "f16" : "f32";
  operation.fraction = Math.max(memory, compute) / ms;
}

const numeric = (value: unknown) =>
  typeof value === "number" ? value : undefined;

/** Sums over operations. */
export function totals(
  operations: readonly Operation[],
): Pick<Phase, "flops" | "bytes"> {
  return {
    flops: operations.reduce((sum, { flops }) => sum + flops, 0),
    bytes: operations.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}
