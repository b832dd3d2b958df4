import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { pendingConstants } from "../../kernels/pending.ts";
import type { Capabilities } from "../../lib/dispatch/capabilities.ts";
import {
  chooseFeedForward,
  joinsMlp,
} from "../../lib/dispatch/feed_forward.ts";
import { formatNamed } from "../../lib/formats/mod.ts";

const LARGE: Capabilities = {
  subgroupSize: 32,
  adapterClass: "NVIDIA, large cache",
  limits: {
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxStorageBuffersPerShaderStage: 16,
  },
};

/** The choice for an MLP of one part a matrix, and its constants or why there is none. */
function chosen(
  { hidden = 1024, inner = 3072, w = "bf16", down, twin = true }: {
    hidden?: number;
    inner?: number;
    w?: string;
    down?: string;
    twin?: boolean;
  },
  device = LARGE,
) {
  return chooseFeedForward({
    gateUp: {
      n: 2 * inner,
      k: hidden,
      parts: [{ format: formatNamed(w), twin: twin ? inner : undefined }],
    },
    down: { n: hidden, k: inner, parts: [{ format: formatNamed(down ?? w) }] },
  }, device);
}

Deno.test("the MLP of one row is one dispatch where that was measured to be faster", () => {
  const choice = chosen({});
  if (typeof choice !== "object") throw new Error(choice);
  assertEquals(choice.adders, 96);
  assertEquals(choice.constants, {
    ...{ WORKGROUP: 1024, COLUMNS: 32, STEPS: 2, LOG_LANES: 5, SUBGROUPS: 1 },
  });
  assertMatch(choice.reason, /32 gates and ups.*measured on an H100 and an H/);
  const odd = chosen({ hidden: 768, inner: 2048, down: "f32" });
  assertEquals(typeof odd === "object" && odd.constants.WORKGROUP, 256);
  assertEquals(chosen({}, { ...LARGE, adapterClass: "AMD" }), undefined);
});

Deno.test("an MLP that is two dispatches says why", () => {
  const why = (...given: Parameters<typeof chosen>) => String(chosen(...given));
  assertMatch(why({ w: "q4_k" }), /multiply blocks as integers/);
  assertMatch(why({ down: "q8_0" }), /multiply blocks as integers/);
  assertMatch(why({ hidden: 2048, inner: 6144 }), /more than 32 MiB/);
  assertMatch(why({ twin: false }), /several parts/);
  assertMatch(
    why({ hidden: 1024, inner: 4096, w: "f32", down: "bf16" }),
    /MiB/,
  );
  assertMatch(why({ hidden: 1040 }), /16 threads, .* whole groups of 32 lanes/);
  assertMatch(
    why({ hidden: 64, inner: 35200 }),
    /1100 workgroups .* at most 10/,
  );
  assertMatch(why({ inner: 3080 }), /3080 columns .* multiple of 32/);
  assertMatch(why({ hidden: 1028 }), /rows of 1028 are not whole loads of 8/);
  const device = (limits: Partial<Capabilities["limits"]>, lanes = 32) => ({
    ...{ ...LARGE, subgroupSize: lanes },
    limits: { ...LARGE.limits, ...limits },
  });
  const few = { maxStorageBuffersPerShaderStage: 8 };
  assertMatch(why({}, device(few)), /bind up to 12 .* allows 8/);
  const threads = { maxComputeInvocationsPerWorkgroup: 256 };
  assertMatch(why({}, device(threads)), /1024 threads .* has 256/);
  assertMatch(why({}, device({}, 0)), /cannot exchange values/);
});

Deno.test("sums are cleared only where an MLP may add to them", () => {
  const of = (hiddenSize: number, format = "bf16", device = LARGE) =>
    joinsMlp({ hiddenSize, intermediateSize: 3 * hiddenSize }, {
      parts: [{ format: formatNamed(format) }],
    }, device);
  assertEquals([of(1024), of(2048), of(1024, "q6_k")], [true, false, false]);
  assertEquals(of(1024, "f32", { ...LARGE, adapterClass: "NVIDIA" }), false);
});

Deno.test("sums in fixed point cannot overflow", () => {
  for (const adders of [1, 2, 3, 96, 97, 1024]) {
    const { LOG_COARSE, LOG_FINE } = pendingConstants(adders);
    // A value is below 2 ** 20; what is left of it below half a coarse step.
    const coarse = adders * 2 ** 20 * 2 ** Number(LOG_COARSE);
    const fine = adders * 2 ** (Number(LOG_FINE) - 1);
    assertEquals([coarse <= 2 ** 30, fine <= 2 ** 30], [true, true]);
  }
  const { message } = assertThrows(() => pendingConstants(1025), Error);
  assertMatch(message, /Cannot add up 1025 values .* at most 1024/);
});
