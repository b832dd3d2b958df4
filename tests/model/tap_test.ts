import { assert, assertEquals, assertThrows } from "@std/assert";
import { KvCache } from "../../lib/model/kv_cache.ts";
import type { Ops } from "../../lib/model/ops.ts";
import {
  type Call,
  perform,
  tap,
  tensorsOf,
  translate,
} from "../../lib/model/tap.ts";

/** A tensor that says how it was computed. */
interface Words {
  text: string;
}

const words = (text: string): Words => ({ text });
const call = (verb: string, ...args: Words[]) =>
  words(`${verb}(${args.map(({ text }) => text)})`);

class WordOps implements Ops<Words> {
  #calls = 0; // private, like those of real implementations

  get calls() {
    return this.#calls;
  }

  embed(table: Words, tokens: Words) {
    this.#calls++;
    return call("embed", table, tokens);
  }
  normMatmul(x: Words, norm: Words, w: Words) {
    this.#calls++;
    return call("normMatmul", x, norm, w);
  }
  attend(
    qkv: Words,
    qNorm: Words,
    kNorm: Words,
    _cache: KvCache<Words>,
    layer: number,
    next: readonly Words[] = [],
  ) {
    this.#calls++;
    return call(`attend${layer}`, qkv, qNorm, kNorm, ...next);
  }
  matmulAdd(x: Words, w: Words, residual: Words) {
    this.#calls++;
    return call("matmulAdd", x, w, residual);
  }
  normSwiglu(x: Words, norm: Words, gateUp: Words) {
    this.#calls++;
    return call("normSwiglu", x, norm, gateUp);
  }
  lastRow(x: Words) {
    this.#calls++;
    return call("lastRow", x);
  }
}

const [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(words);
const cache = new KvCache<Words>([], 1, 8);

/** Calls every verb once. */
function callAll(ops: Ops<Words>): string[] {
  return [
    ops.embed(a, b),
    ops.normMatmul(a, b, c),
    ops.attend(a, b, c, cache, 3, [d, e]),
    ops.attend(a, b, c, cache, 4),
    ops.matmulAdd(a, b, c),
    ops.normSwiglu(a, b, c),
    ops.lastRow(a, cache),
  ].map(({ text }) => text);
}

Deno.test("tap sees every verb with its arguments, and results pass through", () => {
  const ops = new WordOps(), calls: Call<Words>[] = [];
  const tapped = tap(ops, (call, run) => {
    calls.push(call);
    return run();
  });
  const results = callAll(tapped);
  assertEquals(results, callAll(new WordOps()));
  assertEquals(ops.calls, 7);
  assertEquals(calls.map(({ verb }) => verb), [
    "embed",
    "normMatmul",
    "attend",
    "attend",
    "matmulAdd",
    "normSwiglu",
    "lastRow",
  ]);
  assertEquals(calls.map((call) => tensorsOf(call).map(({ text }) => text)), [
    ["a", "b"],
    ["a", "b", "c"],
    ["a", "b", "c", "d", "e"],
    ["a", "b", "c"],
    ["a", "b", "c"],
    ["a", "b", "c"],
    ["a"],
  ]);
  const again = calls.map((call) => perform(new WordOps(), call).text);
  assertEquals(again, results);
});

Deno.test("what is around a verb decides its result and whether it runs", () => {
  const ops = new WordOps();
  const tapped = tap(
    ops,
    ({ verb }, run) => verb === "embed" ? words("skipped") : run(),
  );
  assertEquals(tapped.embed(a, b).text, "skipped");
  assertEquals(ops.calls, 0);
  assertEquals(tapped.lastRow(a, cache).text, "lastRow(a)");
  const failing = tap(ops, ({ verb }) => {
    throw new Error(`Cannot run ${verb}`);
  });
  assertThrows(() => failing.matmulAdd(a, b, c), Error, "Cannot run matmulAdd");
});

Deno.test("a call is translated to another implementation's tensors and cache", () => {
  const calls: Call<Words>[] = [];
  callAll(tap(new WordOps(), (call, run) => {
    calls.push(call);
    return run();
  }));
  const other = new KvCache<Words>([], 1, 8);
  const upper = ({ text }: Words) => words(text.toUpperCase());
  const results = calls.map((call) => {
    const translated = translate(call, upper, other);
    const caches = translated.args.filter((arg) => arg instanceof KvCache);
    assert(caches.every((found) => found === other));
    return perform(new WordOps(), translated).text;
  });
  assertEquals(results, [
    "embed(A,B)",
    "normMatmul(A,B,C)",
    "attend3(A,B,C,D,E)",
    "attend4(A,B,C)",
    "matmulAdd(A,B,C)",
    "normSwiglu(A,B,C)",
    "lastRow(A)",
  ]);
});
