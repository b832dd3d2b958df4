import { Tensor } from "../../lib/webgpu/tensor.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { toF32 } from "../../lib/dtype.ts";
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
  "a tensor larger than a binding is split by rows",
  async (gpu, trial) => {
    const { random } = trial;
    for (const dtype of DTYPES) {
      for (const split of ["rows", "pairs"] as const) {
        for (const columns of [6, 80]) {
          const rowBytes = columns * (dtype === "f32" ? 4 : 2);
          const limit = 16 * random.int(rowBytes, 3 * rowBytes);
          const rows = 2 * random.int(50, 90);
          const small = withBinding(gpu, limit);
          const values = random.tensor(dtype, [rows, columns]);
          const data = values.data as Uint16Array<ArrayBuffer>;
          const message =
            `${split} of ${dtype} ${rows} × ${columns} in ${limit}`;
          const whole = trial.own(
            Tensor.create(small, dtype, [rows, columns], data, "table", split),
          );
          assert(whole.parts.length > 1, message);
          assertThrows(() => whole.part, Error, "it is split over");
          assertAllClose(await whole.read(), toF32(values), {}, message);
          for (const part of whole.parts) {
            assert(part.rows * rowBytes <= limit, `part of ${message}`);
          }
          // Written in pieces that end elsewhere than the parts.
          const pieces = trial.own(
            Tensor.create(
              small,
              dtype,
              [rows, columns],
              undefined,
              "table",
              split,
            ),
          );
          const bytes = new Uint8Array(data.buffer);
          for (
            let at = 0, size = 4;
            at < bytes.length;
            at += size, size += 100
          ) {
            pieces.write(at, bytes.subarray(at, at + size));
          }
          assertAllClose(await pieces.read(), toF32(values), {}, message);
          small.check();
        }
      }
    }
  },
);

gpuTest(
  "parts of a tensor split in pairs hold the same rows of both halves",
  async (gpu, trial) => {
    const small = withBinding(gpu, 16 * 4 * 4);
    const rows = 70, half = rows / 2;
    const values = trial.random.tensor("f32", [rows, 4]);
    const data = values.data as Float32Array<ArrayBuffer>;
    const tensor = trial.own(
      Tensor.create(small, "f32", [rows, 4], data, "w", "pairs"),
    );
    let seen = 0;
    for (const { buffer, begin, rows: both } of tensor.parts) {
      const bytes = await small.readBuffer(buffer, 0, both * 16);
      const run = both / 2, actual = [...new Float32Array(bytes)];
      assertEquals(begin, seen);
      assertEquals(actual.slice(0, run * 4), [
        ...data.subarray(begin * 4, (begin + run) * 4),
      ]);
      assertEquals(actual.slice(run * 4), [
        ...data.subarray((half + begin) * 4, (half + begin + run) * 4),
      ]);
      seen += run;
    }
    assertEquals(seen, half);
  },
);

gpuTest(
  "16-bit rows that begin inside a word are refused",
  (gpu, trial) => {
    // 35 rows of either half: the last part has 3 of them, of 5 elements each.
    const small = withBinding(gpu, 16 * 5 * 2 * 2);
    const { data, shape } = trial.random.tensor("bf16", [70, 5]);
    const bytes = data as Uint16Array<ArrayBuffer>;
    assertThrows(
      () => Tensor.create(small, "bf16", shape, bytes, "w", "pairs"),
      DeviceError,
      "Cannot write w: rows begin at byte 30 of a buffer, must be at a multiple of 4",
    );
    const tensor = trial.own(Tensor.create(gpu, "bf16", shape));
    assertThrows(
      () => tensor.write(10, bytes.subarray(5)),
      DeviceError,
      "rows begin at byte 10 of a buffer",
    );
  },
);

gpuTest(
  "a tensor too large to bind, or with too large a row, is refused",
  (gpu) => {
    const small = withBinding(gpu, 256);
    const message = "400 bytes, ";
    assertThrows(
      () => Tensor.create(small, "f32", [10, 10], undefined, "x"),
      DeviceError,
      "Cannot allocate x of shape [10, 10]: 400 bytes",
    );
    assertThrows(
      () => Tensor.create(small, "f32", [1, 100], undefined, "x", "rows"),
      DeviceError,
      message,
    );
  },
);

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
    "Cannot view [6, 4] as [5, 5]: 24 elements are not 25",
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

gpuTest("a part's texture copy is made once and freed with it", (gpu) => {
  const before = gpu.allocated;
  const tensor = Tensor.create(gpu, "bf16", [300, 8]);
  const copy = tensor.texels(tensor.part);
  assertEquals([copy.width, copy.height], [256, 2]);
  assert(tensor.texels(tensor.part) === copy);
  assertEquals(gpu.allocated - before, 2 * tensor.bytes);
  tensor[Symbol.dispose]();
  assertEquals(gpu.allocated, before);
});
