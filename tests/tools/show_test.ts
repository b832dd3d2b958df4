import { f16 } from "../../lib/formats/f16.ts";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { KERNEL_NAMES, TUNED_KERNELS } from "../../kernels/list.ts";
import { showKernel, STATED_DEVICE } from "../../lib/tools/show.ts";
import { LEAST_LIMITS } from "../../lib/webgpu/device.ts";
import { gpuTest } from "../support/gpu.ts";
import { plainWgsl } from "../support/subgroup_matrices.ts";
import { runTask } from "../support/run_task.ts";

const { config } = await openCheckpoint("synthetic:qwen3-0.6b");

gpuTest("shown WGSL compiles on this adapter", async (gpu, trial) => {
  const { device } = gpu;
  for (const name of trial.some(KERNEL_NAMES, 8)) {
    const least = { ...STATED_DEVICE, limits: LEAST_LIMITS };
    for (const on of [gpu, STATED_DEVICE, least]) {
      const { wgsl } = showKernel(name, on, { config });
      assertStringIncludes(wgsl, `// ${name}\n`);
      assertStringIncludes(wgsl, "fn main(");
      if (wgsl.includes("enable f16;") && !gpu.f16) continue;
      device.pushErrorScope("validation");
      device.createShaderModule({ code: plainWgsl(wgsl) });
      const error = await device.popErrorScope();
      assert(!error, `${name}: ${error?.message}`);
    }
  }
});

Deno.test("tokens, types and constants change the WGSL", () => {
  const show = (name: string, options = {}) =>
    showKernel(name, STATED_DEVICE, { config, ...options });
  assertMatch(show("gemm").wgsl, /const BM: u32 = 128u;/);
  assertMatch(show("gemm", { constants: { BM: 32 } }).wgsl, /BM: u32 = 32u;/);
  assertMatch(show("gemvRows").wgsl, /const M: u32 = 16u;/);
  assertMatch(show("gemvRows", { tokens: 3 }).wgsl, /const M: u32 = 3u;/);
  const [w] = show("gemv", { format: f16 }).operands;
  assertEquals(w, { name: "w", dtype: "f16", shape: [4096, 1024] });
  const quantized = show("attend_decode", { kv: "q8_0" });
  assertMatch(quantized.wgsl, /unpack4xI8/);
  const [k] = quantized.operands.filter(({ name }) => name === "k");
  assertEquals(k, { name: "k", dtype: "u32", shape: [1, 8, 4096, 34] });
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

Deno.test("a constant that no choice could bring about is refused, in one line that says what it must be", () => {
  const refusals: [name: string, constants: Record<string, number>, string][] =
    [
      // What tuning decides must suit the kernel, the call and the device.
      [
        "gemm",
        { BM: 7 },
        "with BM=7, the sizes of a tile must be multiples of 4; try 32, 64 or 128",
      ],
      [
        "gemm",
        { BM: 3 },
        "with BM=3, the sizes of a tile must be multiples of 4; try 32, 64 or 128",
      ],
      ["gemm", { BM: 2000 }, "BM is 2000, must be an integer from 1 to 1024"],
      [
        "gemm",
        { TM: 32, TN: 32 },
        "with TM=32 TN=32, 16 threads share a tile, ",
      ],
      [
        "gemv",
        { WORKGROUP: 512 },
        "with WORKGROUP=512, 512 threads, must be at most 256",
      ],
      [
        "attendDecode",
        { SHARES: 3 },
        "SHARES is 3, must divide the 2 query heads of a kv head",
      ],
      // The others have the values that some device gives them.
      ["gemm", { F16: 1 }, "F16 is 1, must be 0 in this call"],
      ["gemm", { EPILOGUE: 1 }, "EPILOGUE is 1, must be store in this call"],
      ["attendDecode", { HEAD_DIM: 64 }, "HEAD_DIM is 64, must be 128 in this"],
      ["attendDecode", { GROUP: 1 }, "GROUP is 1, must be 2 in this call"],
      ["gemvRows", { CHAIN: 0 }, "CHAIN is 0, must be 1 in this call"],
      ["rmsNorm", { LOG_LANES: 7 }, "LOG_LANES is 7, must be 2, 3, 4 or 5 in "],
      ["batchedGemm", { BM: 7 }, "BM is 7, must be "],
      ["peakRead", { LOADS: 3 }, "LOADS is 3, must be 8 in this call"],
    ];
  for (const [name, constants, why] of refusals) {
    const error = assertThrows(
      () => showKernel(name, STATED_DEVICE, { config, constants }),
      Error,
      `Cannot show ${name}: ${why}`,
    );
    const one = Object.keys(constants).length === 1;
    if (one) assert(`error: ${error.message}`.length <= 100, error.message);
  }
  const show = (name: string, constants: Record<string, number>) =>
    showKernel(name, STATED_DEVICE, { config, constants });
  assertMatch(show("rmsNorm", { SUBGROUPS: 0 }).wgsl, /SUBGROUPS: u32 = 0u;/);
  assertMatch(show("rmsNorm", { LOG_LANES: 3 }).wgsl, /LOG_LANES: u32 = 3u;/);
  // What follows from a tuned constant changes with it.
  const shared = show("attendDecode", { SHARES: 2 });
  assertEquals([shared.constants.SHARES, shared.constants.GROUP], [2, 1]);
  assertMatch(shared.reason, /; as set$/);
});

gpuTest(
  "shown WGSL with constants that tuning tries compiles",
  async ({ device, ...gpu }, trial) => {
    const { random } = trial;
    for (const kernel of trial.some(TUNED_KERNELS, 2)) {
      for (const [name, values] of Object.entries(kernel.tuning.grid)) {
        // Some at a time; tuning checks each before it times it.
        for (const value of new Set([values.at(-1)!, random.pick(values)])) {
          let wgsl: string;
          try {
            const constants = { [name]: value };
            ({ wgsl } = showKernel(kernel.name, STATED_DEVICE, {
              config,
              constants,
            }));
          } catch (error) {
            assertMatch((error as Error).message, /^Cannot show /);
            continue;
          }
          if (wgsl.includes("enable f16;") && !gpu.f16) continue;
          device.pushErrorScope("validation");
          device.createShaderModule({ code: plainWgsl(wgsl) });
          const error = await device.popErrorScope();
          assert(!error, `${kernel.name} ${name}=${value}: ${error?.message}`);
        }
      }
    }
  },
);

Deno.test("deno task show prints WGSL, or one line that says where the kernels are listed", async () => {
  const run = (...args: string[]) => runTask("show", args);
  const { code, stdout: wgsl, stderr } = await run("gemv", "--set", "ROWS=3");
  assertEquals(code, 0, stderr);
  assertMatch(wgsl, /^\/\/ gemv on .*\n\/\/ synthetic:qwen3-0.6b: layers\.0/);
  assertStringIncludes(wgsl, "const ROWS: u32 = 3u;");
  assertStringIncludes(
    wgsl,
    "; as set, though tuning only tries ROWS 1, 2 or 4",
  );
  for (
    const [args, message] of [
      [["gem"], '"gem": no such kernel, try gemm or deno task show --help'],
      [["nosuch"], '"nosuch": no such kernel, try deno task show --help'],
      [[], "a kernel: name one, deno task show --help lists them"],
      [
        ["gemm", "gemv"],
        "2 kernels: name one, deno task show --help lists them",
      ],
      [["gemm", "--dtype", "u8"], "must be a stored type: try --help"],
      [
        ["gemm", "--dtype", "u8".repeat(200)],
        '…", must be a stored type: try --help',
      ],
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

Deno.test("deno task show says how many tokens a pass may have", async () => {
  const { code, stderr } = await runTask("show", ["gemm", "--tokens", "1e9"]);
  assertEquals(code, 1);
  assertStringIncludes(
    stderr,
    "--tokens is 1000000000, must be an integer from 1 to 131072\n",
  );
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
  const [listing] = stdout.split("Kernels: ")[1].split("\n\n");
  const listed = listing.trim().split(/,\s+/);
  assertEquals(listed, [...KERNEL_NAMES]);
});

Deno.test("deno task show --json prints one line, without it comments fit 100 columns", async () => {
  const json = await runTask("show", ["attend-decode", "--json"]);
  assertEquals([json.code, json.stderr], [0, ""]);
  assertMatch(json.stdout, /^\{[^\n]*\}\n$/);
  const shown = JSON.parse(json.stdout);
  assertEquals([shown.kernel, shown.model], [
    "attendDecode",
    "synthetic:qwen3-0.6b",
  ]);
  assertEquals(shown.constants.HEAD_DIM, 128);
  assertEquals(shown.operands[0].name, "qkv");
  for (const name of ["name", "device", "reason", "wgsl"]) {
    assertEquals(typeof shown[name], "string", name);
  }
  const text = await runTask("show", ["attend-decode"]);
  const comments = text.stdout.split("\n").filter((line) => /^\/\//.test(line));
  assert(comments.every((line) => line.length <= 100), comments.join("\n"));
  assertStringIncludes(text.stdout, shown.wgsl);
});

Deno.test("deno task show needs no GPU, unless flags choose one", async () => {
  const none = { VK_DRIVER_FILES: "/none", DENO_WEBGPU_BACKEND: "vulkan" };
  const show = (...flags: string[]) =>
    runTask("show", ["gemv", ...flags], none);
  const stated = await show();
  assertEquals(stated.code, 0, stated.stderr);
  assertStringIncludes(stated.stdout, "// gemv on no adapter: ");
  for (const flags of [["--adapter", "low"], ["--webgpu", "deno"]]) {
    const { code, stdout, stderr } = await show(...flags);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^error: Cannot open a GPU: no WebGPU adapter here; /);
  }
});
