import { assert, assertEquals, assertMatch } from "@std/assert";
import { gemmMatrix } from "../../kernels/gemm_matrix.ts";
import type { Capabilities } from "../../lib/dispatch/capabilities.ts";
import { linearKey } from "../../lib/dispatch/keys.ts";
import { misfit } from "../../lib/dispatch/limits.ts";
import { chooseLinear } from "../../lib/dispatch/linear.ts";
import {
  attentionTileBytes,
  chooseMatrices,
  chooseMatrixAttention,
  HALF_MATRICES,
  hasMatrices,
  MATRIX_TILES,
  matrixTileBytes,
} from "../../lib/dispatch/matrices.ts";
import type { Constants, LinearShape } from "../../lib/dispatch/shapes.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { formatNamed, FORMATS } from "../../lib/formats/mod.ts";

const device: Capabilities = {
  subgroupSize: 32,
  subgroupMatrices: [
    { ...HALF_MATRICES, resultComponentType: "f16" },
    HALF_MATRICES,
  ],
  limits: {
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
  },
};
const layer: LinearShape = {
  ...{ m: 512, n: 6144, k: 4096, format: bf16, norm: true, swiglu: false },
  largest: 0.5,
};

Deno.test("tensor cores that multiply f16 with sums in f32 run many rows", () => {
  const choice = chooseLinear(layer, device);
  assertEquals([choice.kernel, choice.headroom, choice.splits], [
    "gemmMatrix",
    16384,
    1,
  ]);
  assertEquals(
    choice.reason,
    "512 rows: more than 32, tiles reuse the matrix; tensor cores multiply f16, rows scaled into range, and sum in f32; tile measured on an H200",
  );
  for (
    const [m, size] of [
      ...[[9, "few"], [16, "few"], [17, "some"], [32, "some"]],
      ...[[33, "medium"], [64, "medium"], [65, "large"], [4096, "large"]],
    ] as const
  ) {
    const { constants } = chooseLinear({ ...layer, m }, device);
    const tile = MATRIX_TILES[size];
    assertEquals({ ...constants, ...tile }, constants);
  }
  // Tiles of large matrices have more on their way, if that is worth longer code.
  const larger = [
    [4096, 12288, false, "fewLarge"],
    [151936, 1024, false, "fewTall"],
    [24576, 4096, true, "fewGated"],
    [6144, 1024, true, "deepGated"],
    [4096, 1024, false, "deep"],
    [1024, 3072, false, "deeper"],
  ] as const;
  for (const [n, k, swiglu, size] of larger) {
    const { constants } = chooseLinear(
      { ...layer, m: 16, n, k, swiglu },
      device,
    );
    assertEquals({ ...constants, ...MATRIX_TILES[size] }, constants);
  }
  // Splits have whole rounds of them, in a 14B and a 32B too.
  for (const [n, k] of [[5120, 17408], [5120, 8192], [5120, 25600]]) {
    const { constants, splits } = chooseLinear(
      { ...layer, m: 16, n, k },
      device,
    );
    assertEquals([splits, k / 64 / splits % Number(constants.AHEAD)], [4, 0]);
  }
  // A subgroup has gates and ups, and no splits have both.
  const gated = chooseLinear({ ...layer, m: 16, swiglu: true }, device);
  assertEquals([gated.constants.SK, gated.splits], [2, 1]);
  assertEquals(chooseLinear({ ...layer, m: 16 }, device).splits, 5);
  // Small matrices have none either: subgroups share the products of a sum.
  const deep = [[4096, 2048, 4], [2048, 2048, 8], [1024, 3072, 8]];
  for (const [n, k, SK] of deep) {
    const few = chooseLinear({ ...layer, m: 9, n, k }, device);
    assertEquals([few.constants.SK, few.splits], [SK, 1]);
  }
  // Sums in f32 are exact enough for attention's projections.
  const exact = chooseLinear({ ...layer, exact: true }, device);
  assertEquals(exact.kernel, "gemmMatrix");
  // Other kernels read the matrix once for few rows.
  const reads = [
    { m: 8 },
    { m: 32, n: 1024, k: 2048 },
    { m: 16, n: 1024, k: 512 },
  ];
  for (const few of reads) {
    assertEquals(chooseLinear({ ...layer, ...few }, device).kernel, "gemvRows");
  }
  const blocks = { ...layer, m: 16, format: formatNamed("q4_k") };
  assertMatch(chooseLinear(blocks, device).kernel, /^gemvRows/);
});

Deno.test("without such tensor cores, or f16, nothing changes", () => {
  const none = { ...device, subgroupMatrices: undefined };
  const others = [
    { ...HALF_MATRICES, resultComponentType: "f16" },
    { ...HALF_MATRICES, componentType: "u8" },
    { ...HALF_MATRICES, M: 8 },
    { ...HALF_MATRICES, N: 8 },
    { ...HALF_MATRICES, K: 8 },
  ];
  for (const subgroupMatrices of [[], ...others.map((one) => [one])]) {
    const given = { ...device, subgroupMatrices };
    assert(!hasMatrices(given));
    assertEquals(chooseLinear(layer, given), chooseLinear(layer, none));
  }
  const f32 = { ...layer, largest: undefined };
  assertEquals(chooseLinear(f32, device), chooseLinear(f32, none));
});

Deno.test("what tensor cores cannot multiply says why", () => {
  const small = {
    ...device,
    limits: { ...device.limits, maxComputeWorkgroupStorageSize: 12288 },
  };
  const refusals: [Partial<LinearShape>, Capabilities, string][] = [
    [{ k: 1020 }, device, "rows of 1020 are not whole 16-byte units of f16"],
    [
      { largest: 7e4 },
      device,
      "the largest weight is 70000, beyond f16's 65504",
    ],
    [{ largest: NaN }, device, "the largest weight is NaN, beyond f16's 65504"],
    [
      {},
      small,
      "a tile takes 15360 bytes of workgroup memory, the device has 12288",
    ],
  ];
  for (const [given, on, reason] of refusals) {
    const choice = chooseLinear({ ...layer, ...given }, on);
    assertEquals(choice.kernel, "gemm");
    assert(
      choice.reason.includes(`; not by tensor cores: ${reason}`),
      choice.reason,
    );
  }
});

Deno.test("tiles suit every format and size", () => {
  for (const room of [16384, 32768, 49152]) {
    const limits = { ...device.limits, maxComputeWorkgroupStorageSize: room };
    for (const format of FORMATS) {
      for (const m of [9, 16, 32, 33, 64, 65, 512, 2048, 8192]) {
        for (const n of [8, 1024, 6144, 151936]) {
          for (const swiglu of [false, true]) {
            const shape = { ...layer, m, n, format, swiglu, k: 1024 };
            const choice = chooseMatrices(shape, { ...device, limits });
            if (typeof choice === "string") {
              assertEquals(room, 16384, choice); // two-plane formats go deeper
              continue;
            }
            assert(choice);
            const { constants, splits } = choice;
            const [BM, BN, BK, SM, SN, STAGES, SK] = [
              "BM",
              "BN",
              "BK",
              "SM",
              "SN",
              "STAGES",
              "SK",
            ].map((name) => Number(constants[name] ?? 1));
            const tile = { BM, BN, BK, SM, SN, STAGES };
            assert(matrixTileBytes({ ...tile, SK }) <= room);
            assertEquals(BK / SK % Math.max(8, format.loads[0]), 0);
            const target = { ...shape, kernel: "gemmMatrix", half: true };
            assertEquals(
              misfit(
                { name: gemmMatrix.name, tuning: gemmMatrix.tuning! },
                target,
                tile,
                { ...device, limits },
              ),
              undefined,
            );
            assert(splits >= 1 && (!swiglu || splits === 1));
            assert(splits === 1 || shape.k / splits >= 256);
          }
        }
      }
    }
  }
});

Deno.test("tuned tiles replace chosen ones", () => {
  const tile = { BM: 256, BN: 128, BK: 32, SM: 4, SN: 2, STAGES: 1 };
  const tuned = new Map<string, Constants>([
    [linearKey("gemmMatrix", layer, true), tile],
  ]);
  const choice = chooseLinear({ ...layer, m: 400 }, { ...device, tuned });
  assertEquals({ ...choice.constants, ...tile }, choice.constants);
  assert(choice.reason.endsWith("; tuned for this adapter"), choice.reason);
  const other = chooseLinear({ ...layer, m: 200 }, { ...device, tuned });
  assert(other.reason.endsWith("; tile measured on an H200"));
});

Deno.test("tiles tuned for 33 to 64 rows are not for fewer", () => {
  const tile = { BM: 128, BN: 64, BK: 32, SM: 2, SN: 1, STAGES: 1 };
  const tuned = new Map<string, Constants>([
    [linearKey("gemmMatrix", { ...layer, m: 64 }, true), tile],
  ]);
  const choose = (m: number) =>
    chooseLinear({ ...layer, m }, { ...device, tuned });
  for (const m of [33, 64]) {
    const { constants } = choose(m);
    assertEquals({ ...constants, ...tile }, constants);
  }
  for (const [m, size] of [[16, "few"], [32, "some"]] as const) {
    const { constants, reason } = choose(m);
    assertEquals({ ...constants, ...MATRIX_TILES[size] }, constants);
    assert(reason.endsWith("; tile measured on an H200"), reason);
  }
});

Deno.test("prefill attention takes tensor cores where a tile fits", () => {
  const choose = (rows: number, headDim: number, room: number) => {
    const limits = { ...device.limits, maxComputeWorkgroupStorageSize: room };
    return chooseMatrixAttention({ rows, headDim }, { ...device, limits });
  };
  const rowsOf = (...given: Parameters<typeof choose>) => {
    const choice = choose(...given);
    return typeof choice === "object" ? choice.constants.ROWS : choice;
  };
  assertEquals(rowsOf(2048, 128, 49152), 64);
  assertEquals(rowsOf(32, 128, 49152), 32);
  assertEquals(rowsOf(2048, 128, 32768), 32);
  assertEquals(rowsOf(2048, 64, 32768), 64);
  assertEquals(
    rowsOf(2048, 128, 16384),
    "a tile takes 27648 bytes of workgroup memory, the device has 16384",
  );
  assertEquals(attentionTileBytes(128, { ROWS: 64, KEYS: 64 }), 37888);
  const none = { ...device, subgroupMatrices: [] };
  assertEquals(
    chooseMatrixAttention({ rows: 64, headDim: 128 }, none),
    undefined,
  );
});
