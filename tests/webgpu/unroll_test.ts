import { assertEquals, assertThrows } from "@std/assert";
import { unroll } from "../../lib/webgpu/unroll.ts";

const squash = (text: string) => text.replaceAll(/\s+/g, " ").trim();

Deno.test("unroll repeats a loop with its variable replaced, nested and stepped", () => {
  assertEquals(
    squash(unroll(
      "@unroll for (var i = 0; i < N; i++) { @unroll for (var j = 0; j < 4; j += 2) { f(i, j, ij); } }",
      { N: 2 },
    )),
    "{ { f(0, 0, ij); } { f(0, 2, ij); } } { { f(1, 0, ij); } { f(1, 2, ij); } }",
  );
});

Deno.test("unroll splits arrays into named variables", () => {
  assertEquals(
    squash(unroll(
      "@split var acc: array<vec4f, R * 2>; @unroll for (var r = 0; r < R; r++) { acc[r * 2 + 1] += acc[r * 2]; }",
      { R: 2 },
    )),
    "var acc_0: vec4f; var acc_1: vec4f; var acc_2: vec4f; var acc_3: vec4f; { acc_1 += acc_0; } { acc_3 += acc_2; }",
  );
});

Deno.test("unroll keeps one branch of @if, by number, text and logic", () => {
  const text =
    '@if D == "f16" && (N > 2 || !N) { a } @else { @if N == 1 { b } @else { c } }';
  assertEquals(squash(unroll(text, { D: "f16", N: 3 })), "a");
  assertEquals(squash(unroll(text, { D: "f16", N: 1 })), "b");
  assertEquals(squash(unroll(text, { D: "f32", N: 3 })), "c");
});

Deno.test("unroll refuses what is not constant, out of range or unclosed", () => {
  assertThrows(
    () => unroll("@unroll for (var i = 0; i < n; i++) { }", {}),
    Error,
    'Cannot unroll: "n" must be a constant expression, n is unknown',
  );
  assertThrows(
    () => unroll("@split var a: array<f32, 2>; a[2] = 1;", {}),
    Error,
    "Cannot unroll: a[2] is used, it has 2 elements",
  );
  const loop = "@unroll for (var i = 0; i < 8 / N; i += S) { }";
  for (const [N, S] of [[0, 1], [1, 0], [1, -1]]) {
    assertThrows(
      () => unroll(loop, { N, S }),
      Error,
      `Cannot unroll: i goes from 0 to ${8 / N} by ${S}, must be at most 4096`,
    );
  }
  assertThrows(
    () => unroll("@split var a: array<f32, 8 / N>;", { N: 0 }),
    Error,
    "Cannot unroll: a has Infinity elements, must be at most 4096",
  );
  assertThrows(() => unroll("@if 1 { a", {}), Error, "no closing brace");
});
