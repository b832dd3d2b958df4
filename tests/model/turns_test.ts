/** Uses of a model at the same time, and what is left of it after dispose. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { DeviceError, loadQwen3, type Qwen3, type Run } from "../../mod.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { Turns } from "../../lib/model/turns.ts";
import { eachDevice, gpuTest } from "../support/gpu.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

const PROMPT = "Once upon a time";
const GREEDY = { temperature: 0, maxTokens: 24 };
const DISPOSED = "Cannot generate: the model was disposed";
const LOGITS_DISPOSED = "Cannot compute logits: the model was disposed";

/** Reads a run to its end. */
async function read(run: Run): Promise<string> {
  let text = "";
  for await (const piece of run) text += piece.text;
  return text;
}

/** Asserts that nothing can be computed, and that known properties can be read. */
async function assertDisposed(qwen: Qwen3): Promise<void> {
  assertThrows(() => qwen.generate(PROMPT), Error, DISPOSED);
  assertThrows(() => qwen.generate([1, 2]), Error, DISPOSED);
  assertThrows(() => qwen.generateBatch([PROMPT, "A"]), Error, DISPOSED);
  assertThrows(() => qwen.generateBatch([]), Error, DISPOSED);
  await assertRejects(() => qwen.logits([1]), Error, LOGITS_DISPOSED);
  await assertRejects(
    () => qwen.logits([1], { signal: AbortSignal.abort() }),
    Error,
    LOGITS_DISPOSED,
  );
  assertThrows(
    () => qwen.tokenizer,
    Error,
    "Cannot use the tokenizer: the model was disposed",
  );
  assertThrows(
    () => qwen.runner,
    Error,
    "Cannot use the runner: the model was disposed",
  );
  assertEquals(qwen.config.vocabSize, 2048);
  assertEquals(qwen.context, 1024);
  assertEquals(qwen.fallbacks, []);
  assertEquals(qwen.hasTokenizer, true);
  assert(qwen.device.adapter.length > 2 && qwen.device.choices.length > 2);
}

eachDevice("after dispose nothing runs", async (device) => {
  const qwen = await loadQwen3(undefined, { device });
  const { runner } = qwen;
  const before = qwen.generate(PROMPT, GREEDY);
  const batch = qwen.generateBatch([PROMPT, "A dog"], GREEDY);
  qwen[Symbol.dispose]();
  qwen[Symbol.dispose]();
  await assertDisposed(qwen);
  await assertRejects(() => read(before), Error, DISPOSED);
  await assertRejects(() => Array.fromAsync(batch), Error, DISPOSED);
  assertEquals(before.finishReason, "aborted");
  assertEquals(before.stats.tokens, 0);
  // A runner that was kept throws the same error.
  await assertRejects(() => runner.logits([1], {}), Error, LOGITS_DISPOSED);
  const { sampling } = before.stats;
  await assertRejects(
    () => Array.fromAsync(runner.generate([[1]], sampling, 4)),
    Error,
    DISPOSED,
  );
});

eachDevice("dispose between pieces ends a run", async (device) => {
  const qwen = await loadQwen3(undefined, { device });
  const run = qwen.generate(PROMPT, GREEDY);
  await assertRejects(
    async () => {
      for await (const _ of run) {
        if (run.tokenIds.length === 3) qwen[Symbol.dispose]();
      }
    },
    Error,
    DISPOSED,
  );
  assertEquals([run.finishReason, run.tokenIds.length], ["aborted", 3]);
  await assertDisposed(qwen);
});

eachDevice("dispose while a run waits ends it", async (device) => {
  for (const batch of [false, true]) {
    for (const first of [true, false]) { // before or after the first token
      const qwen = await loadQwen3(undefined, { device });
      const { runner } = qwen;
      const run = batch
        ? qwen.generateBatch([PROMPT, "A dog"], GREEDY)
        : qwen.generate(PROMPT, GREEDY);
      const pieces = run[Symbol.asyncIterator]();
      if (!first) await pieces.next();
      // More than the pieces of any one chunk, so that the last waits for the model.
      const waiting = Array.from({ length: 24 }, () => pieces.next());
      qwen[Symbol.dispose]();
      await assertRejects(() => Promise.all(waiting), Error, DISPOSED);
      await Promise.allSettled(waiting);
      assertEquals((await pieces.next()).done, true);
      await assertDisposed(qwen);
      if (runner instanceof GpuRunner) {
        await runner.gpu.device.lost;
        assertEquals(runner.gpu.allocated, 0);
      }
    }
  }
});

eachDevice("dispose while logits are computed ends that", async (device) => {
  for (const all of [false, true]) {
    const qwen = await loadQwen3(undefined, { device });
    const ids = Array.from({ length: 600 }, (_, i) => i);
    const logits = qwen.logits(ids, { all });
    qwen[Symbol.dispose]();
    await assertRejects(() => logits, Error, LOGITS_DISPOSED);
    await assertDisposed(qwen);
  }
});

gpuTest("dispose while a run moves to the CPU ends the run", async () => {
  const { gpu, devices } = wrapGpu(HARDWARE);
  let moving = false, reads = 0;
  const qwen: Qwen3 = await loadQwen3(undefined, {
    gpu,
    onProgress: () => {
      if (moving && ++reads === 3) qwen[Symbol.dispose]();
    },
  });
  moving = true;
  devices[0].destroy();
  const run = qwen.generate(PROMPT, GREEDY);
  await assertRejects(() => read(run), Error, DISPOSED);
  assertEquals(reads, 3); // the load ended too
  await assertDisposed(qwen);
});

gpuTest(
  "a move to the CPU that was aborted is made by the next run",
  async () => {
    const { gpu, devices } = wrapGpu(HARDWARE);
    const abort = new AbortController();
    let moving = false;
    using qwen = await loadQwen3(undefined, {
      gpu,
      onProgress: () => moving && abort.abort(),
    });
    moving = true;
    devices[0].destroy();
    const run = qwen.generate(PROMPT, { ...GREEDY, signal: abort.signal });
    assertEquals([await read(run), run.finishReason], ["", "aborted"]);
    assertEquals(qwen.device.kind, "gpu");
    await assertRejects(
      () => qwen.logits([1], { signal: AbortSignal.abort(new Error("never")) }),
      Error,
      "never",
    );
    assertEquals((await qwen.logits([1])).length, 2048);
    assertEquals(qwen.device.kind, "cpu");
    assertEquals(
      (await read(qwen.generate(PROMPT, GREEDY))).slice(0, 7),
      ", there",
    );
  },
);

eachDevice("a forgotten iterator blocks nothing", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const whole = await read(qwen.generate(PROMPT, GREEDY));
  const forgotten = qwen.generate(PROMPT, GREEDY);
  const pieces = forgotten[Symbol.asyncIterator]();
  await pieces.next();
  assertEquals(await read(qwen.generate(PROMPT, GREEDY)), whole);
  // It goes on where it was.
  while (!(await pieces.next()).done);
  assertEquals([forgotten.text, forgotten.finishReason], [whole, "length"]);
  const batch = qwen.generateBatch([PROMPT, "A dog"], GREEDY);
  await batch[Symbol.asyncIterator]().next();
  assertEquals((await qwen.logits([1])).length, 2048);
  const left = qwen.generate(PROMPT, GREEDY)[Symbol.asyncIterator]();
  await left.next();
  const again = qwen.generate(PROMPT, GREEDY);
  assertEquals(await read(again), whole);
  await left.return();
  assertEquals(await read(qwen.generate(PROMPT, GREEDY)), whole);
});

eachDevice("a run inside another's loop leaves it alone", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const whole = await read(qwen.generate(PROMPT, GREEDY));
  const outer = qwen.generate(PROMPT, GREEDY);
  for await (const _ of outer) {
    if (outer.tokenIds.length % 8 > 0) continue;
    assertEquals(await read(qwen.generate(PROMPT, GREEDY)), whole);
    assertEquals((await qwen.logits([1])).length, 2048);
  }
  assertEquals(outer.text, whole);
});

eachDevice("what is asked for while a run waits is done", async (device) => {
  using qwen = await loadQwen3(undefined, { device, precision: "f32" });
  const whole = await read(qwen.generate(PROMPT, GREEDY));
  const exact = await qwen.logits([1]);
  const first = read(qwen.generate(PROMPT, GREEDY));
  const second = read(qwen.generate(PROMPT, GREEDY));
  const logits = qwen.logits([1]);
  const [vector] = await qwen.embed([[1, 2, 3]]);
  assertEquals(vector.length, qwen.config.hiddenSize);
  assertEquals([await first, await second], [whole, whole]);
  assertEquals(await logits, exact);
});

eachDevice(
  "an abort before the first token has no negative times",
  async (device) => {
    using qwen = await loadQwen3(undefined, { device });
    const abort = new AbortController();
    const runs = [
      qwen.generate(PROMPT, { signal: AbortSignal.abort() }),
      qwen.generate(PROMPT, { signal: abort.signal }),
      qwen.generateBatch([PROMPT, "A"], { maxTokens: 2, signal: abort.signal }),
    ];
    for (const run of runs) {
      const pieces = Array.fromAsync<unknown>(run);
      abort.abort();
      assertEquals(await pieces, []);
      const { stats } = run;
      assertEquals(
        [
          stats.tokens,
          stats.timeToFirstTokenMs,
          stats.prefillTokensPerSecond,
          stats.decodeTokensPerSecond,
        ],
        [0, 0, 0, 0],
      );
      assert(
        stats.summary.endsWith(" prompt tokens, no tokens generated"),
        stats.summary,
      );
    }
    const reason = new Error("enough");
    for (const all of [false, true]) {
      await assertRejects(
        () => qwen.logits([1, 2], { all, signal: AbortSignal.abort(reason) }),
        Error,
        "enough",
      );
    }
  },
);

eachDevice("loading ends with the reason of its signal", async (device) => {
  await assertRejects(
    () => loadQwen3(undefined, { device, signal: AbortSignal.abort() }),
    DOMException,
    "aborted",
  );
  const abort = new AbortController();
  let calls = 0;
  await assertRejects(
    () =>
      loadQwen3(undefined, {
        device,
        signal: abort.signal,
        onProgress: () => ++calls === 4 && abort.abort(new Error("enough")),
      }),
    Error,
    "enough",
  );
  assertEquals(calls, 4);
});

/** Values of a run that is alone, with what its work did. */
function lone(turns: Turns, name: string, order: string[], steady = false) {
  return turns.alone(turns.begin("test"), async function* () {
    try {
      for (let i = 0;; i++) {
        order.push(`${name}${i}`);
        yield await Promise.resolve(i);
      }
    } finally {
      order.push(`${name} ended`);
    }
  }, steady);
}

Deno.test("a turn that fails makes room for the next", async () => {
  const turns = new Turns();
  const failing = turns.alone(turns.begin("test"), async function* () {
    yield await Promise.resolve(1);
    throw new DeviceError("gone");
  }, true);
  await assertRejects(() => Array.fromAsync(failing), DeviceError, "gone");
  assert(turns.isFree);
  await assertRejects(
    () => turns.once("test", undefined, () => Promise.reject(new Error("no"))),
    Error,
    "no",
  );
  assertEquals(
    await turns.once("test", undefined, () => Promise.resolve(2)),
    2,
  );
});

Deno.test("a run that begins while another ends is known to be alone", async () => {
  const turns = new Turns(), order: string[] = [];
  const ended = Promise.withResolvers<void>();
  const ending = turns.alone(turns.begin("test"), async function* () {
    try {
      yield await Promise.resolve(1);
    } finally {
      await ended.promise;
    }
  }, false);
  await ending.next();
  const over = ending.return(true);
  await new Promise((resolve) => setTimeout(resolve, 0)); // it is at its end
  const next = lone(turns, "next", order, true), first = next.next();
  ended.resolve();
  await over;
  assertEquals(await first, { done: false, value: 0 });
  assert(!turns.isFree);
  turns.oust();
  assertEquals<unknown>(await next.next(), { done: true, value: false });
  assertEquals(order, ["next0", "next ended"]);
});

Deno.test("what uses the cache ousts a run before it begins", async () => {
  const turns = new Turns(), order: string[] = [];
  const ousted = { done: true, value: false };
  const step = (name: string) => {
    order.push(name);
    return Promise.resolve(0);
  };
  const a = lone(turns, "a", order);
  await a.next();
  assert(turns.isFree);
  // Between two values it stays for what does not need the cache.
  await turns.exclusive("test", () => step("step"));
  await a.next();
  const waiting = a.next();
  assert(!turns.isFree);
  const once = turns.once("test", undefined, () => step("once"));
  assertEquals((await waiting).value, 2);
  await once;
  assertEquals<unknown>(await a.next(), ousted);
  // One that is idle gives way to the next run, even if that is left at once.
  const b = lone(turns, "b", order), c = lone(turns, "c", order, true);
  await b.next();
  await c.next();
  assert(!turns.isFree);
  const d = lone(turns, "d", order);
  await Promise.all([d.next(), d.return(false), b.return(false)]);
  await turns.together("test", () => step("together"));
  assertEquals<unknown>(await c.next(), ousted);
  assertEquals(
    order.join(),
    "a0,step,a1,a2,a ended,once,b0,b ended,c0,c ended,d0,d ended,together",
  );
});

Deno.test("memory is freed only when no work is running", async () => {
  const order: string[] = [];
  const turns = new Turns();
  const values = turns.alone(turns.begin("test"), async function* (signal) {
    try {
      yield 1;
      await new Promise((resolve) => setTimeout(resolve, 5));
      signal.throwIfAborted();
    } finally {
      order.push("stopped");
    }
  }, false);
  await values.next();
  const waiting = values.next();
  turns.dispose(() => order.push("freed"));
  turns.dispose(() => order.push("freed twice"));
  await assertRejects(
    () => waiting,
    Error,
    "Cannot test: the model was disposed",
  );
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals(order, ["stopped", "freed"]);
});
