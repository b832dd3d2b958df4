/** Scripts that import mod.ts by URL. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { gpuTest } from "./support/gpu.ts";
import { rangeResponse } from "./support/serve_folder.ts";
import { slowTest } from "./support/quick.ts";

const ROOT = new URL("../", import.meta.url);
/** The script of CPU threads, and a path that answers once the script was requested. */
const WORKER = "/lib/cpu/worker.ts", WORKER_ASKED = "/worker-asked";

/** Serves mod.ts and everything that it loads. */
function serveTree(): AsyncDisposable & { url: string; paths: string[] } {
  const paths: string[] = [];
  const workerAsked = Promise.withResolvers<void>();
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      const { pathname } = new URL(request.url);
      if (pathname === WORKER_ASKED) {
        await workerAsked.promise;
        return new Response();
      }
      paths.push(pathname);
      if (pathname === WORKER) workerAsked.resolve();
      if (!/^\/(mod\.ts|(lib|kernels|models)\/.*)$/.test(pathname)) {
        return new Response("not public", { status: 403 });
      }
      try {
        const file = await Deno.readFile(new URL(`.${pathname}`, ROOT));
        return rangeResponse(request, file);
      } catch {
        return new Response("no such file", { status: 404 });
      }
    },
  );
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    paths,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
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
    await using server = serveTree();
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
    assert(paths.includes("/models/stories-3m/model.safetensors"));
    const refused = paths.filter((path) =>
      !/^\/(mod|lib|kern|mode)/.test(path)
    );
    assertEquals(refused, []);
  });
}

Deno.test("CPU threads start when the modules were imported by URL", async () => {
  await using server = serveTree();
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
    server.paths.includes(WORKER),
    cores > 1,
  );
});

slowTest("the profile page finds its script and style by URL", async () => {
  await using server = serveTree();
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
