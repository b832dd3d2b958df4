/** Who may generate, and who waits. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { ApiError } from "../../lib/server/errors.ts";
import { Queue } from "../../lib/server/queue.ts";
import { randomTest } from "../support/random.ts";

const NEVER = new AbortController().signal;

/** Whether a place has its turn by now. */
async function hasTurn(turn: Promise<void>): Promise<boolean> {
  let has = false;
  turn.then(() => has = true, () => {});
  await new Promise((done) => setTimeout(done));
  return has;
}

Deno.test("places have their turn in the order in which they came", async () => {
  const queue = new Queue(2, 3);
  const places = [...queue.take(3), ...queue.take(2)];
  const turns = places.map((place) => place.turn(NEVER));
  const have = async () => (await Promise.all(turns.map(hasTurn))).join(" ");
  assertEquals(await have(), "true true false false false");
  assertEquals([queue.running, queue.waiting], [2, 3]);
  places[1][Symbol.dispose]();
  places[1][Symbol.dispose](); // has no slot to give up any more
  assertEquals(await have(), "true true true false false");
  places[3][Symbol.dispose](); // gives up waiting
  places[0][Symbol.dispose]();
  assertEquals(await have(), "true true true false true");
  assertEquals([queue.running, queue.waiting], [2, 0]);
});

Deno.test("too many are refused, with the time after which to come back", () => {
  const queue = new Queue(1, 2);
  const never = assertThrows(() => queue.take(4), ApiError);
  assertEquals([never.status, never.details.code], [400, "too_many_texts"]);
  queue.take(2);
  const later = assertThrows(() => queue.take(2), ApiError);
  assertEquals([later.status, later.details.code], [
    429,
    "rate_limit_exceeded",
  ]);
  assert(later.details.retryAfter! >= 1);
  queue.take(1);
  assertThrows(() => queue.take(1), ApiError);
});

Deno.test("a request that has begun gets all its texts at the end", async () => {
  const queue = new Queue(1, 4);
  const [first, second] = queue.take(2), [other] = queue.take(1);
  const refused = assertRejects(() => other.turn(NEVER), ApiError, "stopping");
  queue.end();
  await refused;
  const turn = second.turn(NEVER);
  assert(!await hasTurn(turn));
  first[Symbol.dispose]();
  assert(await hasTurn(turn));
});

Deno.test("an abort ends the waiting, and so does the end of the queue", async () => {
  const queue = new Queue(1, 4);
  const [[first], [second, third]] = [queue.take(1), queue.take(2)];
  const gone = new AbortController(), reason = new Error("gone");
  const turn = assertRejects(() => second.turn(gone.signal), Error, "gone");
  gone.abort(reason);
  await turn;
  await assertRejects(() => third.turn(AbortSignal.abort(reason)), Error);
  const waits = assertRejects(() => third.turn(NEVER), ApiError, "stopping");
  queue.end();
  await waits;
  await first.turn(NEVER); // keeps its slot
  assertEquals(assertThrows(() => queue.take(1), ApiError).status, 503);
});

randomTest("no slot is lost, and none is given twice", async (random) => {
  const queue = new Queue(3, 5), held = new Set<Disposable>();
  const below = (n: number) => Math.floor((random.next() + 1) / 2 * n);
  for (let step = 0; step < 500; step++) {
    if (below(2) === 0) {
      try {
        for (const place of queue.take(1 + below(3))) held.add(place);
      } catch (error) {
        assert(error instanceof ApiError && error.status === 429, `${error}`);
        assert(held.size > 5, `refused at ${held.size}`);
      }
    } else {
      const place = [...held][below(held.size)];
      place?.[Symbol.dispose]();
      held.delete(place);
    }
    assertEquals(queue.running + queue.waiting, held.size);
    assertEquals(queue.running, Math.min(3, held.size));
  }
  await Promise.resolve();
});
