/**
 * Matmuls and prefill attention by tensor cores, through Dawn: checks the kernels' cases on
 * this GPU, then times Linear layers of Qwen3-0.6B and 8B in every tile, and attention.
 *
 *   deno run -A bench/matrix_tiles.ts [SECONDS]
 *
 * After so many seconds no further row begins. Prints TFLOP/s.
 */
import { attendPrefillF16 } from "../kernels/attend_prefill_f16.ts";
import { attendPrefillMatrix } from "../kernels/attend_prefill_matrix.ts";
import { gemmMatrix } from "../kernels/gemm_matrix.ts";
import { sumSplits } from "../kernels/sum_splits.ts";
import {
  compare,
  passes,
  reference,
  runCase,
} from "../lib/check/kernel_case.ts";
import { Random } from "../lib/check/reference.ts";
import { openDevice } from "../lib/device/open_device.ts";
import { choosePrefillRows } from "../lib/dispatch/attention.ts";
import { exactLanes } from "../lib/dispatch/capabilities.ts";
import { misfit } from "../lib/dispatch/limits.ts";
import {
  chooseMatrices,
  chooseMatrixAttention,
  HALF_MATRICES,
  type MatrixTile,
} from "../lib/dispatch/matrices.ts";
import type { Constants, LinearShape } from "../lib/dispatch/shapes.ts";
import { errorText } from "../lib/errors.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { bytesOf } from "../lib/formats/tensor.ts";
import { allocateMatrix } from "../lib/formats/matrix.ts";
import { gpuStore } from "../lib/gpu/store.ts";
import type { Gpu } from "../lib/webgpu/device.ts";
import { Plan } from "../lib/webgpu/plan.ts";
import { Tensor } from "../lib/webgpu/tensor.ts";
import { spread } from "../lib/webgpu/timing.ts";
import { randomMatrix } from "./matmuls.ts";
import { hotTimes } from "./setting.ts";

const tile = (
  ...[BM, BN, BK, SM, SN, STAGES]: number[]
): MatrixTile => ({ BM, BN, BK, SM, SN, STAGES });
const TILES = [
  tile(128, 128, 32, 2, 2, 2),
  tile(128, 128, 32, 2, 2, 1),
  tile(128, 128, 64, 2, 2, 1),
  tile(128, 128, 32, 2, 4, 2),
  tile(128, 256, 32, 2, 4, 1),
  tile(256, 128, 32, 4, 2, 1),
  tile(64, 128, 32, 2, 2, 2),
  tile(64, 256, 32, 1, 4, 1),
  tile(64, 64, 64, 2, 2, 2),
];
const name = ({ BM, BN, BK, SM, SN, STAGES }: MatrixTile) =>
  `${BM}x${BN}x${BK}/${SM}x${SN}/${STAGES}`;

/** Layers as n, k and whether SwiGLU follows. */
type Layer = [n: number, k: number, swiglu?: boolean];
const SMALL: Layer[] = [
  [4096, 1024],
  [1024, 2048],
  [6144, 1024, true],
  [1024, 3072],
];
const LARGE: Layer[] = [
  [6144, 4096],
  [4096, 4096],
  [24576, 4096, true],
  [4096, 12288],
];

function* shapes(): Generator<LinearShape> {
  const shape = (
    m: number,
    [n, k, swiglu = false]: Layer,
    format = "bf16",
  ) => ({
    ...{ m, n, k, swiglu, format: formatNamed(format) },
    norm: false,
    largest: 1,
  });
  yield shape(4096, [4096, 4096], "f16");
  yield shape(4096, [4096, 4096]);
  for (const layers of [LARGE, SMALL]) {
    for (const m of [512, 2048]) {
      for (const layer of layers) yield shape(m, layer);
    }
  }
  for (const m of [512, 2048]) yield shape(m, LARGE[2], "q4_k");
  yield shape(64, LARGE[2]);
}

const [seconds = "600"] = Deno.args;
const late = () => performance.now() > 1000 * Number(seconds);
const gpu = await openDevice({ webgpu: "dawn" });
/** The choices for one tile, whatever was measured before. */
const as = (tile?: MatrixTile) => ({
  ...gpu,
  limits: gpu.limits,
  subgroupMatrices: [HALF_MATRICES],
  tuned: { get: () => tile as Constants | undefined },
});

console.log(
  `${gpu.name}, Dawn; ${gpu.limits.maxComputeWorkgroupStorageSize} bytes of workgroup memory`,
);
if (!await checkAll(gpu)) Deno.exit(1);
for (const [heads, kvHeads] of [[16, 8], [32, 8]]) {
  for (const tokens of [512, 2048]) {
    await timeAttention(heads, kvHeads, tokens);
  }
}
console.log(`${(performance.now() / 1000).toFixed(0)} s so far`);
console.log(TILES.map((one, i) => `${"ABCDEFGHI"[i]} ${name(one)}`).join("  "));
console.log(
  "     m      n      k format " +
    [..."ABCDEFGHI"].map((x) => x.padStart(5)).join(""),
);
for (const shape of shapes()) {
  if (late()) break;
  const cells = [];
  for (const one of TILES) cells.push(await rate(gpu, shape, one));
  const { m, n, k, format, swiglu } = shape;
  console.log(
    [m, n, k].map((x) => String(x).padStart(6)).join(" ") +
      ` ${format.name.padEnd(5)}${swiglu ? "*" : " "} ` +
      cells.map((cell) => cell.padStart(5)).join(""),
  );
}
console.log("* with SwiGLU; - does not fit; ! failed");
/** Times prefill attention of heads of 128, by tensor cores and on vector units. */
async function timeAttention(
  heads: number,
  kvHeads: number,
  tokens: number,
): Promise<void> {
  const group = heads / kvHeads, headDim = 128;
  const cells = [];
  for (const kernel of [attendPrefillMatrix, attendPrefillF16]) {
    using plan = new Plan(gpu);
    const own = (tensor: Tensor) => (plan.own(tensor), tensor);
    const choice = chooseMatrixAttention(
      { rows: tokens * group, headDim },
      as(),
    );
    if (typeof choice !== "object") return console.log(choice);
    const q = own(randomMatrix(gpu, "f32", [tokens, heads * headDim]));
    const [k, v] = [0, 0].map(() =>
      own(randomMatrix(gpu, "f16", [1, kvHeads, tokens, headDim]))
    );
    const lengths = own(Tensor.create(gpu, "u32", [1], new Uint32Array(1)));
    const y = own(Tensor.create(gpu, "f32", q.shape));
    plan.add(kernel, { q, lengths, k, v, y }, {
      constants: {
        HEAD_DIM: headDim,
        ...kernel === attendPrefillMatrix ? choice.constants : {
          ...exactLanes(gpu, 16),
          ...choosePrefillRows(tokens * group, gpu, true),
        },
      },
      uniforms: { first: 0, tokens, group, scale: headDim ** -0.5 },
    });
    const { median } = spread(await hotTimes(gpu, plan, 7));
    cells.push(`${kernel.name} ${(1000 * median).toFixed(1)} µs`);
  }
  console.log(
    `attention, ${tokens} tokens, ${heads} heads: ${cells.join(", ")}`,
  );
}

/** Checks every case in the standard tile, and one in each other tile. */
async function checkAll(gpu: Gpu): Promise<boolean> {
  const tools = { random: new Random(), reference };
  const onDevice = (tile?: MatrixTile) => ({ ...as(tile), f16: true });
  let right = 0, ran = 0, worst = 0;
  const wrong: string[] = [];
  const odd = { m: 301, n: 274, k: 1096, w: "bf16" };
  const all = [
    ...gemmMatrix.cases.map((given) => ({ given, tile: undefined })),
    ...TILES.flatMap((tile) => [
      { given: odd, tile },
      { given: { ...odd, epilogue: "swiglu" as const }, tile },
    ]),
  ];
  const calls = [
    ...all.map(({ given, tile }) => ({
      kernel: gemmMatrix,
      what: `${JSON.stringify(given)} ${tile ? name(tile) : ""}`,
      make: () =>
        gemmMatrix.makeCase(given, { ...tools, device: onDevice(tile) }),
    })),
    ...attendPrefillMatrix.cases.map((given) => ({
      kernel: attendPrefillMatrix,
      what: JSON.stringify(given),
      make: () =>
        attendPrefillMatrix.makeCase(given, { ...tools, device: onDevice() }),
    })),
  ];
  for (const { kernel, what, make } of calls) {
    try {
      const one = make();
      if (!one) continue; // the tile does not fit
      ran++;
      const buffers = await runCase(gpu, kernel, one);
      for (const result of one.expected()) {
        const found = compare(result, buffers);
        worst = Math.max(worst, found.error);
        if (passes(found)) right++;
        else wrong.push(`${what}: error ${found.error} at ${found.index}`);
      }
    } catch (error) {
      wrong.push(`${what}: ${errorText(error)}`);
      break; // the device keeps reporting it
    }
  }
  console.log(`right: ${right} of ${ran}, worst error ${worst}`);
  for (const line of wrong.slice(0, 4)) {
    console.log(`WRONG ${line.slice(0, 300)}`);
  }
  return wrong.length === 0;
}

/** TFLOP/s of a layer, splits of k summed. */
async function rate(
  gpu: Gpu,
  shape: LinearShape,
  tile: MatrixTile,
): Promise<string> {
  const { m, n, k, format, swiglu } = shape;
  const BK = Math.max(tile.BK, format.loads[0]), fitting = { ...tile, BK };
  const target = { ...shape, kernel: "gemmMatrix", half: true };
  const tunable = { name: gemmMatrix.name, tuning: gemmMatrix.tuning! };
  if (misfit(tunable, { ...target, m: 512 }, fitting, gpu)) return "-";
  const choice = chooseMatrices(shape, as(fitting));
  if (typeof choice !== "object") return "-";
  const { constants, splits } = choice, columns = swiglu ? n / 2 : n;
  using plan = new Plan(gpu);
  const own = (tensor: Tensor) => (plan.own(tensor), tensor);
  const a = own(randomMatrix(gpu, "f16", [m, k]));
  const b = weights(gpu, plan, format.name, n, k);
  const scales = own(randomMatrix(gpu, "f32", [m]));
  const room = (rows: number) =>
    own(Tensor.create(gpu, "f32", [rows, columns], undefined, "c"));
  const c = room(splits * m), uniforms = { stride: columns, column: 0 };
  plan.add(gemmMatrix, { a, b, scales, c }, { constants, uniforms });
  if (splits > 1) {
    plan.add(sumSplits, { partial: c, y: room(m) }, {
      constants: { SPLITS: splits, ADD: 0 },
      uniforms,
    });
  }
  try {
    const { median } = spread(await hotTimes(gpu, plan, 7));
    return (2 * m * n * k / median / 1e9).toFixed(0);
  } catch (error) {
    console.log(errorText(error).slice(0, 200));
    return "!";
  }
}

/** A matrix of random weights; those of blocks repeat after 64 rows. */
function weights(gpu: Gpu, plan: Plan, format: string, n: number, k: number) {
  if (format === "f16" || format === "bf16") {
    const tensor = randomMatrix(gpu, format, [n, k]);
    plan.own(tensor);
    return tensor;
  }
  const { planes } = new Random().matrix(format, [64, k]).parts[0];
  const store = gpuStore(gpu),
    stack = [{ rows: n, format: formatNamed(format) }];
  const matrix = allocateMatrix(
    "w",
    stack,
    k,
    { most: store.most },
    (bytes, label) => store.allocate(bytes, label),
  );
  const [part] = matrix.parts;
  part.planes.forEach((plane, i) => {
    const few = bytesOf(planes[i]);
    const all = new Uint8Array(few.length / 64 * n);
    for (let at = 0; at < all.length; at += few.length) all.set(few, at);
    store.write(plane, 0, all);
    plan.own(plane);
  });
  return { matrix, part };
}
