/**
 * Whether a model runs on a GPU or on the CPU, and why.
 *
 * @module
 */
import type { Choice } from "./choice.ts";

/** `auto` chooses; `gpu` needs an adapter, hardware or software; `cpu` uses none. */
export type DeviceKind = "auto" | "gpu" | "cpu";

/** The rates, in GB/s, at which a `[1, k] × [k, n]` matmul reads its bf16 weights. */
export interface ReadRates {
  k: number;
  n: number;
  gpu: number;
  cpu: number;
}

/**
 * Decides whether to use an open GPU: yes if it was requested or is hardware; a
 * software renderer only if it reads weights faster than the CPU path. Returns
 * undefined if that must be measured first; `measured` is the result, or why there is
 * none.
 */
export function chooseDevice(
  kind: "auto" | "gpu",
  { name, software }: { name: string; software: boolean },
  measured?: ReadRates | { failure: string },
): { gpu: boolean; choice: Choice } | undefined {
  const decide = (gpu: boolean, reason: string) => ({
    gpu,
    choice: { what: "device", value: gpu ? `gpu: ${name}` : "cpu", reason },
  });
  if (kind === "gpu") {
    const renderer = software ? ", a software renderer" : "";
    return decide(true, `it was asked for${renderer}`);
  }
  if (!software) return decide(true, "a hardware GPU is available");
  if (!measured) return undefined;
  if ("failure" in measured) {
    return decide(
      false,
      `only a software adapter is available, and measuring its speed failed: ${measured.failure}`,
    );
  }
  const cpu = ["CPU", measured.cpu] as const;
  const adapter = ["software adapter", measured.gpu] as const;
  const gpu = measured.gpu > measured.cpu;
  const [[faster, most], [slower, less]] = gpu
    ? [adapter, cpu]
    : [cpu, adapter];
  return decide(
    gpu,
    `no GPU found; the ${faster} reads weights at ${
      most.toFixed(1)
    } GB/s, the ${slower} at ${less.toFixed(1)}`,
  );
}
