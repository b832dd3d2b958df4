/** The product reaches its runtime through lib/host.ts only. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { denoHost } from "../lib/host/deno.ts";
import { host } from "../lib/host.ts";
import { productFiles } from "./support/product_files.ts";

const ROOT = new URL("../", import.meta.url);
/** The one file that may name the Deno namespace. */
const HOST_DENO = "lib/host/deno.ts";

/** Lines that use the namespace, comments included; a sentence may end with its name. */
function usesOf(text: string): string[] {
  return text.split("\n").filter((line) => /\bDeno\.\w/.test(line));
}

Deno.test("only host/deno.ts uses the Deno namespace", async () => {
  const files = (await productFiles()).filter((file) => file !== HOST_DENO);
  for (const file of ["mod.ts", "lib/load.ts", "kernels/gemv.ts"]) {
    assert(files.includes(file), `${file} is not among the product's files`);
  }
  const uses: string[] = [];
  for (const file of files) {
    const text = await Deno.readTextFile(new URL(file, ROOT));
    uses.push(...usesOf(text).map((line) => `${file}: ${line.trim()}`));
  }
  assertEquals(uses, []);
  const own = await Deno.readTextFile(new URL(HOST_DENO, ROOT));
  assert(usesOf(own).length > 0); // the search does find uses
});

Deno.test("the host is Deno here", () => {
  assertEquals(host, denoHost);
  const { deno } = Deno.version;
  assertEquals(host.runtime, {
    name: "Deno",
    version: deno,
    os: Deno.build.os,
  });
  assert(host.freeMemory()! > 0);
  const name = "QWEN3_HOST_TEST";
  assertEquals(host.env(name), undefined);
  host.setEnv(name, "");
  assertEquals(host.env(name), undefined);
  host.setEnv(name, "here");
  assertEquals(host.env(name), "here");
  Deno.env.delete(name);
  assert(host.isGranted("env", name) && host.isGranted("read", ROOT));
  assert(host.isGranted("import", "example.com"));
  assert(host.isGranted("write", "/a") && host.isGranted("sys", "statfs"));
  assertEquals(host.files.currentFolder(), Deno.cwd());
});

Deno.test("the host reads, writes and finds files", async () => {
  const folder = await Deno.makeTempDir();
  const { files } = host;
  try {
    const path = `${folder}/new/file`;
    assertEquals(await files.find(path), undefined);
    assertEquals(await files.readText(path), undefined);
    assertEquals(await files.open(path), undefined);
    await files.remove(path); // removing a missing file does nothing
    await files.writeText(path, "one");
    await files.writeText(path, "two");
    assertEquals(await files.readText(path), "two");
    assertEquals([...Deno.readDirSync(`${folder}/new`)].length, 1);
    assertEquals(await files.readText(`${path}/below`), undefined); // not a folder
    {
      using file = await files.append(path);
      assertEquals(file.size, 3);
      await file.append(new TextEncoder().encode(" three"));
    }
    {
      using file = (await files.open(path))!;
      assertEquals(file.size, 9);
      const bytes = new Uint8Array(8);
      assertEquals(file.read(4, bytes), 5); // to the end
      assertEquals(new TextDecoder().decode(bytes.subarray(0, 5)), "three");
      assertEquals(file.read(0, bytes.subarray(0, 3)), 3);
      assertEquals(new TextDecoder().decode(bytes.subarray(0, 3)), "two");
    }
    {
      using file = await files.append(path);
      await file.clear();
      await file.append(new Uint8Array([52]));
    }
    assertEquals(await files.readText(path), "4");
    await files.link("file", `${folder}/new/link`);
    const real = await Deno.realPath(path);
    assertEquals(await files.find(`${folder}/new/link`), {
      path: real,
      isDirectory: false,
      size: 1,
    });
    await files.move(path, `${folder}/moved`);
    assertEquals(await files.find(`${folder}/new/link`), undefined); // a dangling link
    await files.makeFolder(`${folder}/a/b`);
    await files.makeFolder(`${folder}/a/b`);
    assertEquals((await files.find(`${folder}/a/b`))?.isDirectory, true);
    using first = await files.openLock(`${folder}/lock`);
    assertEquals(await first.tryLock(), true);
    using second = await files.openLock(`${folder}/lock`);
    assertEquals(await second.tryLock(), false);
    first[Symbol.dispose]();
    assertEquals(await second.tryLock(), true);
    await assertRejects(() => files.move(`${folder}/none`, `${folder}/x`));
    await files.writeText(`${folder}/a/b/file`, "four");
    assertEquals(
      await files.list(`${folder}/a/b`),
      new Map([["file", { isDirectory: false, size: 4 }]]),
    );
    assertEquals(
      await files.list(`${folder}/a`),
      new Map([["b", { isDirectory: true, size: 0 }]]),
    );
    await files.removeFolder(`${folder}/a`);
    await files.removeFolder(`${folder}/a`); // removing a missing one does nothing
    assertEquals(await files.list(`${folder}/a`), undefined);
    assert((await files.freeSpace(folder))! > 0);
    assertEquals(await files.freeSpace(`${folder}/a`), undefined);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** The names of the files in a folder. */
async function namesIn(folder: string): Promise<string[]> {
  return await Array.fromAsync(Deno.readDir(folder), ({ name }) => name);
}

Deno.test("a temporary file can be written and read, and has no name", async () => {
  const folder = await Deno.makeTempDir();
  const { makeTempFileSync } = Deno;
  Deno.makeTempFileSync = (options) =>
    makeTempFileSync({ ...options, dir: folder });
  try {
    using file = await host.files.openTemporary("test-");
    assertEquals(await namesIn(folder), []);
    await file.append(new Uint8Array([1, 2, 3]));
    const bytes = new Uint8Array(4);
    assertEquals(file.read(1, bytes), 2);
    await file.append(new Uint8Array([4]));
    assertEquals([file.size, file.read(0, bytes)], [4, 4]);
    assertEquals([...bytes], [1, 2, 3, 4]);
    await file.clear();
    await file.append(new Uint8Array([5]));
    assertEquals([file.size, file.read(0, bytes)], [1, 1]);
    assertEquals([...bytes], [5, 2, 3, 4]);
  } finally {
    Deno.makeTempFileSync = makeTempFileSync;
    await Deno.remove(folder, { recursive: true });
  }
});

for (
  const [how, end] of [
    ["is disposed", "file[Symbol.dispose]()"],
    ["exits", "Deno.exit(3)"],
    ["ends", ""],
    ["is terminated", 'Deno.kill(Deno.pid, "SIGTERM"); await wait()'],
    ["is killed", 'Deno.kill(Deno.pid, "SIGKILL"); await wait()'],
  ]
) {
  for (const removable of [true, false]) {
    // Without removing open files, as on some systems, signals leave the file.
    if (!removable && /SIG/.test(end)) continue;
    Deno.test(`a temporary file is gone when it or its process ${how}${removable ? "" : ", where open files stay"}`, async () => {
      const folder = await Deno.makeTempDir();
      try {
        const module = new URL("lib/host.ts", ROOT).href;
        await Deno.writeTextFile(
          `${folder}/main.ts`,
          `const { host } = await import(${JSON.stringify(module)});
           const wait = () => new Promise((done) => setTimeout(done, 1e4));
           const { removeSync } = Deno;
           if (${!removable}) Deno.removeSync = () => { throw new Error("busy") };
           const file = await host.files.openTemporary("test-");
           Deno.removeSync = removeSync;
           await file.append(new Uint8Array(9));
           const names = [...Deno.readDirSync("tmp")].length;
           console.log(names);
           ${end}`,
        );
        await Deno.mkdir(`${folder}/tmp`);
        const { stdout } = await new Deno.Command(Deno.execPath(), {
          args: ["run", "-A", "--no-config", "main.ts"],
          cwd: folder,
          env: { TMPDIR: `${folder}/tmp`, NO_COLOR: "1" },
        }).output();
        const seen = new TextDecoder().decode(stdout).trim();
        assertEquals(seen, removable ? "0" : "1");
        assertEquals(await namesIn(`${folder}/tmp`), []);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    });
  }
}

/** Runs a script in which there is no `Deno`; returns what it printed. */
async function runWithoutDeno(script: string): Promise<unknown> {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(
      `${folder}/main.ts`,
      `Reflect.deleteProperty(globalThis, "Deno");\n` +
        `const { loadQwen3, prepareEnvironment } = await import(${
          JSON.stringify(new URL("mod.ts", ROOT).href)
        });\n${script}`,
    );
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--no-config", `${folder}/main.ts`],
      env: { NO_COLOR: "1" },
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    return JSON.parse(new TextDecoder().decode(stdout));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("without Deno a model runs, and files are refused when one is needed", async () => {
  const found = await runWithoutDeno(`
    prepareEnvironment();
    using qwen = await loadQwen3(
      "synthetic:qwen3-0.6b?layers=1&vocab=512",
      { device: "cpu", context: 64 },
    );
    const ids = [];
    const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4 });
    for await (const { tokenId } of run) ids.push(tokenId);
    const refusal = await loadQwen3("/some/folder").catch((e) => e.message);
    console.log(JSON.stringify({ ids: ids.length, refusal }));
  `);
  assertEquals(found, {
    ids: 4,
    refusal:
      "Cannot use files: this runtime has none, models must be synthetic or served with HTTP ranges",
  });
});

Deno.test("without Deno a device is chosen too", async () => {
  const found = await runWithoutDeno(`
    using qwen = await loadQwen3(
      "synthetic:qwen3-0.6b?layers=1&vocab=512",
      { context: 64 },
    );
    const { kind } = qwen.device;
    const run = qwen.generate([1, 2, 3], { temperature: 0, maxTokens: 4 });
    let pieces = 0;
    for await (const _ of run) pieces++;
    console.log(JSON.stringify({ kind: ["gpu", "cpu"].includes(kind), pieces }));
  `);
  assertEquals(found, { kind: true, pieces: 4 });
});
