/** Work in slices, on a device whose time is made up. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { LONGEST_WAIT_MS } from "../../lib/dispatch/rests.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import { Pace } from "../../lib/webgpu/pace.ts";
import type { Plan } from "../../lib/webgpu/plan.ts";

/** A device that does `rate` units in a millisecond of a clock of its own. */
class ScriptedDevice implements Disposable {
  /** Units of each submission. */
  readonly submitted: number[] = [];
  /** How long each wait blocked. */
  readonly waits: number[] = [];
  /** Turns of the event loop between submissions. */
  turns = 0;
  #now = 0;
  #busyUntil = 0;
  readonly #clock = performance.now;

  constructor(
    readonly rate: number,
    readonly atOnce = true,
    readonly software = false,
  ) {
    performance.now = () => this.#now;
  }

  get gpu(): Gpu {
    return {
      readsAtOnce: this.atOnce,
      software: this.software,
      check() {},
      device: {
        queue: {
          onSubmittedWorkDone: () => {
            const ms = Math.max(0, this.#busyUntil - this.#now);
            this.waits.push(ms);
            this.#now += ms;
            return new Promise<void>((resolve) =>
              setTimeout(() => (this.turns++, resolve()), 0)
            );
          },
        },
      },
    } as unknown as Gpu;
  }

  /** A plan whose dispatches take `units` each. */
  plan(units: readonly number[], pipelines: readonly object[] = []): Plan {
    return {
      shaders: [],
      seal() {},
      dispatches: units.map((units, i) => ({
        units,
        pipeline: pipelines[i % pipelines.length],
      })),
      submit: (_state: unknown, begin: number, end: number) => {
        const sum = units.slice(begin, end).reduce((a, b) => a + b, 0);
        this.submitted.push(sum);
        const from = Math.max(this.#now, this.#busyUntil);
        this.#busyUntil = from + sum / this.rate;
      },
    } as unknown as Plan;
  }

  run(pace: Pace, units: readonly number[], signal?: AbortSignal) {
    const unitsOf = (dispatch: unknown) =>
      (dispatch as { units: number }).units;
    return pace.run(this.plan(units), { length: 0 }, unitsOf, signal);
  }

  [Symbol.dispose](): void {
    performance.now = this.#clock;
  }
}

const sum = (all: readonly number[]) => all.reduce((a, b) => a + b, 0);

Deno.test("a fast device gets short work at once", async () => {
  using device = new ScriptedDevice(1e6);
  const pace = new Pace(device.gpu, 1e6);
  await device.run(pace, Array(900).fill(1e5)); // 90 ms
  assertEquals(device.submitted, [8e5, 32e5, 128e5, 512e5, 220e5]);
  assertEquals(device.waits, []);
});

for (const atOnce of [true, false]) {
  Deno.test(`a slow device gets slices, and the thread turns (at once: ${atOnce})`, async () => {
    using device = new ScriptedDevice(1000, atOnce);
    const pace = new Pace(device.gpu, 1000);
    const units = Array.from({ length: 500 }, (_, i) => i % 10 ? 5000 : 0);
    await device.run(pace, units); // 2.25 s
    assertEquals(sum(device.submitted), sum(units));
    assert(device.waits.length >= 20, `${device.waits}`);
    const longest = Math.max(...device.waits);
    assert(longest <= 1.1 * LONGEST_WAIT_MS, `${longest} ms`);
    assert(device.turns >= device.waits.length - 1, `${device.turns} turns`);
  });
}

Deno.test("a guessed rate is replaced by a measured one", async () => {
  for (const guess of [10, 3000]) {
    using device = new ScriptedDevice(1000);
    const pace = new Pace(device.gpu, guess);
    await device.run(pace, Array(2000).fill(1000)); // 2 s
    const ratio = pace.rate / 1000;
    assert(ratio > 0.9 && ratio < 1.3, `${guess}: ${pace.rate}`);
    assertEquals(pace.msOf(pace.rate * 7), 7);
    assert(Math.max(...device.waits.slice(2)) <= 1.3 * LONGEST_WAIT_MS);
  }
});

Deno.test("work that is longer than a slice goes alone", async () => {
  using device = new ScriptedDevice(1000);
  const pace = new Pace(device.gpu, 1000);
  await device.run(pace, [10, 3e5, 10, 3e5, 10]);
  assertEquals(device.submitted, [300010, 300010, 10]);
});

Deno.test("an abort acts before the next slice but one", async () => {
  for (const atOnce of [true, false]) {
    using device = new ScriptedDevice(1000, atOnce);
    const pace = new Pace(device.gpu, 1000), abort = new AbortController();
    const running = device.run(pace, Array(500).fill(5000), abort.signal);
    setTimeout(() => abort.abort(new Error("enough")), 0);
    await assertRejects(() => running, Error, "enough");
    assert(device.submitted.length <= 8, `${device.submitted}`);
    const before = device.submitted.length;
    await assertRejects(
      () => device.run(pace, [1, 2], AbortSignal.abort(new Error("never"))),
      Error,
      "never",
    );
    assert(device.submitted.length <= before + 1);
  }
});

Deno.test("a queue is empty once something else has waited for it", async () => {
  using device = new ScriptedDevice(1000);
  const pace = new Pace(device.gpu, 1000);
  for (let i = 0; i < 10; i++) {
    await device.run(pace, [9e4]);
    pace.waited();
  }
  assertEquals(device.waits, []);
});

Deno.test("a software renderer compiles one shader in a slice", async () => {
  using device = new ScriptedDevice(1e6, true, true);
  const pace = new Pace(device.gpu, 1e6);
  const pipelines = [{}, {}, {}];
  const units = Array(9).fill(1);
  const run = async () => {
    const plan = device.plan(units, pipelines);
    const first = pace.isFirst(plan);
    await pace.run(plan, { length: 0 }, () => 1);
    return [first, device.submitted.splice(0)];
  };
  assertEquals(await run(), [true, [1, 1, 1, 6]]);
  assertEquals(await run(), [false, [8, 1]]);

  const aborter = new AbortController();
  const plan = device.plan(units, [{}, {}, {}]);
  const running = pace.run(plan, { length: 0 }, () => 1, aborter.signal);
  setTimeout(() => aborter.abort(), 0);
  await assertRejects(() => running);
  assert(device.submitted.length < 4, `${device.submitted}`);
});

Deno.test("rates and units that are no numbers are refused, which no slice would fit", async () => {
  using device = new ScriptedDevice(1000);
  for (const rate of [NaN, 0, -1, Infinity]) {
    assertThrows(
      () => new Pace(device.gpu, rate),
      RangeError,
      `the rate is ${rate} units per millisecond, must be finite and above 0`,
    );
  }
  const pace = new Pace(device.gpu, 1000);
  assertThrows(() => pace.rate = NaN, RangeError, "the rate is NaN units");
  for (const units of [NaN, -1, Infinity]) {
    const message = `a slice has ${units} units, must be a finite number`;
    const running = () => device.run(pace, [10, units]);
    await assertRejects(running, RangeError, message);
    await assertRejects(() => pace.submitted(units), RangeError, message);
  }
  for (const [units, ms] of [[NaN, 1], [1, NaN], [0, 1], [1, Infinity]]) {
    assertThrows(
      () => pace.measured(units, ms),
      RangeError,
      `${units} units took ${ms} ms, both must be finite`,
    );
  }
  assertEquals(pace.rate, 1000);
  assertEquals(device.submitted, []);
});
