import { assert, assertEquals } from "@std/assert";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { recordPass } from "../../lib/tools/recording.ts";
import { SKETCHES } from "../../lib/tools/texts.ts";
import { gpuTest, someOf } from "../support/gpu.ts";
import { relativeError } from "../support/golden.ts";
import { MATRIX_GPU } from "../support/subgroup_matrices.ts";
import { wrapGpu } from "../support/wrapped_gpu.ts";

const MODELS = {
  dense: "../../models/stories-3m",
  mixture: "../fixtures/tiny-moe-bf16",
};

/**
 * Compares the logits after a prompt with those of the CPU; returns how many shaders of each
 * kernel contain something, by default what multiplies by tensor cores.
 */
async function runPrompt(which: keyof typeof MODELS) {
  const path = new URL(MODELS[which], import.meta.url).pathname;
  const shaders: string[] = [];
  const { gpu } = wrapGpu({
    ...MATRIX_GPU,
    shader(code) {
      shaders.push(code);
      return MATRIX_GPU.shader!(code);
    },
  });
  using model = await loadQwen3(path, { device: "gpu", gpu });
  using exact = await loadQwen3(path, { device: "cpu", precision: "f32" });
  const { vocabSize } = model.config;
  const ids = Array.from({ length: 40 }, (_, i) => (i * 701 + 3) % vocabSize);
  const error = relativeError(await model.logits(ids), await exact.logits(ids));
  assert(error < 3e-3, `${error}`);
  return (name: string, part = "subgroupMatrixLoad") =>
    shaders.filter((code) =>
      code.includes(`// ${name}\n`) && code.includes(part)
    ).length;
}

const TESTS: Parameters<typeof gpuTest>[] = [
  ["a prompt through tensor cores has the logits of the CPU", async () => {
    const used = await runPrompt("dense");
    assert(used("gemmMatrix") >= 2, `${used("gemmMatrix")}`); // store, SwiGLU
    assert(used("attendPrefillMatrix") === 1);
    // What sums the splits of down_proj also norms the rows for the next matmul.
    assert(used("toF16", "partial") === 1);
    assert(used("sumSplits", "partial") === 1); // of the last layer one row goes on
  }],
  ["a prompt through tensor cores runs experts on them", async () => {
    const used = await runPrompt("mixture");
    const count = used("expertGemmMatrix");
    assert(count === 2, `${count}`); // gates and ups, down
  }],
];
for (const test of someOf(TESTS, 1)) gpuTest(...test);

Deno.test("splits are summed into f16 only where the next matmul reads that", () => {
  const device = SKETCHES.find(({ subgroupMatrices = [] }) =>
    subgroupMatrices.length > 0
  )!;
  const batch = { tokens: 1, sequences: 64, page: 32 };
  const summing = (name: string, pass: object = batch) => {
    const { config } = parseSynthetic(`synthetic:qwen3-${name}`);
    return recordPass(device, { config, ...batch, ...pass })
      .filter(({ kernel: { name }, options: { constants } }) =>
        name === "sumSplits" || name === "toF16" && constants?.SPLITS
      ).map(({ kernel: { name }, options: { label } }) => `${name} ${label}`);
  };
  assertEquals(summing("0.6b"), [
    "toF16 layers.0.post_norm",
    "toF16 norm",
  ]);
  // Of a prompt, only the last row goes on.
  assertEquals(summing("0.6b", { tokens: 64, sequences: 1 }), [
    "toF16 layers.0.post_norm",
    "sumSplits layers.0.down_proj",
  ]);
  // A router multiplies in f32, and rows of experts are gathered first.
  assertEquals(summing("30b-a3b"), ["sumSplits layers.0.o_proj"]);
});
