/** Prints why the CPU path has the kernels that it has. */
import { loadQwen3 } from "../../mod.ts";

using qwen = await loadQwen3(undefined, { device: "cpu" });
const { reason } = qwen.device.choices.find(({ what }) =>
  what === "CPU kernels"
)!;
console.log(reason);
