import type { Matrix } from "../../lib/formats/matrix.ts";
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

type Weight = Matrix<Words>;

const words = (text: string): Words => ({ text });
const weight = (label: string): Weight => ({ label, n: 1, k: 1, parts: [] });
const call = (verb: string, ...args: (Words | Weight)[]) =>
  words(`${verb}(${args.map((a) => "text" in a ? a.text : a.label)})`);

class WordOps implements Ops<Words> {
  #calls = 0; // private, like those of real implementations

  get calls() {
    return this.#calls;
  }

  embed(table: Weight, tokens: Words) {
    this.#calls++;
    return call("embed", table, tokens);
  }
  normMatmul(x: Words, norm: Weight, w: Weight) {
    this.#calls++;
    return call("normMatmul", x, norm, w);
  }
  attend(
    qkv: Words,
    qNorm: Weight,
    kNorm: Weight,
    _cache: KvCache<Words>,
    layer: number,
    next: readonly Weight[] = [],
  ) {
    this.#calls++;
    return call(`attend${layer}`, qkv, qNorm, kNorm, ...next);
  }
  matmulAdd(x: Words, w: Weight, residual: Words) {
    this.#calls++;
    return call("matmulAdd", x, w, residual);
  }
  normSwiglu(x: Words, norm: Weight, gateUp: Weight) {
    this.#calls++;
    return call("normSwiglu", x, norm, gateUp);
  }
  chooseExperts(scores: Words) {
    this.#calls++;
    return call("chooseExperts", scores);
  }
  expertsSwiglu(x: Words, norm: Weight, gateUp: Weight, chosen: Words) {
    this.#calls++;
    return call("expertsSwiglu", x, norm, gateUp, chosen);
  }
  expertsAdd(gated: Words, down: Weight, chosen: Words, residual: Words) {
    this.#calls++;
    return call("expertsAdd", gated, down, chosen, residual);
  }
  lastRow(x: Words) {
    this.#calls++;
    return call("lastRow", x);
  }
  normRows(x: Words, rows: Words, norm: Weight) {
    this.#calls++;
    return call("normRows", x, rows, norm);
  }
}

const [a, b] = ["a", "b"].map(words);
const [v, w, d, e] = ["v", "w", "d", "e"].map(weight);
const cache = new KvCache<Words>([], 1, 8);

/** Calls every verb once. */
function callAll(ops: Ops<Words>): string[] {
  return [
    ops.embed(v, b),
    ops.normMatmul(a, v, w),
    ops.attend(a, v, w, cache, 3, [d, e]),
    ops.attend(a, v, w, cache, 4),
    ops.matmulAdd(a, w, b),
    ops.normSwiglu(a, v, w),
    ops.chooseExperts(a),
    ops.expertsSwiglu(a, v, w, b),
    ops.expertsAdd(a, w, b, a),
    ops.lastRow(a, cache),
    ops.normRows(a, b, v),
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
  assertEquals(ops.calls, 11);
  assertEquals(calls.map(({ verb }) => verb), [
    "embed",
    "normMatmul",
    "attend",
    "attend",
    "matmulAdd",
    "normSwiglu",
    "chooseExperts",
    "expertsSwiglu",
    "expertsAdd",
    "lastRow",
    "normRows",
  ]);
  assertEquals(calls.map((call) => tensorsOf(call).map(({ text }) => text)), [
    ["b"],
    ["a"],
    ["a"],
    ["a"],
    ["a", "b"],
    ["a"],
    ["a"],
    ["a", "b"],
    ["a", "b", "a"],
    ["a"],
    ["a", "b"],
  ]);
  const again = calls.map((call) => perform(new WordOps(), call).text);
  assertEquals(again, results);
});

Deno.test("the wrapper of a verb decides its result and whether it runs", () => {
  const ops = new WordOps();
  const tapped = tap(
    ops,
    ({ verb }, run) => verb === "embed" ? words("skipped") : run(),
  );
  assertEquals(tapped.embed(v, b).text, "skipped");
  assertEquals(ops.calls, 0);
  assertEquals(tapped.lastRow(a, cache).text, "lastRow(a)");
  const failing = tap(ops, ({ verb }) => {
    throw new Error(`Cannot run ${verb}`);
  });
  assertThrows(() => failing.matmulAdd(a, w, b), Error, "Cannot run matmulAdd");
});

Deno.test("a call is translated to another implementation's tensors and cache", () => {
  const calls: Call<Words>[] = [];
  callAll(tap(new WordOps(), (call, run) => {
    calls.push(call);
    return run();
  }));
  const other = new KvCache<Words>([], 1, 8);
  const upper = ({ text }: Words) => words(text.toUpperCase());
  const primed = ({ label }: Weight) => weight(`${label}'`);
  const results = calls.map((call) => {
    const translated = translate(call, upper, primed, other);
    const caches = translated.args.filter((arg) => arg instanceof KvCache);
    assert(caches.every((found) => found === other));
    return perform(new WordOps(), translated).text;
  });
  assertEquals(results, [
    "embed(v',B)",
    "normMatmul(A,v',w')",
    "attend3(A,v',w',d',e')",
    "attend4(A,v',w')",
    "matmulAdd(A,w',B)",
    "normSwiglu(A,v',w')",
    "chooseExperts(A)",
    "expertsSwiglu(A,v',w',B)",
    "expertsAdd(A,w',B,A)",
    "lastRow(A)",
    "normRows(A,B,v')",
  ]);
});
