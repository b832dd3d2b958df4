/**
 * Constants worth trying for a kernel on a device.
 *
 * @module
 */
import type { Capabilities } from "../../dispatch/capabilities.ts";
import type { TuningTarget } from "../../dispatch/keys.ts";
import { type Candidate, misfit, type Tunable } from "../../dispatch/limits.ts";

/** The constants that tuning decides, in the order of the kernel's grid. */
export function tunedConstants(
  { tuning }: Tunable,
  given: Readonly<Record<string, number | string>>,
): Candidate {
  return Object.fromEntries(
    Object.keys(tuning.grid).map((name) => [name, Number(given[name])]),
  );
}

/** Every candidate that can run, those nearest to `now` first, and how many cannot. */
export function candidatesFor(
  kernel: Tunable,
  target: TuningTarget,
  device: Capabilities,
  now: Candidate,
): { candidates: Candidate[]; invalid: number } {
  const { grid, settle } = kernel.tuning;
  const settled = (given: Candidate) => {
    const own = tunedConstants(kernel, given);
    return settle?.(target, own, device) ?? own;
  };
  let all: Record<string, number>[] = [{}];
  for (const [name, values] of Object.entries(grid)) {
    all = all.flatMap((one) =>
      values.map((value) => ({ ...one, [name]: value }))
    );
  }
  const seen = new Set([JSON.stringify(settled(now))]);
  const candidates: Candidate[] = [];
  let invalid = 0;
  for (const one of all) {
    const candidate = settled(one);
    const key = JSON.stringify(candidate);
    if (seen.has(key)) continue; // resolves to one already seen
    seen.add(key);
    if (misfit(kernel, target, candidate, device) === undefined) {
      candidates.push(candidate);
    } else invalid++;
  }
  const distance = (one: Candidate) =>
    Object.keys(one).reduce((sum, name) => {
      return sum + Math.abs(Math.log2((one[name] + 1) / (now[name] + 1)));
    }, 0);
  candidates.sort((a, b) => distance(a) - distance(b));
  return { candidates, invalid };
}

/** `WORKGROUP 128 ROWS 2 …` */
export function candidateText(constants: Candidate): string {
  return Object.entries(constants).map(([name, value]) => `${name} ${value}`)
    .join(" ");
}
