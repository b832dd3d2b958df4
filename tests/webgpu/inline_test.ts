import { assertEquals, assertThrows } from "@std/assert";
import { inlineLoads } from "../../lib/webgpu/inline.ts";

const LOAD = "fn w_load(at: u32) -> vec4u { return w[at]; }";

Deno.test("inlineLoads writes out indexing, nested and repeated", () => {
  const body = "a = w_load(b + min(i, (n - 1u))); c = w_load(w_load(0u).x);";
  assertEquals(inlineLoads([LOAD, body]), [
    LOAD,
    "a = w[b + min(i, (n - 1u))]; c = w[w[0u].x];",
  ]);
});

Deno.test("inlineLoads leaves other names and other functions alone", () => {
  const texture =
    "fn t_load(at: u32) -> vec4u { return textureLoad(t, vec2u(at % 256u, at / 256u), 0); }";
  const body = "new_w_load(1u); t_load(2u); w_loads(3u); w_load(4u);";
  assertEquals(inlineLoads([LOAD, texture, body]), [
    LOAD,
    texture,
    "new_w_load(1u); t_load(2u); w_loads(3u); w[4u];",
  ]);
});

Deno.test("inlineLoads refuses a call that is not closed", () => {
  assertThrows(
    () => inlineLoads([LOAD, "w_load((1u)"]),
    Error,
    "Cannot inline w_load: a call has no closing bracket",
  );
});
