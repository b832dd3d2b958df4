/** What an engine asks of a device, on one whose pages hold tokens. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { FAULT } from "../../lib/dispatch/sampling.ts";
import { MemoryError } from "../../lib/errors.ts";
import { type Asked, Engine } from "../../lib/engine/engine.ts";
import type { RowPart, Rows, RowText } from "../../lib/model/rows.ts";
import {
  resolveSampling,
  type SampledTokens,
  type TokenMask,
} from "../../lib/model/sampling.ts";
import { turns } from "../../lib/dispatch/rests.ts";
import { fastClock } from "../support/fast_clock.ts";
import { type Random, randomTest } from "../support/random.ts";

const VOCAB = 32;

/** The next token of a text, which depends on all of it; one that `allowed` has. */
function nextToken(tokens: readonly number[], allowed = 0xffffffff): number {
  const sum = tokens.reduce((sum, id, i) => (sum * 31 + id * (i + 1)) % 997, 7);
  let id = sum % VOCAB;
  while ((allowed >>> id & 1) === 0) id = (id + 1) % VOCAB;
  return id;
}

/** Ids after a prompt. */
function expected(asked: Asked): number[] {
  const text = [...asked.tokens];
  for (let i = 0; i < asked.maxTokens; i++) {
    text.push(nextToken(text, asked.mask ? maskAt(i) : undefined));
  }
  return text.slice(asked.tokens.length);
}

/** What a mask allows after `count` tokens. */
const maskAt = (count: number) =>
  count % 3 === 2 ? 0xffffffff : 0b1011 << count % 5;

function turningMask(): TokenMask {
  let count = 0;
  return {
    fill(bits) {
      bits[0] = maskAt(count);
      return bits[0] !== -1 >>> 0;
    },
    accept: () => void count++,
  };
}

/** Rows whose pages hold tokens in place of keys and values. */
class TextRows implements Rows {
  readonly page = 4;
  preparedMs = 0;
  readonly compiles = false;
  readonly mostPages: number;
  /** Tokens that were read together. */
  readonly readings: number[] = [];
  /** Chunks so far, with the steps that each row took. */
  readonly chunks: { steps: number; texts: (RowText | undefined)[] }[] = [];
  readonly #held: number[][] = [];
  #taken: SampledTokens[] = [];

  constructor(
    public pages: number,
    /** Steps of a chunk, if nobody comes or goes. */
    readonly firstSteps: number,
    mostPages = pages,
    readonly context = 64,
  ) {
    this.mostPages = mostPages;
    this.grow(pages);
  }

  nextSteps = (steps: number) => steps;
  rowsFor = (count: number) => 2 ** Math.ceil(Math.log2(count));

  grow(pages: number): Promise<void> {
    while (this.#held.length < pages) this.#held.push([]);
    this.pages = pages;
    return Promise.resolve();
  }

  #put({ pages }: RowText, position: number, id: number): void {
    const page = pages[Math.floor(position / this.page)];
    assert(page !== undefined, `position ${position} has no page`);
    this.#held[page][position % this.page] = id;
  }

  #check({ pages, tokens }: RowText, count: number): void {
    const { page: size } = this;
    const held = Array.from(
      { length: count },
      (_, i) => this.#held[pages[Math.floor(i / size)]][i % size],
    );
    assertEquals(held, tokens.slice(0, count));
  }

  async read(parts: readonly RowPart[]): Promise<void> {
    for (const { text, begin, end } of parts) {
      await this.#read(text, begin, end);
    }
  }

  async #read(text: RowText, begin: number, end: number): Promise<void> {
    await turns(1);
    this.readings.push(end - begin);
    this.#check(text, begin);
    for (let i = begin; i < end; i++) this.#put(text, i, text.tokens[i]);
  }

  async decode(
    texts: readonly (RowText | undefined)[],
    steps: number,
    goesOn: () => boolean,
  ): Promise<number> {
    const own = texts.map((text) => text && [...text.tokens]);
    const masks = texts.map((text) => {
      const bits = new Uint32Array(1);
      return text?.mask?.fill(bits) ? bits[0] : undefined;
    });
    texts.forEach((text) => text && this.#check(text, text.tokens.length - 1));
    this.#taken = texts.map(() => []);
    const most = texts.every((text) => !text || text.mask) ? 1 : steps;
    let done = 0;
    for (; done < most && (done === 0 || goesOn()); done++) {
      texts.forEach((text, row) => {
        const all = own[row], taken = this.#taken[row] as number[];
        if (!text || !all || text.mask && done > 0) return;
        const last = all.length - 1;
        // What is past the end of a text is nobody's.
        if (last / this.page < text.pages.length) {
          this.#put(text, last, all[last]);
        }
        const id = nextToken(all, masks[row]);
        all.push(id);
        taken.push(id);
      });
      await turns(1);
    }
    this.chunks.push({ steps: done, texts: [...texts] });
    return done;
  }

  take = () => Promise.resolve(this.#taken);

  widen(): Promise<void> {
    throw new Error("never");
  }

  [Symbol.dispose](): void {}
}

function engineOf(rows: Rows, slots: number): Engine {
  const never = () => {
    throw new Error("never");
  };
  const exclusive = <R>(work: () => Promise<R>) => work();
  return new Engine({ rows, slots, exclusive, prepare: never, chat: never });
}

const sampling = resolveSampling({ temperature: 0 });

function asking(
  tokens: number[],
  maxTokens: number,
  more: Partial<Asked> = {},
): Asked {
  const how = { sampling, reuse: true, eosTokenIds: [] };
  return { tokens, maxTokens, ...how, ...more };
}

/** Submits a request; reads its tokens until `leaves` says so. */
async function read(
  engine: Engine,
  asked: Asked,
  leaves: (ids: readonly number[]) => boolean | Promise<boolean> = () => false,
): Promise<number[]> {
  const ids: number[] = [];
  const consumer = { steady: true, ended: () => false };
  for await (const some of engine.start(asked).start(consumer)) {
    ids.push(...some);
    if (await leaves(ids)) break;
  }
  return ids;
}

Deno.test("a mask is not told of logits that yield no token", async () => {
  const rows = new TextRows(16, 1), told: number[] = [];
  rows.take = () => Promise.resolve([[FAULT.masked]]);
  const mask = {
    fill: () => false,
    accept: (id: number) => void told.push(id),
  };
  const asked = asking([1, 2], 3, { mask });
  assertEquals(await read(engineOf(rows, 1), asked), [FAULT.masked]);
  assertEquals(told, []);
});

Deno.test("a paused request that is aborted shortens no chunks of others", async () => {
  const rows = new TextRows(600, 30, 600, 2000), engine = engineOf(rows, 1);
  const ender = new AbortController(), { signal } = ender;
  const consumer = { steady: false, ended: () => false };
  const forgotten = engine.start(asking([1, 2], 1900, { signal }));
  await forgotten.start(consumer)[Symbol.asyncIterator]().next();
  while (engine.isBusy) await turns(1);
  ender.abort();
  rows.chunks.length = 0;
  const asked = asking([4, 5], 60);
  assertEquals(await read(engine, asked), expected(asked));
  assertEquals(rows.chunks.map(({ steps }) => steps), [30, 30]);
});

Deno.test("a paused request that leaves during its last steps keeps no place", async () => {
  const rows = new TextRows(600, 30, 600, 2000), engine = engineOf(rows, 1);
  const ender = new AbortController(), { signal } = ender, { take } = rows;
  rows.take = () => {
    if (engine.stats.running === 0) ender.abort(); // it has just been paused
    return take();
  };
  const consumer = { steady: false, ended: () => false };
  const forgotten = engine.start(asking([1, 2], 1900, { signal }));
  await forgotten.start(consumer)[Symbol.asyncIterator]().next();
  while (engine.isBusy) await turns(1);
  await turns(5);
  assert(signal.aborted && engine.isEmpty);
});

Deno.test("whoever leaves has no steps after those that are under way", async () => {
  for (const how of ["break", "abort"]) {
    const rows = new TextRows(40, 30), engine = engineOf(rows, 1);
    const ender = new AbortController(), { signal } = ender;
    const long = asking([1, 2, 3], 60, { signal });
    const first = read(engine, long, async (ids) => {
      if (ids.length < 2) return false;
      // In the middle of a chunk.
      for (let i = 0; i < 3; i++) await turns(1);
      if (how === "break") return true;
      ender.abort();
      return false;
    }).catch(() => []);
    await turns(2); // otherwise they begin together, and one waits
    const second = read(engine, asking([4, 5], 3));
    assertEquals(await second, expected(asking([4, 5], 3)));
    await first;
    const own = rows.chunks.filter(({ texts }) => texts[0]?.tokens[0] === 1);
    const steps = own.map(({ steps }) => steps);
    assertEquals(steps[0], 30);
    assert(steps.length === 2 && steps[1] < 8, `${how}: ${steps}`);
    assertEquals(engine.stats.pages.held, 0);
  }
});

Deno.test("whoever comes joins after the steps that are under way", async () => {
  const rows = new TextRows(40, 30), engine = engineOf(rows, 2);
  let others: Promise<number[]> | undefined;
  const short = asking([4, 5], 3);
  const first = await read(engine, asking([1, 2, 3], 58), (ids) => {
    if (ids.length > 0) others ??= read(engine, short);
    return false;
  });
  assertEquals(first, expected(asking([1, 2, 3], 58)));
  assertEquals(await others, expected(short));
  const alone = rows.chunks.findIndex(({ texts }) => texts.length > 1);
  const steps = rows.chunks.slice(0, alone).map(({ steps }) => steps);
  assertEquals(steps[0], 30);
  assert(steps.length === 2 && steps[1] < 5, `${steps}`);
});

Deno.test("a mask costs the others no steps", async () => {
  const rows = new TextRows(60, 8), engine = engineOf(rows, 4);
  const masked = () => asking([7, 8], 6, { mask: turningMask() });
  const free = asking([1, 2, 3], 48);
  const [first, second] = await Promise.all([
    read(engine, free),
    read(engine, masked()),
  ]);
  assertEquals([first, second], [expected(free), expected(masked())]);
  // One token of the masked text for each chunk, and 8 of the other.
  assertEquals(rows.chunks.map(({ steps }) => steps), Array(6).fill(8));
  // Without others it need not wait for more steps than it takes.
  assertEquals(await read(engine, masked()), expected(masked()));
  assertEquals(
    rows.chunks.slice(6).map(({ steps }) => steps),
    Array(6).fill(1),
  );
});

Deno.test("a cache grows as far as there is memory", async () => {
  const rows = new TextRows(8, 8, 1024, 400), engine = engineOf(rows, 2);
  const { grow } = rows, tried: number[] = [];
  rows.grow = (pages) => {
    tried.push(pages);
    if (pages > 13) throw new MemoryError("there is no more");
    return grow.call(rows, pages);
  };
  const fits = asking(Array(40).fill(3), 9);
  const long = asking(Array(60).fill(4), 9);
  const [ids] = await Promise.all([
    read(engine, fits),
    assertRejects(() => read(engine, long), MemoryError, "there is no more"),
  ]);
  assertEquals(ids, expected(fits));
  assertEquals(await read(engine, fits), ids);
  assert(rows.pages >= 12 && rows.pages <= 13, `${rows.pages}`);
  assert(tried.length < 8, `${tried}`);
});

Deno.test("prompts are read in parts that take no longer than others may wait", async () => {
  const prompt = Array.from({ length: 4000 }, (_, i) => i % VOCAB);
  const parts = async (ms: number, { leaves = false, prepared = 0 } = {}) => {
    const rows = new TextRows(1024, 8, 1024, 4096), engine = engineOf(rows, 1);
    const { read: readParts } = rows;
    rows.read = async (parts) => {
      await readParts.call(rows, parts);
      rows.preparedMs += prepared;
    };
    const ender = new AbortController(), { signal } = ender;
    using _clock = fastClock(ms);
    const reading = read(engine, asking(prompt, 1, { signal })).catch(() => []);
    while (leaves && rows.readings.length === 0) await turns(1);
    if (leaves) ender.abort();
    const ids = await reading;
    assertEquals(ids.length, leaves ? 0 : 1);
    assertEquals(await read(engine, asking([1], 2)), expected(asking([1], 2)));
    return rows.readings;
  };
  assertEquals(await parts(0), [512, 1024, 2048, 415]);
  const slow = await parts(2000);
  assertEquals(slow.slice(0, 6), [512, 256, 128, 64, 64, 64]);
  // What is done once does not count.
  assertEquals(await parts(2000, { prepared: 2000 }), await parts(0));
  assertEquals(await parts(0, { leaves: true }), [512]);
});

async function client(engine: Engine, random: Random): Promise<void> {
  for (let i = random.int(0, 30); i > 0; i--) await turns(1);
  const tokens = Array.from(
    { length: random.int(1, 30) },
    () => random.int(0, 1),
  );
  const mask = random.int(0, 3) === 0 ? turningMask() : undefined;
  const ender = new AbortController(), { signal } = ender;
  const asked = asking(tokens, random.int(1, 64 - tokens.length), {
    mask,
    signal,
    reuse: random.int(0, 3) > 0,
  });
  const end = random.int(1, 80), how = random.int(0, 2);
  let ids: number[] = [];
  try {
    ids = await read(engine, asked, async (some) => {
      ids = [...some];
      if (random.int(0, 5) === 0) await turns(random.int(1, 9));
      if (some.length < end || how === 0) return false;
      if (how === 1) return true;
      ender.abort();
      return false;
    });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  const whole = expected(asked);
  assertEquals(ids, whole.slice(0, ids.length));
  if (how === 0) assertEquals(ids.length, whole.length);
}

randomTest(
  "joins, leaves, cancels and masks change no text",
  async (random) => {
    for (let round = 0; round < 12; round++) {
      const pages = random.int(1, 40), slots = random.int(1, 6);
      const more = random.int(0, 1) === 0 ? 0 : random.int(0, 40);
      const most = Math.max(16, pages + more);
      const rows = new TextRows(pages, random.int(1, 12), most);
      using engine = engineOf(rows, slots);
      await Promise.all(
        Array.from({ length: 20 }, () => client(engine, random)),
      );
      for (let i = 0; engine.isBusy && i < 1000; i++) await turns(1);
      const { running, waiting, pages: { held, total } } = engine.stats;
      assertEquals([running, waiting, held], [0, 0, 0]);
      assertEquals(total, rows.pages);
    }
  },
);
