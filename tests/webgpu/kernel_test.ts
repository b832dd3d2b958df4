import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Compiler } from "../../lib/dispatch/capabilities.ts";
import { type Dtype, elements } from "../../lib/dtype.ts";
import { DeviceError } from "../../lib/errors.ts";
import { type Gpu, openGpu } from "../../lib/webgpu/device.ts";
import {
  type Contract,
  type Kernel,
  prepare,
  showWgsl,
  splitGrid,
} from "../../lib/webgpu/kernel.ts";
import { compile } from "../../lib/webgpu/pipeline.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { matrixOf, type MatrixPart } from "../../lib/formats/matrix.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest } from "../support/gpu.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

/** A tensor of which only type and shape matter. */
function shaped(dtype: Dtype, ...shape: number[]): Tensor {
  return new Tensor({} as Gpu, dtype, shape, {} as GPUBuffer);
}

const scaled: Kernel = {
  name: "scaled",
  buffers: { x: "m k as span", norm: "k", y: "inout m any as span" },
  uniforms: { factor: "f32", shift: "u32" },
  constants: { WORKGROUP: 64, TIMES: 2 },
  derive: ({ WORKGROUP }, { k }) => ({
    PER_THREAD: Math.ceil(k / Number(WORKGROUP)),
  }),
  grid: ({ m }) => splitGrid(m),
  body: `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let row = wg.y * groups.x + wg.x;
  if (row >= u.m) { return; }
  for (var i = 0u; i < PER_THREAD; i++) {
    let e = (tid * PER_THREAD + i) * 4u;
    if (e < u.k) {
      let v = x_span(row * u.k + e, u.k - e) * u.factor + f32(u.shift);
      y_store(row * u.k + e, u.k - e, v * f32(TIMES));
    }
  }
}`,
};

const operands = (changes: Record<string, Tensor> = {}) => ({
  x: shaped("f32", 3, 8),
  norm: shaped("f32", 8),
  y: shaped("f32", 3, 8),
  ...changes,
});

Deno.test("a call with mismatched shapes is refused with both sizes", () => {
  const refused = (changes: Record<string, Tensor>, message: string) =>
    assertThrows(() => showWgsl(scaled, operands(changes)), Error, message);
  refused(
    { norm: shaped("f32", 6) },
    "Cannot run scaled: norm has shape [6], but k is 8 in x and 6 in norm",
  );
  refused(
    { y: shaped("f32", 4, 8) },
    "Cannot run scaled: y has shape [4, 8], but m is 3 in x and 4 in y",
  );
  refused(
    { x: shaped("f32", 24) },
    "Cannot run scaled: x has shape [24], it must be [m, k]",
  );
  refused(
    { y: shaped("f32", 3, 8, 1) },
    "Cannot run scaled: y has shape [3, 8, 1], it must be [m, any]",
  );
  const { norm: _, ...rest } = operands();
  assertThrows(
    () => showWgsl(scaled, rest),
    Error,
    "Cannot run scaled: no tensor given for norm",
  );
});

Deno.test("an unknown constant or uniform is refused", () => {
  assertThrows(
    () => showWgsl(scaled, operands(), { constants: { TIMS: 5 } }),
    Error,
    "Cannot run scaled: it has no constant TIMS (available: WORKGROUP, TIMES)",
  );
  assertThrows(
    () => showWgsl(scaled, operands(), { uniforms: { factr: 5 } }),
    Error,
    "Cannot run scaled: it has no uniform factr (available: factor, shift)",
  );
  const bare = { ...scaled, uniforms: undefined };
  assertThrows(
    () => showWgsl(bare, operands(), { uniforms: { shift: 5 } }),
    Error,
    "Cannot run scaled: it has no uniform shift (available: none)",
  );
});

Deno.test("a size or shape named any is free", () => {
  showWgsl(scaled, operands({ y: shaped("f32", 3, 100) }));
  const free: Kernel = {
    ...scaled,
    buffers: { x: "m k", norm: "k", y: "inout any" },
  };
  showWgsl(free, operands({ y: shaped("f32", 1, 2, 3, 4) }));
});

Deno.test("a part of a matrix has its own rows, those of a twin included", () => {
  const matrix = matrixOf(shaped("f32", 3, 8)), [whole] = matrix.parts;
  const refused = (part: MatrixPart<Tensor>, rows: number) =>
    assertThrows(
      () => showWgsl(scaled, { ...operands(), x: { matrix, part } }),
      Error,
      `Cannot run scaled: y has shape [3, 8], but m is ${rows} in x and 3 in y`,
    );
  refused({ ...whole, begin: 1, rows: 2 }, 2);
  refused({ ...whole, rows: 2, twin: 2 }, 4);
  showWgsl(scaled, { ...operands(), x: { matrix, part: whole } });
});

Deno.test("a matrix of one part can stand for a tensor, and one of one row for a vector", () => {
  const { parts: [part], ...matrix } = matrixOf(shaped("bf16", 3, 8));
  const x = { ...matrix, parts: [part] };
  const norm = matrixOf(shaped("bf16", 8));
  const wgsl = showWgsl(scaled, { ...operands(), x, norm });
  assertMatch(wgsl, /x: array<vec2u>/);
  assertThrows(
    () =>
      showWgsl(scaled, {
        ...operands(),
        x: { ...matrix, parts: [part, part] },
      }),
    Error,
    "Cannot bind all of matrix: it has 2 parts, must have 1",
  );
});

Deno.test("an output that a kernel cannot write is refused", () => {
  const message = "Cannot write y as";
  for (const y of [shaped("bf16", 3, 8), shaped("f16", 3, 7)]) {
    assertThrows(() => showWgsl(scaled, operands({ y })), Error, message);
  }
  showWgsl(scaled, operands({ y: shaped("f16", 3, 8) }));
});

Deno.test("the WGSL has constants, bindings in order, and sizes before uniforms", () => {
  const wgsl = showWgsl(scaled, operands({ x: shaped("bf16", 3, 8) }), {
    constants: { TIMES: 5 },
  });
  for (
    const part of [
      /const WORKGROUP: u32 = 64u;/,
      /const TIMES: u32 = 5u;/,
      /const PER_THREAD: u32 = 1u;/,
      /@binding\(0\) var<storage, read> x: array<vec2u>;/,
      /@binding\(1\) var<storage, read> norm: array<f32>;/,
      /@binding\(2\) var<storage, read_write> y: array<vec4f>;/,
      /struct Uniforms \{ m: u32, k: u32, factor: f32, shift: u32 \}/,
      /@binding\(3\) var<uniform> u: Uniforms;/,
    ]
  ) assertMatch(wgsl, part);
  assert(!wgsl.includes("enable f16"));
});

Deno.test("directives come first, and naga is spared the one that it refuses", () => {
  const summed: Kernel = {
    ...scaled,
    constants: { ...scaled.constants, F16: 1 },
    body: scaled.body.replace("v * ", "subgroupAdd(v) * "),
  };
  const first = (kernel: Kernel, compiler?: Compiler) =>
    showWgsl(kernel, operands(), {}, compiler).split("\n").filter((line) =>
      /^(enable|const WORKGROUP)/.test(line)
    );
  const [f16, subgroups] = ["enable f16;", "enable subgroups;"];
  const size = "const WORKGROUP: u32 = 64u;";
  assertEquals(first(summed), [f16, size]);
  assertEquals(first(summed, "naga"), [f16, size]);
  assertEquals(first(summed, "tint"), [f16, subgroups, size]);
  assertEquals(first(scaled, "tint"), [size]);
});

Deno.test("splitGrid covers any number of workgroups, with less than a row to spare", () => {
  for (const n of [0, 1, 2.5, 65535, 65536, 151936, 1e6, 4e9]) {
    const [x, y, z] = splitGrid(n, 3);
    assert(x >= 1 && x <= 65535 && y >= 1 && y <= 65535 && z === 3, `${n}`);
    assert(x * y >= n && x * y - n < x + y, `${n}: ${x} × ${y}`);
  }
  assertEquals(splitGrid(7), [7, 1, 1]);
});

gpuTest(
  "a call runs with its sizes, uniforms and constants",
  async (_, trial) => {
    const { random } = trial;
    for (const [m, k] of [[1, 1], [3, 8], [5, 301]]) {
      const x = random.tensor("f32", [m, k]);
      const y = trial.filled([m, k]);
      const factor = random.next(), shift = random.int(0, 9), TIMES = 3;
      trial.run(scaled, { x: trial.upload(x), norm: trial.filled([k]), y }, {
        constants: { TIMES },
        uniforms: { factor, shift },
      });
      const expected = Array.from(x.data, (v) => (v * factor + shift) * TIMES);
      assertEquals(expected.length, elements([m, k]));
      const close = { absolute: 1e-5, relative: 1e-6 };
      assertAllClose(await y.read(), expected, close);
    }
  },
);

Deno.test("sizes and uniforms that are literals are in the text, not in memory", () => {
  const uniforms = { factor: -1e-6, shift: 7 };
  const wgsl = (literal: (name: string) => boolean) =>
    showWgsl(scaled, operands(), { uniforms, literal });
  const some = wgsl((name) => name === "k" || name === "factor");
  assertMatch(some, /struct Uniforms \{ m: u32, shift: u32 \}/);
  assertMatch(some, /if \(e < 8u\) \{/);
  assertMatch(some, /\* \(-0\.000001f\) \+ f32\(u\.shift\)/);
  const all = wgsl(() => true);
  assert(!/\bu\./.test(all) && !all.includes("uniform"), all);
  assertMatch(all, /\+ f32\(7u\)/);
});

Deno.test("a literal that no text states makes no other text", () => {
  let reads = 0;
  const { body } = scaled;
  const counting: Kernel = {
    ...scaled,
    buffers: { ...scaled.buffers as Contract, table: "rows" },
    get body() {
      reads++;
      return body;
    },
  };
  const uniforms = { factor: 1, shift: 7 }, literal = () => true;
  const wgsl = (rows: number, k = 8) =>
    showWgsl(counting, {
      x: shaped("f32", 3, k),
      norm: shaped("f32", k),
      y: shaped("f32", 3, k),
      table: shaped("f32", rows),
    }, { uniforms, literal });
  const first = wgsl(100), before = reads;
  for (const rows of [200, 300]) assertEquals(wgsl(rows), first);
  assertEquals(reads, before);
  assert(wgsl(100, 12) !== first && reads > before);
});

gpuTest(
  "a call gives the same with literals, and several share a plan",
  async (gpu, trial) => {
    const { random } = trial, m = 3, k = 30;
    const x = random.tensor("f32", [m, k]), given = trial.upload(x);
    const uniforms = { factor: random.next() - 0.5, shift: random.int(0, 9) };
    const expected = Array.from(
      x.data,
      (v) => 2 * (v * Math.fround(uniforms.factor) + uniforms.shift),
    );
    const ways = [() => true, () => false, (name: string) => name === "m"];
    using plan = new Plan(gpu);
    const made = ways.map((literal) => {
      const y = trial.filled([m, k]);
      plan.add(scaled, { x: given, norm: trial.filled([k]), y }, {
        constants: { TIMES: 2 },
        ...{ uniforms, literal },
      });
      return y;
    });
    plan.run();
    const close = { absolute: 1e-5, relative: 1e-6 };
    for (const y of made) assertAllClose(await y.read(), expected, close);
  },
);

gpuTest("uniforms follow the sizes, and are required", (gpu, trial) => {
  const given = {
    x: trial.filled([3, 8]),
    norm: trial.filled([8]),
    y: trial.filled([3, 8]),
  };
  const { uniforms } = prepare(gpu, scaled, given, {
    uniforms: { factor: 0.5, shift: 7 },
  });
  assertEquals(uniforms.byteLength, 16);
  const words = new Uint32Array(uniforms);
  assertEquals([...words], [3, 8, 0x3f000000, 7]);
  assertThrows(
    () => prepare(gpu, scaled, given, { uniforms: { factor: 1 } }),
    Error,
    "Cannot run scaled: no value for uniform shift",
  );
});

gpuTest("equal WGSL is compiled once", (gpu, trial) => {
  const uniforms = { factor: 1, shift: 0 };
  const call = (m: number, k: number, constants = {}) =>
    compile(
      gpu,
      prepare(gpu, scaled, {
        x: trial.filled([m, k]),
        norm: trial.filled([k]),
        y: trial.filled([m, k]),
      }, { uniforms, constants }).shader,
    ).pipeline;
  assert(call(3, 8) === call(50, 12), "other sizes");
  assert(call(3, 8) !== call(3, 9), "another view");
  assert(call(3, 8) !== call(3, 8, { TIMES: 4 }), "another constant");
});

gpuTest("a grid beyond the limits of WebGPU is refused", (gpu, trial) => {
  const x = trial.filled([3, 8]), norm = trial.filled([8]);
  const wide: Kernel = { ...scaled, grid: () => [1, 65536, 1] };
  assertThrows(
    () =>
      prepare(gpu, wide, { x, norm, y: x }, {
        uniforms: { factor: 1, shift: 0 },
      }),
    Error,
    "Cannot run scaled: its grid is 1 × 65536 × 1 workgroups, at most 65535 fit in a dimension",
  );
});

gpuTest(
  "a kernel of more storage buffers than the device binds is refused",
  async () => {
    const limits = { maxStorageBuffersPerShaderStage: 8 };
    const { gpu: implementation } = wrapGpu({ ...HARDWARE, limits });
    using gpu = await openGpu({ gpu: implementation });
    using x = Tensor.create(gpu, "f32", [16]);
    const binding = (n: number) => {
      const names = Array.from({ length: n }, (_, i) => `x${i}`);
      const each = <T>(value: T) =>
        Object.fromEntries(names.map((name) => [name, value]));
      const kernel: Kernel = {
        ...{ ...scaled, uniforms: {}, derive: undefined },
        buffers: each("n"),
        body: "@compute @workgroup_size(1) fn main() {}",
        grid: () => [1, 1, 1],
      };
      return prepare(gpu, kernel, each(x));
    };
    assertEquals(binding(8).entries.length, 8);
    assertThrows(
      () => binding(9),
      DeviceError,
      "Cannot run scaled: it binds 9 storage buffers, Test GPU allows 8 (maxStorageBuffersPerShaderStage)",
    );
  },
);
