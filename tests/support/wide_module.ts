/** Compiles the kernels for vectors of 256 bits, and nothing else. */
import { assemble, f32x4 } from "../../lib/cpu/assembler.ts";
import { wideKernels } from "../../lib/cpu/wasm_wide.ts";

new WebAssembly.Module(assemble(wideKernels(f32x4.relaxedMulAdd)));
