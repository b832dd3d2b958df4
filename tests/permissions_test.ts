/** Without a permission there is one line that names its flag, or a choice that says so. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { emptyCache, fixtureFiles, serveHub } from "./support/serve_hub.ts";
import { CACHE_DIR, host } from "../lib/host.ts";
import { listWebCache } from "../lib/checkpoint/web_cache.ts";
import { gpuTest } from "./support/gpu.ts";
import {
  rangeResponse,
  readFolder,
  serveFiles,
} from "./support/serve_folder.ts";
import { serveTree } from "./support/serve_tree.ts";
import { emptyWebCache } from "./support/web_cache.ts";

const ROOT = new URL("../", import.meta.url);
const FIXTURE = new URL("tests/fixtures/tiny-tied-bf16/", ROOT);

/** Runs a program with some permissions only; returns what it printed. */
async function run(
  flags: string[],
  args: string[],
): Promise<{ stdout: string; stderr: string; code: number }> {
  const { stdout, stderr, code } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...flags, ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", [CACHE_DIR]: host.env(CACHE_DIR) ?? "" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { stdout: text(stdout), stderr: text(stderr), code };
}

/** Loads a model in a program with these permissions; returns its outcome. */
async function load(
  model: string,
  flags: string[],
  device = "cpu",
  root = ROOT.href,
): Promise<
  { error?: string; tokens?: number; choices?: string[]; notices: string[] }
> {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(
      `${folder}/main.ts`,
      `import { loadQwen3 } from ${JSON.stringify(`${root}mod.ts`)};
       const [model, device] = Deno.args;
       const notices = [], onNotice = (notice) => notices.push(notice);
       let outcome;
       try {
         using qwen = await loadQwen3(model, { device, onNotice, context: 64 });
         const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4, ignoreEos: true });
         let tokens = 0;
         for await (const _ of run) tokens++;
         const choices = qwen.device.choices.map(({ what, value, reason }) =>
           [what, value, reason].join(": "));
         outcome = { tokens, choices, notices };
       } catch (error) {
         outcome = { error: error.message, notices };
       }
       console.log(JSON.stringify(outcome));`,
    );
    const { stdout, stderr } = await run([...flags, "--no-config"], [
      `${folder}/main.ts`,
      model,
      device,
    ]);
    assert(!/Uncaught|\n\s+at /.test(stderr), stderr);
    return JSON.parse(stdout);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const READ = "--allow-read", ENV = "--allow-env", SYS = "--allow-sys";
const NET = "--allow-net", WRITE = "--allow-write";
const path = FIXTURE.pathname.replace(/\/$/, "");

Deno.test("a folder needs --allow-read and --allow-sys", async () => {
  assertEquals(
    (await load(path, [])).error,
    `Cannot open "${path}": Deno has no read permission for "${path}", run it with --allow-read`,
  );
  assertEquals(
    (await load(path, [READ])).error,
    `Cannot load ${path}: Deno has no sys permission for "systemMemoryInfo", run it with --allow-sys`,
  );
  assertEquals((await load(path, [READ, SYS])).tokens, 4);
});

Deno.test("a URL needs --allow-net", async () => {
  await using server = serveFiles(await readFolder(FIXTURE));
  const { host } = new URL(server.url);
  assertEquals(
    (await load(server.url, [SYS])).error,
    `Cannot read ${server.url}/config.json: Deno has no net permission for "${host}", run it with --allow-net`,
  );
  assertEquals(server.requests.length, 0);
  assertEquals((await load(server.url, [SYS, NET])).tokens, 4);
});

Deno.test("a URL is kept with --allow-env, --allow-read and --allow-write in the cache only", async () => {
  await using cache = await emptyWebCache();
  await using server = serveFiles(await readFolder(FIXTURE), {
    intercept: ({ url }) => {
      if (!url.endsWith("/config.json")) return;
      const headers = { etag: '"1"' };
      const { pathname } = new URL("config.json", FIXTURE);
      return new Response(Deno.readTextFileSync(pathname), { headers });
    },
  });
  const { path } = cache;
  const given = [SYS, NET, ENV, `${READ}=${path}`];
  assertEquals((await load(server.url, given)).tokens, 4);
  assertEquals(await listWebCache(), []);
  given.push(`${WRITE}=${path}`);
  assertEquals((await load(server.url, given)).tokens, 4);
  assertEquals((await listWebCache()).length, 1);
});

Deno.test("without one of these a URL is not kept, and a notice says so", async () => {
  await using _cache = await emptyWebCache();
  const files = await readFolder(FIXTURE);
  await using server = serveFiles(files, {
    intercept(request) {
      const file = files.get(new URL(request.url).pathname);
      return file && rangeResponse(request, file, { etag: '"one"' });
    },
  });
  const given = [SYS, NET, READ, WRITE, ENV];
  for (const flag of [READ, WRITE, ENV]) {
    const { tokens, notices } = await load(
      server.url,
      given.filter((other) => other !== flag),
    );
    assertEquals(tokens, 4);
    assertEquals(notices, [
      `${server.url}/: nothing is kept for the next run: Deno has no ${
        flag.slice("--allow-".length)
      } permission, run it with ${flag}.`,
    ]);
  }
});

Deno.test("a repository needs the README's permissions, --allow-write among them", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(await fixtureFiles("tiny-tied-bf16"));
  const { host } = new URL(server.url);
  const given = [READ, ENV, SYS, NET, WRITE];
  const without = async (flag: string) =>
    (await load("Some/Model", given.filter((other) => other !== flag))).error;
  assertMatch(
    (await without(ENV))!,
    /^Cannot load Some\/Model: Deno has no env permission for "HF_HUB_CACHE", run it with --allow-env$/,
  );
  assertMatch(
    (await without(NET))!,
    new RegExp(
      `cannot be downloaded from ${server.url}: Deno has no net permission for "${host}", run it with --allow-net$`,
    ),
  );
  assertMatch(
    (await without(WRITE))!,
    /cannot be downloaded from \S+: Deno has no write permission for "\S+\/snapshots\/[0-9a-f]+", run it with --allow-write$/,
  );
  // Deno does not make links if writing is permitted in one folder only.
  const scoped = [READ, ENV, SYS, NET, `--allow-write=${cache.path}`];
  assertEquals((await load("Some/Model", scoped)).tokens, 4);
  assertEquals((await load("Some/Model", [READ, ENV, SYS])).tokens, 4);
});

Deno.test("a server without ranges needs --allow-read and --allow-write too", async () => {
  const options = { ranges: false };
  await using server = serveFiles(await readFolder(FIXTURE), options);
  const given = [SYS, NET, READ, WRITE];
  for (const flag of [READ, WRITE]) {
    const { error } = await load(
      server.url,
      given.filter((other) => other !== flag),
    );
    assertMatch(error!, new RegExp(`, run it with ${flag}$`));
  }
  assertEquals((await load(server.url, given)).tokens, 4);
});

Deno.test("mod.ts by URL needs --allow-import, the story model there --allow-net", async () => {
  await using server = serveTree({
    isPublic: (path) => /^(mod\.ts|(lib|kernels|models)\/.*)$/.test(path),
  });
  const root = `${server.url}/`, model = `${root}models/stories-3m/`;
  const imports = `--allow-import=${server.host}`;
  const { error } = await load(model, [imports, SYS], "cpu", root);
  assertMatch(
    error!,
    new RegExp(`no net permission for "${server.host}", run it with ${NET}$`),
  );
  const given = [imports, SYS, NET];
  assertEquals((await load(model, given, "cpu", root)).tokens, 4);
  const alone = await Deno.makeTempDir();
  try {
    const main = `${alone}/main.ts`;
    await Deno.writeTextFile(main, `import "${root}mod.ts";`);
    const { code, stderr } = await run([SYS, NET], [main]);
    assertEquals(code, 1);
    assertMatch(stderr, /Requires import access to .*--allow-import/);
  } finally {
    await Deno.remove(alone, { recursive: true });
  }
});

gpuTest(
  "a GPU needs no permission, its tuned constants --allow-read and --allow-env",
  async () => {
    const tuned = (choices?: string[]) =>
      choices?.find((choice) => choice.startsWith("tuned constants: "));
    const without = await load(path, [READ, SYS], "gpu");
    assertEquals(without.tokens, 4);
    assertMatch(tuned(without.choices)!, /: off: .* is not permitted$/);
    const { choices } = await load(path, [READ, SYS, ENV], "gpu");
    assertMatch(tuned(choices)!, /^tuned constants: (none|\d+ shapes?): /);
  },
);

Deno.test("without reading the worker, the CPU path has one thread and says so", async () => {
  const { tokens, choices } = await load(
    "synthetic:qwen3-0.6b?layers=1&vocab=4096",
    [SYS],
  );
  assertEquals(tokens, 4);
  assertMatch(
    choices!.join("\n"),
    /one thread, because workers failed: Deno has no read permission for \S+worker.ts, run it with --allow-read/,
  );
});

Deno.test("a task without a permission prints one line", async () => {
  for (
    const [flags, expected] of [
      [[], "Cannot prepare the environment: Deno has no env permission for"],
      [[ENV], "Deno has no read permission for"],
      [[ENV, READ], "Deno has no sys permission for"],
    ] as const
  ) {
    const { stdout, stderr, code } = await run([...flags], [
      "tasks/generate.ts",
      "Hi",
    ]);
    assertEquals([stdout, code], ["", 1]);
    const lines = stderr.trim().split("\n")
      .filter((line) => !line.includes("XDG_RUNTIME_DIR is invalid"));
    assertEquals(lines.length, 1, stderr);
    assertMatch(lines[0], /^error: Cannot .*, run it with --allow-\w+$/);
    assert(lines[0].includes(expected), lines[0]);
  }
});

Deno.test("prepareEnvironment needs --allow-env", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const main = `${folder}/main.ts`;
    await Deno.writeTextFile(
      main,
      `import { prepareEnvironment } from "${ROOT.href}mod.ts";
       prepareEnvironment();
       console.log("prepared");`,
    );
    const refused = await run(["--no-config"], [main]);
    assertMatch(
      refused.stderr,
      /Cannot prepare the environment: .* run it with --allow-env/,
    );
    const { stdout } = await run(["--no-config", ENV], [main]);
    assertEquals(stdout, "prepared\n");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
