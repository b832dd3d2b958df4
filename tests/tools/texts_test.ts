/** Finished texts are valid WGSL for compilers that follow the specification. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { attendDecode } from "../../kernels/attend_decode.ts";
import { KERNEL_NAMES } from "../../kernels/list.ts";
import type { Sketched } from "../../lib/tools/recording.ts";
import { showKernel, STATED_DEVICE } from "../../lib/tools/show.ts";
import { SKETCHES, writeTexts } from "../../lib/tools/texts.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { someOf } from "../support/gpu.ts";
import { slowTest } from "../support/quick.ts";
import { runTask } from "../support/run_task.ts";
import { openTint } from "../support/tint.ts";

/** Only devices with tensor cores run every kernel. */
const isWhole = ({ subgroupMatrices = [] }: Sketched) =>
  subgroupMatrices.length > 0;
// Each takes seconds, most of them to make its texts.
const DEVICES = [
  ...SKETCHES.filter(isWhole),
  ...someOf(SKETCHES.filter((sketch) => !isWhole(sketch)), 3),
];

slowTest("Tint accepts every text that any device brings about", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const count = await writeTexts(folder, "tint", DEVICES);
    const files = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    assertEquals(count, files.length);
    assert(files.length > 300 * DEVICES.length, `${files.length} texts`);
    const kernels = new Set(files.map((name) => name.split("-")[0]));
    assertEquals([...kernels].sort(), [...KERNEL_NAMES].sort());
    const check = await openTint(), refused: string[] = [];
    for (const file of files) {
      const wgsl = await Deno.readTextFile(`${folder}/${file}`);
      const refusal = await check(wgsl);
      if (!refusal) continue;
      const lines = wgsl.split("\n"), { line, message } = refusal;
      refused.push(
        `${lines[0]}\n${lines[1]}\n${message}, line ${line}: ${
          lines[line - 1]
        }`,
      );
    }
    const some = refused.slice(0, 10).join("\n");
    assertEquals(refused.length, 0, `${refused.length} refused:\n${some}`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

slowTest(
  "Tint refuses a shuffle in control flow that is not uniform",
  async () => {
    const { config } = parseSynthetic("synthetic:qwen3-0.6b");
    const device = { ...STATED_DEVICE, compiler: "tint" } as const;
    const { wgsl } = showKernel(attendDecode.name, device, { config });
    const check = await openTint();
    assertEquals(await check(wgsl), undefined);
    const without = wgsl.replace("enable subgroups;\n", "");
    assertMatch((await check(without))!.message, /extension 'subgroups'/);
    const wrong = wgsl.replace(
      "let score = norm_sum(dots, tid);",
      "var score = dots; if (norm_lane == 0u) { score = norm_sum(dots, tid); }",
    );
    const { line, message } = (await check(wrong))!;
    assertMatch(message, /subgroup uniform control flow/);
    assertMatch(wrong.split("\n")[line - 1], /subgroupShuffleXor/);
  },
);

Deno.test("deno task show --all takes no kernel and no other flags", async () => {
  for (const more of ["gemm", "--json", "--tokens=4"]) {
    const { code, stderr } = await runTask("show", ["--all", "none", more]);
    assertEquals(code, 1);
    const given = more.split("=")[0];
    assertEquals(
      stderr,
      `error: Cannot show all texts: "${given}" was given, --all takes only --compiler\n`,
    );
  }
  const used = await Deno.makeTempDir();
  await Deno.writeTextFile(`${used}/gemm-0001.wgsl`, "");
  const refusals: [folder: string, message: RegExp][] = [
    ["", /^error: Cannot show all texts: --all is "", must be a folder\n$/],
    [
      used,
      /^error: Cannot show all texts: --all is ".*", which has texts, must be one without\n$/,
    ],
    [
      `${used}/gemm-0001.wgsl`,
      /^error: Cannot show all texts: .* which cannot be made: .*\n$/,
    ],
  ];
  for (const [folder, message] of refusals) {
    const { code, stderr } = await runTask("show", ["--all", folder]);
    assertEquals(code, 1);
    assertMatch(stderr, message);
  }
  await Deno.remove(used, { recursive: true });
  const { stderr } = await runTask("show", ["gemm", "--compiler", "fxc"]);
  assertMatch(stderr, /--compiler is "fxc", must be naga or tint/);
});

Deno.test("deno task show says what another compiler would be given", async () => {
  const shown = async (...args: string[]) =>
    (await runTask("show", ["rms-norm", ...args])).stdout;
  const line = /^enable subgroups;$/m;
  assertMatch(await shown("--compiler", "tint"), line);
  assert(!line.test(await shown("--compiler", "naga")));
});
