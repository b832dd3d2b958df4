/** The command `qwen3`, installed as users do. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { someOf } from "../support/gpu.ts";
import { type CleanDeno, cleanDeno } from "../support/clean_deno.ts";
import { slowTest } from "../support/quick.ts";
import { type Outcome, runTask } from "../support/run_task.ts";
import { serveTree } from "../support/serve_tree.ts";

const ROOT = new URL("../../", import.meta.url);
/** Every task but those for people who change the code. */
const COMMANDS = Object.keys(config.tasks).filter((name) =>
  !["test", "ok"].includes(name)
);
const STORY = [
  ...["Once upon a time", "--device", "cpu", "--temperature", "0"],
  ...["--max-tokens", "9"],
];
const TEXT = ", there was a little girl named Lily.\n";

/** Serves what the package has. */
const serve = () =>
  serveTree({
    prefix: "/v0.1.0",
    isPublic: (path) =>
      /^(mod\.ts|deno\.json|(lib|kernels|models|tasks|bench)\/.*)$/.test(path),
  });

/** Installs a script under a name; returns what runs it. */
async function install(deno: CleanDeno, name: string, script: string) {
  const { code, stderr } = await deno.run("deno", [
    ...["install", "-g", "-A", "-n", name, "--root", "root", script],
  ]);
  assertEquals(code, 0, stderr);
  const suffix = Deno.build.os === "windows" ? ".cmd" : "";
  return (...args: string[]) => deno.run(`root/bin/${name}${suffix}`, args);
}

function assertRefused({ code, stdout, stderr }: Outcome, message: string) {
  assertEquals([code, stdout, stderr], [1, "", `error: ${message}\n`]);
}

for (const where of ["a folder", "a URL"]) {
  // Each is a process; the machine of the tests without a GPU is slow.
  const asked = someOf(COMMANDS, 4);
  Deno.test(`qwen3 is installed from ${where}`, async () => {
    await using server = serve();
    await using deno = await cleanDeno();
    const root = where === "a URL" ? `${server.url}/` : ROOT.href;
    const qwen3 = await install(deno, "qwen3", `${root}tasks/qwen3.ts`);
    const help = await qwen3("--help");
    assertEquals([help.code, help.stderr], [0, ""]);
    for (const name of COMMANDS) {
      assertMatch(help.stdout, new RegExp(`^  ${name} +\\w`, "m"));
    }
    for (const name of asked) {
      const { code, stdout, stderr } = await qwen3(name, "--help");
      assertEquals([code, stderr], [0, ""]);
      assert(stdout.startsWith(`qwen3 ${name} `), stdout);
      assert(!stdout.includes("deno task"), stdout);
    }
    const { stdout, stderr } = await qwen3("generate", ...STORY);
    assertEquals(stdout, TEXT, stderr);
    assertMatch(stderr, /: qwen3 generate PROMPT --model Qwen\/Qwen3-0\.6B$/m);
    const refused = await qwen3("show");
    assertEquals([refused.code, refused.stdout], [1, ""]);
    assertMatch(refused.stderr, /^error: Cannot .* qwen3 show --help .*\n$/);
  });
}

slowTest("every command of an installed qwen3 does its work", async () => {
  await using server = serve();
  await using deno = await cleanDeno();
  const qwen3 = await install(
    deno,
    "qwen3",
    `${server.url}/tasks/qwen3.ts`,
  );
  const doctor = await qwen3("doctor");
  assertEquals(doctor.code, 0, doctor.stdout);
  assert(!doctor.stdout.includes("deno task"), doctor.stdout);
  const short = [
    "--device",
    "cpu",
    "--prompt-tokens",
    "2",
    "--max-tokens",
    "2",
  ];
  const profile = await qwen3("profile", ...short, "--html", "profile.html");
  assertEquals(profile.code, 0, profile.stderr);
  assertMatch(
    await Deno.readTextFile(`${deno.folder}/profile.html`),
    /function breakdown/,
  );
  const show = await qwen3("show", "gemv");
  assertMatch(show.stdout, /@compute/);
  assertMatch(
    (await qwen3("radv", "--mesa", "none")).stderr,
    /^error: Cannot .*none/,
  );
  assertRefused(
    await qwen3("bench", "--peers", "."),
    "Cannot run peers: bench/peers/ is not on this machine, run bench in a copy of the tree",
  );
});

/** Tasks that are installed alone, among them one that runs a model. */
const ALONE = new Set([...someOf(COMMANDS, 5), "generate"]);

slowTest("each task can be installed alone", async () => {
  await using server = serve();
  await using deno = await cleanDeno();
  for (const name of ALONE) {
    const script = `${server.url}/tasks/${name}.ts`;
    const run = await install(deno, `qwen3-${name}`, script);
    const { code, stdout, stderr } = await run("--help");
    assertEquals([code, stderr], [0, ""]);
    assertMatch(stdout, new RegExp(`^deno task ${name} `));
    if (name === "generate") {
      assertEquals((await run(...STORY)).stdout, TEXT);
    }
  }
});

Deno.test("qwen3 radv names the script that gets Mesa where it is", async () => {
  const script = Deno.realPathSync("tasks/get_mesa.sh");
  const { code, stderr } = await runTask("qwen3", ["radv"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, `; ${script} DIR unpacks Mesa there`);
  const { stdout } = await runTask("qwen3", ["radv", "--help"]);
  assertStringIncludes(stdout.replaceAll(/\s+/g, " "), `Mesa: ${script} DIR`);
});

Deno.test("qwen3 refuses unknown commands, and prints its help without one", async () => {
  assertRefused(
    await runTask("qwen3", ["genrate", "hi"]),
    'Cannot run "genrate": there is no such command, try generate or qwen3 --help',
  );
  assertRefused(
    await runTask("qwen3", ["Once upon a time"]),
    'Cannot run "Once upon a time": there is no such command, try qwen3 --help',
  );
  assertRefused(
    await runTask("qwen3", ["toString"]),
    'Cannot run "toString": there is no such command, try qwen3 --help',
  );
  const help = await runTask("qwen3", ["--help"]);
  assertEquals(help.code, 0);
  assertEquals(await runTask("qwen3", ["-h"]), help);
  assertEquals(await runTask("qwen3", ["help"]), help);
  assertEquals(await runTask("qwen3", []), {
    code: 1,
    stdout: "",
    stderr: help.stdout,
  });
});
