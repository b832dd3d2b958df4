import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../../lib/checkpoint/open.ts";
import { openDevice } from "../../../lib/device/open_device.ts";
import { Bench } from "../../../lib/tools/tune/bench.ts";
import { candidatesFor } from "../../../lib/tools/tune/candidates.ts";
import { casesOf } from "../../../lib/tools/tune/cases.ts";
import { gpuTest } from "../../support/gpu.ts";

gpuTest(
  "tuning covers each format that a layer of a mixture has",
  async (_, trial) => {
    const gpu = await openDevice(); // the bench disposes it
    const spec = "synthetic:qwen3-0.6b?dtype=q4_k_m&vocab=64";
    await using checkpoint = await openCheckpoint(spec);
    using bench = await Bench.load(gpu, checkpoint);
    // The first layer has v_proj and down_proj in Q6_K, the fourth has all in Q4_K.
    assertEquals(bench.kinds, 2);
    const { cases } = casesOf(bench, ["gemv"]);
    assertEquals(cases.map(({ key, labels }) => [key, ...labels]), [
      ["gemv q4_k 1 3072 1024", "qkv_proj"],
      ["gemv q6_k 1 1024 1024", "qkv_proj"],
      ["gemv q4_k swiglu 1 6144 1024", "gate_up_proj"],
      ["gemv q6_k 1 1024 3072", "down_proj"],
      ["gemv q4_k 1 1024 2048", "o_proj"],
      ["gemv q4_k 1 4096 1024", "qkv_proj"],
      ["gemv q4_k 1 1024 3072", "down_proj"],
      ["gemv q6_k 1 64 1024", "lm_head"],
    ]);
    for (const one of trial.some(cases, 3)) {
      assertEquals(await bench.check(one), undefined);
    }
  },
);

gpuTest(
  "tuning covers the experts that rows use, and those of tiles",
  async (gpu, trial) => {
    const model = new URL("../../fixtures/tiny-moe-bf16/", import.meta.url);
    await using checkpoint = await openCheckpoint(model.href);
    using bench = await Bench.load(gpu, checkpoint);
    const { cases, notes } = casesOf(bench, ["expertGemv", "expertGemm"]);
    assertEquals(notes, []);
    // 2 of 8 experts; rows are grouped from 33 on, in tiles of 64 from 129 on.
    assertEquals(
      cases.map(({ key, labels, rows, checks }) =>
        [key, ...labels, rows, ...checks.map(({ rows }) => rows)].join(", ")
      ),
      [
        "expertGemv bf16 swiglu 2 48 64, gate_up_proj, 1, 1",
        "expertGemv bf16 2 64 48, down_proj, 1, 1",
        "expertGemm bf16 64 48 64, gate_up_proj, 512, 129",
        "expertGemm bf16 64 64 48, down_proj, 512, 129",
        "expertGemm bf16 32 48 64, gate_up_proj, 128, 33",
        "expertGemm bf16 32 64 48, down_proj, 128, 33",
      ],
    );
    for (const one of trial.some(cases, 2)) {
      const { kernel, target, now } = one;
      assertEquals(await bench.check(one), undefined, one.key);
      const { candidates } = candidatesFor(kernel, target, gpu, now);
      const other = candidates.at(-1);
      assertEquals(await bench.check(one, other), undefined, one.key);
      // Other constants make another pass.
      using plan = await bench.record(one, other);
      const uses = Object.entries(other!).every(([name, value]) =>
        plan.dispatches.some(({ kernel, constants }) =>
          kernel === one.kernel.name && constants[name] === value
        )
      );
      assert(uses, one.key);
    }
  },
);

gpuTest(
  "tuning covers attention over a cache in q8_0, if that is asked for",
  async () => {
    const gpu = await openDevice(); // the bench disposes it
    const spec = "synthetic:qwen3-0.6b?layers=1&vocab=64";
    await using checkpoint = await openCheckpoint(spec);
    using bench = await Bench.load(gpu, checkpoint, {}, "q8_0");
    const { cases } = casesOf(bench, ["attendDecode"]);
    assertEquals(cases.map(({ key }) => key), [
      "attendDecode q8_0 short 128 2",
      "attendDecode q8_0 middle 128 2",
      "attendDecode q8_0 long 128 2",
    ]);
    const [short] = cases;
    const { candidates } = candidatesFor(
      short.kernel,
      short.target,
      gpu,
      short.now,
    );
    for (const constants of [undefined, candidates[0]]) {
      assertEquals(await bench.check(short, constants), undefined);
    }
  },
);
