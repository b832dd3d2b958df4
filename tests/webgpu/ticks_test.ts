import { assert, assertEquals } from "@std/assert";
import { paceTicks } from "../../lib/webgpu/ticks.ts";

const scope = globalThis as unknown as {
  setImmediate(tick: () => void): unknown;
};

/** Looks for what is done as Dawn does: in every turn, while somebody waits. */
class Looking {
  looks = 0;
  #waiting: { due: number; settle: () => void }[] = [];

  /** Settles at the first look after `ms`. */
  wait(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push({ due: performance.now() + ms, settle: resolve });
    if (this.#waiting.length === 1) scope.setImmediate(this.#look);
    return promise;
  }

  #look = () => {
    this.looks++;
    const done = this.#waiting.filter(({ due }) => due <= performance.now());
    this.#waiting = this.#waiting.filter((one) => !done.includes(one));
    for (const { settle } of done) settle();
    if (this.#waiting.length > 0) scope.setImmediate(this.#look);
  };
}

/** Calls that wait, of an interface whose looks are paced. */
function paced() {
  const looking = new Looking();
  class Queue {
    onSubmittedWorkDone(ms: number) {
      return looking.wait(ms);
    }
  }
  paceTicks({ GPUQueue: Queue });
  return { looking, queue: new Queue() };
}

Deno.test("the longer a call takes, the less often Dawn looks", async () => {
  const { looking, queue } = paced(), own = scope.setImmediate;
  const began = performance.now();
  await queue.onSubmittedWorkDone(100);
  const took = performance.now() - began;
  assert(took >= 100);
  // One at once, 16 within 4 ms at most, then each 1/16 later, at most 5 ms.
  const most = 18 + Math.log(Math.min(took, 80) / 4) / Math.log(17 / 16) +
    took / 5;
  assert(looking.looks >= 2 && looking.looks <= most, `${looking.looks}`);
  assertEquals(scope.setImmediate, own); // as it was for others
});

Deno.test("what is done is seen in the next turn", async () => {
  const { looking, queue } = paced();
  await queue.onSubmittedWorkDone(0);
  assertEquals(looking.looks, 1);
});

Deno.test("a call does not wait for the next look of a longer one", async () => {
  const { looking, queue } = paced();
  const long = queue.onSubmittedWorkDone(200);
  await new Promise((resolve) => setTimeout(resolve, 120));
  const before = looking.looks, done = { long: false };
  long.then(() => done.long = true);
  for (let i = 0; i < 3; i++) await queue.onSubmittedWorkDone(0);
  // Each got a look of its own.
  assert(looking.looks >= before + 3, `${looking.looks - before}`);
  await long;
  assert(done.long);
});
