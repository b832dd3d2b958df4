/**
 * Where stored blocks are rearranged when weights are loaded onto a GPU.
 *
 * @module
 */
import type { Choice } from "./choice.ts";

/** The choice, and whether the device does it. */
export function chooseRepacking(
  { software }: { software: boolean },
): Choice & { onDevice: boolean } {
  const what = "stored blocks";
  return software
    ? {
      what,
      value: "rearranged on the host",
      reason: "a software renderer would take longer on the same cores",
      onDevice: false,
    }
    : {
      what,
      value: "rearranged on the device",
      reason: "one core of the host would take longer than reading the file",
      onDevice: true,
    };
}
