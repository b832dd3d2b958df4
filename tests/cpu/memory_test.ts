import { assert, assertEquals, assertThrows } from "@std/assert";
import { CpuMemory } from "../../lib/cpu/memory.ts";

const GIB = 2 ** 30;

Deno.test("tensors are zeros and overlap neither each other nor the reserved bytes", () => {
  const memory = new CpuMemory(1000, () => {});
  const tensors = [
    memory.allocate("f32", [3, 5]),
    memory.allocate("bf16", [7]),
    memory.allocate("u32", [1]),
    memory.allocate("f16", []),
  ];
  assertEquals(tensors.map(({ data }) => data.length), [15, 7, 1, 1]);
  let end = 1000;
  for (const tensor of tensors) {
    assertEquals(tensor.data.every((value) => value === 0), true);
    const { memory: index, address } = memory.find(tensor);
    assertEquals(index, 0);
    assert(address >= end);
    end = address + tensor.data.byteLength;
  }
});

Deno.test("tensors past 4 GiB go into another memory", () => {
  let memories = 0;
  const memory = new CpuMemory(1 << 20, () => memories++);
  const tensors = [1, 2, 3].map(() => memory.allocate("u32", [2.5 * GIB / 4]));
  tensors.forEach(({ data }, i) => data[data.length - 1] = i + 1);
  assertEquals(tensors.map((tensor) => memory.find(tensor).memory), [0, 1, 2]);
  assertEquals(tensors.map(({ data }) => data.at(-1)), [1, 2, 3]);
  assertEquals(memories, 3);
  assertThrows(
    () => memory.allocate("bf16", [2 * GIB]),
    Error,
    "Cannot allocate a tensor of 4294967296 bytes: must be at most",
  );
});

Deno.test("released bytes are merged, and reused as zeros", () => {
  const memory = new CpuMemory(0, () => {});
  const [a, b, c] = [1, 2, 3].map(() => memory.allocate("f32", [1000]));
  const { address } = memory.find(a);
  const part = { ...b, data: b.data.subarray(1) };
  assertEquals(memory.find(part).address, memory.find(b).address + 4);
  for (const tensor of [a, c, b]) {
    tensor.data.fill(NaN);
    memory.release(tensor);
  }
  const whole = memory.allocate("f32", [2500]);
  assertEquals(memory.find(whole).address, address);
  assertEquals(whole.data, new Float32Array(2500).fill(0));
  assert(memory.find(memory.allocate("f32", [10])).address >= address + 10000);
});

Deno.test("data from another memory is refused", () => {
  const memory = new CpuMemory(0, () => {});
  assertThrows(
    () => memory.find({ dtype: "f32", shape: [1], data: new Float32Array(1) }),
    Error,
    "must come from allocate()",
  );
});
