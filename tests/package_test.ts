/** The package: what `deno publish` would send to JSR, and that it works from there. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import config from "../deno.json" with { type: "json" };
import { cleanDeno } from "./support/clean_deno.ts";
import { serveTree } from "./support/serve_tree.ts";

const ROOT = new URL("../", import.meta.url);
/** JSR takes no larger packages, in bytes. */
const MOST = 20_000_000;

/** What the dry run of `deno publish` lists, relative to the root. */
async function publishedFiles(): Promise<string[]> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["publish", "--dry-run", "--allow-dirty"],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const text = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes))
    .join("\n");
  assertEquals(code, 0, text);
  assertMatch(text, /^Success Dry run complete$/m);
  assert(!/slow-type/.test(text), text);
  const prefix = `   ${ROOT.href}`;
  return text.split("\n").filter((line) => line.startsWith(prefix)).map((
    line,
  ) => decodeURI(line.slice(prefix.length).replace(/ \([^)]*\)$/, "")));
}

const FILES = await publishedFiles();

Deno.test("the package has what users need and nothing else", async () => {
  for (
    const file of [
      ...["mod.ts", "deno.json", "README.md", "LICENSE", "CHANGELOG.md"],
      ...["lib/load.ts", "lib/cpu/worker.ts", "lib/webgpu/compile_worker.ts"],
      ...["lib/tools/profile/page.css", "lib/tools/profile/page.js"],
      ...["lib/server/page/page.html", "lib/server/page/markdown.js"],
      ...["lib/tools/doctor/process.ts", "kernels/gemm.ts"],
      ...["tasks/qwen3.ts", "tasks/get_mesa.sh", "bench/fresh.ts"],
      ...[
        "models/stories-3m/model.safetensors",
        "models/stories-3m/config.json",
      ],
    ]
  ) assert(FILES.includes(file), `${file} is missing`);
  const folders = ["lib", "kernels", "tasks", "bench", "models"];
  const others = FILES.filter((file) => !folders.includes(file.split("/")[0]));
  assertEquals(others.sort(), [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "deno.json",
    "mod.ts",
  ]);
  const unneeded = FILES.filter((file) =>
    /_bench\.ts$|_test\.ts$|^bench\/(peers\/|log)|^tasks\/test\.ts$/.test(file)
  );
  assertEquals(unneeded, []);
  let bytes = 0;
  for (const file of FILES) {
    bytes += (await Deno.stat(new URL(file, ROOT))).size;
  }
  assert(bytes < MOST, `${bytes} bytes`);
});

/** Serves the package as JSR would, with its metadata. */
async function serveRegistry() {
  const manifest: Record<string, { size: number; checksum: string }> = {};
  for (const file of FILES) {
    const bytes = await Deno.readFile(new URL(file, ROOT));
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    manifest[`/${file}`] = {
      size: bytes.length,
      checksum: `sha256-${new Uint8Array(digest).toHex()}`,
    };
  }
  const { name, version, exports } = config;
  const types = { ts: "text/typescript", json: "application/json" };
  return serveTree({
    prefix: `/${name}/${version}`,
    isPublic: (path) => FILES.includes(path),
    contentType: (path) => types[path.split(".").at(-1) as keyof typeof types],
    intercept(path) {
      const [scope, pack] = name.slice(1).split("/");
      if (path === `/${name}/meta.json`) {
        const versions = { [version]: {} };
        return Response.json({ scope, name: pack, latest: version, versions });
      }
      return path === `/${name}/${version}_meta.json`
        ? Response.json({ exports, manifest })
        : undefined;
    },
  });
}

Deno.test("from a registry, the pinned package runs in a script and as a command", async () => {
  await using server = await serveRegistry();
  await using deno = await cleanDeno();
  const env = { JSR_URL: `http://${server.host}/` };
  const { name, version } = config;
  const greedy = ["--device", "cpu", "--temperature", "0", "--max-tokens", "9"];
  const expected = ", there was a little girl named Lily.";

  await Deno.writeTextFile(
    `${deno.folder}/main.ts`,
    `import { loadQwen3 } from "jsr:${name}@${version}";
     using qwen = await loadQwen3(undefined, { device: "cpu" });
     const run = qwen.generate("Once upon a time", { temperature: 0, maxTokens: 9 });
     for await (const _ of run);
     console.log(run.text);`,
  );
  const permissions = ["net", "read", "env", "sys", "import"]
    .map((kind) => `--allow-${kind}`);
  const script = await deno.run("deno", [
    "run",
    "--no-prompt",
    ...permissions,
    "main.ts",
  ], env);
  assertEquals(script.stdout, `${expected}\n`, script.stderr);

  const command = `jsr:${name}@${version}/cli`;
  const words = ["generate", "Once upon a time", ...greedy];
  const direct = await deno.run("deno", ["run", "-A", command, ...words], env);
  assertEquals(direct.stdout, `${expected}\n`, direct.stderr);

  const install = ["install", "-g", "-A", "-n", "qwen3", "--root", "root"];
  const installed = await deno.run("deno", [...install, command], env);
  assertEquals(installed.code, 0, installed.stderr);
  const once = await deno.run("root/bin/qwen3", words, env);
  assertEquals(once.stdout, `${expected}\n`, once.stderr);
  assertMatch(
    once.stderr,
    /: qwen3 generate PROMPT --model Qwen\/Qwen3-0\.6B$/m,
  );
});
