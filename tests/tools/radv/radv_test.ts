import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { openCheckpoint } from "../../../lib/checkpoint/open.ts";
import {
  bindingsOf,
  isHot,
  kernelsToCompile,
  PASSES,
  radvTable,
  readChips,
  readPasses,
  spilling,
  statisticsOf,
  threadsOf,
  variantsOnAmd,
} from "../../../lib/tools/radv/radv.ts";
import { formatNamed } from "../../../lib/formats/mod.ts";
import { KERNEL_NAMES } from "../../../kernels/list.ts";
import { runTask } from "../../support/run_task.ts";
const { config } = await openCheckpoint("synthetic:qwen3-0.6b");
const { config: experts } = await openCheckpoint("synthetic:qwen3-30b-a3b");

/** Statistics by RADV's names. */
const named = (changes: Record<string, number> = {}) =>
  new Map(Object.entries({
    "SGPRs": 128,
    "VGPRs": 80,
    "Spilled SGPRs": 0,
    "Spilled VGPRs": 0,
    "Code size": 5412,
    "LDS size": 8704,
    "Scratch size": 0,
    "Subgroups per SIMD": 12,
    "Latency": 11943,
    "Inverse Throughput": 6293,
    ...changes,
  }));
const GEMM = {
  kernel: "gemm",
  label: "layers.0.o_proj",
  constants: { BM: 64, EPILOGUE: "add" },
  wgsl: "const THREADS: u32 = 128u;\n@compute @workgroup_size(THREADS)",
};

Deno.test("chips have RADV's names", () => {
  assertEquals(readChips("navi21,gfx1200,vega20"), [
    { name: "navi21", generation: "GFX10.3" },
    { name: "gfx1200", generation: "GFX12" },
    { name: "vega20", generation: "GFX9" },
  ]);
  for (const wrong of ["navi99", "", "navi21,", "constructor"]) {
    assertThrows(
      () => readChips(wrong),
      Error,
      `Cannot compile for "${
        wrong.replace("navi21,", "")
      }": no such chip, try `,
    );
  }
});

Deno.test("every kernel has a variant for AMD, all of different WGSL", () => {
  const variants = variantsOnAmd({ config });
  // Blocks are multiplied as integers, in a mixture of experts too.
  const blocks = variantsOnAmd({
    config: experts,
    format: formatNamed("q4_k"),
    tokens: [1, 4, 512],
  });
  // Experts in bf16, and few rows of blocks in f32.
  const others = variantsOnAmd({ config: experts, tokens: [1, 512] });
  assertEquals(
    [
      ...new Set(
        [...variants, ...blocks, ...others].map(({ kernel }) => kernel),
      ),
    ].sort(),
    // naga has no types for matrices, and AMD's defaults give each matmul a dispatch.
    KERNEL_NAMES.filter((name) =>
      !/Matrix$|^(feedForward|addPending)$/.test(name)
    ),
  );
  const texts = variants.map(({ wgsl }) => wgsl);
  assertEquals(new Set(texts).size, texts.length);
  assert(PASSES.includes(1) && PASSES.some((tokens) => tokens > 512));
  // With f16 matmuls and without, for a decode step and for prompts.
  const of = (kernel: string) =>
    variants.filter((variant) => variant.kernel === kernel);
  for (const half of ["F16: u32 = 1u;", "F16: u32 = 0u;"]) {
    assert(of("gemm").some(({ wgsl }) => wgsl.includes(half)), half);
  }
  const rows = of("gemvRows").map(({ wgsl }) => wgsl);
  assert(rows.some((wgsl) => wgsl.includes("const M: u32 = 16u;")));
  assert(of("gemv").every(({ reason }) => /AMD/.test(reason)));
});

Deno.test("kernels, tokens and constants select variants", () => {
  const some = variantsOnAmd({
    config,
    kernels: ["attend_decode", "gemv"],
    tokens: [1],
    constants: { WORKGROUP: 64 },
  });
  assertEquals(
    [...new Set(some.map(({ kernel }) => kernel))],
    ["attendDecode", "gemv"],
  );
  assertEquals(new Set(some.map(({ wgsl }) => threadsOf(wgsl))), new Set([64]));
  assertThrows(
    () => variantsOnAmd({ config, kernels: ["gem"] }),
    Error,
    'Cannot compile "gem": no such kernel, try gemm or deno task radv --help',
  );
  // Before a model is opened, with the same words.
  assertEquals(kernelsToCompile(["attend_decode"]), ["attendDecode"]);
  assertThrows(
    () => kernelsToCompile(["gem"]),
    Error,
    'Cannot compile "gem": no such kernel',
  );
  assertThrows(
    () => kernelsToCompile(["gemv", "gemm"], { WORKGROUP: 64 }),
    Error,
    "Cannot compile gemm: it has no constant WORKGROUP",
  );
});

Deno.test("waves per SIMD count waves of the kernel's own size", () => {
  const [navi, vega] = readChips("navi31,vega20");
  const waves = (chip: typeof navi, wave: number) =>
    statisticsOf(GEMM, chip, { wave, statistics: named() }).waves;
  assertEquals(waves(navi, 64), 6);
  assertEquals(waves(navi, 32), 12);
  assertEquals(waves(vega, 64), 12);
  const row = statisticsOf(GEMM, navi, { wave: 64, statistics: named() });
  assertEquals([row.threads, row.constants, row.lds], [
    128,
    "BM=64 EPILOGUE=add",
    8704,
  ]);
  const other = named();
  other.delete("LDS size");
  assertThrows(
    () => statisticsOf(GEMM, navi, { wave: 64, statistics: other }),
    Error,
    'there is no "LDS size" among SGPRs, VGPRs',
  );
});

Deno.test("a hot kernel that spills is found, a kernel outside the passes is not", () => {
  const [chip] = readChips("navi21");
  const row = (kernel: string, changes = {}) =>
    statisticsOf({ ...GEMM, kernel }, chip, {
      wave: 64,
      statistics: named(changes),
    });
  const rows = [
    row("gemm"),
    row("gemm", { "Spilled VGPRs": 3 }),
    row("attendDecode", { "Scratch size": 256 }),
    row("gemv", { "Spilled SGPRs": 5 }), // spilled to a vector register, not to memory
    row("peakFma", { "Spilled VGPRs": 3 }),
  ];
  assertEquals(spilling(rows), [rows[1], rows[2]]);
  assert(KERNEL_NAMES.filter(isHot).length > KERNEL_NAMES.length / 2);
});

Deno.test("the table has a line for each call and below it one for each chip, of 100 columns", () => {
  const chips = readChips("navi21, rembrandt");
  const calls = [
    GEMM,
    { ...GEMM, kernel: "attendPrefillF16", label: "layers.0.".repeat(15) },
  ];
  const rows = chips.flatMap((chip) =>
    calls.map((call) =>
      statisticsOf(call, chip, {
        wave: 64,
        statistics: named({ "Spilled VGPRs": 300, "Latency": 12345678 }),
      })
    )
  );
  const lines = radvTable(rows).split("\n");
  assert(lines.every((line) => line.length <= 100), lines.join("\n"));
  assertEquals(lines[1], "gemm layers.0.o_proj BM=64 EPILOGUE=add");
  assertMatch(lines[2], /^ {2}navi21 +64 +128 +80 +300\/0 +0 +8704 +6 /);
  assertMatch(lines[3], /^ {2}rembrandt +64 /);
  assertMatch(lines[4], /^attendPrefillF16$/);
  const numbers = lines.filter((line) => /^ {2}\S/.test(line));
  assertEquals(new Set(numbers.map(({ length }) => length)).size, 1);
  assertEquals(numbers.length, 1 + rows.length);
});

Deno.test("passes are a list, such as the one by default", () => {
  assertEquals(readPasses(PASSES.join(",")), PASSES);
  assertEquals(readPasses("1, 512"), [1, 512]);
  for (const wrong of ["0", "1,,2", "", "1.5", "many", "-1"]) {
    assertThrows(
      () => readPasses(wrong),
      Error,
      "must be integers of at least 1 like 1,512",
    );
  }
});

Deno.test("constants select the variants that may have them, and are refused if none may", () => {
  const of = (constants: Record<string, number>, tokens = [72, 512]) =>
    variantsOnAmd({ config, kernels: ["gemm"], tokens, constants });
  const every = of({ BM: 64 });
  assert(every.every(({ constants }) => constants.BM === 64));
  // Only without f16 matmuls.
  const some = of({ F16: 0 });
  assert(some.length > 0 && some.length < of({}).length);
  assert(some.every(({ constants }) => constants.F16 === 0));
  assertThrows(() => of({ BM: 7 }), Error, "Cannot show gemm: with BM=7, ");
  assertThrows(
    () => of({ BM: 1024 }, [72]),
    Error,
    "Cannot show gemm: with BM=1024, ",
  );
});

Deno.test("every binding of a kernel has its type, textures too", () => {
  const types = variantsOnAmd({ config, tokens: [1] }).map(({ wgsl }) => {
    const types = bindingsOf(wgsl);
    assertEquals(types.length, wgsl.match(/@binding\(/g)!.length);
    // Sizes are literals in decode steps.
    assertEquals(types.at(-1) === "uniform", wgsl.includes("var<uniform>"));
    return types.join(" ");
  });
  assert(types.includes("texels storage uniform")); // peakRead of a texture
  assert(types.includes("read-only-storage storage uniform"));
});

Deno.test("without Mesa deno task radv says in one line how to get it", async () => {
  const empty = await Deno.makeTempDir();
  try {
    for (
      const [args, error] of [
        [[], "--mesa DIR is missing"],
        [["--mesa", empty], "has no libvulkan_radeon.so and libvulkan_lvp.so"],
        [["--chips", "navi99"], 'Cannot compile for "navi99"'],
        [
          ["--tokens", "1,0"],
          '--tokens has "0", must be integers of at least 1 like 1,512',
        ],
        [
          ["--tokens", "1,131073"],
          '--tokens has "131073", must be integers up to 131072 like 1,512',
        ],
        [
          ["gemm", "--set", "F17=1"],
          "Cannot compile gemm: it has no constant F17",
        ],
      ] as const
    ) {
      const { code, stdout, stderr } = await runTask("radv", args);
      assertEquals([code, stdout], [1, ""]);
      assertMatch(stderr, /^error: [^\n]*\n$/);
      assertStringIncludes(stderr, error);
      if (!/^--chips|^--tokens|^gemm/.test(args[0] ?? "")) {
        assertStringIncludes(stderr, "tasks/get_mesa.sh DIR unpacks");
      }
    }
  } finally {
    await Deno.remove(empty);
  }
});
