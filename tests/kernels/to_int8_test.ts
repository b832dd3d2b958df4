import { toInt8 } from "../../kernels/to_int8.ts";
import { int8Sizes, int8Values } from "../../kernels/int8_case.ts";
import { assertEquals, assertThrows } from "@std/assert";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes } from "../support/gpu.ts";
import { rmsNormed } from "../support/reference.ts";
import { toF32 } from "../../lib/formats/tensor.ts";

const eps = 1e-6;

gpuTest(
  "toInt8 rounds rows of any magnitude to 15 bits per block",
  async (gpu, trial) => {
    const { random } = trial;
    for (const magnitude of [0, 1e-40, 1e-20, 1, 1e12, 1e36]) {
      for (const [k, unit] of [[32, 16], [96, 32], [64, 64], [2336, 32]]) {
        const m = random.int(1, 5), { words, numbers } = int8Sizes(k);
        const x = random.tensor("f32", [m, k], magnitude);
        const outlier = random.int(0, m * k - 1);
        x.data[outlier] = 100 * magnitude;
        // More of them in its block do not hide it.
        for (let more = random.int(0, 2); more > 0; more--) {
          const at = outlier - outlier % 32 + random.int(0, 31);
          x.data[at] = -100 * magnitude;
        }
        const y = trial.filled([m, words], 0x55555555, "u32");
        const scales = trial.filled([m, numbers]);
        trial.run(toInt8, { x: trial.upload(x), y, scales }, {
          constants: { UNIT: unit, ...lanes(gpu, true) },
          uniforms: { eps },
        });
        const bits = await gpu.readBuffer(y.buffer, 0, 4 * m * words);
        const { values, sumsOff } = int8Values(
          new Uint32Array(bits),
          await scales.read(),
          k,
          unit,
        );
        const message = JSON.stringify({ magnitude, m, k, unit });
        assertEquals(sumsOff, new Float64Array(sumsOff.length), message);
        const given = toF32(x);
        const largest = (at: number) =>
          given.subarray(at - at % 32, at - at % 32 + 32)
            .reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
        assertAllClose(
          values.map((value, at) => value / largest(at)),
          Float64Array.from(given, (value, at) => value / largest(at)),
          { absolute: 0.51 / 16256 },
          message,
        );
        // Beside the outlier there are more bits.
        if (magnitude < 1e-30) continue;
        const begin = outlier - outlier % 32;
        const beside = (of: Float32Array | Float64Array) =>
          Float64Array.from(
            of.subarray(begin, begin + 32),
            (value) => value / magnitude,
          );
        assertAllClose(
          beside(values),
          beside(given),
          { absolute: 100 * 1.1 / 256 / 16256 },
          `beside an outlier, ${message}`,
        );
      }
    }
  },
);

gpuTest(
  "toInt8 norms rows by any number of sums of squares",
  async (gpu, trial) => {
    const { random } = trial;
    for (const parts of [1, 5, 64, 256, 300]) {
      const m = 3, k = 256, unit = 32, { words, numbers } = int8Sizes(k);
      const x = random.tensor("f32", [m, k], 2), given = toF32(x);
      const norm = random.tensor("f32", [k], 0.5, 1);
      const squares = random.filled("f32", [m, parts], 0);
      given.forEach((value, at) =>
        squares.data[Math.floor(at / k) * parts + at % parts] += value * value
      );
      const y = trial.filled([m, words], 0x55555555, "u32");
      const scales = trial.filled([m, numbers]);
      trial.run(toInt8, {
        x: trial.upload(x),
        norm: trial.upload(norm),
        squares: trial.upload(squares),
        y,
        scales,
      }, {
        constants: { NORM: 1, UNIT: unit, ...lanes(gpu, true) },
        uniforms: { eps },
      });
      const bits = await gpu.readBuffer(y.buffer, 0, 4 * m * words);
      const { values } = int8Values(
        new Uint32Array(bits),
        await scales.read(),
        k,
        unit,
      );
      const expected = rmsNormed(given, toF32(norm), eps);
      const most = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      assertAllClose(
        values,
        expected,
        { absolute: most * 0.51 / 16256, relative: 1e-5 },
        `${parts} parts`,
      );
    }
  },
);

Deno.test("toInt8 needs whole blocks, and lanes that exchange values", () => {
  for (
    const [k, given] of [
      [48, {}],
      [64, { SUBGROUPS: 0 }],
      [64, { LOG_LANES: 2 }],
    ] as const
  ) {
    assertThrows(
      () => toInt8.derive!({ ...toInt8.constants, ...given }, { k }),
      Error,
      `Cannot round rows of ${k} to integers: they must be whole blocks of 32, and 8 lanes or more must exchange values`,
    );
  }
});
