/** Scripts that import mod.ts by URL. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { gpuTest } from "./support/gpu.ts";
import {
  type ServedTree,
  serveTree,
  type TreeOptions,
} from "./support/serve_tree.ts";
import { cleanDeno } from "./support/clean_deno.ts";
import { slowTest } from "./support/quick.ts";

const ROOT = new URL("../", import.meta.url);
/** The script of CPU threads, and a path that answers once the script was requested. */
const WORKER = "/lib/cpu/worker.ts", WORKER_ASKED = "/worker-asked";

/** Serves mod.ts and everything that it loads. */
function serveModule(
  options: Partial<TreeOptions> = {},
): ServedTree {
  const workerAsked = Promise.withResolvers<void>();
  return serveTree({
    isPublic: (path) => /^(mod\.ts|(lib|kernels|models)\/.*)$/.test(path),
    async intercept(path) {
      if (path === WORKER) workerAsked.resolve();
      if (path !== WORKER_ASKED) return undefined;
      await workerAsked.promise;
      return new Response();
    },
    ...options,
  });
}

/** Runs a script in an empty folder and parses what it prints as JSON. */
async function runScript(source: string, url: string) {
  const cwd = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${cwd}/main.ts`, source);
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--no-config",
        `--reload=${url}`, // an earlier run may have had this port
        `--allow-import=${new URL(url).host}`,
        // As in the README: the model, its cache, and the amount of memory.
        ...["--allow-net", "--allow-read", "--allow-env", "--allow-sys"],
        "main.ts",
      ],
      cwd,
      env: { NO_COLOR: "1" },
    }).output();
    const text = new TextDecoder();
    assertEquals(code, 0, text.decode(stderr));
    return JSON.parse(text.decode(stdout));
  } finally {
    await Deno.remove(cwd, { recursive: true });
  }
}

for (const device of ["cpu", "gpu"]) {
  const test = device === "gpu" ? gpuTest : Deno.test;
  test(`mod.ts imported by URL finds the embedded model next to it (${device})`, async () => {
    await using server = serveModule();
    const script = `
      import { loadQwen3 } from "${server.url}/mod.ts";
      using qwen = await loadQwen3(undefined, { device: "${device}" });
      const run = qwen.generate("Once upon a time", { temperature: 0, maxTokens: 9 });
      let text = "";
      for await (const piece of run) text += piece.text;
      console.log(JSON.stringify({ text, kind: qwen.device.kind }));
    `;
    assertEquals(await runScript(script, server.url), {
      text: ", there was a little girl named Lily.",
      kind: device,
    });
    const { paths } = server;
    assert(paths.includes("models/stories-3m/model.safetensors"));
    const refused = paths.filter((path) => !/^(mod|lib|kern|mode)/.test(path));
    assertEquals(refused, []);
  });
}

Deno.test("CPU threads start when the modules were imported by URL", async () => {
  await using server = serveModule();
  // Large enough for threads to be worth it.
  const script = `
    import { loadQwen3 } from "${server.url}/mod.ts";
    using qwen = await loadQwen3("synthetic:qwen3-0.6b?layers=2&vocab=4096", { device: "cpu" });
    await qwen.logits([1, 2, 3]);
    if (navigator.hardwareConcurrency > 1) await fetch("${server.url}${WORKER_ASKED}");
    await qwen.logits([1, 2, 3]);
    const { adapter, choices } = qwen.device;
    const runner = qwen.runner as unknown as { ops: { info: { threads: number; reason: string } } };
    const { threads, reason } = runner.ops.info;
    console.log(JSON.stringify({ adapter, choices, threads, reason }));
  `;
  const { adapter, choices, threads, reason } = await runScript(
    script,
    server.url,
  );
  const cores = navigator.hardwareConcurrency;
  assertEquals([threads, reason.includes("failed")], [cores, false], reason);
  assertMatch(adapter, new RegExp(`^CPU \\(${cores} thread`));
  assert(choices.length >= 3);
  assertEquals(
    server.paths.includes(WORKER.slice(1)),
    cores > 1,
  );
});

slowTest("the profile page finds its script and style by URL", async () => {
  await using server = serveModule();
  const script = `
    import { profile } from "${server.url}/lib/tools/profile/profile.ts";
    import { profileHtml } from "${server.url}/lib/tools/profile/html.ts";
    const options = { device: "cpu", promptTokens: 2, maxTokens: 2 } as const;
    const html = await profileHtml(await profile(undefined, options));
    console.log(JSON.stringify(html.match(/function breakdown|--roof: /g)));
  `;
  const found = await runScript(script, server.url);
  assertEquals(found, ["--roof: ", "--roof: ", "function breakdown"]);
});

/** A script that needs every module, and prints a line. */
const MATMUL = (url: string) =>
  `import { matmul, loadQwen3 } from "${url}/mod.ts";
   console.log([matmul, loadQwen3].map(({ name }) => name).join());`;

for (
  const [type, who] of [
    ["text/plain; charset=utf-8", "raw files of GitHub and GitLab"],
    ["video/mp2t", "npm's http-server and serve, nginx"],
    ["application/typescript", "servers that know TypeScript"],
    [
      "application/octet-stream",
      "Python's http.server without a list of types",
    ],
    [undefined, "a server without types"],
  ]
) {
  Deno.test(`mod.ts is imported as ${type} (${who})`, async () => {
    await using server = serveModule({ contentType: () => type });
    await using deno = await cleanDeno();
    await Deno.writeTextFile(`${deno.folder}/main.ts`, MATMUL(server.url));
    const args = ["run", "--no-prompt", `--allow-import=${server.host}`];
    const { stdout, stderr } = await deno.run("deno", [...args, "main.ts"]);
    assertEquals(stdout, "matmul,loadQwen3\n", stderr);
  });
}

Deno.test("with another type the import fails, and again until --reload", async () => {
  // What Python's http.server sends on Debian.
  let type = "text/vnd.trolltech.linguist";
  await using server = serveModule({ contentType: () => type });
  await using deno = await cleanDeno();
  await Deno.writeTextFile(`${deno.folder}/main.ts`, MATMUL(server.url));
  const args = ["run", "--no-prompt", `--allow-import=${server.host}`];
  const run = (...flags: string[]) =>
    deno.run("deno", [...args, ...flags, "main.ts"]);
  assertMatch(
    (await run()).stderr,
    /Expected a JavaScript or TypeScript module/,
  );
  type = "text/typescript";
  assertMatch(
    (await run()).stderr,
    /Expected a JavaScript or TypeScript module/,
  );
  assertEquals(
    (await run(`--reload=${server.url}`)).stdout,
    "matmul,loadQwen3\n",
  );
});

Deno.test("a lock file pins what a URL gave", async () => {
  let change = "";
  await using server: ServedTree = serveModule({
    prefix: "/v0.1.0",
    intercept: (path) =>
      path === "/v0.1.0/lib/dtype.ts" && change
        ? new Response(change, { headers: { "content-type": "text/plain" } })
        : undefined,
  });
  await using deno = await cleanDeno();
  await Deno.writeTextFile(`${deno.folder}/deno.json`, "{}");
  await Deno.writeTextFile(`${deno.folder}/main.ts`, MATMUL(server.url));
  const args = ["run", "--no-prompt", `--allow-import=${server.host}`];
  const run = (...flags: string[]) =>
    deno.run("deno", [...args, ...flags, "main.ts"]);
  assertEquals((await run()).stdout, "matmul,loadQwen3\n");
  const { remote } = JSON.parse(
    await Deno.readTextFile(`${deno.folder}/deno.lock`),
  );
  const pinned = Object.keys(remote);
  assert(pinned.includes(`${server.url}/mod.ts`), pinned.join("\n"));
  assertEquals(
    (await run(`--reload=${server.url}`)).stdout,
    "matmul,loadQwen3\n",
  );
  change = await Deno.readTextFile(new URL("lib/dtype.ts", ROOT)) + "// more";
  const { code, stderr } = await run(`--reload=${server.url}`);
  assertEquals(code, 10, stderr);
  assertMatch(stderr, /Integrity check failed/);
  assertMatch(stderr, /lib\/dtype\.ts/);
});

slowTest(
  "a project with its own configuration imports mod.ts by path",
  async () => {
    await using deno = await cleanDeno();
    const root = new URL(".", ROOT).href.replace(/\/$/, "");
    await Deno.writeTextFile(
      `${deno.folder}/deno.json`,
      JSON.stringify({ imports: { "qwen3": `${root}/mod.ts` } }),
    );
    await Deno.writeTextFile(
      `${deno.folder}/main.ts`,
      `import { loadQwen3 } from "qwen3";
     using qwen = await loadQwen3(undefined, { device: "cpu" });
     const run = qwen.generate("Once upon a time", { temperature: 0, maxTokens: 9 });
     for await (const _ of run);
     console.log(run.text);`,
    );
    const args = [
      "run",
      "--check",
      "--no-prompt",
      "--allow-read",
      "--allow-sys",
    ];
    const { stdout, stderr } = await deno.run("deno", [...args, "main.ts"]);
    assertEquals(stdout, ", there was a little girl named Lily.\n", stderr);
  },
);
