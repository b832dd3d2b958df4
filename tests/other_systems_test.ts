/**
 * Windows and macOS, through fake hosts: paths, folders, and what they refuse.
 * Nothing here runs on the real systems.
 */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { useHost } from "../lib/host.ts";
import { signalsOf } from "../tasks/interrupts.ts";
import {
  loadTuning,
  saveTuning,
  tuningPath,
} from "../lib/device/tuning_file.ts";
import { hostOf, windowsHost } from "./support/other_host.ts";
import { productFiles } from "./support/product_files.ts";
import {
  COMMIT,
  emptyCache,
  fixtureFiles,
  namesIn,
  serveHub,
} from "./support/serve_hub.ts";

/** A folder that holds the drives of a Windows until it is disposed. */
async function drives() {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  return {
    folder,
    async put(path: string) {
      await Deno.mkdir(`${folder}/${path}`, { recursive: true });
      for (const [name, bytes] of await fixtureFiles("tiny-tied-bf16")) {
        await Deno.writeFile(`${folder}/${path}/${name}`, bytes);
      }
    },
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

for (
  const [spec, folder, location] of [
    ["C:\\models\\qwen", "C/models/qwen", "C:\\models\\qwen"],
    ["C:/models/qwen", "C/models/qwen", "C:\\models\\qwen"],
    ["d:\\my models\\qwen\\", "d/my models/qwen", undefined],
    ["\\\\server\\share\\qwen", "server/share/qwen", "\\\\server\\share\\qwen"],
    ["models\\qwen", "C/here/models/qwen", "C:\\here\\models\\qwen"],
    ["models/qwen", "C/here/models/qwen", "C:\\here\\models\\qwen"],
  ] as [string, string, string | undefined][]
) {
  Deno.test(`on Windows ${spec} is a folder`, async () => {
    await using disk = await drives();
    await disk.put(folder);
    using _windows = useHost(windowsHost(disk.folder, {}));
    await using checkpoint = await openCheckpoint(spec);
    if (location !== undefined) assertEquals(checkpoint.location, location);
    await checkpoint.read("model.norm.weight", 0, new Uint8Array(128));
  });
}

Deno.test("on Windows a folder that is missing is not taken for a repository", async () => {
  await using disk = await drives();
  using _windows = useHost(windowsHost(disk.folder, {}));
  for (const spec of ["C:\\none", "C:/none/qwen", "\\\\server\\share\\none"]) {
    const { message } = await assertRejects(() => openCheckpoint(spec), Error);
    assertEquals(
      message,
      `Cannot open ${JSON.stringify(spec)}: there is no such directory`,
    );
  }
  await assertRejects(
    () => openCheckpoint("none\\qwen"),
    Error,
    "there is no such directory (looked in C:\\here); a repository is owner/name",
  );
});

Deno.test("on Windows a repository is downloaded without links, once, below the user's folder", async () => {
  await using _clean = await emptyCache();
  await using disk = await drives();
  await using server = await serveHub("tiny-tied-bf16");
  const env: Record<string, string> = {
    USERPROFILE: "C:\\Users\\a",
    HOME: "/c/Users/a", // of another shell
    HF_ENDPOINT: server.url,
  };
  using _windows = useHost(windowsHost(disk.folder, env));
  const entry = "C:\\Users\\a/.cache/huggingface/hub/models--Some--Model";
  {
    await using checkpoint = await openCheckpoint("Some/Model");
    assertEquals(checkpoint.location, `${entry}/snapshots/${COMMIT}`);
    await checkpoint.read("model.norm.weight", 0, new Uint8Array(128));
  }
  const real =
    `${disk.folder}/C/Users/a/.cache/huggingface/hub/models--Some--Model`;
  assertEquals(await namesIn(`${real}/blobs`), []);
  const names = await namesIn(`${real}/snapshots/${COMMIT}`);
  for (const name of names) {
    const path = `${real}/snapshots/${COMMIT}/${name}`;
    assert((await Deno.lstat(path)).isFile, name);
    assertEquals(
      (await Deno.readFile(path)).join(),
      server.files.get(name)!.join(),
    );
  }
  const before = server.requests.length;
  env.HF_HUB_OFFLINE = "1";
  {
    await using _again = await openCheckpoint("Some/Model");
  }
  assertEquals(server.requests.length, before);

  // Damage is found and repaired there too.
  await Deno.truncate(`${real}/snapshots/${COMMIT}/model.safetensors`, 9);
  await assertRejects(
    () => openCheckpoint("Some/Model"),
    Error,
    `${entry}/snapshots/${COMMIT}/model.safetensors has 9 bytes, must have 240952`,
  );
  env.HF_HUB_OFFLINE = "";
  await using _healed = await openCheckpoint("Some/Model");
});

/** The properties of a device that the name of a tuning file depends on. */
const adapter = {
  info: { vendor: "", architecture: "", device: "", description: "Card" },
} as GPUAdapter;

for (
  const [os, env, expected] of [
    [
      "windows",
      { LOCALAPPDATA: "C:\\Users\\a\\AppData\\Local" },
      "C:\\Users\\a\\AppData\\Local/qwen3-webgpu/",
    ],
    [
      "windows",
      { USERPROFILE: "C:\\Users\\a" },
      "C:\\Users\\a/AppData/Local/qwen3-webgpu/",
    ],
    ["darwin", { HOME: "/Users/a" }, "/Users/a/Library/Caches/qwen3-webgpu/"],
    ["linux", { HOME: "/home/a" }, "/home/a/.cache/qwen3-webgpu/"],
    ["linux", { HOME: "/home/a", XDG_CACHE_HOME: "/c" }, "/c/qwen3-webgpu/"],
    ["windows", { QWEN3_TUNING_DIR: "D:\\tuned" }, "D:\\tuned/"],
  ] as [string, Record<string, string>, string][]
) {
  Deno.test(`on ${os} constants for ${JSON.stringify(env)} are in ${expected}`, async () => {
    using _host = useHost(hostOf(os, env));
    assertStringIncludes(
      await tuningPath({ adapter }),
      `${expected}tuned-card-`,
    );
  });
}

Deno.test("without a folder for constants, the variable to set is named", async () => {
  for (const [os, name] of [["linux", "HOME"], ["windows", "LOCALAPPDATA"]]) {
    using _host = useHost(hostOf(os, {}));
    const gpu = { adapter } as Parameters<typeof loadTuning>[0];
    const why = `${name} is not set, set it or QWEN3_CACHE_DIR`;
    const { value, reason } = await loadTuning(gpu);
    assertEquals(value, "off");
    assertStringIncludes(reason, why);
    await assertRejects(() => saveTuning(gpu, new Map()), Error, why);
  }
});

Deno.test("no signal is listened to that Windows lacks", async () => {
  const signals = signalsOf("windows").map(([name]) => name);
  assertEquals(signals, ["SIGINT", "SIGBREAK"]);
  const root = new URL("../", import.meta.url);
  const tasks = await Array.fromAsync(
    Deno.readDir(new URL("tasks/", root)),
    ({ name }) => `tasks/${name}`,
  );
  const users: string[] = [];
  for (const file of [...await productFiles(), ...tasks]) {
    if (!file.endsWith(".ts")) continue;
    const text = await Deno.readTextFile(new URL(file, root));
    if (text.includes("addSignalListener")) users.push(file);
  }
  assertEquals(users, ["tasks/interrupts.ts"]);
});
