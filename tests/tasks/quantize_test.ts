/** `deno task quantize`: what it prints, and how it ends. */
import { assertEquals, assertMatch } from "@std/assert";
import { assertFits } from "../support/ruler.ts";
import { RUN, runTask } from "../support/run_task.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const STORY = "models/stories-3m";

Deno.test("the help of quantize names the variables of the Hub and of the cache", async () => {
  const { stdout } = await runTask("quantize", ["--help"]);
  assertEquals(
    stdout.split("Environment variables:\n")[1].match(/^ {2}\w+/gm)!.map((
      line,
    ) => line.trim()),
    [
      ...["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE"],
      ...["HF_HUB_OFFLINE", "HF_ENDPOINT", "QWEN3_CACHE_DIR", "NO_COLOR"],
    ],
  );
});

Deno.test("deno task quantize prints a table of types, or JSON alone", async () => {
  await using out = await tempFolder({});
  const file = `${out.path}/story.gguf`;
  const run = (...args: string[]) =>
    runTask("quantize", [STORY, file, ...args]);
  const table = await run("--type", "Q4_K_M");
  assertEquals([table.code, table.stderr], [0, ""]);
  assertFits(table.stdout);
  assertMatch(
    table.stdout,
    /^type +tensors +before +after +error\nq5_0 +34 +4\.62 MB +1\.59 MB +4\.\d %\n/,
  );
  assertMatch(
    table.stdout,
    /\nf32 +25 +6\.53 kB +13\.1 kB +none\nall +68 +6\.69 MB /,
  );
  assertMatch(table.stdout, /: 2\.52 MB in [\d.]+ s\n$/);

  const refused = await run("--type", "q8_0");
  assertEquals([refused.code, refused.stdout], [1, ""]);
  assertEquals(
    refused.stderr,
    `error: Cannot write ${file}: --force must be set to replace it: the file exists\n`,
  );

  const { code, stdout, stderr } = await run(
    "--type",
    "q8_0",
    "--force",
    "--json",
  );
  assertEquals([code, stderr, stdout.split("\n").length], [0, "", 2]);
  const { types, bytes, ...rest } = JSON.parse(stdout);
  assertEquals(rest.type, "q8_0");
  assertEquals(bytes, (await Deno.stat(file)).size);
  const [{ error, ...q8 }, { ...f32 }] = types;
  assertEquals(q8, {
    type: "q8_0",
    tensors: 43,
    before: 6684672,
    after: 3551232,
  });
  assertEquals(f32, {
    type: "f32",
    tensors: 25,
    before: 6528,
    after: 13056,
    error: 0,
  });
  assertEquals(error > 0.004 && error < 0.007, true, `${error}`);
});

Deno.test("deno task quantize says what is wrong with its arguments", async () => {
  for (
    const [args, message] of [
      [[], "Cannot quantise: 0 arguments are given, must be MODEL FILE.gguf"],
      [
        [STORY],
        "Cannot quantise: 1 argument is given, must be MODEL FILE.gguf",
      ],
      [
        [STORY, "x.gguf"],
        "Cannot quantise: --type is missing, must be such as q4_k_m, try --help",
      ],
      [
        [STORY, "x.gguf", "--type", "q4_km"],
        'Cannot quantise: --type is "q4_km", must be such as q4_k_m, q4_k, q4_1, q4_0, try --help',
      ],
      [
        [STORY, "x.gguf", "--type", "iq2_xxs"],
        'Cannot quantise: --type is "iq2_xxs", must be such as q8_0, q4_k_m, try --help',
      ],
    ] as const
  ) {
    const { code, stdout, stderr } = await runTask("quantize", args);
    assertEquals([code, stdout, stderr], [1, "", `error: ${message}\n`]);
  }
});

Deno.test("Ctrl-C ends writing with code 130 and leaves nothing", async () => {
  await using out = await tempFolder({});
  const model = "synthetic:qwen3-0.6b?layers=2";
  await using child = new Deno.Command(Deno.execPath(), {
    args: [
      ...[...RUN, "tasks/quantize.ts", model, `${out.path}/x.gguf`],
      ...["--type", "q2_k", "--json"],
    ],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1" },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const isWriting = () =>
    [...Deno.readDirSync(out.path)].some(({ name }) => name.endsWith(".part"));
  let hasEnded = false;
  child.status.then(() => hasEnded = true);
  while (!isWriting() && !hasEnded) {
    await new Promise((done) => setTimeout(done, 20));
  }
  if (!hasEnded) child.kill("SIGINT");
  const { code, stdout, stderr } = await child.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals(
    [code, text(stdout), text(stderr)],
    [130, "", "Interrupted: nothing was written\n"],
  );
  assertEquals([...Deno.readDirSync(out.path)], []);
});
