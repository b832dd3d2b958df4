import { Tensor } from "../../lib/webgpu/tensor.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { toF32 } from "../../lib/formats/tensor.ts";
import { DeviceError } from "../../lib/errors.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, withBinding } from "../support/gpu.ts";

const DTYPES = ["f32", "f16", "bf16"] as const;

gpuTest(
  "a tensor reads back what was written, of any type and length",
  async (gpu, trial) => {
    for (const dtype of DTYPES) {
      for (const shape of [[1], [2], [3], [7, 5], [1, 1, 9], [8, 16], [1001]]) {
        const values = trial.random.tensor(dtype, shape, 100);
        const tensor = trial.upload(values);
        const message = `${dtype} ${shape}`;
        assertAllClose(await tensor.read(), toF32(values), {}, message);
      }
    }
    const words = Uint32Array.of(0, 1, 2 ** 24, 7);
    const tensor = trial.own(Tensor.create(gpu, "u32", [4], words));
    assertEquals([...await tensor.read()], [...words]);
  },
);

gpuTest(
  "a tensor is zero where it was not written",
  async (gpu, trial) => {
    const values = trial.random.tensor("bf16", [9, 7]);
    const tensor = trial.own(Tensor.create(gpu, "bf16", [9, 7]));
    assertAllClose(await tensor.read(), new Float32Array(63));
    const bytes = new Uint8Array(values.data.buffer as ArrayBuffer);
    for (const [from, to] of [[100, 126], [0, 4], [4, 60], [60, 100]]) {
      tensor.write(from, bytes.subarray(from, to));
    }
    assertAllClose(await tensor.read(), toF32(values));
  },
);

gpuTest(
  "shared memory is copied before it is written",
  async (gpu, trial) => {
    const shared = new Float32Array(new SharedArrayBuffer(24), 4, 4);
    shared.set([1, 2, 3, 4]);
    const tensor = trial.own(Tensor.create(gpu, "f32", [4]));
    const { queue } = gpu.device, write = queue.writeBuffer.bind(queue);
    const given: unknown[] = [];
    queue.writeBuffer = (to, at, data, ...part) => {
      given.push(ArrayBuffer.isView(data) ? data.buffer : data);
      write(to, at, data, ...part);
    };
    try {
      tensor.write(0, shared);
      tensor.write(4, shared.subarray(0, 1));
    } finally {
      queue.writeBuffer = write;
    }
    assertEquals(given.map((one) => one instanceof ArrayBuffer), [true, true]);
    assertEquals([...await tensor.read()], [1, 1, 3, 4]);
  },
);

gpuTest(
  "16-bit elements that begin inside a word are refused",
  (gpu, trial) => {
    const { data, shape } = trial.random.tensor("bf16", [70, 5]);
    const bytes = data as Uint16Array<ArrayBuffer>;
    const tensor = trial.own(Tensor.create(gpu, "bf16", shape));
    assertThrows(
      () => tensor.write(10, bytes.subarray(5)),
      DeviceError,
      "the offset is 10 bytes, must be a multiple of 4",
    );
  },
);

gpuTest("a tensor too large to bind is refused", (gpu) => {
  const small = withBinding(gpu, 256);
  assertThrows(
    () => Tensor.create(small, "f32", [10, 10], undefined, "x"),
    DeviceError,
    "Cannot allocate x of shape [10, 10]: it takes 400 bytes",
  );
});

gpuTest("rows and view share the tensor's memory", async (_, trial) => {
  const values = trial.random.tensor("f32", [6, 4]);
  const tensor = trial.upload(values), all = toF32(values);
  assertEquals(tensor.rows(2).shape, [2, 4]);
  assertAllClose(await tensor.rows(2).read(), all.subarray(0, 8));
  assertEquals(tensor.view(2, 3, 4).shape, [2, 3, 4]);
  assertAllClose(await tensor.view(24).read(), all);
  assertThrows(
    () => tensor.view(5, 5),
    Error,
    "Cannot view [6, 4] as [5, 5]: it has 24 elements, must have 25",
  );
  assertThrows(
    () => tensor.rows(7),
    Error,
    "Cannot take 7 rows of a tensor of shape [6, 4]: it has 6",
  );
});

gpuTest("allocated memory is counted until it is freed", (gpu, trial) => {
  const before = gpu.allocated;
  const tensor = trial.own(Tensor.create(gpu, "f32", [10, 10]));
  assertEquals(gpu.allocated, before + 400);
  tensor[Symbol.dispose]();
  tensor[Symbol.dispose]();
  assertEquals(gpu.allocated, before);
});

gpuTest("a texture copy is made once and freed with the tensor", (gpu) => {
  const before = gpu.allocated;
  const tensor = Tensor.create(gpu, "bf16", [300, 8]);
  const copy = tensor.texels();
  assertEquals([copy.width, copy.height], [256, 2]);
  assert(tensor.texels() === copy);
  assertEquals(gpu.allocated - before, 2 * tensor.bytes);
  tensor[Symbol.dispose]();
  assertEquals(gpu.allocated, before);
});

gpuTest("a tensor of a wrong type, shape or size is refused", (gpu, trial) => {
  const create = (...args: unknown[]) => () =>
    (Tensor.create as (...args: unknown[]) => Tensor)(...args);
  const four = new Float32Array(4);
  for (
    const [args, message] of [
      [[5, "f32", [1]], "its device is 5, must be an open Gpu"],
      [[gpu, "f64", [1]], 'its type is "f64", must be one of f32, f16, bf16'],
      [[gpu, "toString", [1]], 'its type is "toString"'],
      [[gpu, "f32", 5], "its shape is 5, must be a list of sizes"],
      [[gpu, "f32", [2, -1]], "size 1 of its shape is -1, must be a whole num"],
      [[gpu, "f32", [1.5]], "size 0 of its shape is 1.5"],
      [[gpu, "f32", ["2"]], 'size 0 of its shape is "2"'],
      [[gpu, "f32", [2], [1, 2]], "the data is a list of 2, must be a typed"],
    ] as const
  ) assertThrows(create(...args), TypeError, message);
  assertThrows(
    create(gpu, "f32", [3], four),
    RangeError,
    "its data has 16 bytes, shape [3] needs 12",
  );
  const tensor = trial.own(Tensor.create(gpu, "f16", [3]));
  tensor.write(4, new Uint16Array(1)); // padding to a word is allowed
  for (const begin of [4, -4, NaN]) {
    assertThrows(
      () => tensor.write(begin, four),
      RangeError,
      `16 bytes from byte ${begin}, must be within its 6 bytes`,
    );
  }
});
