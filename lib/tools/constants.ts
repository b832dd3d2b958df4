/**
 * Which constants a call of a kernel may have: those that tuning may try, and otherwise
 * those that some device would bring about.
 *
 * @module
 */
import type { LibraryKernel } from "../../kernels/define.ts";
import type { Capabilities } from "../dispatch/capabilities.ts";
import {
  attendKey,
  linearKey,
  parseKey,
  type TuningTarget,
} from "../dispatch/keys.ts";
import { misfit, type Tunable } from "../dispatch/limits.ts";
import type { Constants } from "../dispatch/shapes.ts";
import { formatNamed } from "../formats/mod.ts";
import { WIDTH } from "../text/messages.ts";
import { tunedConstants } from "./tune/candidates.ts";

/** An operand of a call, by its name in the kernel. */
export interface ShownOperand {
  name: string;
  dtype: string;
  shape: readonly number[];
}

/** A call with its own constants, before others replace them. */
export interface ChosenCall {
  kernel: LibraryKernel;
  operands: readonly ShownOperand[];
  constants: Constants;
}

/** Whether tuning decides a constant of a kernel. */
export const isTuned = ({ tuning }: LibraryKernel, name: string): boolean =>
  tuning !== undefined && Object.hasOwn(tuning.grid, name);

/**
 * Explains why no choice could give `call` the constants `given`, for the end of a
 * sentence; undefined if one could.
 *
 * @param others calls of the kernel with these operands, on other devices
 */
export function impossible(
  call: ChosenCall,
  given: Constants,
  device: Capabilities,
  others: () => Iterable<Constants>,
): string | undefined {
  const { kernel } = call, { tuning } = kernel;
  const names = Object.keys(given);
  const fixed = names.filter((name) => !isTuned(kernel, name));
  for (const name of fixed) {
    const values = new Set([call.constants[name]]);
    if (!values.has(given[name])) {
      for (const constants of others()) values.add(constants[name]);
    }
    if (values.has(given[name])) continue;
    return `${name} is ${given[name]}, must be ${
      either([...values])
    } in this call`;
  }
  if (tuning === undefined || fixed.length === names.length) return undefined;
  const problem = untunable({ ...call, kernel: { ...kernel, tuning } }, {
    ...call.constants,
    ...given,
  }, device);
  if (problem === undefined) return undefined;
  const tuned = names.filter((name) => isTuned(kernel, name)), [name] = tuned;
  const what = new RegExp(`^(${tuned.join("|")}) is `).test(problem)
    ? problem
    : `with ${
      tuned.map((name) => `${name}=${given[name]}`).join(" ")
    }, ${problem}`;
  const fitting = tuned.length > 1 ? [] : tuning.grid[name].filter((value) => {
    const all = { ...call.constants, ...given, [name]: value };
    return !untunable({ ...call, kernel: { ...kernel, tuning } }, all, device);
  });
  const more = fitting.length ? `; try ${either(fitting)}` : "";
  const room = WIDTH - `error: Cannot show ${kernel.name}: `.length;
  return what.length + more.length <= room ? what + more : what;
}

/** Says which of the constants `given` to a call tuning never tries; empty if none. */
export function untried(
  { kernel, operands, constants }: ChosenCall,
  given: Constants,
  device: Capabilities,
): string {
  const { tuning } = kernel;
  if (tuning === undefined) return "";
  const all = { ...constants, ...given };
  const group = Number(constants.GROUP) * Number(constants.SHARES);
  const target = targetOf({ ...kernel, tuning }, operands, all, group);
  const own = tunedConstants({ ...kernel, tuning }, all);
  const tried = (name: string) =>
    tuning.grid[name].flatMap((value) => {
      const one = { ...own, [name]: value };
      return [value, tuning.settle?.(target, one, device)[name] ?? value];
    });
  const never = Object.keys(given).filter((name) =>
    isTuned(kernel, name) && !tried(name).includes(Number(given[name]))
  );
  return never.map((name) => `${name} ${either(tuning.grid[name])}`).join(", ");
}

/** Why tuning would not try these constants of a call. */
function untunable(
  { kernel, operands, constants: chosen }: ChosenCall & { kernel: Tunable },
  constants: Constants,
  device: Capabilities,
): string | undefined {
  // A workgroup takes GROUP heads, one of SHARES equal parts.
  const group = Number(chosen.GROUP) * Number(chosen.SHARES);
  const target = targetOf(kernel, operands, constants, group);
  const own = tunedConstants(kernel, constants);
  const before = misfit(kernel, target, own, device);
  // What has the effect of smaller values is as good as those.
  const settled = kernel.tuning.settle?.(target, own, device);
  return before && settled ? misfit(kernel, target, settled, device) : before;
}

/** What tuning knows about a call. */
function targetOf(
  { name, tuning }: Tunable,
  operands: readonly ShownOperand[],
  { EPILOGUE, F16, HEAD_DIM }: Constants,
  group: number,
): TuningTarget {
  if (tuning.of === "attention") {
    return parseKey(attendKey("short", Number(HEAD_DIM), group))!;
  }
  const of = (names: string) =>
    operands.find(({ name }) => names.includes(name))!;
  const { dtype, shape: [n, k] } = of("wb"), { shape: [m] } = of("xa");
  const swiglu = EPILOGUE === "swiglu", half = F16 === 1;
  const format = formatNamed(dtype);
  const target = { kernel: name, format, swiglu, half, m, n, k };
  // One entry serves all prompts of a class.
  return name === "gemm" ? parseKey(linearKey(name, target, half))! : target;
}

const either = (values: readonly (number | string)[]) =>
  values.toSorted((a, b) => Number(a) - Number(b)).join(", ")
    .replace(/, (?=[^,]*$)/, " or ");
