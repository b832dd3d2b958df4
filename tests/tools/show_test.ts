import { f16 } from "../../lib/formats/f16.ts";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { KERNEL_NAMES } from "../../kernels/list.ts";
import { showKernel, STATED_DEVICE } from "../../lib/tools/show.ts";
import { LEAST_LIMITS } from "../../lib/webgpu/device.ts";
import { gpuTest } from "../support/gpu.ts";
import { runTask } from "../support/run_task.ts";

const { config } = await openCheckpoint("synthetic:qwen3-0.6b");

gpuTest("shown WGSL compiles on this adapter", async (gpu) => {
  const { device } = gpu;
  for (const name of KERNEL_NAMES) {
    const least = { ...STATED_DEVICE, limits: LEAST_LIMITS };
    for (const on of [gpu, STATED_DEVICE, least]) {
      const { wgsl } = showKernel(name, on, { config });
      assertStringIncludes(wgsl, `// ${name}\n`);
      assertStringIncludes(wgsl, "fn main(");
      if (wgsl.includes("enable f16;") && !gpu.f16) continue;
      device.pushErrorScope("validation");
      device.createShaderModule({ code: wgsl });
      const error = await device.popErrorScope();
      assert(!error, `${name}: ${error?.message}`);
    }
  }
});

Deno.test("tokens, types and constants change the WGSL", () => {
  const show = (name: string, options = {}) =>
    showKernel(name, STATED_DEVICE, { config, ...options });
  assertMatch(show("gemm").wgsl, /const BM: u32 = 64u;/);
  assertMatch(show("gemm", { constants: { BM: 32 } }).wgsl, /BM: u32 = 32u;/);
  assertMatch(show("gemvRows").wgsl, /const M: u32 = 16u;/);
  assertMatch(show("gemvRows", { tokens: 3 }).wgsl, /const M: u32 = 3u;/);
  const [w] = show("gemv", { format: f16 }).operands;
  assertEquals(w, { name: "w", dtype: "f16", shape: [4096, 1024] });
  assertMatch(show("attend_decode").label, /^layers\.0\.attention, 1 token/);
  const none = { ...STATED_DEVICE, f16: false };
  const half = showKernel("toF16", none, { config });
  assertMatch(half.label, /not chosen on this device/);
  assertThrows(
    () => show("gemm", { constants: { LANES: 4 } }),
    Error,
    "Cannot show gemm: it has no constant LANES, try deno task show gemm",
  );
});

Deno.test("deno task show prints WGSL, or one line that says where the kernels are listed", async () => {
  const run = (...args: string[]) => runTask("show", args);
  const { code, stdout: wgsl, stderr } = await run("gemv", "--set", "ROWS=3");
  assertEquals(code, 0, stderr);
  assertMatch(wgsl, /^\/\/ gemv on .*\n\/\/ synthetic:qwen3-0.6b: layers\.0/);
  assertStringIncludes(wgsl, "const ROWS: u32 = 3u;");
  for (
    const [args, message] of [
      [["gem"], '"gem": no such kernel, try gemm or deno task show --help'],
      [["nosuch"], '"nosuch": no such kernel, try deno task show --help'],
      [[], "0 kernels: name one, deno task show --help lists them"],
      [["gemm", "--dtype", "u8"], "must be one of bf16, f16, f32"],
      [["gemm", "--set", "LANES"], '"LANES", must be like WORKGROUP=64'],
      [
        ["gemm", "--set", "BM=8", "--set", "BM=9"],
        "--set gives BM twice, must be given once",
      ],
    ] as const
  ) {
    const { code, stdout, stderr } = await run(...args);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^error: Cannot show .*\n$/);
    assertStringIncludes(stderr, `${message}\n`);
  }
});

Deno.test("deno task show refuses kernels and constants before it opens a model", async () => {
  const model = ["--model", "http://127.0.0.1:1/"];
  for (const args of [["nosuch"], ["gemm", "--set", "LANES=2"]]) {
    const { code, stderr } = await runTask("show", [...args, ...model]);
    assertEquals(code, 1);
    assertMatch(stderr, /^error: Cannot show .* (no such kernel|no constant)/);
  }
});

Deno.test("deno task show --help lists every kernel", async () => {
  const { code, stdout } = await runTask("show", ["--help"]);
  assertEquals(code, 0);
  const listed = stdout.split("Kernels: ")[1].trim().split(/,\s+/);
  assertEquals(listed, [...KERNEL_NAMES]);
});
