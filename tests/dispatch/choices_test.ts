import { formatNamed, FORMATS } from "../../lib/formats/mod.ts";
import type { Format } from "../../lib/formats/format.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { allocateMatrix } from "../../lib/formats/matrix.ts";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { attendDecode } from "../../kernels/attend_decode.ts";
import { gemm } from "../../kernels/gemm.ts";
import { gemv } from "../../kernels/gemv.ts";
import { gemvRows } from "../../kernels/gemv_rows.ts";
import { adapterClass } from "../../lib/webgpu/adapter.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import {
  type AdapterClass,
  type Capabilities,
  exactLanes,
  laneConstants,
  mostThreads,
} from "../../lib/dispatch/capabilities.ts";
import type { Constants, LinearShape } from "../../lib/dispatch/shapes.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { OptionError } from "../../lib/errors.ts";
import {
  chooseLinear,
  type LinearChoice,
  mostFew,
} from "../../lib/dispatch/linear.ts";
import {
  chooseDecodeAttention,
  choosePrefillSplits,
  chooseProjection,
  MOST_SPLITS,
  mostSplits,
} from "../../lib/dispatch/attention.ts";
import { chooseMatmul } from "../../lib/dispatch/matmul.ts";
import { type Gpu, LEAST_LIMITS } from "../../lib/webgpu/device.ts";
import { type Operands, showWgsl } from "../../lib/webgpu/kernel.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { KERNEL_NAMES, TUNED_KERNELS } from "../../kernels/list.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { showVariants, STATED_DEVICE } from "../../lib/tools/show.ts";
import {
  chooseExpertGemm,
  chooseExpertGemv,
  type ExpertChoice,
  type ExpertShape,
  type GroupedShape,
} from "../../lib/dispatch/experts.ts";
import { attendKey, expertKey, linearKey } from "../../lib/dispatch/keys.ts";
import { misfit } from "../../lib/dispatch/limits.ts";
import { tunedConstants } from "../../lib/tools/tune/candidates.ts";
import { slowTest } from "../support/quick.ts";

/** Every adapter class; the type requires each to be listed. */
const CLASSES: Record<AdapterClass, true> = {
  "NVIDIA": true,
  "NVIDIA, large cache": true,
  "AMD": true,
  "Intel": true,
  "Apple": true,
  "software": true,
  "other": true,
};
const ADAPTER_CLASSES = Object.keys(CLASSES) as AdapterClass[];

/** Adapters, from the least that kernels run on to a large one. */
const DEVICES: Capabilities[] = [
  [0, 32768, 256],
  [4, 32768, 256],
  [8, 32768, 1024],
  [16, 32768, 512],
  [32, 49152, 1024],
  [32, 32768, 1024, 256],
  [0, 16384, 256],
  [32, 16384, 256],
].map(([subgroupSize, storage, threads, inX = threads]) => ({
  subgroupSize,
  limits: {
    maxComputeWorkgroupStorageSize: storage,
    maxComputeInvocationsPerWorkgroup: threads,
    maxComputeWorkgroupSizeX: inX,
  },
}));

const INT8 = TUNED_KERNELS.find(({ name }) => name === "gemvRowsInt8")!;

function* linearShapes(): Generator<LinearShape> {
  for (const m of [1, 2, 8, 9, 33, 64, 65, 512, 4096]) {
    for (const [n, k] of [[2, 1], [74, 100], [6144, 1024], [151936, 5120]]) {
      for (const format of [f32, bf16]) {
        for (const norm of [false, true]) {
          for (const swiglu of [false, true]) {
            for (const largest of [undefined, 0.5]) {
              yield { m, n, k, format, norm, swiglu, largest };
            }
          }
        }
      }
    }
  }
}

/** A tensor with only a type and a shape. */
function shaped(dtype: Dtype, ...shape: number[]): Tensor {
  return new Tensor({} as Gpu, dtype, shape, {} as GPUBuffer);
}

/** Asserts that WGSL needs no more threads and workgroup memory than a device has. */
function assertFits(
  wgsl: string,
  { limits, subgroupSize }: Capabilities,
  message: string,
) {
  const most = mostThreads({ limits });
  const known: Record<string, number> = {};
  const value = (expression: string): number => {
    const plain = expression.replaceAll(/\b(\d+)u\b/g, "$1")
      .replaceAll(/\b[A-Z]\w*\b/g, (name) => `${known[name]}`);
    assert(/^[\d\s+*/().-]+$/.test(plain), `${expression} is ${plain}`);
    return Math.floor(Number(new Function(`return ${plain}`)()));
  };
  for (
    const [, name, text] of wgsl.matchAll(/^const (\w+)(?:: u32)? = ([^;]+);/gm)
  ) {
    // Scores and bits do not size arrays.
    if (!/e\+|0x|HIGHEST/.test(text)) known[name] = value(text);
  }
  const alias: Record<string, string> = {};
  for (const [, name, type] of wgsl.matchAll(/alias (\w+) = ([^;]+);/g)) {
    alias[name] = type;
  }
  const bytes: Record<string, number> = {
    f32: 4,
    u32: 4,
    vec2f: 8,
    vec4f: 16,
    "vec2u": 8,
    "vec4<f16>": 8,
    "atomic<u32>": 4,
  };
  const sizeOf = (type: string): number => {
    const array = /^array<(.+), ([^,]+)>$/.exec(type);
    if (array) return sizeOf(array[1]) * value(array[2]);
    const size = bytes[alias[type] ?? type];
    assert(size, `${message}: no size of ${type} is known`);
    return size;
  };
  let storage = 0;
  for (const [, type] of wgsl.matchAll(/var<workgroup> \w+: ([^;]+);/g)) {
    storage += sizeOf(type);
  }
  assert(
    storage <= limits.maxComputeWorkgroupStorageSize,
    `${message}: ${storage} bytes of workgroup memory, there are ${limits.maxComputeWorkgroupStorageSize}`,
  );
  const threads = value(wgsl.match(/@workgroup_size\(([^)]+)\)/)![1]);
  assert(
    threads <= most,
    `${message}: ${threads} threads, at most ${most} fit`,
  );
  assertEquals(wgsl.includes("subgroupShuffle") && !subgroupSize, false);
}

/** The WGSL for a choice of a Linear layer. */
function linearWgsl(
  { m, n, k, format, swiglu }: LinearShape,
  { kernel, constants }: LinearChoice,
): string {
  const y = shaped("f32", m, swiglu ? n / 2 : n), x = shaped("f32", m, k);
  if (kernel !== "gemm") {
    const norm = shaped("f32", k), squares = shaped("f32", m, 64);
    const operands = {
      w: shaped(format.name as Dtype, n, k),
      x,
      norm,
      squares,
      y,
    };
    return showWgsl(kernel === "gemv" ? gemv : gemvRows, operands, {
      constants,
    });
  }
  const operands: Operands = {
    a: constants.F16 ? shaped("f16", m, k) : x,
    b: shaped(format.name as Dtype, n, k),
    c: y,
    scales: shaped("f32", m),
  };
  return showWgsl(gemm, operands, { constants });
}

Deno.test("one row goes to gemv, few to gemvRows, many to gemm, with a reason", () => {
  for (const device of DEVICES) {
    for (const shape of linearShapes()) {
      const choice = chooseLinear(shape, device);
      const message = JSON.stringify({ shape, choice });
      assertEquals(
        choice.kernel,
        shape.m > mostFew(shape, device)
          ? "gemm"
          : shape.m > 1
          ? "gemvRows"
          : "gemv",
        message,
      );
      assert(choice.reason.includes(`${shape.m} row`), message);
      assertEquals(
        choice.constants.EPILOGUE,
        shape.swiglu ? "swiglu" : "store",
        message,
      );
      if (choice.fusedNorm) assert(shape.norm && choice.kernel !== "gemm");
      assertEquals(choice.constants.NORM === 1, choice.fusedNorm, message);
    }
  }
});

Deno.test("up to 64 short rows are few, up to 32 long ones", () => {
  const kernels = (k: number, format: Format = bf16) =>
    [2, 32, 33, 64, 65].map((m) => {
      const of = { m, n: 4096, k, format, norm: true, swiglu: false };
      const { kernel, reason } = chooseLinear({ ...of, largest: 1 }, {
        ...DEVICES[4],
        adapterClass: "NVIDIA",
      });
      const more = /more than (\d+)/.exec(reason)?.[1];
      return more ? `${kernel}, ${more}` : kernel;
    });
  const few = Array(4).fill("gemvRows");
  for (const k of [1, 1024, 4095]) {
    assertEquals(kernels(k), [...few, "gemm, 64"], `${k}`);
  }
  for (const k of [4096, 12288]) {
    const [a, b] = few, gemms = Array(3).fill("gemm, 32");
    assertEquals(kernels(k), [a, b, ...gemms], `${k}`);
  }
  // Rounding 32 rows and more pays off.
  const [, ...ints] = few.map(() => "gemvRowsInt8");
  const mixed = ["gemvRows", ...ints, "gemm, 64"];
  assertEquals(kernels(1024, formatNamed("q4_k")), mixed);
});

Deno.test("batches of 16 and 32 rows share pipelines", () => {
  for (const name of ["bf16", "q8_0"]) {
    for (const device of DEVICES.slice(2, 6)) {
      const texts = [16, 32].map((m) => {
        const shape = {
          ...{ m, n: 6144, k: 1024, format: formatNamed(name) },
          ...{ norm: true, swiglu: true },
        };
        const choice = chooseLinear(shape, device);
        assertEquals(choice.constants.M, 16);
        return linearWgsl(shape, choice);
      });
      assertEquals(new Set(texts).size, 1);
    }
  }
});

Deno.test("more rows of x are copied to workgroup memory, where they fit", () => {
  const device: Capabilities = {
    adapterClass: "NVIDIA",
    subgroupSize: 32,
    limits: {
      maxComputeWorkgroupStorageSize: 49152,
      maxComputeInvocationsPerWorkgroup: 1024,
    },
  };
  const spread = (
    shape: Partial<LinearShape>,
    given: Partial<Capabilities> = {},
  ) => {
    const { kernel, constants: c } = chooseLinear({
      ...{ m: 64, n: 6144, k: 1024, format: bf16, norm: true, swiglu: false },
      ...shape,
    }, { ...device, ...given });
    const { LOG_LANES, APART = 0, STAGED = 0, SLICES, STEPS } = c;
    return [kernel, LOG_LANES, APART, STAGED, SLICES, STEPS];
  };
  const before = ["gemvRows", 5, 0, 0, 1, 1], narrow = ["gemvRows", 5, 0, 0, 4];
  assertEquals(spread({}), ["gemvRows", 4, 1, 1, 1, 2]);
  assertEquals(spread({ n: 1024 }), ["gemvRows", 3, 2, 1, 4, 2]);
  assertEquals(spread({ n: 151936 }), ["gemvRows", 3, 2, 0, 1, 1]);
  assertEquals(spread({ m: 33 }), ["gemvRows", 4, 1, 1, 1, 2]);
  assertEquals(spread({ m: 32 }), before);
  assertEquals(spread({ k: 1022 }), before);
  const limits = { ...device.limits, maxComputeWorkgroupStorageSize: 16384 };
  assertEquals(spread({ n: 1024 }, { limits }), [...narrow, 1]);
  assertEquals(spread({}, { subgroupSize: 0 }), before);
  assertEquals(spread({}, { subgroupSize: 8 }).slice(1, 4), [3, 0, 1]);
  const tuned = new Map([["gemvRows bf16 64 6144 1024", { ROWS: 2 }]]);
  assertEquals(spread({}, { tuned }), before);
  const ints = { n: 24576, k: 4096, format: formatNamed("q4_k"), largest: 1 };
  const int8 = (shape: Partial<LinearShape>, given = {}) =>
    spread({ ...ints, ...shape }, given).slice(0, 4);
  assertEquals(int8({ m: 16 }), ["gemvRowsInt8", 4, 1, 1]);
  const plain = ["gemvRowsInt8", 5, 0, 0];
  assertEquals(int8({ m: 8 }), plain);
  assertEquals(int8({ m: 16, n: 4096 }), plain);
  assertEquals(int8({ m: 16, n: 151936 }), plain);
  assertEquals(int8({ m: 16 }, { limits }), ["gemvRowsInt8", 4, 1, 1]);
});

Deno.test("a kernel rounds its results if the next one multiplies them as integers", () => {
  const device = { ...DEVICES[4], adapterClass: "NVIDIA" } as const;
  const [q4_k, q6_k, q8_0] = ["q4_k", "q6_k", "q8_0"].map(formatNamed);
  const one = { m: 1, format: q4_k, largest: 1, norm: false, swiglu: false };
  const oProj = { ...one, n: 4096, k: 4096 };
  const gateUp = { ...one, n: 24576, k: 4096, norm: true, swiglu: true };
  const chosen = (shape: LinearShape, formats?: readonly Format[]) => {
    const next = formats && { formats, largest: 1 };
    const { leaves, constants: c, reason } = chooseLinear(
      { ...shape, next },
      device,
    );
    assertEquals(Number(leaves), c.LEAVES);
    assertEquals(/it rounds its results/.test(reason), leaves, reason);
    return [c.ROUNDED, c.LEAVES];
  };
  assertEquals(chosen(oProj), [0, 0]);
  for (const formats of [[q4_k, q6_k], [q8_0], [q4_k, q8_0]]) {
    assertEquals(chosen(oProj, formats), [0, 1]);
  }
  for (const formats of [[q4_k, bf16], [f32]]) {
    assertEquals(chosen(oProj, formats), [0, 0]);
  }
  // It would need a norm of its own, and then more buffers than a kernel may bind.
  assertEquals(chosen(gateUp, [q6_k]), [0, 0]);
  const rounded = { ...gateUp, rounded: true };
  assertEquals(chosen(rounded, [q6_k]), [1, 1]);
  assertEquals(chosen(rounded), [1, 0]);
  // Without the largest weight, results must be exact.
  const exact = { ...oProj, largest: undefined };
  assertEquals(
    chooseLinear({ ...exact, rounded: true }, device).kernel,
    "gemv",
  );
});

Deno.test("two parts of a matrix go together where their planes, x and y can be bound", () => {
  const shape = { m: 1, n: 5120, k: 4096, largest: 1, norm: true };
  for (const buffers of [undefined, 8, 10]) {
    const { limits, ...device } = DEVICES[4];
    const most = { maxStorageBuffersPerShaderStage: buffers };
    for (const format of FORMATS) {
      for (const other of FORMATS) {
        const { two = false, constants, reason } = chooseLinear({
          ...{ ...shape, format, swiglu: false },
          rounded: format.integers !== undefined,
          other: { n: 1024, format: other },
        }, { ...device, limits: { ...limits, ...most } });
        const planes = [format, other].flatMap((one) => one.planes(4096));
        const wanted = format.integers !== undefined &&
          other.integers !== undefined &&
          planes.length + 2 <= (buffers ?? 8) &&
          format.loads[0] === other.loads[0];
        assertEquals(two, wanted, `${format.name}, ${other.name}`);
        assertEquals(constants.TWO ?? 0, Number(two));
        const together = `with its next part, in ${other.name}`;
        assertEquals(reason.includes(together), two, reason);
      }
    }
  }
});

Deno.test("gemvInt8 has two rows in flight, four of LM heads and of gates and ups", () => {
  const device = { ...DEVICES[4], adapterClass: "NVIDIA" } as const;
  const rows = (n: number, k: number, swiglu = false) =>
    chooseLinear({
      ...{ m: 1, n, k, format: formatNamed("q4_k"), norm: false, swiglu },
      ...{ largest: 1, rounded: true },
    }, device).constants.ROWS;
  assertEquals([rows(1024, 3072), rows(4096, 1024)], [2, 2]);
  assertEquals([rows(4096, 4096), rows(4096, 12288)], [2, 2]);
  assertEquals([rows(6144, 1024, true), rows(24576, 4096, true)], [4, 4]);
  assertEquals([rows(151936, 1024), rows(151936, 4096)], [4, 4]); // LM heads
});

Deno.test("lane groups of gemvInt8 share rows, so that each lane holds few elements", () => {
  for (const k of [64, 1024, 4096, 25600]) {
    for (const device of DEVICES.filter((one) => one.subgroupSize >= 8)) {
      for (const adapterClass of ADAPTER_CLASSES) {
        const { constants: c } = chooseLinear({
          ...{ m: 1, n: 4096, k, format: formatNamed("q4_k") },
          ...{ largest: 1, norm: false, swiglu: false },
        }, { ...device, adapterClass }) as {
          constants: Record<string, number>;
        };
        const lanes = 2 ** c.LOG_LANES, what = JSON.stringify({ k, c });
        const most = device.limits.maxComputeInvocationsPerWorkgroup;
        assert(c.WORKGROUP <= most, what);
        assertEquals(c.WORKGROUP % (lanes * c.SETS), 0, what);
        assertEquals(c.RESULTS % 16, 0, what);
        // A bit of a word says of each block of 16 whether it has an outlier.
        assert(k / 16 / (c.SETS * lanes) <= 32, what);
      }
    }
  }
});

Deno.test("a few rows take the next part of a matrix along where buffers allow", () => {
  const { limits, ...device } = {
    ...DEVICES[4],
    adapterClass: "NVIDIA",
  } as const;
  for (const most of [undefined, 8, 9, 10, 16]) {
    const given: Capabilities = {
      ...device,
      limits: { ...limits, maxStorageBuffersPerShaderStage: most },
    };
    for (const [n, k] of [[5120, 4096], [3072, 1024]]) {
      for (const format of FORMATS) {
        for (const next of FORMATS) {
          const shape = { m: 16, n, k, format, norm: true, swiglu: false };
          const choice = chooseLinear({
            ...{ ...shape, largest: 1 },
            other: { n: 1024, format: next },
          }, given);
          const { two, constants, reason } = choice;
          const message = JSON.stringify({ most, choice });
          const integers = choice.kernel === "gemvRowsInt8";
          const planes = [format, next].flatMap((one) => one.planes(k)).length;
          const fits = planes + (integers ? 3 : 4) <= (most ?? 8);
          const alike = !integers || next.integers !== undefined &&
              next.loads[0] === format.loads[0];
          assertEquals(two, fits && alike, message);
          assertEquals(constants.TWO, Number(two), message);
          const part = `next part, in ${next.name}`;
          assert(
            reason.includes(two ? `with its ${part}` : `${part}: `),
            message,
          );
          if (!two && alike) {
            assert(reason.includes(`allows ${most ?? 8}`), message);
          }
          const alone = chooseLinear({ ...shape, largest: 1 }, given);
          assertEquals(alone.two, false, message);
        }
      }
    }
  }
});

Deno.test("a few rows may go to gemvRowsInt8 if quants are integers and many", () => {
  for (const adapterClass of ADAPTER_CLASSES) {
    for (const given of DEVICES) {
      const device = { ...given, adapterClass };
      for (const format of FORMATS) {
        for (const [n, k] of [[38, 256], [6144, 4096], [1024, 12288]]) {
          for (const m of [1, 2, 5, 16, 32, 33, 64, 65]) {
            const shape = { m, n, k, format, norm: true, swiglu: true };
            const few = m > 1 && m <= mostFew(shape, device);
            const exact = chooseLinear(shape, device);
            if (!few) continue;
            const choice = chooseLinear({ ...shape, largest: 1 }, device);
            const message = JSON.stringify({ device, shape, choice });
            assertEquals(exact.kernel, "gemvRows", message);
            const small = n * k < 1e7 && m * n * k < 1.2e8;
            if (!format.integers || device.subgroupSize < 8 || small) {
              assertEquals(choice, exact, message);
              continue;
            }
            assertEquals(choice.kernel, "gemvRowsInt8", message);
            const target = { ...shape, kernel: choice.kernel, half: false };
            const constants = tunedConstants(INT8, choice.constants);
            assertEquals(
              misfit(INT8, target, constants, device),
              undefined,
              message,
            );
          }
        }
      }
    }
  }
});

slowTest("choices for Linear layers fit the device", () => {
  const seen = new Set<string>();
  for (const device of DEVICES) {
    for (const shape of linearShapes()) {
      const choice = chooseLinear(shape, device);
      // The WGSL depends on little else, and expanding it thousands of times is slow.
      const key = JSON.stringify([
        device,
        choice.constants,
        shape.k,
        shape.format.name,
      ]);
      if (seen.has(key)) continue;
      seen.add(key);
      assertFits(linearWgsl(shape, choice), device, JSON.stringify(shape));
    }
  }
});

Deno.test("lanes have their own rows where threads are emulated and can broadcast x", () => {
  for (const adapterClass of ADAPTER_CLASSES) {
    for (const device of DEVICES) {
      for (const k of [1024, 100]) {
        const kind = { format: bf16, norm: false, swiglu: true } as const;
        const shape = { m: 1, n: 3072, k, ...kind };
        const choice = chooseLinear(shape, { ...device, adapterClass });
        const own = adapterClass === "software" && device.subgroupSize > 0 &&
          k === 1024;
        const message = JSON.stringify({ adapterClass, device, k });
        assertEquals(
          choice.constants.SPREAD,
          own ? "rows" : undefined,
          message,
        );
        assertFits(linearWgsl(shape, choice), device, message);
        // Small weights that no longer change are read from a copy.
        for (const [n, fixed] of [[512, 1], [512, 0], [514, 1]]) {
          const small = { ...shape, n, fixed: fixed === 1 };
          const { constants, reason } = chooseLinear(small, {
            ...device,
            adapterClass,
          });
          const copied = own && fixed === 1 && n === 512;
          assertEquals(constants.W_IN, copied ? "texture" : undefined, message);
          assertEquals(reason.includes("from a texture"), copied, message);
        }
      }
    }
  }
});

Deno.test("few rows without subgroups need few barriers", () => {
  // A software adapter takes minutes to compile hundreds of barriers.
  for (const adapterClass of ADAPTER_CLASSES) {
    for (const m of [2, 16, 32]) {
      const kind = { format: bf16, norm: false, swiglu: false } as const;
      const shape = { m, n: 1024, k: 1024, ...kind };
      const choice = chooseLinear(shape, { ...DEVICES[0], adapterClass });
      const wgsl = linearWgsl(shape, choice);
      const message = `${m} rows on ${adapterClass}`;
      // A sum over lanes would add ten.
      assert(!wgsl.includes("lanes_sum("), message);
      const barriers = wgsl.split("workgroupBarrier();").length - 1;
      assert(barriers > 0 && barriers <= 48, `${barriers} for ${message}`);
    }
  }
});

Deno.test("many rows by an exact matrix multiply in f32, and the choice says why", () => {
  const shape = { m: 512, n: 6144, k: 4096, format: bf16, largest: 0.5 };
  for (const exact of [false, true]) {
    const { headroom, constants: { F16, SCALED }, reason } = chooseLinear(
      { ...shape, norm: true, swiglu: false, exact },
      DEVICES[4],
    );
    const half = exact ? 0 : 1;
    assertEquals(
      [F16, SCALED, Number(headroom !== undefined)],
      Array(3).fill(half),
    );
    assertEquals(reason.includes("must be exact"), exact);
  }
});

Deno.test("f16 sums of a matmul cannot overflow", () => {
  for (const largest of [1e-6, 0.01, 0.5, 3, 100, 5000]) {
    for (const m of [65, 100, 4096]) {
      const shape = {
        m,
        n: 4096,
        k: 1024,
        format: bf16,
        norm: true,
      } as const;
      const choice = chooseLinear(
        { ...shape, swiglu: false, largest },
        DEVICES[4],
      );
      const { headroom, constants: { BK, F16, SCALED } } = choice;
      assertEquals([F16, SCALED], headroom ? [1, 1] : [0, 0]);
      if (!headroom) continue;
      assertEquals(Math.log2(headroom) % 1, 0);
      // Rows are scaled to less than twice the headroom.
      assert(2 * headroom <= 65504, `${headroom}`);
      const sum = Number(BK) * 2 * headroom * largest;
      assert(sum <= 65504, `${largest}: ${BK} terms sum to ${sum}`);
    }
  }
});

Deno.test("lanes are a power of two within a subgroup", () => {
  for (const { subgroupSize } of DEVICES) {
    for (const most of [1, 2, 3, 10, 32]) {
      const { LOG_LANES, SUBGROUPS } = laneConstants({ subgroupSize }, most);
      assert(Number.isInteger(LOG_LANES) && 2 ** LOG_LANES <= most);
      assertEquals(SUBGROUPS, subgroupSize ? 1 : 0);
      if (SUBGROUPS) assert(2 ** LOG_LANES <= subgroupSize);
    }
    const { LOG_LANES, SUBGROUPS } = exactLanes({ subgroupSize }, 16);
    assertEquals([LOG_LANES, SUBGROUPS], [4, subgroupSize >= 16 ? 1 : 0]);
  }
});

slowTest("decode attention fits the device, for any head", () => {
  const seen = new Set<string>();
  const kinds = ADAPTER_CLASSES.flatMap((adapterClass) =>
    DEVICES.map((device) => ({ ...device, adapterClass, vulkan: true }))
  );
  for (const device of kinds) {
    for (const headDim of [2, 16, 20, 64, 100, 128, 256]) {
      for (const group of [1, 2, 5, 8]) {
        const choices = chooseDecodeAttention({ headDim, group }, device);
        const cache = shaped(headDim % 8 ? "f32" : "f16", 1, 1, 64, headDim);
        const operands = {
          qkv: shaped("f32", 1, (group + 2) * headDim),
          qNorm: shaped("bf16", headDim),
          kNorm: shaped("bf16", headDim),
          positions: shaped("u32", 65, headDim),
          k: cache,
          v: cache,
          y: shaped("f32", 1, headDim * group),
          state: shaped("u32", 4),
        };
        for (const { constants, shares, reason } of choices) {
          const given = { ...attendDecode.constants, ...constants };
          const derived = attendDecode.derive!(given, {});
          const all: Constants = { ...given, ...derived };
          const message = JSON.stringify({ device, headDim, group, all });
          assert(Number(all.WORKGROUP) >= Number(all.LANES), message);
          assert(Number(all.LANES) >= Number(all.KEY_LANES), message);
          assert(
            all.GROUP === 1 ||
              Number(all.ELEMENTS) * Number(all.GROUP) * Number(all.VEC) <=
                64,
            message,
          );
          assertEquals(Number(all.GROUP) * shares, group, message);
          assert(reason !== "", message);
          const key = JSON.stringify([device.limits, all]);
          if (seen.has(key)) continue;
          seen.add(key);
          const wgsl = showWgsl(attendDecode, operands, { constants });
          assertFits(wgsl, device, message);
        }
        // One layout runs, with no more splits than can be merged.
        for (const rows of [1, 7, 8, 100]) {
          const heads = { headDim, group, rows };
          const choices = chooseDecodeAttention(heads, device);
          for (
            const length of [0, 1, 255, 256, 511, 512, 1536, 3071, 3072, 40959]
          ) {
            const splits = choices.map((choice) => choice.splits(length));
            const running = splits.filter((n) => n > 0);
            assertEquals(running.length, 1, `${length}: ${splits}`);
            assert(running[0] <= MOST_SPLITS, `${length}: ${splits}`);
            // Scratch memory has room for all of them.
            const room = mostSplits(length + 1, rows);
            assert(running[0] <= room, `${length}: ${splits} of ${room}`);
          }
        }
      }
    }
  }
  assert(MOST_SPLITS <= Number(mergeSplits.constants.MOST));
});

/** A device as one of the class for which o_proj is multiplied by attention. */
const asLarge = (device: Capabilities): Capabilities => ({
  ...{ ...device, adapterClass: "NVIDIA, large cache", vulkan: true },
  limits: { ...device.limits, maxStorageBuffersPerShaderStage: 16 },
});

slowTest("attention with o_proj fits the device, for any head", () => {
  const kinds = DEVICES.map(asLarge);
  const fits = new Set<string>();
  for (const device of kinds) {
    for (const headDim of [2, 16, 20, 64, 100, 128, 256]) {
      for (const group of [1, 2, 4, 5, 8]) {
        for (const format of [bf16, formatNamed("q4_k")]) {
          const n = 256, w = { n, parts: [{ format }] };
          const shape = { headDim, group, kvHeads: 2, rows: 1, w };
          const choice = chooseProjection(shape, device);
          const message = JSON.stringify({ device, headDim, group, choice });
          assert(choice !== undefined && choice !== "", message);
          if (typeof choice === "string") continue;
          const k = 2 * group * headDim;
          const cache = shaped("f16", 1, 2, 64, headDim);
          const weights = allocateMatrix("w", [{ rows: n, format }], k, {}, (
            bytes,
            label,
          ) =>
            new Tensor({} as Gpu, "u32", [bytes / 4], {} as GPUBuffer, label));
          const wgsl = showWgsl(attendDecode, {
            qkv: shaped("f32", 1, 2 * (group + 2) * headDim),
            qNorm: shaped("bf16", headDim),
            kNorm: shaped("bf16", headDim),
            positions: shaped("u32", 65, headDim),
            ...{ k: cache, v: cache, w: weights },
            y: shaped("f32", 1, n),
            squares: shaped("f32", 1, n),
            pieces: shaped("u32", 4096),
            state: shaped("u32", 4096),
          }, { constants: choice.constants });
          assertFits(wgsl, device, message);
          fits.add(`${format.name} ${headDim} × ${group}`);
        }
      }
    }
  }
  assert(
    fits.has("bf16 128 × 2") && fits.has("q4_k 128 × 2"),
    [...fits].join(),
  );
  assert(!fits.has("bf16 128 × 4"));
});

Deno.test("attention with o_proj is chosen where it was measured to be faster", () => {
  const device = asLarge(DEVICES[4]);
  const heads = { headDim: 128, group: 2, kvHeads: 8, rows: 1 };
  const of = (n: number) => ({ ...heads, w: { n, parts: [{ format: bf16 }] } });
  const from = (given: Capabilities) => {
    const choice = chooseProjection(of(1024), given);
    return typeof choice === "object" ? choice.from : choice;
  };
  assertEquals(from(device), 320);
  assertEquals(from({ ...device, vulkan: false }), 512); // as through Dawn
  assertEquals(from({ ...device, adapterClass: "AMD" }), undefined);
  assertEquals(chooseProjection({ ...of(1024), rows: 2 }, device), undefined);
  const why = (given: Parameters<typeof chooseProjection>[0]) =>
    String(chooseProjection(given, device));
  assertMatch(why(of(4096)), /8 kv heads × 64 blocks of 64 rows .* 128 work/);
  assertMatch(why({ ...of(1024), group: 4 }), /64 values in a lane/);
  const limits = { ...device.limits, maxStorageBuffersPerShaderStage: 8 };
  assertMatch(String(from({ ...device, limits })), /binds 15 .* allows 8/);
});

Deno.test("few tokens after many keys split them, and only then", () => {
  const device = { adapterClass: "NVIDIA" } as const;
  for (const context of [100, 511, 512, 4096, 40960]) {
    for (const workgroups of [1, 3, 8, 24, 64, 66, 67, 132, 4096]) {
      for (const tokens of [2, 48, 512]) {
        const shape = { workgroups, tokens, context };
        const { splits, most, reason } = choosePrefillSplits(shape, device);
        const message = JSON.stringify({ ...shape, most, reason });
        for (let length = 0; length <= context; length += 61) {
          const n = splits(length);
          assert(n >= 1 && n <= most && most <= MOST_SPLITS, message);
          assert(n === 1 || length >= 512 && workgroups * n <= 264, message);
          // No split is empty, but for rounding: each has two tiles at least.
          const tiles = Math.ceil((length + tokens) / 64);
          const each = Math.ceil(tiles / n);
          assert(n === 1 || each >= 2 && (n - 1) * each < tiles, message);
        }
        const several = context >= 512 && workgroups <= 66;
        assertEquals(most > 1, several, message);
        assertMatch(
          reason,
          several
            ? /^from 512 cached tokens on, several workgroups share/
            : workgroups > 66
            ? /^keys are not split: \d+ workgroups keep most of the device/
            : /^keys are not split: the context has under 512$/,
        );
        const software = { adapterClass: "software" } as const;
        const whole = choosePrefillSplits(shape, software);
        assertEquals([whole.most, whole.splits(context)], [1, 1]);
        assertMatch(whole.reason, /a software renderer/);
      }
    }
  }
  // As measured on an H200: 48, 16 and 128 tokens of a 0.6B.
  const measured = [[24, 48, 11], [8, 16, 32], [64, 128, 4]];
  for (const [workgroups, tokens, expected] of measured) {
    const shape = { workgroups, tokens, context: 8192 };
    const { splits } = choosePrefillSplits(shape, device);
    assertEquals(splits(4032), expected);
  }
});

slowTest(
  "every kernel of a model fits a device of WebGPU's default limits",
  () => {
    for (const size of ["0.6b", "8b", "32b"]) {
      const { config } = parseSynthetic(`synthetic:qwen3-${size}`);
      for (const subgroupSize of [0, 8, 32]) {
        for (const f16 of [false, true]) {
          const limits = LEAST_LIMITS;
          const device = { ...STATED_DEVICE, subgroupSize, f16, limits };
          for (const tokens of [1, 4, 32, 33, 512, 2048]) {
            const options = { config, tokens };
            for (const one of showVariants(KERNEL_NAMES, device, options)) {
              const message = `${one.kernel}, ${one.label}, ${subgroupSize}`;
              assertFits(one.wgsl, device, message);
            }
          }
        }
      }
    }
  },
);

Deno.test("attention merges its splits itself only where a storage barrier is known to reach them", () => {
  const merging = (device: Partial<Capabilities>) =>
    chooseDecodeAttention({ headDim: 128, group: 2 }, {
      ...DEVICES[4],
      ...device,
    }).every(({ merges, constants }) => merges && constants.MERGE === 1);
  for (const adapterClass of ["NVIDIA", "AMD", "software"] as const) {
    assert(merging({ adapterClass, vulkan: true }));
    // A Mac with an AMD card, Direct3D, or another WebGPU implementation.
    assert(!merging({ adapterClass, vulkan: false }));
    assert(!merging({ adapterClass }));
  }
  assert(!merging({ adapterClass: "Apple", vulkan: true }));
  assert(!merging({ adapterClass: "other", vulkan: true }));
});

Deno.test("attention rounds its row for a kernel of integers, or says why not", () => {
  const buffers = (most?: number) => ({
    limits: { ...DEVICES[4].limits, maxStorageBuffersPerShaderStage: most },
  });
  const nvidia = {
    ...{ ...DEVICES[4], ...buffers(10), subgroupSize: 32, vulkan: true },
    adapterClass: "NVIDIA, large cache" as const,
  };
  const choose = (
    { headDim = 128, rows = 1, format = "q4_k", f16 = true },
    device: Partial<Capabilities> = {},
  ) => {
    const next = {
      ...{ k: 32 * headDim, formats: [formatNamed(format)] },
      largest: f16 ? 1 : undefined,
    };
    const heads = { headDim, group: 4, rows, next };
    const choices = chooseDecodeAttention(heads, { ...nvidia, ...device });
    for (const { leaves, constants } of choices) {
      assertEquals(constants.LEAVES, leaves ? 1 : 0);
    }
    assertEquals(new Set(choices.map(({ leaves }) => leaves)).size, 1);
    return choices[0];
  };
  const rounds = choose({});
  assert(rounds.leaves);
  assertStringIncludes(
    rounds.reason,
    "it rounds its results for the next kernel",
  );
  // The next kernel does not multiply integers.
  for (
    const given of [{ format: "bf16" }, { rows: 2 }, { f16: false }]
  ) {
    const { leaves, reason } = choose(given);
    assert(!leaves);
    assert(!reason.includes("next kernel"), reason);
  }
  assert(!choose({}, { subgroupSize: 4 }).leaves);
  for (
    const [given, device, why] of [
      [{ headDim: 24 }, {}, "heads of 24 are no whole blocks of 16"],
      [{}, { vulkan: false }, "another kernel merges splits"],
      [{}, buffers(8), "that binds 9 storage buffers, the device allows 8"],
      [{}, buffers(), "that binds 9 storage buffers, the device allows 8"],
    ] as const
  ) {
    const { leaves, reason } = choose(given, device);
    assert(!leaves);
    assertStringIncludes(reason, `the next kernel rounds them: ${why}`);
  }
  // With both, steps were slower.
  assert(!rounds.ahead && choose({ format: "bf16" }).ahead);
  assert(choose({}, buffers(9)).leaves);
  for (const most of [9, undefined]) {
    const { ahead, reason } = choose({ format: "bf16" }, buffers(most));
    assertEquals(ahead, undefined);
    assertStringIncludes(
      reason,
      `nothing is read ahead: that binds 10 storage buffers, the device allows ${
        most ?? 8
      }`,
    );
  }
});

Deno.test("matrices are prefetched only where the cache has room for them", () => {
  const kind = (description: string) =>
    adapterClass({ vendor: "4318", description }, false); // 0x10de
  const { limits } = DEVICES[4];
  const device = (description: string) => ({
    ...DEVICES[4],
    limits: { ...limits, maxStorageBuffersPerShaderStage: 10 },
    adapterClass: kind(description),
  });
  assertEquals(kind("NVIDIA H200"), "NVIDIA, large cache");
  assertEquals(kind("NVIDIA GeForce RTX 3060"), "NVIDIA");
  assertEquals(kind("NVIDIA GeForce RTX 4060"), "NVIDIA");
  const ahead = (description: string, rows?: number) =>
    chooseDecodeAttention({ headDim: 128, group: 2, rows }, device(description))
      .map(({ ahead }) => ahead?.FETCHERS ?? 0);
  assertEquals(ahead("NVIDIA H200"), [32, 128, 0]);
  assertEquals(ahead("NVIDIA GeForce RTX 3060"), [0, 0, 0]);
  assertEquals(ahead("NVIDIA H200", 16), [0, 0, 0]); // many sequences keep the memory busy
  const heads = { headDim: 128, group: 4 };
  const [small, large] = [19e6, 302e6].map((bytesAfter) =>
    chooseDecodeAttention({ ...heads, bytesAfter }, device("NVIDIA H200"))[0]
  );
  assert(small.ahead && !large.ahead);
  assertMatch(large.reason, /nothing is read ahead: .* 302000000 bytes/);
});

Deno.test("quantised blocks have constants of their own where they were measured", () => {
  const rows = (adapterClass: AdapterClass, format: Format, n: number) => {
    const device = { ...STATED_DEVICE, adapterClass };
    const shape = { m: 1, n, k: 4096, format, norm: false, swiglu: false };
    const { ROWS, STEPS } = chooseLinear(shape, device).constants;
    return [ROWS, STEPS];
  };
  for (const name of ["q8_0", "q4_k", "mxfp4"]) {
    const format = formatNamed(name);
    for (const n of [4096, 24576, 151936]) {
      assertEquals(rows("NVIDIA", format, n), [4, 1], `${name}, ${n} rows`);
    }
    assertEquals(rows("NVIDIA", format, 1024)[0], 1, `${name}, few rows`);
  }
  assertEquals(rows("NVIDIA", bf16, 4096)[0], 2);
});

Deno.test("tuned constants replace chosen ones, for their class of shapes only", () => {
  const device = { ...DEVICES[4], adapterClass: "NVIDIA" } as const;
  const sizes = { m: 1, n: 64, k: 128 };
  const kind = { format: bf16, norm: false, swiglu: false } as const;
  const shape: LinearShape = { ...sizes, ...kind };
  const half = { ...shape, m: 100, largest: 0.5 };
  const tuned = new Map<string, Constants>([
    [linearKey("gemv", shape), { ROWS: 4 }],
    [linearKey("gemvRows", { ...shape, m: 3 }), { SLICES: 2 }],
    [linearKey("gemvRows", { ...shape, m: 32 }), { M: 32, ROWS: 2 }],
    [linearKey("gemm", { ...shape, m: 100 }), { BK: 8 }],
    [linearKey("gemm", half, true), { BK: 64 }],
    [attendKey("long", 128, 2), { STEPS: 4 }],
  ]);
  const linear = (
    given: Partial<LinearShape>,
    tuned?: Map<string, Constants>,
  ) => chooseLinear({ ...shape, ...given }, { ...device, tuned });
  const changes = (given: Partial<LinearShape>, own: Constants) => {
    const { constants, reason } = linear(given, tuned);
    assertEquals(constants, { ...linear(given).constants, ...own });
    const is = Object.keys(own).length ? "tuned for this adapter" : "an H200";
    assert(reason.endsWith(is), reason);
    assert(linear(given).reason.endsWith("an H200"));
  };
  changes({ m: 1 }, { ROWS: 4 });
  for (const m of [2, 3, 4]) changes({ m }, { SLICES: 2 });
  for (const m of [5, 16, 33, 64]) changes({ m }, {});
  for (const m of [17, 32]) changes({ m }, { M: Math.min(m, 32), ROWS: 2 });
  changes({ m: 1, swiglu: true }, {});
  changes({ m: 1, format: f32 }, {});
  changes({ m: 1, k: 256 }, {});
  for (const m of [65, 100, 256]) changes({ m }, { BK: 8 });
  changes({ m: 257 }, {});
  changes(half, { BK: 64 });
  const heads = { headDim: 128, group: 2 };
  const [short, , long] = chooseDecodeAttention(heads, { ...device, tuned });
  assertEquals(long.constants.STEPS, 4);
  assert(long.reason.endsWith("tuned for this adapter"));
  assert(short.reason.endsWith("an H200"));
});

Deno.test("tuned constants of experts are those of one row, or of a tile", () => {
  const device = { ...DEVICES[4], adapterClass: "NVIDIA" } as const;
  const format = formatNamed("q4_k"), sizes = { n: 768, k: 2048, format };
  const of = { ...sizes, m: 8, swiglu: true }, tile = { ...of, swiglu: false };
  const tuned = new Map<string, Constants>([
    [expertKey("expertGemv", of), { ROWS: 4 }],
    [expertKey("expertGemvInt8", of), { SETS: 1 }],
    [expertKey("expertGemm", { ...tile, m: 32 }), { TM: 4 }],
    [expertKey("expertGemm", { ...tile, m: 32 }, true), { BK: 16 }],
  ]);
  const changes = (
    choose: (device: Capabilities) => ExpertChoice,
    own: Constants,
  ) => {
    const plain = choose(device),
      { constants, reason } = choose({
        ...device,
        tuned,
      });
    assertEquals(constants, { ...plain.constants, ...own });
    const is = Object.keys(own).length ? "tuned for this adapter" : "an H200";
    assert(reason.endsWith(is), reason);
  };
  const one = { ...sizes, m: 1, used: 8, epilogue: "swiglu" } as const;
  const row = (given: Partial<ExpertShape>, own: Constants) =>
    changes((device) => chooseExpertGemv({ ...one, ...given }, device), own);
  row({}, { ROWS: 4 });
  row({ largest: 0.5 }, { SETS: 1 });
  for (const largest of [undefined, 0.5]) {
    row({ m: 2, largest }, {});
    row({ used: 4, largest }, {});
    row({ epilogue: "add", largest }, {});
    row({ epilogue: "store", largest }, {});
  }
  const many = (given: Partial<GroupedShape>, own: Constants) =>
    changes(
      (device) =>
        chooseExpertGemm(
          { ...sizes, pairs: 1024, experts: 128, ...given },
          device,
        ),
      own,
    );
  many({}, { TM: 4 });
  many({ largest: 0.5 }, { BK: 16 });
  many({ pairs: 4097 }, {}); // in tiles of 64 rows
  many({ n: 2048 }, {});
});

Deno.test("loads are fenced where Tint compiles for NVIDIA, unless workgroups walk", () => {
  const [device] = DEVICES.filter((one) => one.subgroupSize === 32);
  const cores = {
    ...device,
    adapterClass: "NVIDIA",
    compiler: "tint",
  } as const;
  const down = {
    ...{ m: 1, n: 1024, k: 3072, format: bf16, norm: false, swiglu: false },
  };
  const { constants, reason } = chooseLinear(down, cores);
  assertEquals(constants.FENCE, 1);
  assert(reason.includes("; a barrier keeps the driver from loading late;"));
  const others: [Partial<LinearShape>, Partial<Capabilities>][] = [
    [{ n: 4096, k: 12288 }, {}], // walks
    [{ k: 3070 }, {}], // element by element
    [{}, { compiler: "naga" }],
    [{}, { adapterClass: "AMD" }],
    [{}, { adapterClass: undefined }],
  ];
  for (const [shape, more] of others) {
    const choice = chooseLinear({ ...down, ...shape }, { ...cores, ...more });
    assertEquals([choice.kernel, choice.constants.FENCE], ["gemv", undefined]);
    assert(!choice.reason.includes("barrier"), choice.reason);
  }
});

Deno.test("chooseMatmul picks a kernel by shape, or says why none does", () => {
  const [device] = DEVICES;
  const chosen = (a: number[], b: number[], transposeB = false) => {
    const { kernel, reason } = chooseMatmul(a, b, device, { transposeB });
    assert(reason !== "");
    return kernel ?? reason;
  };
  assertEquals(chosen([5, 8], [8]), "gemv");
  assertEquals(chosen([8], [8, 5]), "gemvColumns");
  assertEquals(chosen([8], [5, 8], true), "gemv");
  assertEquals(chosen([1, 8], [8, 5]), "gemvColumns");
  assertEquals(chosen([8, 8], [5, 8], true), "gemvRows");
  assertEquals(chosen([32, 8], [5, 8], true), "gemvRows");
  assertEquals(chosen([9, 8], [8, 5]), "gemm");
  assertEquals(chosen([33, 8], [5, 8], true), "gemm");
  assertEquals(chosen([1, 16, 5, 128], [1, 16, 128, 5]), "batchedGemm");
  assertEquals(chosen([2, 6, 1, 8], [2, 1, 8, 5]), "batchedGemm");
  const refused: [number[], number[], string][] = [
    [[5, 8], [7, 5], "[5, 8] × [7, 5]: the inner sizes 8 and 7 differ"],
    [[8], [8], "[8] × [8]: 1D×1D is not among"],
    [[2, 3, 4], [4, 5], "3D×2D is not among"],
    [[2, 2, 3, 4], [1, 2, 4, 5], "the batch sizes 2 and 1 differ"],
    [[1, 3, 3, 4], [1, 2, 4, 5], "3 heads are not a multiple of 2"],
    [[0, 8], [8, 5], "a size is 0"],
  ];
  for (const [a, b, reason] of refused) {
    assert(chosen(a, b).includes(reason), `${chosen(a, b)} has ${reason}`);
  }
  const only = chooseMatmul([9, 8], [8, 5], device, { kernels: ["gemv"] });
  assertEquals(only.kernel, undefined);
  const mistyped = { transposed: true } as Record<string, unknown>;
  assertThrows(
    () => chooseMatmul([9, 8], [5, 8], device, mistyped),
    OptionError,
    "Cannot choose a kernel: the option transposed is unknown, must be transposeB, dtype, halves, kernels",
  );
});

/** An H200's limits, as far as choices depend on them. */
const H200: Capabilities = {
  subgroupSize: 32,
  adapterClass: "NVIDIA, large cache",
  limits: {
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxStorageBufferBindingSize: 2 ** 31 - 4,
  },
};

Deno.test("weights are unpacked once where large tiles in f16 fill a GPU", () => {
  const large = { m: 512, n: 24576, k: 4096, largest: 0.5 };
  const small = {
    ...H200,
    limits: { ...H200.limits, maxStorageBufferBindingSize: 2 ** 27 },
  };
  const few = { ...H200.limits, maxComputeWorkgroupStorageSize: 16384 };
  // Whether they are unpacked, read as f16, and by tiles of how many rows.
  const cases: [
    Partial<LinearShape>,
    Capabilities,
    [boolean, number, number],
  ][] = [
    [{ format: formatNamed("q4_k") }, H200, [true, 1, 128]],
    [{ format: bf16 }, H200, [true, 1, 128]],
    [{ format: formatNamed("f16") }, H200, [false, 1, 128]],
    [{ format: bf16 }, small, [false, 0, 64]],
    [{ format: bf16 }, { ...H200, limits: few }, [false, 0, 64]],
    [{ format: bf16, m: 255 }, H200, [false, 0, 64]],
    [{ format: bf16, n: 6144 }, H200, [false, 0, 64]], // 192 tiles
    [{ format: bf16, n: 4096 }, H200, [true, 1, 128]], // 128 tiles
    [{ format: bf16, k: 4094 }, H200, [false, 0, 128]], // in f32
    [{ format: bf16, exact: true }, H200, [false, 0, 128]],
    [{ format: bf16, largest: undefined }, H200, [false, 0, 128]],
  ];
  for (const [own, device, expected] of cases) {
    const shape = { ...large, format: bf16, norm: true, swiglu: false, ...own };
    const { unpacks, constants, reason } = chooseLinear(shape, device);
    const { B_HALF, BM } = constants,
      message = `${JSON.stringify(own)}: ${reason}`;
    assertEquals([unpacks, B_HALF, BM], expected, message);
    assertEquals(reason.includes("unpacked to f16 once"), unpacks, message);
  }
});

Deno.test("k is split where the last round of tiles would leave a GPU idle", () => {
  // qkv_proj and o_proj of an 8B: 192 and 128 tiles; and few tiles.
  for (
    const [n, k, splits] of [[6144, 4096, 2], [4096, 4096, 1], [1024, 2048, 2]]
  ) {
    const shape = { m: 512, n, k, format: bf16, norm: true, swiglu: false };
    assertEquals(chooseLinear(shape, H200).splits, splits, `${n}, ${k}`);
  }
});

Deno.test("workgroups walk over the rows of large matrices of floats", () => {
  // Threads and workgroups.
  const cases: [Partial<LinearShape>, Capabilities, [number, number]][] = [
    [{}, H200, [256, 528]],
    [{ n: 24576, swiglu: true }, H200, [256, 528]],
    [{ k: 12288 }, H200, [512, 264]],
    [{ format: formatNamed("f32") }, H200, [512, 264]],
    [{ n: 12288, k: 2048 }, H200, [128, 1056]],
    [{ k: 1024 }, H200, [128, 1]], // 8 MiB
    [{ n: 20000, k: 1024 }, H200, [128, 1]], // rows of 128 loads
    [{ n: 151936 }, H200, [256, 1]],
    [{ format: formatNamed("q8_0") }, H200, [128, 1]],
    [{ k: 4100 }, H200, [128, 1]],
    [{}, { ...H200, subgroupSize: 0 }, [128, 1]],
    [{}, { ...H200, adapterClass: "software" }, [32, 1]],
  ];
  for (const [own, device, expected] of cases) {
    const shape = { m: 1, n: 4096, k: 4096, format: bf16, norm: false };
    const { kernel, constants: { WORKGROUP, WALKERS }, reason } = chooseLinear(
      { ...shape, swiglu: false, ...own },
      device,
    );
    const message = `${JSON.stringify(own)}: ${reason}`;
    assertEquals([kernel, WORKGROUP, WALKERS], ["gemv", ...expected], message);
    assertEquals(reason.includes("walk over"), expected[1] > 1, message);
  }
});
