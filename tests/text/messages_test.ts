import { assertEquals } from "@std/assert";
import { nearest, tryInstead } from "../../lib/text/messages.ts";

Deno.test("the nearest name takes at most one edit for every three characters", () => {
  const known = ["model", "max-tokens", "top-k", "seed", "attendDecode"];
  const expected: [name: string, near: string | undefined][] = [
    ["modl", "model"], // an insertion
    ["models", "model"], // a deletion
    ["modle", "model"], // a swap
    ["MODEL", "model"],
    ["max_tokens", "max-tokens"], // a replacement
    ["maxtoken", "max-tokens"],
    ["attend_decod", "attendDecode"],
    ["max", "max-tokens"], // its beginning
    ["topp", undefined], // two edits of four characters
    ["ma", undefined],
    ["nosuch", undefined],
    ["", undefined],
  ];
  for (const [name, near] of expected) {
    assertEquals(nearest(name, known), near, name);
  }
  assertEquals(nearest("gem", ["gemv", "gemm"]), "gemv"); // the first of equals
  assertEquals(nearest("gemn", []), undefined);
  // Edits are not counted for what is so much longer: it may have megabytes.
  class Unread extends String {
    override toLowerCase(): never {
      throw new Error("read");
    }
  }
  const unread = new Unread("gemm") as unknown as string;
  assertEquals(nearest("gemm".repeat(25), [unread]), undefined);
});

Deno.test("a suggestion names the help, and the nearest name if there is one", () => {
  const known = ["gemm", "swiglu"];
  assertEquals(tryInstead("gem", known, "--help"), "try gemm or --help");
  assertEquals(tryInstead("nosuch", known, "--help"), "try --help");
});
