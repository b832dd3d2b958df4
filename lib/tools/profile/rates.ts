/**
 * The rates that a profile states: one for decode, one for the prefill.
 *
 * @module
 */
import type { Rate } from "./report.ts";
import type { Findings } from "./verdict.ts";

/** Tokens per second of each phase. Decode's is that of `generate`. */
export function ratesOf({ phases, loop, device, timedBy }: Findings): Rate[] {
  return phases.map(({ name, tokens, ms }): Rate => {
    const onGpu = device.kind === "gpu";
    if (name === "decode" && loop && loop.steps > 0) {
      return {
        phase: name,
        tokensPerSecond: 1000 * loop.tokens / loop.steps / loop.stepMs,
        kind: "as generate runs it, sampling and readbacks included",
      };
    }
    const kind = onGpu && timedBy === "verbs"
      ? "every matmul by itself, uploaded and read back"
      : name === "decode"
      ? "as generate runs it, sampling included"
      : onGpu
      ? "its passes on the GPU"
      : "its passes on the CPU";
    return { phase: name, tokensPerSecond: 1000 * tokens / ms, kind };
  });
}
