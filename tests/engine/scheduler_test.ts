/** The scheduler, with a pure model of a device that notes what each page holds. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Pages } from "../../lib/engine/pages.ts";
import {
  type Entry,
  Scheduler,
  type Step,
} from "../../lib/engine/scheduler.ts";
import { type Random, randomTest } from "../support/random.ts";

const rowsFor = (count: number) => 2 ** Math.ceil(Math.log2(count));

/** The next token of a text: depends on all of it. */
const nextToken = (tokens: readonly number[]) =>
  tokens.reduce((sum, id, i) => (sum * 31 + id * (i + 1)) % 97, 7) % 3;

/**
 * Runs steps on pages that hold tokens in place of keys and values, and fails if a
 * sequence would attend to anything but its own text.
 */
class Device {
  readonly #held: number[][];

  constructor(readonly pages: Pages) {
    this.#held = Array.from({ length: pages.count }, () => []);
  }

  #put(pages: readonly number[], position: number, id: number): void {
    const page = pages[Math.floor(position / this.pages.size)];
    assert(page !== undefined, `position ${position} has no page`);
    this.#held[page][position % this.pages.size] = id;
  }

  #check({ pages, tokens }: Entry, count: number): void {
    const read = Array.from(
      { length: count },
      (_, i) =>
        this.#held[pages[Math.floor(i / this.pages.size)]][i % this.pages.size],
    );
    assertEquals(read, tokens.slice(0, count));
  }

  /** Returns the tokens of each row. */
  run({ readings, rows, steps }: Step): number[][] {
    for (const { entry, begin, end } of readings) {
      this.#check(entry, begin);
      for (let i = begin; i < end; i++) {
        this.#put(entry.pages, i, entry.tokens[i]);
      }
    }
    return rows.map((entry, row) => {
      if (!entry || steps === 0) return [];
      assertEquals(entry.row, row);
      assertEquals(entry.cached, entry.tokens.length - 1);
      this.#check(entry, entry.cached);
      const text = [...entry.tokens];
      for (let i = 0; i < steps && text.length < entry.most; i++) {
        this.#put(entry.pages, text.length - 1, text.at(-1)!);
        text.push(nextToken(text));
      }
      return text.slice(entry.tokens.length);
    });
  }
}

/** A request and what it must give. */
interface Asked {
  entry: Entry;
  prompt: number[];
  maxTokens: number;
}

function ask(random: Random, scheduler: Scheduler, context: number): Asked {
  const length = 1 + random.int(0, context - 2);
  const prompt = Array.from(
    { length },
    () => random.int(0, 3) === 0 ? 1 : 0,
  );
  const maxTokens = 1 + random.int(0, 39);
  return {
    entry: scheduler.add({
      tokens: prompt,
      maxTokens,
      reuse: random.int(0, 4) > 0,
    }),
    prompt,
    maxTokens,
  };
}

function assertText({ entry, prompt, maxTokens }: Asked, whole: boolean): void {
  const { tokens } = entry, text = [...prompt];
  while (text.length < tokens.length) text.push(nextToken(text));
  assertEquals(tokens, text);
  if (whole) {
    assertEquals(
      tokens.length,
      Math.min(entry.most, prompt.length + maxTokens),
    );
  }
}

randomTest(
  "every text is right with random joins, leaves and cancels",
  (random) => {
    for (let round = 0; round < 40; round++) {
      const size = 1 + random.int(0, 7), context = 24 + random.int(0, 59);
      const least = Math.ceil(context / size);
      const pages = new Pages(least + random.int(0, 2 * least - 1), size);
      const slots = 1 + random.int(0, 8);
      const readingTokens = size + random.int(0, 39);
      const scheduler = new Scheduler({ pages, slots, context, rowsFor });
      const device = new Device(pages);
      let all: Asked[] = [], done = 0;
      for (let i = 0; i < 600; i++) {
        if (i < 400 && random.int(0, 2) === 0) {
          all.push(ask(random, scheduler, context));
        }
        if (all.length > 0 && random.int(0, 11) === 0) { // a client goes away
          const [gone] = all.splice(random.int(0, all.length - 1), 1);
          scheduler.remove(gone.entry);
          assertText(gone, false);
        }
        if (random.int(0, 99) === 0) scheduler.restart();
        for (const one of all) { // readers are slow, and catch up
          if (one.entry.state === "paused") {
            if (random.int(0, 5) === 0) scheduler.resume(one.entry);
          } else if (random.int(0, 60) === 0) scheduler.pause(one.entry);
        }
        const steps = 1 + random.int(0, 5), first = 1 + random.int(0, 2);
        const limits = { steps, first, reading: readingTokens };
        const step = scheduler.next(limits);
        const { rows, readings } = step;
        const tokens = readings.reduce(
          (n, { begin, end }) => n + end - begin,
          0,
        );
        assert(tokens <= readingTokens);
        if (rows.length > 0) assertEquals(rows.length, rowsFor(rows.length));
        assert(scheduler.counts.running <= slots);
        const results = device.run(step);
        const active = all.some(({ entry }) => entry.state !== "paused");
        if (active) assert(tokens > 0 || step.steps > 0, "stands still");
        results.forEach((ids, row) => {
          const entry = rows[row];
          if (entry && ids.length > 0) scheduler.accept(entry, ids);
        });
        all = all.filter((one) => {
          if (one.entry.tokens.length < one.entry.most) return true;
          scheduler.remove(one.entry);
          assertText(one, true);
          done++;
          return false;
        });
        const { running, waiting } = scheduler.counts;
        const paused = all.filter(({ entry }) => entry.state === "paused");
        assertEquals(running + waiting + paused.length, all.length);
      }
      for (const { entry } of all) scheduler.resume(entry);
      for (let i = 0; all.length > 0; i++) {
        assert(i < 5000, "somebody starves");
        const step = scheduler.next({ steps: 4, first: 2, reading: 64 }),
          { rows } = step;
        device.run(step).forEach((ids, row) =>
          rows[row] && scheduler.accept(rows[row], ids)
        );
        all = all.filter((one) => {
          if (one.entry.tokens.length < one.entry.most) return true;
          scheduler.remove(one.entry);
          assertText(one, true);
          return false;
        });
      }
      assert(done > 5, `${done} done`);
      assertEquals(pages.stats.held, 0);
    }
  },
);

const add = (
  scheduler: Scheduler,
  tokens: readonly number[],
  maxTokens: number,
) => scheduler.add({ tokens, maxTokens });

const make = (slots: number, count: number) =>
  new Scheduler({ pages: new Pages(count, 4), slots, context: 32, rowsFor });

const limits = (steps: number, reading = 64) => ({
  steps,
  first: steps,
  reading,
});

const zeros = (length: number) => new Array<number>(length).fill(0);

Deno.test("the first waits for room and is not overtaken", () => {
  const scheduler = make(4, 8);
  const first = add(scheduler, zeros(20), 8);
  scheduler.next(limits(1));
  const large = add(scheduler, Array(24).fill(1), 4);
  const small = add(scheduler, [2], 4);
  scheduler.next(limits(1));
  assertEquals([large.state, small.state], ["waiting", "waiting"]);
  scheduler.remove(first);
  scheduler.next(limits(1));
  assertEquals([large.state, small.state], ["decoding", "decoding"]);
});

Deno.test("long prompts are read in parts while others decode", () => {
  const scheduler = make(4, 32);
  const short = add(scheduler, [5, 6], 20), long = add(scheduler, zeros(31), 1);
  let step = scheduler.next(limits(2, 8));
  assertEquals(step.readings.map(({ begin, end }) => [begin, end]), [
    [0, 1],
    [0, 7],
  ]);
  assertEquals([step.rows, step.steps], [[short], 2]);
  for (const end of [15, 23]) {
    scheduler.accept(short, [1, 2]);
    step = scheduler.next(limits(2, 8));
    assertEquals(step.readings[0].end, end);
    assertEquals(step.rows, [short]);
  }
  scheduler.accept(short, [1, 2]);
  step = scheduler.next(limits(2, 8));
  assertEquals([long.state, step.rows], ["decoding", [short, long]]);
});

Deno.test("first tokens come soon, and nobody waits for an end", () => {
  const scheduler = make(2, 32);
  const a = add(scheduler, [5, 6], 20), b = add(scheduler, [7], 12);
  const next = () => {
    const { steps } = scheduler.next({ steps: 8, first: 2, reading: 64 });
    for (const entry of [a, b]) scheduler.accept(entry, zeros(steps));
    return steps;
  };
  assertEquals([next(), next()], [2, 8]);
  add(scheduler, [8], 4);
  assertEquals(next(), 2); // b ends then
  scheduler.remove(b);
});

Deno.test("a shared prefix is read once, even by those who come together", () => {
  const scheduler = make(4, 32);
  const texts = [1, 2, 3].map((id) => [...zeros(16), id, id]);
  const entries = texts.map((text) => add(scheduler, text, 4));
  const { readings } = scheduler.next(limits(1));
  assertEquals(readings.map(({ begin, end }) => [begin, end]), [
    [0, 17],
    [16, 17],
    [16, 17],
  ]);
  assertEquals(entries.map(({ found }) => found), [0, 16, 16]);
});

Deno.test("the latest makes room, and finds its pages again", () => {
  const scheduler = make(2, 9);
  const first = add(scheduler, zeros(15), 17);
  const second = add(scheduler, Array(11).fill(1), 8);
  for (let i = 0; i < 8; i++) {
    const { steps } = scheduler.next(limits(4));
    if (second.state === "waiting") break;
    for (const entry of [first, second]) {
      if (entry.state === "decoding") scheduler.accept(entry, zeros(steps));
    }
  }
  assertEquals([first.state, second.state], ["decoding", "waiting"]);
  scheduler.remove(first);
  scheduler.next(limits(1));
  assertEquals(second.state, "decoding");
  assertEquals(second.found, 0); // counted when it first came
});

Deno.test("rows close up when fewer do", () => {
  const scheduler = make(8, 64);
  const entries = [1, 2, 3, 4, 5].map((id) => add(scheduler, [id], 30));
  assertEquals(scheduler.next(limits(1)).rows.length, 8);
  for (const at of [0, 1, 2]) scheduler.remove(entries[at]);
  assertEquals(scheduler.next(limits(1)).rows, [entries[3], entries[4]]);
  scheduler.remove(entries[4]);
  assertEquals(scheduler.next(limits(1)).rows, [entries[3]]);
  scheduler.remove(entries[3]);
  assertEquals(scheduler.next(limits(1)), { readings: [], rows: [], steps: 0 });
});

Deno.test("a cache too small for one sequence is refused", () => {
  assertThrows(
    () => make(4, 7),
    Error,
    "Cannot schedule: 7 pages of 4 tokens, one sequence may have 32 tokens",
  );
});
