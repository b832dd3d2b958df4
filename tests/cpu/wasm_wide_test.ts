/** The kernels for vectors of 256 bits, and V8, which makes such vectors if asked to. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { bind } from "../../lib/cpu/pool.ts";
import { threadSpace, writeMasks } from "../../lib/cpu/jobs.ts";
import { WIDE_FLAG } from "../../lib/cpu/wasm.ts";
import { wasmKernels } from "../../lib/cpu/wasm_kernels.ts";
import { columnBytes, WIDE_COLUMNS } from "../../lib/cpu/wasm_wide.ts";
import { assertSums, linear } from "../support/reference.ts";
import { randomTest } from "../support/random.ts";
import { runDeno } from "../support/run_task.ts";

const MODULE = new WebAssembly.Module(wasmKernels(true, 7, true));

/** A memory full of NaN, but for the masks at its beginning. */
function bound() {
  const memory = new WebAssembly.Memory({
    initial: 32,
    maximum: 65536,
    shared: true,
  });
  new Float32Array(memory.buffer).fill(NaN, threadSpace(0) / 4);
  writeMasks(memory.buffer);
  return bind(MODULE, memory);
}

/** Asserts that words changed only where they may; takes them over into `before`. */
function requireOnly(
  words: Uint32Array,
  before: Uint32Array,
  may: (byte: number) => boolean,
): void {
  for (let i = 0; i < words.length; i++) {
    if (words[i] === before[i]) continue;
    assert(may(4 * i), `byte ${4 * i} changed`);
    before[i] = words[i];
  }
}

for (const columns of ["bf16", "f32"] as const) {
  const size = columns === "bf16" ? 2 : 4;

  randomTest(
    `${columns}: a matmul of any number of rows and columns`,
    (random) => {
      for (const n of [1, 7, 8, 9, 15, WIDE_COLUMNS]) {
        for (const k of [1, 7, 8, 24, 61]) {
          const rows = random.int(1, 15), padded = 8 * Math.ceil(k / 8);
          const { memory, kernels } = bound();
          const floats = new Float32Array(memory.buffer);
          const words = new Uint32Array(memory.buffer);
          const halves = new Uint16Array(memory.buffer);

          // w: rows of k elements and some more that are not read, or are masked.
          const wAt = threadSpace(0), stride = k + random.int(8, 20) & ~1;
          const w = random.tensor("f32", [n, k], 1).data as Float32Array;
          const bits = new Uint32Array(w.buffer);
          for (let j = 0; j < n; j++) {
            for (let i = 0; i < k; i++) {
              const at = j * stride + i;
              if (columns === "bf16") {
                bits[j * k + i] &= 0xffff0000;
                halves[wAt / 2 + at] = bits[j * k + i] >>> 16;
              } else words[wAt / 4 + at] = bits[j * k + i];
            }
          }
          // x: rows that are padded with zeros.
          const xAt = 1 << 19, xBytes = 4 * padded + 64;
          const x = random.tensor("f32", [rows, k], 1).data as Float32Array;
          for (let r = 0; r < rows; r++) {
            const begin = (xAt + r * xBytes) / 4;
            floats.fill(0, begin, begin + padded);
            floats.set(x.subarray(r * k, (r + 1) * k), begin);
          }
          const columnsAt = 1 << 20, yAt = 3 << 19, yBytes = 4 * 24;
          const mask = k % 8 * 32;
          const before = words.slice();
          kernels[`transpose_${columns}`]!(
            wAt,
            stride * size,
            n,
            k,
            mask,
            columnsAt,
          );
          requireOnly(words, before, (byte) => {
            const end = columnsAt + padded * columnBytes(columns);
            return byte >= columnsAt && byte < end;
          });

          const shape = { m: rows, n, k };
          const { values } = linear(x, w, shape);
          const { values: norms } = linear(
            x.map(Math.abs),
            w.map(Math.abs),
            shape,
          );
          const multiply = (add: number) => {
            kernels[`wideTiles_${columns}`]!(
              xAt,
              xBytes,
              rows,
              columnsAt,
              padded,
              yAt,
              yBytes,
              add,
            );
            requireOnly(words, before, (byte) => {
              const at = byte - yAt, row = Math.floor(at / yBytes);
              return row >= 0 && row < rows &&
                at % yBytes < 4 * WIDE_COLUMNS;
            });
            return Array.from({ length: rows * n }, (_, i) => {
              const at = yAt + Math.floor(i / n) * yBytes + 4 * (i % n);
              return floats[at / 4];
            });
          };
          const what = `[${rows}, ${k}] · [${n}, ${k}]`;
          assertSums(multiply(0), { values, norms }, what, 1e-6);
          const twice = values.map((value) => 2 * value);
          const doubled = norms.map((norm) => 2 * norm);
          assertSums(
            multiply(512),
            { values: twice, norms: doubled },
            what,
            1e-6,
          );
        }
      }
    },
  );
}

/** V8 optimises a function before its first call, so that what runs is what it joined. */
const OPTIMIZED = `${WIDE_FLAG},--no-liftoff,--no-wasm-lazy-compilation`;

/** Runs Deno with these flags of V8. */
const deno = (flags: string, args: readonly string[]) =>
  runDeno(args, { DENO_V8_FLAGS: flags });

/** Runs files of tests in such a process. */
async function requireTests(args: readonly string[]): Promise<void> {
  const test = ["test", "-A", "--no-check", "--no-lock", ...args];
  const { code, stdout, stderr } = await deno(OPTIMIZED, test);
  assertEquals(code, 0, stdout + stderr);
  assertMatch(stdout, /[1-9]\d* passed \| 0 failed/);
}

/** Why the CPU path has its kernels. */
async function reasonOf(flags: string, ...permissions: string[]) {
  const run = ["run", "--no-check", "--no-lock", ...permissions];
  const { code, stdout, stderr } = await deno(flags, [
    ...run,
    "tests/support/cpu_choice.ts",
  ]);
  assertEquals(code, 0, stderr);
  return stdout.trim();
}

const { code: unknown, stderr: refusal } = await deno(WIDE_FLAG, ["eval", ""]);
if (unknown) {
  Deno.test("Deno does not start with a flag that this V8 has not", () => {
    assertMatch(refusal, /did not recognize flag '--experimental-wasm-revec/);
  });
} else {
  Deno.test("what the CPU computes is right with kernels for 256 bits", async () => {
    const cpu = ["ops", "wasm_blocks", "wasm_kernels", "wasm_panels"];
    await requireTests(cpu.map((name) => `tests/cpu/${name}_test.ts`));
  });

  Deno.test("models are right with kernels for 256 bits", async () => {
    const files = ["tests/golden_test.ts", "tests/gguf_golden_test.ts"];
    const some = "/(tiny|stories|2layer).* on the cpu/";
    await requireTests([...files, "--filter", some]);
  });

  Deno.test("vectors of 256 bits are a choice with its reason", async () => {
    const wide =
      "WebAssembly has relaxed SIMD, in vectors of 256 bits (DENO_V8_FLAGS)";
    const narrow = "WebAssembly has relaxed SIMD";
    const others = "--no-wasm-lazy-compilation";
    assertEquals(await reasonOf(`${others},${WIDE_FLAG}`, "-A"), wide);
    assertEquals(await reasonOf("--experimental_wasm_revectorize", "-A"), wide);
    assertEquals(await reasonOf(others, "-A"), narrow);
    const off = `${WIDE_FLAG},--no-experimental-wasm-revectorize`;
    assertEquals(await reasonOf(off, "-A"), narrow);
    assertEquals(
      await reasonOf(WIDE_FLAG, "-A", "--deny-env=DENO_V8_FLAGS"),
      `${narrow}; no permission to see DENO_V8_FLAGS`,
    );
  });
}

const { stdout: features } = await deno("--help", ["eval", ""]);
if (/\bAVX2=1\b/.test(features)) {
  Deno.test("V8 joins the pairs of both matmuls, and of panels", async () => {
    const { code, stdout, stderr } = await deno(
      // One after the other, so that what V8 says of them is not mixed.
      `${OPTIMIZED},--trace-wasm-revectorize,--wasm-num-compilation-tasks=0`,
      ["run", "--no-check", "--no-lock", "tests/support/wide_module.ts"],
    );
    assertEquals(code, 0, stderr);
    const joined = stdout.split("Begin revec function wasm-function#").slice(1)
      .map((said) => {
        const [, pairs = ""] = said.split("Decided to vectorize");
        const [products, dots] = [/F32x4Qfma/g, /I32x4DotI16x8S/g]
          .map((name) => pairs.match(name)?.length ?? 0);
        return [parseInt(said), products, dots];
      })
      .sort(([a], [b]) => a - b);
    // Each transposition is followed by its matmul: of four columns and two pairs of
    // weights times 6, 2 and 1 rows.
    const all = 4 * 2 * (6 + 2 + 1);
    assertEquals(joined.slice(0, 4), [
      ...[[0, 0, 0], [1, all, 0]],
      ...[[2, 0, 0], [3, all, 0]],
    ]);
    // Two panels times 16 pairs of elements, or as many times two elements in f32; then sums
    // are scaled in either way.
    assertEquals(joined.slice(4), [[4, 2 * (2 * 16 - 1) + 2 * 2, 2 * 16]]);
  });
}
