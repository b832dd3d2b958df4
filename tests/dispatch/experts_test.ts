import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  chooseExpertGemm,
  chooseExpertGemv,
  groupsRows,
  groupTile,
  groupTiles,
} from "../../lib/dispatch/experts.ts";
import { expertKey } from "../../lib/dispatch/keys.ts";
import { HALF_MATRICES } from "../../lib/dispatch/matrices.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { q4_k } from "../../lib/formats/k_quants.ts";
import { randomTest } from "../support/random.ts";

const DEVICE = {
  subgroupSize: 32,
  limits: {
    maxComputeWorkgroupStorageSize: 32768,
    maxComputeInvocationsPerWorkgroup: 1024,
  },
};
/** Qwen3-30B-A3B. */
const LAYER = { m: 1, used: 8, n: 768, k: 2048, epilogue: "swiglu" } as const;

randomTest("tiles suffice, whichever experts pairs have", (random) => {
  for (let i = 0; i < 2000; i++) {
    const experts = random.int(1, 40), pairs = random.int(1, 300);
    const tile = random.pick([1, 4, 32, 64]);
    const counts = new Array(experts).fill(0);
    const last = random.int(0, experts - 1); // so that few experts are used, too
    for (let pair = 0; pair < pairs; pair++) counts[random.int(0, last)]++;
    const needed = counts.reduce((sum, n) => sum + Math.ceil(n / tile), 0);
    assert(needed <= groupTiles(pairs, experts, tile));
  }
  // Eight experts with one pair, and one with 32.
  assertEquals(groupTiles(40, 9, 32), 9);
  assertEquals(groupTiles(3, 128, 32), 3);
});

Deno.test("rows are grouped if experts get several on average", () => {
  const experts = { count: 128, used: 8 };
  assertEquals(groupsRows(1, experts), false);
  assertEquals(groupsRows(127, experts), false);
  assertEquals(groupsRows(128, experts), true);
  // A few rows are multiplied one by one, however few experts there are.
  assertEquals(groupsRows(32, { count: 4, used: 2 }), false);
  assertEquals([groupTile(4096, 128), groupTile(4104, 128)], [32, 64]);
});

Deno.test("all matmuls of grouped rows have tiles of the same number of rows", () => {
  for (const pairs of [1024, 4096, 5000, 16384]) {
    for (const format of [bf16, q4_k]) {
      for (const largest of [undefined, 0.5]) {
        for (const [n, k] of [[768, 2048], [2048, 768]]) {
          const shape = { pairs, experts: 128, n, k, format, largest };
          const { constants, headroom } = chooseExpertGemm(shape, DEVICE);
          assertEquals(constants.BM, groupTile(pairs, 128));
          assertEquals(headroom !== undefined, largest !== undefined);
        }
      }
    }
  }
});

Deno.test("tensor cores multiply grouped rows, or the reason says why not", () => {
  const cores = { ...DEVICE, subgroupMatrices: [HALF_MATRICES] };
  const shape = { pairs: 1024, experts: 128, n: 768, k: 2048, format: bf16 };
  const half = { ...shape, largest: 0.5 };
  for (const [pairs, BM, BN] of [[4096, 32, 128], [4104, 64, 128]]) {
    const choice = chooseExpertGemm({ ...half, pairs }, cores);
    assertEquals(choice.kernel, "expertGemmMatrix");
    assertEquals([choice.constants.BM, choice.constants.BN], [BM, BN]);
    assertEquals([choice.headroom, choice.constants.SCALED], [16384, 1]);
    assertEquals(
      choice.reason,
      `${
        Math.ceil(pairs / 128)
      } rows per expert on average: tiles reuse its matrix; tensor cores multiply f16, rows scaled into range, and sum in f32; tile not measured`,
    );
  }
  // Whole loads of formats whose units are longer than a tile is deep.
  const { constants } = chooseExpertGemm({ ...half, format: q4_k }, cores);
  assertEquals(Number(constants.BK) % q4_k.loads[0], 0);
  for (
    const [given, why] of [
      [{ k: 1020 }, "rows of 1020 are not whole 16-byte units of f16"],
      [{ largest: 7e4 }, "the largest weight is 70000, beyond f16's 65504"],
    ] as const
  ) {
    const choice = chooseExpertGemm({ ...half, ...given }, cores);
    assertEquals(choice.kernel, "expertGemm");
    assert(
      choice.reason.includes(`; not by tensor cores: ${why};`),
      choice.reason,
    );
  }
  assertEquals(chooseExpertGemm(shape, cores), chooseExpertGemm(shape, DEVICE));
  assertEquals(chooseExpertGemm(half, DEVICE).kernel, "expertGemm");
  const key = expertKey("expertGemmMatrix", {
    ...{ m: 32, n: 768, k: 2048, format: bf16, swiglu: false },
  }, true);
  const tuned = new Map([[key, { BN: 64 }]]);
  const choice = chooseExpertGemm(half, { ...cores, tuned });
  assertEquals([choice.constants.BM, choice.constants.BN], [32, 64]);
  assertMatch(choice.reason, /; tuned for this adapter$/);
});

Deno.test("blocks multiply as integers where the largest weight is known", () => {
  const kernelOf = (shape: Partial<Parameters<typeof chooseExpertGemv>[0]>) =>
    chooseExpertGemv({ ...LAYER, format: q4_k, ...shape }, DEVICE);
  assertEquals(kernelOf({}).kernel, "expertGemv");
  assertEquals(kernelOf({ largest: 1 }).kernel, "expertGemvInt8");
  assertEquals(kernelOf({ largest: 1, format: bf16 }).kernel, "expertGemv");
  assertMatch(kernelOf({}).reason, /^only the experts that are used are read/);
  const odd = kernelOf({ format: bf16, k: 45 });
  assertMatch(odd.reason, /because k = 45 is not a multiple of 8/);
  // The experts of a row make one long row, which six lane groups share.
  const down = { n: 2048, k: 768, epilogue: "add", largest: 1 } as const;
  assertEquals(kernelOf(down).constants.SETS, 8 * 768 / (32 * 32));
});
