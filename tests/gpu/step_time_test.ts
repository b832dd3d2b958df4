import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { StepTime, type Submitted } from "../../lib/gpu/step_time.ts";

/** A device whose steps take so long, and a host with a clock of its own. */
class Machine {
  now = 1000;
  #free = 0; // when the device has done all

  constructor(public stepMs: number) {}

  submit(steps: number): Submitted {
    const piece = { at: this.now, steps };
    this.#free = Math.max(this.#free, this.now) + steps * this.stepMs;
    return piece;
  }

  /** Runs steps in pieces as lib/gpu/rows.ts does, asleep as long as `time` says. */
  chunk(
    time: StepTime,
    sizes: readonly number[],
    { late = 0, behindMs = 0 } = {},
  ): number {
    this.#free = Math.max(this.#free, this.now) + behindMs;
    const began = this.now, pieces: Submitted[] = [];
    const sleep = (ms: number) => {
      if (ms > 0) this.now += Math.min(ms + late, 100);
    };
    for (const steps of sizes) {
      sleep(time.left(pieces, this.now) - 16);
      pieces.push(this.submit(steps));
    }
    sleep(time.left(pieces, this.now) - 5);
    const called = this.now;
    this.now = Math.max(this.now + 0.1, this.#free);
    const behind = behindMs > 0;
    time.arrived(pieces, { called, now: this.now, behind });
    return this.now - began;
  }
}

const PIECES = [3, 3, 3, 3, 3, 3, 3, 3];

Deno.test("the time of a step is learned, but not from the first steps", () => {
  const machine = new Machine(1.6), time = new StepTime();
  machine.stepMs = 900; // compiles
  machine.chunk(time, [2]);
  assertEquals(time.ms, 0);
  machine.stepMs = 1.6;
  machine.chunk(time, [3, 1]);
  assertAlmostEquals(time.ms, 1.6, 0.1);
  assertAlmostEquals(machine.chunk(time, PIECES), 24 * 1.6, 1e-6);
  // A step alone says nothing: most of it may be the read.
  machine.stepMs = 7;
  machine.chunk(time, [1]);
  assertAlmostEquals(time.ms, 1.6, 0.1);
});

Deno.test("a time that is too long does not confirm itself", () => {
  for (const stepMs of [0.3, 1.6, 10, 60]) {
    for (const late of [0, 3, 7]) {
      const machine = new Machine(stepMs), time = new StepTime();
      machine.chunk(time, [2]);
      machine.stepMs = 50 * stepMs; // something else had the device
      machine.chunk(time, [3, 1]);
      assert(time.ms > 40 * stepMs);
      machine.stepMs = stepMs;
      let chunks = 0;
      while (machine.chunk(time, PIECES, { late }) > 24 * stepMs + late + 5) {
        assert(++chunks < 12, `${stepMs} ms, ${late} late: ${time.ms}`);
      }
    }
  }
});

Deno.test("steps behind prompts say little: they only shorten the time", () => {
  const machine = new Machine(1.6), time = new StepTime();
  const behindMs = 300;
  machine.chunk(time, [2], { behindMs });
  machine.chunk(time, [3, 1], { behindMs });
  assertEquals(time.ms, 5);
  machine.chunk(time, PIECES, { behindMs });
  assert(time.ms <= 5, `${time.ms}`);
  for (let i = 0; i < 3; i++) machine.chunk(time, PIECES);
  assertAlmostEquals(time.ms, 1.6, 0.1);
  machine.chunk(time, [3, 3], { behindMs });
  assert(time.ms <= 1.7, `${time.ms}`);
});

Deno.test("what is left to do takes idle times into account", () => {
  const machine = new Machine(2), time = new StepTime();
  machine.chunk(time, [1]);
  assertEquals(time.left([{ at: 0, steps: 3 }], 1), 0); // nothing is known
  machine.chunk(time, [3, 3]);
  assertAlmostEquals(time.ms, 2, 1e-9);
  const pieces = [{ at: 0, steps: 3 }, { at: 2, steps: 3 }];
  assertAlmostEquals(time.left(pieces, 4), 8, 1e-9);
  assertAlmostEquals(time.left([...pieces, { at: 50, steps: 1 }], 51), 1, 1e-9);
  assertEquals(time.left(pieces, 100), 0);
});
