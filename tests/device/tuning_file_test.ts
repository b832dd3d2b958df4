import { bf16 } from "../../lib/formats/bf16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { chooseLinear } from "../../lib/dispatch/linear.ts";
import { chooseDecodeAttention } from "../../lib/dispatch/attention.ts";
import { CACHE_DIR } from "../../lib/host.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import {
  loadTuning,
  saveTuning,
  type TunedDevice,
  TUNING_DIR,
  tuningPath,
} from "../../lib/device/tuning_file.ts";
import type { TunedEntry } from "../../lib/dispatch/tuned.ts";
import { attendKey, linearKey, parseKey } from "../../lib/dispatch/keys.ts";
import { gpuTest } from "../support/gpu.ts";

/** The properties of a device that tuning depends on. */
function device(info: Partial<GPUAdapterInfo> = {}): TunedDevice {
  const adapter = {
    info: {
      vendor: "4318",
      architecture: "",
      device: "9008",
      description: "NVIDIA H200",
      subgroupMinSize: 32,
      subgroupMaxSize: 32,
      ...info,
    },
  } as GPUAdapter;
  const limits = {
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
  } as GPUSupportedLimits;
  return {
    adapter,
    limits,
    tuned: new Map(),
    subgroupSize: 32,
    adapterClass: "NVIDIA",
  };
}

const SHAPE = {
  m: 1,
  n: 4096,
  k: 1024,
  norm: true,
  swiglu: false,
  format: bf16,
} as const;
const GEMV = linearKey("gemv", SHAPE);
const GEMM = linearKey("gemm", { ...SHAPE, m: 300 }, true);
const ATTEND = attendKey("short", 128, 2);
const measured = (constants: TunedEntry["constants"]): TunedEntry => ({
  constants,
  gain: 0.05,
  spread: 0.01,
  model: "test",
});
const ENTRIES = new Map([
  [GEMV, measured({ WORKGROUP: 64, ROWS: 4, STEPS: 2, WALKERS: 1 })],
  [GEMM, measured({ BM: 64, BN: 64, BK: 32, TM: 8, TN: 4 })],
  [
    ATTEND,
    measured({ WORKGROUP: 256, SHARES: 1, LOG_KEY_LANES: 2, STEPS: 2 }),
  ],
]);

/** Runs `test` with its own folder of tuned constants. */
async function inFolder(test: (folder: string) => Promise<void>) {
  const before = Deno.env.get(TUNING_DIR);
  const folder = await Deno.makeTempDir();
  Deno.env.set(TUNING_DIR, folder);
  try {
    await test(folder);
  } finally {
    if (before === undefined) Deno.env.delete(TUNING_DIR);
    else Deno.env.set(TUNING_DIR, before);
    await Deno.remove(folder, { recursive: true });
  }
}

/** Edits a stored file as JSON. */
async function change(
  path: string,
  edit: (file: Record<string, Record<string, unknown>>) => void,
) {
  const file = JSON.parse(await Deno.readTextFile(path));
  edit(file);
  await Deno.writeTextFile(path, JSON.stringify(file));
}

Deno.test("constants stored for an adapter are loaded for it and chosen, with the reason", async () => {
  await inFolder(async () => {
    const tuned = device(), none = device();
    const before = await loadTuning(none);
    assertEquals([before.value, none.tuned.size], ["none", 0]);
    assertMatch(before.reason, /^deno task tune would store them in .*$/);
    const { path, replaced } = await saveTuning(tuned, ENTRIES);
    assertEquals(replaced, undefined);
    const { value, reason } = await loadTuning(tuned);
    assertEquals([value, reason], ["3 shapes", `from ${path}`]);
    for (const [key, { constants }] of ENTRIES) {
      assertEquals(tuned.tuned.get(key), constants);
    }
    const linear = (gpu: TunedDevice) => chooseLinear(SHAPE, gpu);
    assertEquals(linear(tuned).constants, {
      ...linear(none).constants,
      ...ENTRIES.get(GEMV)!.constants,
    });
    assertMatch(linear(tuned).reason, /tuned for this adapter$/);
    assertMatch(linear(none).reason, /and an H200$/);
    const half = { ...SHAPE, m: 400, largest: 0.5 };
    assertEquals(chooseLinear(half, tuned).constants.TN, 4);
    const exact = chooseLinear({ ...SHAPE, m: 400 }, tuned); // in f32
    assertMatch(exact.reason, /and an H200$/);
    const heads = { headDim: 128, group: 2 };
    const [short, middle] = chooseDecodeAttention(heads, tuned);
    assertEquals([short.shares, short.constants.GROUP], [1, 2]);
    assertEquals(short.constants.STEPS, 2);
    assertMatch(short.reason, /tuned for this adapter$/);
    assertMatch(middle.reason, /and an H200$/);

    const other = device({ description: "Another GPU" });
    assertEquals((await loadTuning(other)).value, "none");
  });
});

Deno.test("storing a shape keeps the others, and removes those where the default is best", async () => {
  await inFolder(async () => {
    const gpu = device();
    await saveTuning(gpu, new Map([...ENTRIES].slice(0, 2)));
    await saveTuning(gpu, new Map([...ENTRIES].slice(2)));
    await saveTuning(gpu, new Map([[GEMM, undefined]]));
    await loadTuning(gpu);
    assertEquals([...gpu.tuned.keys()].sort(), [ATTEND, GEMV].sort());
  });
});

Deno.test("a winner for other WGSL of its kernel is left out, the rest are used", async () => {
  await inFolder(async () => {
    const gpu = device();
    const { path } = await saveTuning(gpu, ENTRIES);
    await change(path, ({ kernels }) => kernels.gemv = "another");
    const { value, reason } = await loadTuning(gpu);
    assertEquals([value, gpu.tuned.has(GEMV)], ["2 shapes", false]);
    assertStringIncludes(
      reason,
      "1 of gemv skipped, its WGSL changed since tuning",
    );
    // Storing again does not bring it back.
    await saveTuning(gpu, new Map());
    const again = device();
    assertEquals((await loadTuning(again)).reason, `from ${path}`);
    assertEquals(again.tuned.has(GEMV), false);
  });
});

const entry = (file: Record<string, Record<string, unknown>>, key: string) =>
  file.constants[key] as { constants: Record<string, number> };

for (
  const [what, spoil, why] of [
    ["no JSON", undefined, /not valid JSON/],
    [
      "another version",
      (file) => Object.assign(file, { version: 9 }),
      /its version is 9, must be 1/,
    ],
    ["a missing part", (file) => delete file.kernels, /it must have adapter/],
    [
      "another Deno",
      (file) => file.adapter.deno = "1.0.0",
      /made with deno "1\.0\.0", must be/,
    ],
    [
      "an unknown key",
      (file) => file.constants["gemv of something"] = {},
      /damaged at "gemv of something"/,
    ],
    [
      "a key of a kernel that is not tuned",
      (file) => file.constants["embed bf16 1 8 8"] = file.constants[GEMV],
      /damaged at "embed bf16/,
    ],
    [
      "shapes of another kind of kernel",
      (file) =>
        file.constants["gemv short 128 2"] = measured({
          WORKGROUP: 64,
          ROWS: 2,
          STEPS: 2,
        }),
      /gemv is tuned for linear shapes/,
    ],
    [
      "a constant that nests deeply",
      (file) => {
        let deep: unknown = 1;
        for (let i = 0; i < 3000; i++) deep = [deep];
        Object.assign(entry(file, GEMV).constants, { ROWS: deep });
      },
      /ROWS is \[\[\[.*, must be an integer/,
    ],
    ["a broken entry", (file) => file.constants[GEMV] = 3, /damaged at "gemv/],
    [
      "text for a constant",
      (file) => Object.assign(entry(file, GEMV).constants, { ROWS: "2u; x" }),
      /ROWS is "2u; x", must be an integer/,
    ],
    [
      "a constant that tuning does not decide",
      (file) => Object.assign(entry(file, GEMV).constants, { NORM: 1 }),
      /gemv has no constant NORM/,
    ],
    [
      "too many threads",
      (file) =>
        Object.assign(entry(file, GEMM).constants, { BM: 512, TM: 4, BK: 4 }),
      /2048 threads, must be at most 1024/,
    ],
    [
      "heads that cannot be divided",
      (file) => entry(file, ATTEND).constants.SHARES = 3,
      /SHARES is 3, must divide the 2 query heads/,
    ],
  ] as [
    string,
    undefined | ((file: Record<string, Record<string, unknown>>) => void),
    RegExp,
  ][]
) {
  Deno.test(`a file is refused in one line: ${what}`, async () => {
    await inFolder(async () => {
      const gpu = device();
      const { path } = await saveTuning(gpu, ENTRIES);
      if (spoil) await change(path, spoil);
      else await Deno.writeTextFile(path, "{ this is\nno JSON");
      const { value, reason } = await loadTuning(gpu);
      assertEquals([value, gpu.tuned.size], ["off", 0]);
      assertMatch(reason, why);
      assertStringIncludes(reason, path);
      assert(!reason.includes("\n"));
      // Tuning again starts a new file, and says so.
      const { replaced } = await saveTuning(gpu, ENTRIES);
      assertEquals(replaced, reason);
      assertEquals((await loadTuning(gpu)).value, "3 shapes");
    });
  });
}

Deno.test("a folder that cannot be written is named with the cause", async () => {
  await inFolder(async (folder) => {
    Deno.env.set(TUNING_DIR, `${folder}/file/below`);
    await Deno.writeTextFile(`${folder}/file`, "");
    const error = await assertRejects(
      () => saveTuning(device(), ENTRIES),
      Error,
      `Cannot store tuned constants in ${folder}/file/below/tuned-nvidia-h200-`,
    );
    assertStringIncludes(
      error.message,
      `set ${TUNING_DIR} to use another folder`,
    );
    assertEquals((await loadTuning(device())).value, "none");
  });
});

Deno.test("files are in the user's cache directory unless a folder is named", async () => {
  await inFolder(async (folder) => {
    const names = ["XDG_CACHE_HOME", CACHE_DIR];
    const before = names.map((name) => Deno.env.get(name));
    const starts = async (prefix: string) => {
      const path = await tuningPath(device());
      assert(path.startsWith(`${prefix}/tuned-nvidia-h200-`), path);
    };
    try {
      Deno.env.set("XDG_CACHE_HOME", "/cache");
      Deno.env.set(CACHE_DIR, "/copies");
      await starts(folder);
      Deno.env.delete(TUNING_DIR);
      await starts("/copies");
      Deno.env.delete(CACHE_DIR);
      await starts("/cache/qwen3-webgpu");
    } finally {
      for (const [i, name] of names.entries()) {
        const value = before[i];
        if (value === undefined) Deno.env.delete(name);
        else Deno.env.set(name, value);
      }
    }
  });
});

Deno.test("keys name a kernel and a class of shapes", () => {
  assertEquals(parseKey(GEMM), {
    kernel: "gemm",
    format: bf16,
    swiglu: false,
    half: true,
    m: 512,
    n: 4096,
    k: 1024,
  });
  const gated = { ...SHAPE, m: 4, format: f32, swiglu: true } as const;
  assertEquals(parseKey(linearKey("gemv", gated)), {
    kernel: "gemv",
    format: f32,
    swiglu: true,
    half: false,
    m: 4,
    n: 4096,
    k: 1024,
  });
  for (const format of FORMATS) {
    const target = parseKey(linearKey("gemvRows", { ...SHAPE, format }));
    assert(target && "format" in target && target.format === format);
  }
  assertEquals(parseKey(ATTEND), {
    kernel: "attendDecode",
    what: "short",
    headDim: 128,
    group: 2,
  });
  for (const key of ["", "gemv", "gemv bf16 1 2", "attendDecode 1 2"]) {
    assertEquals(parseKey(key), undefined);
  }
});

gpuTest(
  "an opened device lists its tuned constants among its choices",
  async () => {
    await inFolder(async () => {
      using first = await openDevice();
      const key = linearKey("gemv", SHAPE);
      const constants = { WORKGROUP: 64, ROWS: 2, STEPS: 4, WALKERS: 1 };
      const { path } = await saveTuning(
        first,
        new Map([[key, measured(constants)]]),
      );
      using second = await openDevice();
      assertEquals(second.tuned.get(key), constants);
      const tuned = second.choices.find(({ what }) =>
        what === "tuned constants"
      );
      assertEquals(tuned?.value, "1 shape");
      assertEquals(tuned?.reason, `from ${path}`);
    });
  },
);
