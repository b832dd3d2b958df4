/**
 * The speedup of the GPU path over the CPU path.
 *
 * @module
 */
import type { Comparison, Operation, Phase } from "./report.ts";

/** Speedups that a GPU should reach: the least, and the ideal. */
const TARGETS: Record<Comparison["what"], [number, number]> = {
  Linear: [5, 10],
  attention: [3, 8],
  whole: [5, 10],
};

/** Compares Linear layers, attention and whole steps of each phase. */
export function comparisonOf(
  gpu: readonly Phase[],
  cpu: readonly Phase[],
): Comparison[] {
  return gpu.flatMap((onGpu) => {
    const onCpu = cpu.find(({ name }) => name === onGpu.name)!;
    return (["Linear", "attention", "whole"] as const).map((what) => {
      const gpuMs = timeOf(onGpu, what), cpuMs = timeOf(onCpu, what)!;
      const target = TARGETS[what];
      return {
        phase: onGpu.name,
        what,
        cpuMs,
        target,
        ...(gpuMs !== undefined && { gpuMs, factor: cpuMs / gpuMs }),
      };
    });
  });
}

/** Milliseconds of a step as it runs unprofiled, assuming that shares stay the same. */
function timeOf(phase: Phase, what: Comparison["what"]): number | undefined {
  if (what === "whole") return phase.ms;
  const mine = phase.operations.filter((operation) => part(operation) === what);
  if (mine.some(({ share }) => share === undefined)) return undefined;
  return mine.reduce((sum, { share }) => sum + share!, 0) * phase.ms;
}

/** Norms count as part of the matmul that follows, as on the CPU, where both are one op. */
function part({ group, name }: Operation): Comparison["what"] | undefined {
  if (group === "attention" || name.includes("rope")) return "attention";
  return group === "linear" || group === "norm" ? "Linear" : undefined;
}
