import { assert, assertEquals } from "@std/assert";
import { paceTicks } from "../../lib/webgpu/ticks.ts";

type Tick = () => void;

const scope = globalThis as unknown as { setImmediate(tick: Tick): unknown };

/** An event loop whose turns take 0.01 ms, and whose timers are on time. */
class Loop implements Disposable {
  now = 0;
  #turns: Tick[] = [];
  #timers = new Map<number, { due: number; tick: Tick }>();
  #restore: () => void;

  constructor() {
    const { setTimeout, clearTimeout } = globalThis, { now } = performance;
    const { setImmediate } = scope;
    this.#restore = () => {
      Object.assign(globalThis, { setTimeout, clearTimeout, setImmediate });
      performance.now = now;
    };
    let timers = 0;
    Object.assign(globalThis, {
      setImmediate: (tick: Tick) => void this.#turns.push(tick),
      setTimeout: (tick: Tick, ms: number) => {
        this.#timers.set(++timers, { due: this.now + ms, tick });
        return timers;
      },
      clearTimeout: (id: number) => void this.#timers.delete(id),
    });
    performance.now = () => this.now;
  }

  /** Turns until `time`, or until nothing is left to do. */
  run(time = Infinity): void {
    for (;;) {
      const [timer] = [...this.#timers].sort(([, a], [, b]) => a.due - b.due);
      const next = this.#turns.length > 0
        ? this.now + 0.01
        : Math.max(this.now, timer?.[1].due ?? Infinity);
      if (next > time || next === Infinity) break;
      this.now = next;
      const turns = this.#turns.splice(0);
      if (timer && timer[1].due <= this.now) {
        this.#timers.delete(timer[0]);
        timer[1].tick();
      }
      for (const tick of turns) tick();
    }
    if (time < Infinity) this.now = time;
  }

  [Symbol.dispose](): void {
    this.#restore();
  }
}

/** Calls that wait, of an interface whose looks are paced. */
class Queue {
  /** When Dawn looked for what is done: in every turn, while somebody waits. */
  readonly looks: number[] = [];
  /** When calls settled, by how long they took. */
  readonly settled = new Map<number, number>();
  #waiting: { due: number; ms: number }[] = [];

  constructor(readonly loop: Loop) {}

  /** Settles at the first look after `ms`. */
  onSubmittedWorkDone(ms: number): void {
    this.#waiting.push({ due: this.loop.now + ms, ms });
    if (this.#waiting.length === 1) scope.setImmediate(this.#look);
  }

  #look = () => {
    const { now } = this.loop;
    this.looks.push(now);
    for (const { due, ms } of this.#waiting) {
      if (due <= now) this.settled.set(ms, now);
    }
    this.#waiting = this.#waiting.filter(({ due }) => due > now);
    if (this.#waiting.length > 0) scope.setImmediate(this.#look);
  };
}

/** Each test has an interface of its own, because pacing it changes it. */
function paced(loop: Loop) {
  class Own extends Queue {
    override onSubmittedWorkDone(ms: number): void {
      super.onSubmittedWorkDone(ms);
    }
  }
  paceTicks({ GPUQueue: Own });
  return new Own(loop);
}

Deno.test("the longer a call takes, the less often Dawn looks", () => {
  using loop = new Loop();
  const own = scope.setImmediate, queue = paced(loop);
  queue.onSubmittedWorkDone(1000);
  assertEquals(scope.setImmediate, own); // as it was for others
  loop.run();
  const { looks } = queue;
  assert(looks[0] < 0.1, `${looks[0]}`);
  // Every 0.25 ms up to 4 ms, then 1/16 later than the last, from 80 ms on every 5.
  const pauses = looks.slice(1).map((time, i) => time - looks[i]);
  for (const [i, pause] of pauses.entries()) {
    const wanted = Math.min(5, Math.max(0.25, looks[i] / 16));
    assert(pause >= wanted && pause < wanted + 0.1, `${looks[i]}: ${pause}`);
  }
  assert(queue.settled.get(1000)! <= 1005.1);
});

Deno.test("what is done is seen in the next turn", () => {
  using loop = new Loop();
  const queue = paced(loop);
  queue.onSubmittedWorkDone(0);
  loop.run();
  assertEquals(queue.looks.length, 1);
  assert(loop.now < 0.1, `${loop.now}`);
});

Deno.test("a call does not wait for the next look of a longer one", () => {
  using loop = new Loop();
  const queue = paced(loop);
  queue.onSubmittedWorkDone(2000);
  // Apart enough that looks are 5 ms apart again, and at other times between two.
  const times = Array.from({ length: 8 }, (_, i) => 200 + 200.7 * i);
  for (const time of times) {
    loop.run(time);
    queue.onSubmittedWorkDone(time / 1e6); // done at once
  }
  loop.run();
  for (const time of times) {
    const took = queue.settled.get(time / 1e6)! - time;
    assert(took < 0.35, `${took} ms after ${time}`);
  }
  assert(queue.settled.get(2000)! <= 2005.1);
});
