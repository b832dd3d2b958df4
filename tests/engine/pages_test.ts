/** Pages: none lost, none shared by mistake, the least recently used first. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Pages } from "../../lib/engine/pages.ts";
import { type Random, randomTest } from "../support/random.ts";

/** A pure model of what each page holds: all tokens up to its end, as text. */
class Contents {
  readonly of = new Map<number, string>();

  /** Notes that a sequence filled its pages. */
  fill(pages: Pages, tokens: readonly number[], held: readonly number[]): void {
    held.forEach((page, i) =>
      this.of.set(page, tokens.slice(0, (i + 1) * pages.size).join())
    );
  }
}

/** Few different tokens, so that prefixes are often shared. */
function someTokens(random: Random, most: number): number[] {
  const length = 1 + random.int(0, most - 1);
  return Array.from({ length }, () => random.int(0, 2) === 0 ? 1 : 2);
}

randomTest("no page is lost, or shared by texts that differ", (random) => {
  const pages = new Pages(24, 4), contents = new Contents();
  const all: { tokens: number[]; held: number[] }[] = [];
  let shared = 0, refused = 0;
  for (let i = 0; i < 4000; i++) {
    const remove = random.int(0, 4) < 2 && all.length > 0;
    if (remove) {
      const [{ tokens, held }] = all.splice(random.int(0, all.length - 1), 1);
      if (random.int(0, 3) > 0) pages.publish(tokens, held);
      pages.release(held);
    } else {
      const tokens = someTokens(random, 30);
      const found = pages.find(tokens, tokens.length - 1);
      found.forEach((page, i) =>
        assertEquals(
          contents.of.get(page),
          tokens.slice(0, 4 * (i + 1)).join(),
        )
      );
      assert(4 * found.length < tokens.length);
      shared += found.length;
      const { available } = pages;
      const wanted = pages.pagesFor(tokens.length) - found.length;
      const more = pages.allocate(wanted);
      assertEquals(more !== undefined, wanted <= available);
      if (more) {
        const held = [...found, ...more];
        assertEquals(new Set(held).size, held.length);
        for (const page of more) assertEquals(pages.holders(page), 1);
        contents.fill(pages, tokens, held);
        all.push({ tokens, held });
        if (random.int(0, 1) === 0) pages.publish(tokens, held);
      } else {
        pages.release(found);
        refused++;
      }
    }
    for (let page = 0; page < pages.count; page++) {
      const count = all.filter(({ held }) => held.includes(page)).length;
      assertEquals(pages.holders(page), count);
    }
    const held = new Set(all.flatMap(({ held }) => held)).size;
    assertEquals(pages.stats.held, held);
    assertEquals(pages.available, pages.count - held);
  }
  assert(shared > 100 && refused > 10, `${shared} shared, ${refused} refused`);
  for (const { held } of all) pages.release(held);
  assertEquals(pages.available, pages.count);
});

/** Allocates pages for a text, publishes and releases them. */
function keep(pages: Pages, tokens: readonly number[]): number[] {
  const held = pages.allocate(pages.pagesFor(tokens.length))!;
  pages.publish(tokens, held);
  pages.release(held);
  return held;
}

Deno.test("the last partial page is not shared", () => {
  const pages = new Pages(8, 4);
  const held = keep(pages, [1, 2, 3, 4, 5, 6]);
  assertEquals(pages.find([1, 2, 3, 4, 5, 6, 7, 8]), held.slice(0, 1));
  assertEquals(pages.stats, { total: 8, held: 1, cached: 0, free: 7 });
});

Deno.test("a block is found only after the same text", () => {
  const pages = new Pages(8, 2);
  keep(pages, [1, 2, 3, 4]);
  keep(pages, [5, 6, 3, 4]);
  const first = pages.find([1, 2, 3, 4]), second = pages.find([5, 6, 3, 4]);
  assertEquals([first.length, second.length], [2, 2]);
  assertEquals(new Set([...first, ...second]).size, 4);
  assertEquals(pages.find([3, 4]), []);
  assertEquals(pages.find([1, 2, 3, 4], 3), first.slice(0, 1));
});

Deno.test("the least recently used pages go first, ends before beginnings", () => {
  const pages = new Pages(6, 2);
  const a = keep(pages, [1, 1, 1, 2, 1, 3]), b = keep(pages, [2, 1, 2, 2]);
  assertEquals(pages.stats, { total: 6, held: 0, cached: 5, free: 1 });
  pages.release(pages.find([1, 1, 1, 2])); // used again
  const taken = pages.allocate(3)!;
  assertEquals(taken.slice(1), [a[2], b[1]]);
  pages.release(taken);
  assertEquals(pages.find([1, 1, 1, 2, 1, 3]), a.slice(0, 2));
  assertEquals(pages.find([2, 1, 2, 2]), b.slice(0, 1));
});

Deno.test("texts with equal hashes are told apart by their tokens", () => {
  const pages = new Pages(4, 1), [page] = keep(pages, [7]);
  // 2³² more hashes to the same: hashes take 32 bits of a token.
  assertEquals(pages.find([7 + 2 ** 32]), []);
  assertEquals(pages.find([7]), [page]);
  const [, first] = keep(pages, [7, 1]),
    [, second] = keep(pages, [7 + 2 ** 32, 1]);
  assertEquals(pages.find([7, 1])[1], first);
  assertEquals(pages.find([7 + 2 ** 32, 1])[1], second);
});

Deno.test("a page is published again after what preceded it is gone", () => {
  const pages = new Pages(4, 2), text = [1, 2, 3, 4];
  const first = pages.allocate(1)!, second = pages.allocate(2)!;
  pages.publish([1, 2], first);
  pages.publish(text, second); // its first page is the other's
  pages.release(first);
  const rest = pages.allocate(2)!; // the other's page, too
  pages.publish(text, second);
  pages.release(second);
  assertEquals(pages.find(text), second);
  pages.release(rest);
});

Deno.test("contents are forgotten, and what nobody holds is not released", () => {
  const pages = new Pages(4, 2), held = keep(pages, [1, 2, 3, 4]);
  assertThrows(
    () => pages.release(held),
    Error,
    `Cannot release page ${held[1]}: nobody holds it`,
  );
  pages.clear();
  assertEquals(pages.find([1, 2, 3, 4]), []);
  assertEquals(pages.stats, { total: 4, held: 0, cached: 0, free: 4 });
});
