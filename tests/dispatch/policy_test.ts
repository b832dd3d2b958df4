/** Choices of device, precision and rows, with their reasons. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { firstChunk, nextChunk } from "../../lib/dispatch/chunks.ts";
import { chooseContext } from "../../lib/dispatch/context.ts";
import { chooseDevice } from "../../lib/dispatch/device.ts";
import {
  chooseLogitsRows,
  choosePassRows,
  dispatchWork,
  type ModelWork,
  promptPasses,
  readTogether,
} from "../../lib/dispatch/pass_rows.ts";
import {
  chooseAttentionDtype,
  chooseCacheDtype,
  chooseMatmulDtype,
  headVector,
} from "../../lib/dispatch/precision.ts";
import {
  chooseLogitChunks,
  chooseSampling,
  chooseTopKParts,
} from "../../lib/dispatch/sampling.ts";
import { DeviceError } from "../../lib/errors.ts";
import { randomTest } from "../support/random.ts";

Deno.test("a cache is f16 where heads are whole 16-byte units", () => {
  for (const headDim of [8, 64, 80, 128]) {
    assertEquals([headVector(headDim), chooseCacheDtype(headDim).dtype], [
      4,
      "f16",
    ]);
  }
  for (const headDim of [2, 6, 20, 100]) {
    const { dtype, reason } = chooseCacheDtype(headDim);
    assertEquals([headVector(headDim), dtype], [1, "f32"]);
    assertEquals(
      reason,
      `a head of ${headDim} values does not fill whole 16-byte units`,
    );
  }
  assertEquals(chooseCacheDtype(128, { exact: true }), {
    dtype: "f32",
    reason: "precision f32 was asked for",
  });
});

Deno.test("matmuls are f16 on hardware that has it", () => {
  const on = (f16: boolean, software: boolean, exact?: boolean) => {
    const { dtype, reason } = chooseMatmulDtype({ f16, software }, exact);
    return `${dtype}: ${reason}`;
  };
  assertMatch(on(true, false), /^f16: faster/);
  assertEquals(on(false, false), "f32: the adapter lacks shader-f16");
  assertMatch(on(true, true), /^f32: .* software renderer/);
  assertEquals(on(true, false, true), "f32: precision f32 was asked for");
});

Deno.test("attention is f16 where its scores stay in range", () => {
  const given = {
    cacheDtype: "f16",
    headDim: 128,
    largestQ: 16,
    largestK: 8,
    room: 32768,
  };
  const on = (changes = {}) => {
    const { dtype, reason } = chooseAttentionDtype({ ...given, ...changes });
    return `${dtype}: ${reason}`;
  };
  assertMatch(on(), /^f16: /); // 16 × 8 × 128 is exactly 16,384
  assertMatch(on({ largestQ: 16.01 }), /^f32: q · k may reach 16394/);
  assertMatch(on({ largestQ: 32, headDim: 64 }), /^f16: /);
  assertMatch(on({ largestQ: NaN }), /^f32: /);
  assertMatch(on({ largestK: undefined }), /^f32: .* were not measured/);
  assertMatch(on({ cacheDtype: "f32" }), /^f32: the cache is f32/);
  assertMatch(on({ room: 16384 }), /^f32: .* needs 29184 bytes .* has 16384$/);
  assertMatch(on({ headDim: 80 }), /^f32: .* 64 or 128 values, not 80/);
});

Deno.test("rows of a pass fit a binding", () => {
  assertEquals(choosePassRows(4096, 2 ** 31), 2048);
  assertEquals(choosePassRows(4096, 2048 * 4096 * 4), 2048);
  assertEquals(choosePassRows(4096, 2048 * 4096 * 4 - 1), 1024);
  assertEquals(choosePassRows(4096, 1), 1);
  assertEquals(chooseLogitsRows(2048, 1000, 2 ** 31), 256);
  assertEquals(chooseLogitsRows(64, 1000, 2 ** 31), 64);
  assertEquals(chooseLogitsRows(2048, 1000, 8 * 1000 * 100), 100);
  assertEquals(chooseLogitsRows(2048, 1000, 8), 1);
});

Deno.test("a GPU is chosen by request, by kind, or by rate", () => {
  const hardware = { name: "Card", software: false };
  const renderer = { name: "Renderer", software: true };
  const rates = (gpu: number, cpu: number) => ({ k: 2, n: 3, gpu, cpu });
  assertEquals(chooseDevice("gpu", hardware), {
    gpu: true,
    choice: {
      what: "device",
      value: "gpu: Card",
      reason: "it was asked for",
    },
  });
  assertEquals(
    chooseDevice("gpu", renderer)?.choice.reason,
    "it was asked for, a software renderer",
  );
  assertEquals(chooseDevice("auto", hardware)?.gpu, true);
  assertEquals(chooseDevice("auto", renderer), undefined);
  const faster = chooseDevice("auto", renderer, rates(2, 1));
  assertEquals(faster?.gpu, true);
  assertEquals(
    faster?.choice.reason,
    "no GPU found; the software adapter reads weights at 2.0 GB/s, the CPU at 1.0",
  );
  assertEquals(chooseDevice("auto", renderer, rates(1, 1)), {
    gpu: false,
    choice: {
      what: "device",
      value: "cpu",
      reason:
        "no GPU found; the CPU reads weights at 1.0 GB/s, the software adapter at 1.0",
    },
  });
  assertEquals(chooseDevice("auto", renderer, { failure: "it broke" }), {
    gpu: false,
    choice: {
      what: "device",
      value: "cpu",
      reason:
        "only a software adapter is available, and measuring its speed failed: it broke",
    },
  });
});

Deno.test("chunks of steps grow up to a maximum, unless one took long", () => {
  assertEquals(firstChunk({ software: false }), 2);
  assertEquals(firstChunk({ software: true }), 1);
  const after = (steps: number, ms: number, readsAtOnce: boolean) =>
    nextChunk(steps, ms, { readsAtOnce, shared: true });
  assertEquals(after(2, 49, true), 4);
  assertEquals([after(2, 1, true), after(2, 30, true)], [8, 6]);
  assertEquals(after(2, 50, true), 2);
  assertEquals([after(16, 20, true), after(32, 20, true)], [32, 32]);
  assertEquals([after(32, 20, false), after(64, 20, false)], [64, 64]);
  assertEquals(nextChunk(32, 20, { readsAtOnce: true }), 64); // no other request waits
  const apart = (steps: number, ms: number) =>
    nextChunk(steps, ms, { readsAtOnce: false, readsApart: true });
  assertEquals([apart(2, 1), apart(4, 15.9), apart(4, 16)], [8, 8, 4]);
  assertEquals(apart(32, 1), 64);
});

Deno.test("a context is what was asked for, or the most that fits up to 4,096", () => {
  const of = (
    plain: number,
    requested?: number,
    bytes?: number,
    most = plain,
  ) => {
    const room = bytes && { bytes, perPosition: 10, whose: "a test allows" };
    const { tokens, choice } = chooseContext({
      name: "m",
      plain,
      most,
      requested,
      room: room || undefined,
    });
    return `${tokens}: ${choice.reason}`;
  };
  assertEquals(of(40960), "4096: the default; the checkpoint allows 40960");
  assertEquals(of(4096), "4096: the longest that the checkpoint allows");
  assertEquals(of(40960, 8000), "8000: it was asked for");
  const unasked = of(512, undefined, undefined, 2048);
  assertEquals(unasked, "512: the default; the checkpoint allows 2048");
  assertEquals(
    of(40960, undefined, 1009),
    "100: a test allows 1009 bytes of one layer's keys",
  );
  assertThrows(() => of(40960, 101, 1009), DeviceError, "takes 1010 bytes");
});

Deno.test("logits are split so that a thread holds at most 16", () => {
  assertEquals([1, 1024, 1025, 5003].map((v) => chooseLogitChunks(v, 256)), [
    1,
    1,
    2,
    8,
  ]);
  assertEquals(chooseLogitChunks(151_936, 256), 64);
  assertThrows(() => chooseLogitChunks(2 ** 18, 256), Error, "below 262144");
  assertEquals([1, 32, 33, 64].map(chooseTopKParts), [64, 64, 128, 128]);
});

Deno.test("sampling takes the fewest dispatches that are right for every row", () => {
  const vocab = 1000;
  const row = (temperature: number, topK = 0, topP = 1) => ({
    temperature,
    topK,
    topP,
  });
  const greedy = row(0, 5, 0.5), all = row(1), small = row(1, 20, 0.9);
  const path = (...rows: ReturnType<typeof row>[]) => {
    const { path, parts, reason } = chooseSampling(rows, vocab);
    return `${path} ${parts}: ${reason}`;
  };
  assertEquals(path(), "greedy 64: temperature 0: the highest logit");
  assertEquals(path(greedy), path());
  assertEquals(path(greedy, all), "draw 64: neither top-k nor top-p");
  assertEquals(path(row(1, vocab)), path(all));
  assertEquals(path(small, greedy), "top-k 64: top-k of 20: at most 64");
  assertEquals(path(small, row(1, 50)), "top-k 128: top-k of 50: at most 64");
  assertEquals(
    path(small, all),
    "histogram 64: top-k of 20 beside draws from the whole vocabulary",
  );
  assertEquals(
    path(all, row(1, 0, 0.9), greedy),
    "histogram 64: top-p of 0.9 over the vocabulary",
  );
  assertEquals(
    path(small, row(1, 65)),
    "histogram 64: top-k of 65: more than 64",
  );
  const more = chooseSampling([{ ...all, adjusts: true }, {
    ...all,
    logprobs: 0,
  }], vocab);
  assertEquals([more.adjusts, more.logprobs], [true, true]);
  const none = chooseSampling([all], vocab);
  assertEquals([none.adjusts, none.logprobs], [false, false]);
});

randomTest("short texts are read together, in order", (random) => {
  const work = { layers: 1, layer: 1, largest: 1, head: 1, attention: 1 };
  const page = 32, rows = 2 ** random.int(0, 11), room = 512;
  const parts: { begin: number; end: number; pages: number[] }[] = [];
  let fresh = 0;
  for (let left = random.int(1, 40); left > 0; left--) {
    const other = parts[random.int(0, Math.max(0, parts.length - 1))];
    const most = other ? Math.floor(other.end / page) : 0;
    const shared = other && random.int(0, 2) === 0 ? random.int(0, most) : 0;
    const pages = other ? other.pages.slice(0, shared) : [];
    const begin = pages.length * page;
    const end = Math.min(room, begin + random.int(1, 200));
    while (pages.length * page < end) pages.push(fresh++);
    if (begin < end) parts.push({ begin, end, pages });
  }
  const how = { rows, room, page, work, software: false };
  let at = 0;
  for (const { count, tokens } of readTogether(parts, how)) {
    const some = parts.slice(at, at += count);
    assert(some.length === count && count > 0);
    if (count === 1) continue; // passes of its own
    assert(tokens * 2 ** Math.ceil(Math.log2(count)) <= rows);
    const filled = some.flatMap(({ begin, pages }) =>
      pages.slice(begin / page)
    );
    for (const { begin, end, pages } of some) {
      assert(end - begin <= tokens && begin + tokens <= room);
      // What it begins with was read before.
      assert(!pages.slice(0, begin / page).some((at) => filled.includes(at)));
    }
  }
  assertEquals(at, parts.length);
  const many = Array.from({ length: 16 }, (_, i) => ({
    ...{ begin: 0, end: 31, pages: [i] },
  }));
  const all = { ...how, rows: 2048 };
  assertEquals(readTogether(many, all), [{ count: 16, tokens: 32 }]);
  const [first] = many, next = { begin: 32, end: 60, pages: [0, 16] };
  const counts = readTogether([first, next, many[1]], all);
  assertEquals(counts.map(({ count }) => count), [1, 2]);
});

Deno.test("a software renderer gets passes whose dispatches are short", () => {
  // Qwen3-0.6B
  const work: ModelWork = {
    layers: 28,
    layer: 15_728_640,
    largest: 6_291_456,
    head: 155_582_464,
    attention: 4096,
  };
  const passes = (length: number, software: boolean, all = false) =>
    promptPasses(length, 2048, work, { software, all, room: 2 ** 20 });
  assertEquals(passes(5000, false), [
    { begin: 0, tokens: 2048, padded: 2048 },
    { begin: 2048, tokens: 2048, padded: 2048 },
    { begin: 4096, tokens: 904, padded: 960 },
  ]);
  assertEquals(passes(5000, false, true).at(-1), {
    begin: 4096,
    tokens: 904,
    padded: 904,
  });
  assertEquals(passes(69, true), [
    { begin: 0, tokens: 32, padded: 32 },
    { begin: 32, tokens: 32, padded: 32 },
    { begin: 64, tokens: 5, padded: 6 },
  ]);
  for (const room of [904, 905, 960, 1000]) {
    const options = { software: false, all: false, room: 100 + room };
    let begin = 100;
    for (
      const pass of promptPasses(1004, 2048, work, { ...options, cached: 100 })
    ) {
      assertEquals(pass.begin, begin);
      assert(pass.padded >= pass.tokens && begin + pass.padded <= options.room);
      begin += pass.tokens;
    }
    assertEquals(begin, 1004);
  }
  assertEquals(passes(3, true, true).map(({ tokens }) => tokens), [1, 1, 1]);
  for (const [length, most] of [[40_000, 2 ** 28], [9, 2 ** 28]]) {
    let begin = 0;
    for (const pass of passes(length, true)) {
      assertEquals(pass.begin, begin);
      begin += pass.tokens;
      const attention = 2 * work.attention * begin;
      const each = Math.max(work.largest, attention) * pass.tokens;
      assert(each <= most || pass.tokens === 1, JSON.stringify(pass));
    }
    assertEquals(begin, length);
  }
  const pass = { begin: 100, tokens: 4 };
  const gemm = { kernel: "gemm", dims: { m: 4, n: 5, k: 6 } };
  assertEquals(dispatchWork(gemm, work, pass), 120);
  const attend = { kernel: "attendPrefillF16", dims: { m: 4 } };
  assertEquals(dispatchWork(attend, work, pass), 2 * 4096 * 4 * 104);
  const embed = { kernel: "embed", dims: { m: 4, n: 151_936, k: 1024 } };
  assertEquals(dispatchWork(embed, work, pass), 0);
});
