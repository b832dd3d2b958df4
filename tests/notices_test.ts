/** The notices that a model is not on the GPU, and where they go if a script does not say. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { chooseDevice } from "../lib/dispatch/device.ts";
import { DeviceError } from "../lib/errors.ts";
import { checkLoading, gone, placement } from "../lib/place.ts";
import { loadQwen3 } from "../mod.ts";
import { gpuTest } from "./support/gpu.ts";
import { HARDWARE, wrapGpu } from "./support/wrapped_gpu.ts";

const ROOT = new URL("../", import.meta.url);
const TINY = new URL("tests/fixtures/tiny-tied-bf16/", ROOT).href;

/** Loads a model once for each `onNotice` without an adapter; returns what is printed. */
async function printed(...onNotice: string[]) {
  const script = `
    import { loadQwen3 } from ${JSON.stringify(new URL("mod.ts", ROOT))};
    import { NO_ADAPTER as gpu } from ${
    JSON.stringify(new URL("tests/support/wrapped_gpu.ts", ROOT))
  };
    for (const options of [${onNotice.join()}]) {
      using qwen = await loadQwen3(${
    JSON.stringify(TINY)
  }, { gpu, ...options });
      await qwen.generate([1, 2], { maxTokens: 2 });
    }`;
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--no-check", script],
    cwd: ROOT,
  }).output();
  const text = new TextDecoder();
  assertEquals(code, 0, text.decode(stderr));
  return [text.decode(stdout), text.decode(stderr)];
}

const ON_CPU = "Running on cpu: no WebGPU adapter here.\n";

Deno.test("notices go to stderr, each once, unless onNotice is given or null", async () => {
  assertEquals(await printed("{}", "{ onNotice: undefined }"), ["", ON_CPU]);
  const taken = "{ onNotice: (notice) => console.log(notice) }";
  assertEquals(await printed(taken, taken), [ON_CPU + ON_CPU, ""]);
  assertEquals(await printed("{ onNotice: null }"), ["", ""]);
});

Deno.test("a notice is said once although rates are measured for each model", () => {
  const { warn } = console, told: string[] = [];
  const lines = [3.8, 13.5].map((cpu) => {
    const rates = { k: 1, n: 1, gpu: 0.7, cpu };
    const adapter = { name: "x", software: true };
    return placement(chooseDevice("auto", adapter, rates)!.choice);
  });
  assert(lines[0] !== lines[1], lines[0]);
  console.warn = (text) => void told.push(text);
  try {
    for (const line of lines) checkLoading(TINY, {}).onNotice!(line);
    checkLoading(TINY, {}).onNotice!("Unused tensors of Qwen3-0.6B.");
    checkLoading(TINY, {}).onNotice!("Unused tensors of Qwen3-1.7B.");
  } finally {
    console.warn = warn;
  }
  assertEquals(told, [
    lines[0],
    "Unused tensors of Qwen3-0.6B.",
    "Unused tensors of Qwen3-1.7B.",
  ]);
});

gpuTest(
  "a GPU that fails while loading is one notice of one line",
  async () => {
    const notices: string[] = [];
    const { gpu } = wrapGpu({ ...HARDWARE, memory: 1 << 20 });
    using qwen = await loadQwen3(undefined, {
      gpu,
      onNotice: (notice) => void notices.push(notice),
    });
    assertEquals([qwen.device.kind, notices.length], ["cpu", 1]);
    assertMatch(notices[0], /^Continuing on the CPU: \w/);
    assert(notices[0].length <= 100, notices[0]);
  },
);

Deno.test("a notice about the device has at most 100 columns", () => {
  for (const cpu of [0.123, 12.3, 456.7]) {
    const decided = chooseDevice(
      "auto",
      { name: "x".repeat(80), software: true },
      { k: 1, n: 1, gpu: cpu / 2, cpu },
    )!;
    const line = placement(decided.choice);
    assert(line.length <= 100 && line.endsWith("."), line);
  }
  const told: string[] = [];
  const onNotice = (notice: string) => void told.push(notice);
  const long = `Cannot go on: it was\nlost, ${"x".repeat(200)}`;
  const choice = gone(new DeviceError(long), { onNotice });
  assertEquals(choice.reason, long);
  assertEquals(told[0].length, 100);
  assert(told[0].startsWith("Continuing on the CPU: it was"), told[0]);
  assert(told[0].endsWith("x…") && !told[0].includes("\n"), told[0]);
});
