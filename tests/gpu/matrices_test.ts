import { assert } from "@std/assert";
import { loadQwen3 } from "../../lib/load.ts";
import { gpuTest } from "../support/gpu.ts";
import { relativeError } from "../support/golden.ts";
import { MATRIX_GPU } from "../support/subgroup_matrices.ts";
import { wrapGpu } from "../support/wrapped_gpu.ts";

const MODEL = new URL("../../models/stories-3m", import.meta.url).pathname;

gpuTest("a prompt through tensor cores has the logits of the CPU", async () => {
  const shaders: string[] = [];
  const { gpu } = wrapGpu({
    ...MATRIX_GPU,
    shader(code) {
      shaders.push(code);
      return MATRIX_GPU.shader!(code);
    },
  });
  using model = await loadQwen3(MODEL, { device: "gpu", gpu });
  using exact = await loadQwen3(MODEL, { device: "cpu", precision: "f32" });
  const ids = Array.from({ length: 70 }, (_, i) => (i * 701 + 3) % 2048);
  const error = relativeError(await model.logits(ids), await exact.logits(ids));
  assert(error < 3e-3, `${error}`);
  const used = (name: string) =>
    shaders.filter((code) =>
      code.includes(`// ${name}`) && code.includes("subgroupMatrixLoad")
    ).length;
  assert(used("gemmMatrix") >= 2, `${used("gemmMatrix")}`); // store, SwiGLU
  assert(used("attendPrefillMatrix") === 1);
});
