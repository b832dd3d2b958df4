import { assertEquals, assertThrows } from "@std/assert";
import {
  bf16ToF32,
  f16ToF32,
  f32ToBf16Bits,
  f32ToF16Bits,
} from "../lib/dtype.ts";
import { f32, toF32 } from "../lib/formats/tensor.ts";
import { decodeFloat } from "./support/decode_float.ts";

Deno.test("every f16 and bf16 pattern decodes to the value of its fields", () => {
  const data = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
  const f16 = toF32({ dtype: "f16", shape: [65536], data });
  const bf16 = toF32({ dtype: "bf16", shape: [256, 256], data });
  for (let bits = 0; bits < 65536; bits++) {
    assertEquals(f16[bits], decodeFloat(bits, 5, 10), `f16 ${bits}`);
    assertEquals(f16ToF32(bits), decodeFloat(bits, 5, 10), `f16 ${bits}`);
    assertEquals(bf16[bits], decodeFloat(bits, 8, 7), `bf16 ${bits}`);
    assertEquals(bf16ToF32(bits), decodeFloat(bits, 8, 7), `bf16 ${bits}`);
  }
});

Deno.test("f16 and bf16 values encode to themselves, ties go to even, NaN stays NaN", () => {
  for (
    const [to, from, infinity] of [
      [f32ToBf16Bits, bf16ToF32, 0x7f80],
      [f32ToF16Bits, f16ToF32, 0x7c00],
    ] as const
  ) {
    for (let bits = 0; bits < infinity; bits++) {
      const value = from(bits),
        next = bits + 1 < infinity ? from(bits + 1) : undefined;
      assertEquals(to(value), bits);
      assertEquals(to(-value), bits | 0x8000);
      if (next === undefined) continue;
      assertEquals(
        to((value + next) / 2),
        bits + bits % 2,
        `between ${value} and ${next}`,
      );
      assertEquals(to(value + (next - value) * 0.49), bits);
      assertEquals(to(value + (next - value) * 0.51), bits + 1);
    }
    assertEquals(to(3.4e38), infinity);
    assertEquals(to(-Infinity), infinity | 0x8000);
    assertEquals(Number.isNaN(from(to(NaN))), true);
  }
});

Deno.test("f32() refuses other types", () => {
  assertThrows(
    () => f32({ dtype: "bf16", shape: [1], data: new Uint16Array(1) }),
    Error,
    "Cannot compute with bf16 here",
  );
});
