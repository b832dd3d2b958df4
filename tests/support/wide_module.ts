/** Compiles the kernels that V8 makes 256 bits wide: of floats, then of q8_0 in panels. */
import { assemble, f32x4, i16x8, i8x16 } from "../../lib/cpu/assembler.ts";
import { panelsOf } from "../../lib/cpu/wasm_kernels.ts";
import { dotPanels } from "../../lib/cpu/wasm_panels.ts";
import { q8_0 } from "../../lib/formats/blocks_of_32.ts";
import { wideKernels } from "../../lib/cpu/wasm_wide.ts";

const relaxed = {
  mulAdd: f32x4.relaxedMulAdd,
  swizzle: i8x16.relaxedSwizzle,
  dotBytes: i16x8.relaxedDot,
};
new WebAssembly.Module(assemble([
  ...wideKernels(relaxed.mulAdd),
  dotPanels(panelsOf(q8_0)!, relaxed),
]));
