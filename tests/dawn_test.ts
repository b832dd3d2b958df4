/**
 * The story model through Dawn, on SwiftShader, the software renderer of Chromium: Debian's
 * llvmpipe is too old for Dawn. On other drivers, `QWEN3_TEST_WEBGPU=dawn` runs the golden
 * tests, those of GGUF files too, and all tests of kernels through Dawn.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { DawnStory } from "./support/dawn_story.ts";
import { slowTest } from "./support/quick.ts";

const SCRIPT = new URL("support/dawn_story.ts", import.meta.url);
const DRIVER = [
  "/usr/lib/chromium/libvk_swiftshader.so",
  "/usr/lib/chromium-browser/libvk_swiftshader.so",
  "/opt/google/chrome/libvk_swiftshader.so",
].find(exists);

/** As the tests of kernels, to which a machine without a driver is no failure. */
const skipped = DRIVER === undefined &&
  Deno.env.get("QWEN3_REQUIRE_GPU") !== "1";

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Runs the script in a process whose Vulkan has one driver. */
async function run(manifest: string, ...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", SCRIPT.href, ...args],
    env: { VK_DRIVER_FILES: manifest, NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

const test = skipped
  ? (name: string) => Deno.test({ name, ignore: true, fn: () => {} })
  : slowTest;

test("the story model through Dawn computes and writes what transformers does", async () => {
  assert(DRIVER, "Chromium's libvk_swiftshader.so must be installed");
  const folder = await Deno.makeTempDir();
  try {
    const manifest = `${folder}/swiftshader.json`;
    const ICD = { library_path: DRIVER, api_version: "1.3.0" };
    await Deno.writeTextFile(
      manifest,
      JSON.stringify({ file_format_version: "1.0.0", ICD }),
    );
    const { code, stdout, stderr } = await run(manifest, "12");
    assertEquals(code, 0, stderr); // it ended by itself
    const story: DawnStory = JSON.parse(stdout);
    assertEquals([story.implementation, story.compiler], ["dawn", "tint"]);
    for (const [i, error] of story.errors.entries()) {
      const most = story.allowed[i];
      assert(error <= most, `prompt ${i} is off by ${error}, not ${most}`);
    }
    assertEquals(story.tokenIds.length, 12);
    assertEquals(story.tokenIds, story.greedy);
    for (
      const choice of [
        "WebGPU: dawn, npm's webgpu 0.6.2",
        "Dawn's allow_unsafe_apis: enabled",
        "Dawn's vulkan_enable_f16_on_nvidia: enabled",
        "Dawn's timestamp_quantization: disabled",
        "adapter request: high-performance",
        "subgroup matrices: none",
        "WGSL compiler: tint",
        "readback: while later work runs",
      ]
    ) {
      assert(story.choices.includes(choice), `${choice}: ${story.choices}`);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

test("without a driver Dawn has no adapter, in one line", async () => {
  const { code, stderr } = await run("/none", "1");
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /NoAdapterError: Cannot open a GPU: Dawn supports no adapter here; update its driver or leave webgpu out\n/,
  );
});
