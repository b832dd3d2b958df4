/**
 * The finished WGSL of every kernel as the library would run it. The calls of a model's
 * passes are recorded without memory on a device, so constants and reasons are those of a
 * real run.
 *
 * @module
 */
import { inPasses, type LibraryKernel } from "../../kernels/define.ts";
import { findKernel, KERNEL_NAMES } from "../../kernels/list.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Capabilities } from "../dispatch/capabilities.ts";
import {
  type CacheRequest,
  HALF_PREFILL_BYTES,
} from "../dispatch/precision.ts";
import { HALF_MATRICES } from "../dispatch/matrices.ts";
import type { Constants } from "../dispatch/shapes.ts";
import { described } from "../errors.ts";
import { bf16 } from "../formats/bf16.ts";
import type { Format } from "../formats/format.ts";
import { shortened, tryInstead } from "../text/messages.ts";
import { LEAST_LIMITS } from "../webgpu/device.ts";
import { type Kernel, showWgsl } from "../webgpu/kernel.ts";
import {
  type ChosenCall,
  impossible,
  isTuned,
  type ShownOperand,
  untried,
} from "./constants.ts";
import {
  type Call,
  recordCases,
  recordPass,
  type Sketched,
} from "./recording.ts";

export type { Sketched } from "./recording.ts";

/**
 * Stands in for a missing adapter: the least that kernels run on, with f16, subgroups and
 * the workgroup memory that f16 takes.
 */
export const STATED_DEVICE: Sketched = {
  name: "no adapter: 32 KiB of workgroup memory, 256 threads, 32 lanes, f16",
  f16: true,
  software: false,
  subgroupSize: 32,
  limits: { ...LEAST_LIMITS, maxComputeWorkgroupStorageSize: 32768 },
};

/** The most tokens of a pass: the longest context of the Qwen3 family. */
export const MOST_TOKENS = 131072;

/** The pass that a kernel is shown for. */
export interface ShowOptions {
  config: Qwen3Config;
  /** Tokens in the pass, at most {@linkcode MOST_TOKENS}; by default 512, or the number that the kernel is for. */
  tokens?: number;
  /** How the weights are stored; bf16 by default. */
  format?: Format;
  /** How keys and values are cached; as a GPU would by default. */
  kv?: CacheRequest;
  /** Positions that the cache has, at least; 4096 by default. */
  context?: number;
  /** Constants that replace the chosen ones. */
  constants?: Constants;
  /** Called by `showVariants` for each call that these constants do not suit. */
  onLeftOut?: (kernel: string, why: Error) => void;
}

/** A kernel as it would run. */
export interface Shown {
  kernel: string;
  /** What this call computes, and the other calls of the kernel in the pass. */
  label: string;
  also: string[];
  operands: readonly ShownOperand[];
  /** The kernel's own constants; the WGSL also has those derived from them. */
  constants: Constants;
  reason: string;
  wgsl: string;
}

/**
 * Finds a kernel by its name or its file's, before anything is opened.
 *
 * @throws {Error} if there is no such kernel, or a constant that it does not have.
 */
export function kernelToShow(
  name: string,
  constants?: Constants,
): LibraryKernel {
  const kernel = findKernel(name);
  if (!kernel) {
    throw new Error(
      `Cannot show ${described(name)}: no such kernel, ${
        tryInstead(name, KERNEL_NAMES, "deno task show --help")
      }`,
    );
  }
  requireConstants(kernel, constants);
  return kernel;
}

/** @throws {Error} if a constant is not one of the kernel's. */
export function requireConstants(
  kernel: Kernel,
  constants: Constants = {},
  cannot = `Cannot show ${kernel.name}`,
): void {
  const own = Object.keys(kernel.constants);
  const wrong = Object.keys(constants).find((name) => !own.includes(name));
  if (wrong === undefined) return;
  throw new Error(
    `${cannot}: it has no constant ${shortened(wrong, 24)}, ${
      tryInstead(wrong, own, `deno task show ${kernel.name}`)
    }`,
  );
}

/**
 * Shows a kernel by its name (`attendDecode`) or its file's (`attend_decode`), with the
 * constants chosen for `device`.
 *
 * @throws {Error} if there is no such kernel, a constant that it does not have, or a value
 * that no choice could give it.
 */
export function showKernel(
  name: string,
  device: Sketched,
  options: ShowOptions,
): Shown {
  const kernel = kernelToShow(name, options.constants);
  const wanted = kernel.name;
  // As this device runs it if it does, otherwise with matmuls of the other type.
  const { limits } = device;
  const other = {
    ...device,
    f16: true,
    software: false,
    limits: {
      maxComputeInvocationsPerWorkgroup:
        limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupStorageSize: Math.max(
        HALF_PREFILL_BYTES,
        limits.maxComputeWorkgroupStorageSize,
      ),
    },
  };
  const none = { ...device, f16: false };
  const unknown = { ...device, adapterClass: "other" as const };
  const matrices = {
    ...other,
    compiler: "tint" as const,
    subgroupMatrices: [HALF_MATRICES],
  };
  const usual = wanted === "gemv" ? 1 : /^gemvRows/.test(wanted) ? 16 : 512;
  const order = [options.tokens ?? usual, 1, 16, 64];
  for (const chosen of [device, other, none, unknown, matrices]) {
    for (const tokens of order) {
      const recording = new Recording(chosen, tokens, options);
      const calls = recording.of(wanted);
      if (!calls.length) continue;
      const found = describe(recording, wanted, 0);
      const also = calls.slice(1).map(({ options }) => options.label ?? wanted);
      const where = chosen === device
        ? `${tokens} ${tokens === 1 ? "token" : "tokens"}`
        : shownAs(
          chosen === unknown
            ? "on a device of unknown kind"
            : chosen === matrices
            ? WITH_CORES
            : `${chosen.f16 ? "with" : "without"} f16 matmuls`,
        );
      return {
        ...found,
        label: inPasses(kernel) ? `${found.label}, ${where}` : found.label,
        also: [...new Set(also)],
      };
    }
  }
  // Only its test cases run it.
  const cases = new Recording(device, usual, options, false);
  if (cases.of(wanted).length) return describe(cases, wanted, 0);
  const found = describe(
    new Recording(matrices, usual, options, false),
    wanted,
    0,
  );
  return { ...found, label: `${found.label}, ${shownAs(WITH_CORES)}` };
}

const WITH_CORES = "on a device with tensor cores";

const shownAs = (where: string): string =>
  `not chosen on this device, shown as ${where}`;

/**
 * Every distinct WGSL of the named kernels in passes of `tokens` tokens (512 by default)
 * on `device`, in the order in which they run. Calls that no choice could give the
 * constants are left out.
 *
 * @throws {Error} if they do not suit any call of a kernel.
 */
export function showVariants(
  names: readonly string[],
  device: Sketched,
  options: ShowOptions,
): Shown[] {
  const tokens = options.tokens ?? 512;
  const recording = new Recording(device, tokens, options);
  const variants = new Map<string, Shown>();
  const all = names.flatMap((name) =>
    recording.of(name).map((_, i) => ({ name, i }))
  );
  for (const { name, i } of all) {
    let shown: Shown;
    try {
      shown = describe(recording, name, i);
    } catch (error) {
      if (!(error instanceof ImpossibleError)) throw error;
      options.onLeftOut?.(name, error);
      continue;
    }
    const known = variants.get(shown.wgsl);
    if (!known) variants.set(shown.wgsl, shown);
    else if (!known.also.includes(shown.label)) known.also.push(shown.label);
  }
  return [...variants.values()];
}

/** No choice could give a call these constants. */
export class ImpossibleError extends Error {}

/** The calls of each kernel in a pass, or in its test cases, as they are asked for. */
class Recording {
  readonly #calls = new Map<string, Call[]>();
  #pass?: Call[];
  #elsewhere?: Recording[];
  #retuned?: Recording;

  constructor(
    readonly device: Sketched,
    readonly tokens: number,
    readonly options: ShowOptions,
    readonly inPass: boolean = true,
  ) {}

  of(name: string): Call[] {
    const known = this.#calls.get(name);
    if (known) return known;
    const { device, tokens, options } = this, kernel = findKernel(name)!;
    const calls = inPasses(kernel) && this.inPass
      ? (this.#pass ??= recordPass(device, { ...options, tokens }))
        .filter(({ kernel }) => kernel.name === name)
      : casesOfType(recordCases(device, kernel), options.format);
    this.#calls.set(name, calls);
    return calls;
  }

  #on(device: Sketched): Recording {
    return new Recording(device, this.tokens, this.options, this.inPass);
  }

  /** As if the given constants had been tuned, with what follows from them. */
  get retuned(): Recording {
    const { device, options: { constants = {} } } = this;
    return this.#retuned ??= this.#on({
      ...device,
      tuned: { get: (key) => ({ ...device.tuned?.get(key), ...constants }) },
    });
  }

  /**
   * The constants of calls like this one, with equal tuned ones, on devices with other
   * subgroups or types.
   */
  *elsewhere(call: Call): Generator<Constants> {
    const text = (call: Call) => {
      const all = Object.entries(chosenConstants(call));
      const tuned = all.filter(([name]) => isTuned(call.kernel, name));
      return JSON.stringify([chosenOperands(call), tuned]);
    };
    const { device } = this, { name } = call.kernel, own = text(call);
    this.#elsewhere ??= [
      ...[0, 4, 8, 16, 32].map((subgroupSize) => ({ ...device, subgroupSize })),
      { ...device, f16: !device.f16 },
    ].map((other) => this.#on(other));
    for (const other of this.#elsewhere) {
      for (const one of other.of(name)) {
        if (text(one) === own) yield chosenConstants(one);
      }
    }
  }
}

/** Those that have operands in a format, if any have. */
function casesOfType(calls: Call[], { name }: Format = bf16): Call[] {
  const ofType = calls.filter((call) =>
    chosenOperands(call).some(({ dtype }) => dtype === name)
  );
  return ofType.length ? ofType : calls;
}

const chosenConstants = ({ kernel, options }: Call): Constants => ({
  ...kernel.constants,
  ...options.constants,
});

/** Describes the i-th call of a kernel, with the constants that are given. */
function describe(recording: Recording, name: string, i: number): Shown {
  const { device, options: { constants: given = {} } } = recording;
  const call = recording.of(name)[i], { kernel } = call;
  requireConstants(kernel, given);
  const chosen = {
    kernel,
    operands: chosenOperands(call),
    constants: chosenConstants(call),
  };
  const why = impossible(
    chosen,
    given,
    device,
    () => recording.elsewhere(call),
  );
  if (why !== undefined) {
    throw new ImpossibleError(`Cannot show ${name}: ${why}`);
  }
  const tuned = Object.keys(given).some((name) => isTuned(kernel, name));
  const { operands, options } = tuned ? recording.retuned.of(name)[i] : call;
  const all = { ...kernel.constants, ...options.constants, ...given };
  const reason = options.reason ?? "asked for";
  return {
    kernel: name,
    label: options.label ?? name,
    also: [],
    reason: tuned
      ? reason.replace("tuned for this adapter", asSet(chosen, given, device))
      : reason,
    operands: chosenOperands({ kernel, operands, options }, all),
    constants: all,
    wgsl: showWgsl(
      kernel,
      operands,
      { ...options, constants: all },
      device.compiler,
    ),
  };
}

function asSet(
  call: ChosenCall,
  given: Constants,
  device: Capabilities,
): string {
  const never = untried(call, given, device);
  return never === "" ? "as set" : `as set, though tuning only tries ${never}`;
}

/** The operands of a call with `constants`, in binding order. */
function chosenOperands(
  { kernel, operands, options }: Call,
  constants = chosenConstants({ kernel, operands, options }),
): ShownOperand[] {
  const contract = typeof kernel.buffers === "function"
    ? kernel.buffers(constants)
    : kernel.buffers;
  return Object.keys(contract).map((name) => {
    const operand = operands[name];
    if ("dtype" in operand) {
      const { dtype, shape } = operand;
      return { name, dtype, shape };
    }
    const matrix = "matrix" in operand ? operand.matrix : operand;
    const { format } = "matrix" in operand ? operand.part : operand.parts[0];
    const shape = matrix.n === 1 ? [matrix.k] : [matrix.n, matrix.k];
    return { name, dtype: format.name, shape };
  });
}
