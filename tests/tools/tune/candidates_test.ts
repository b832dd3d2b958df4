import { assert, assertEquals, assertMatch } from "@std/assert";
import type {
  AdapterClass,
  Capabilities,
} from "../../../lib/dispatch/capabilities.ts";
import { TUNED_KERNELS } from "../../../kernels/list.ts";
import { candidatesFor } from "../../../lib/tools/tune/candidates.ts";
import { parseKey } from "../../../lib/dispatch/keys.ts";
import { misfit } from "../../../lib/dispatch/limits.ts";

/** The kernel and the shapes of a key. */
function tuned(key: string) {
  const target = parseKey(key)!;
  const kernel = TUNED_KERNELS.find(({ name }) => name === target.kernel)!;
  return { target, kernel };
}

const device = (
  subgroupSize: number,
  threads: number,
  adapterClass: AdapterClass,
): Capabilities => ({
  subgroupSize,
  adapterClass,
  limits: {
    maxComputeWorkgroupStorageSize: 32768,
    maxComputeInvocationsPerWorkgroup: threads,
  },
});
const DEVICES = [
  device(32, 1024, "NVIDIA"),
  device(32, 256, "AMD"),
  device(8, 1024, "software"),
  device(0, 256, "other"),
];

for (
  const [key, now] of [
    ["gemv bf16 1 4096 1024", {
      WORKGROUP: 128,
      ROWS: 2,
      STEPS: 4,
      WALKERS: 1,
    }],
    ["gemv bf16 1 4096 4096", {
      WORKGROUP: 256,
      ROWS: 2,
      STEPS: 1,
      WALKERS: 528,
    }],
    ["gemv f32 swiglu 1 100 45", {
      WORKGROUP: 128,
      ROWS: 4,
      STEPS: 4,
      WALKERS: 1,
    }],
    ["gemm bf16 512 4096 1024", { BM: 64, BN: 64, BK: 16, TM: 4, TN: 8 }],
    ["gemm bf16 swiglu half 64 6144 1024", {
      BM: 64,
      BN: 128,
      BK: 32,
      TM: 8,
      TN: 8,
    }],
    ["expertGemv q4_k swiglu 8 768 2048", {
      WORKGROUP: 128,
      ROWS: 2,
      STEPS: 2,
    }],
    ["expertGemvInt8 q4_k 8 2048 768", {
      WORKGROUP: 384,
      SETS: 6,
      ROWS: 4,
      RESULTS: 16,
    }],
    ["expertGemm q4_k half 64 768 2048", { BN: 64, BK: 32, TM: 8, TN: 8 }],
    ["attendDecode q8_0 long 128 8", {
      WORKGROUP: 256,
      SHARES: 2,
      LOG_KEY_LANES: 3,
      STEPS: 2,
    }],
    ["attendDecode short 128 2", {
      WORKGROUP: 512,
      SHARES: 2,
      LOG_KEY_LANES: 3,
      STEPS: 2,
    }],
    ["attendDecode long 20 3", {
      WORKGROUP: 128,
      SHARES: 1,
      LOG_KEY_LANES: 2,
      STEPS: 1,
    }],
  ] as const
) {
  Deno.test(`candidates can run, are distinct, and differ from what runs now: ${key}`, () => {
    const { target, kernel } = tuned(key);
    let left = 0;
    for (const gpu of DEVICES) {
      const { candidates, invalid } = candidatesFor(kernel, target, gpu, now);
      assert(candidates.length > 0, `${key} on ${gpu.adapterClass}`);
      left += invalid;
      const seen = new Set([JSON.stringify(now)]);
      for (const candidate of candidates) {
        const text = JSON.stringify(candidate);
        assert(!seen.has(text), text);
        seen.add(text);
        assertEquals(Object.keys(candidate), Object.keys(kernel.tuning.grid));
        assertEquals(misfit(kernel, target, candidate, gpu), undefined);
        const { WORKGROUP, ROWS, BN, TM, TN } = candidate;
        const BM = candidate.BM ?? Number("m" in target && target.m);
        const threads = WORKGROUP ?? BM / TM * (BN / TN);
        const most = gpu.limits.maxComputeInvocationsPerWorkgroup;
        assert(threads <= (gpu.adapterClass === "software" ? 128 : most), text);
        if (key.includes("swiglu")) {
          assert(WORKGROUP ? ROWS % 2 === 0 : TN >= 8, text);
        }
      }
    }
    assert(left > 0);
  });
}

Deno.test("constants that cannot run are refused with the reason", () => {
  const refused = (key: string, constants: Record<string, number>) => {
    const { target, kernel } = tuned(key);
    return misfit(kernel, target, constants, DEVICES[1]) ?? "";
  };
  const gemv = "gemv bf16 1 4096 1024";
  const attend = "attendDecode short 128 4", gemm = "gemm f32 512 512 512";
  for (
    const [key, constants, why] of [
      [
        gemv,
        { WORKGROUP: 512, ROWS: 1, STEPS: 1, WALKERS: 1 },
        /512 threads, must be at most 256/,
      ],
      [
        gemv,
        { WORKGROUP: 96, ROWS: 1, STEPS: 1, WALKERS: 1 },
        /must be a power of 2/,
      ],
      [
        gemv,
        { WORKGROUP: 64, ROWS: 8, STEPS: 16, WALKERS: 1 },
        /128 loads in flight/,
      ],
      [
        gemv,
        { WORKGROUP: 256, ROWS: 1, STEPS: 1, WALKERS: 132 },
        /at most the 128 loads of a row/,
      ],
      [
        gemv,
        { WORKGROUP: 32, ROWS: 8, STEPS: 1, WALKERS: 132 },
        /32 loads in flight, at most 16/,
      ],
      [
        gemv,
        { WORKGROUP: 96, ROWS: 1, STEPS: 1, WALKERS: 132 },
        /must be a power of 2/,
      ],
      [gemv, { WORKGROUP: 64, ROWS: 1 }, /STEPS is missing, must be/],
      [
        "gemv bf16 swiglu 1 4096 1024",
        { WORKGROUP: 64, ROWS: 1, STEPS: 1, WALKERS: 132 },
        /ROWS is 1, must be even/,
      ],
      [
        gemm,
        { BM: 128, BN: 128, BK: 64, TM: 8, TN: 8 },
        /67584 bytes of workgroup memory, must be at most 32768/,
      ],
      [gemm, { BM: 32, BN: 32, BK: 16, TM: 8, TN: 8 }, /16 threads share/],
      [gemm, { BM: 30, BN: 32, BK: 16, TM: 2, TN: 8 }, /multiples of 4/],
      [
        "gemvInt8 q8_0 1 1024 2048",
        { WORKGROUP: 64, SETS: 1, ROWS: 1, RESULTS: 24 },
        /RESULTS is 24, must be a multiple of 16/,
      ],
      [
        "gemvInt8 q8_0 1 1024 2048",
        { WORKGROUP: 48, SETS: 1, ROWS: 1, RESULTS: 16 },
        /WORKGROUP is 48, must be whole groups of 32 lanes/,
      ],
      [
        // All experts of a row are one long row of 98,304 elements.
        "expertGemvInt8 q8_0 64 2048 1536",
        { WORKGROUP: 64, SETS: 2, ROWS: 2, RESULTS: 16 },
        /192 loads of 16 elements in flight, at most 32 fit registers/,
      ],
      [
        "expertGemm f32 32 64 64",
        { BN: 32, BK: 16, TM: 8, TN: 8 },
        /16 threads share a tile/,
      ],
      [
        attend,
        { WORKGROUP: 128, SHARES: 3, LOG_KEY_LANES: 2, STEPS: 1 },
        /SHARES is 3, must divide the 4/,
      ],
      [
        attend,
        { WORKGROUP: 16, SHARES: 2, LOG_KEY_LANES: 3, STEPS: 1 },
        /at least 32/,
      ],
      [
        attend,
        { WORKGROUP: 128, SHARES: 1, LOG_KEY_LANES: 2, STEPS: 2 },
        /320 values in a lane/,
      ],
      [
        attend,
        { WORKGROUP: 128, SHARES: 1, LOG_KEY_LANES: 6, STEPS: 2 },
        /64 lanes share a key, subgroups have 32/,
      ],
    ] as const
  ) assertMatch(refused(key, constants), why);
});
