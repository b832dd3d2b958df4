/** Conversations in files. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type Chat,
  loadQwen3,
  type Qwen3,
  type Qwen3Options,
} from "../../mod.ts";
import { eachDevice } from "../support/gpu.ts";
import { prompted } from "../support/prompted.ts";
import { copyCheckpoint } from "../support/temp_checkpoint.ts";
import { DEFAULT_MODEL } from "../../lib/load.ts";
import { Random } from "../../lib/check/reference.ts";

const GREEDY = { temperature: 0, maxTokens: 8 };
const story = (options: Qwen3Options = { device: "cpu" }) =>
  loadQwen3(undefined, options);

async function tempFile() {
  const folder = await Deno.makeTempDir();
  return {
    path: `${folder}/chat.qwen`,
    folder,
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

async function begun(qwen: Qwen3): Promise<Chat> {
  const chat = qwen.chat({ ...GREEDY, system: "A tale." });
  await chat.send("Once upon a time");
  await chat.send("She had a cat");
  return chat;
}

async function bytesOf(chat: Chat, cache = true): Promise<Uint8Array> {
  const { readable, writable } = new TransformStream<Uint8Array>();
  const [, bytes] = await Promise.all([
    chat.save(writable, { cache }),
    new Response(readable).bytes(),
  ]);
  return bytes;
}

/** The bytes in pieces of some length, which cut everything. */
function streamOf(bytes: Uint8Array, piece = 1000): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at += piece));
    },
  });
}

for (const kv of ["auto", "f32", "q8_0"] as const) {
  eachDevice(`a saved chat resumes, kv ${kv}`, async (device) => {
    await using file = await tempFile();
    using qwen = await story({ device, kv });
    const chat = await begun(qwen);
    const { tokens } = chat;
    const saved = await chat.save(file.path);
    // All that has run; the last token of the reply has not.
    assertEquals(saved.cachedTokens, tokens - 1);
    assertEquals((await Deno.stat(file.path)).size, saved.bytes);
    assertEquals((await Array.fromAsync(Deno.readDir(file.folder))).length, 1);
    const expected = await chat.send("It was raining");

    // Another model, with a context of another length.
    using other = await story({ device, kv, context: 300 });
    const resumed = other.chat(GREEDY);
    assertEquals(await resumed.load(file.path), { cachedTokens: tokens - 1 });
    assertEquals(resumed.messages, chat.messages.slice(0, 4));
    assertEquals(resumed.system, "A tale.");
    using counted = prompted();
    const reply = await resumed.send("It was raining");
    assertEquals(reply.tokenIds, expected.tokenIds);
    const { cachedTokens, promptTokens } = reply.stats;
    assertEquals(cachedTokens, tokens - 1);
    const steps = device === "cpu" ? 7 : 0;
    assertEquals(counted.tokens, promptTokens - cachedTokens + steps);
    assert(counted.tokens - steps < 10, `${counted.tokens}`);

    // Without keys and values, everything runs again.
    const fresh = other.chat(GREEDY);
    await other.logits([1]);
    const without = { cache: false };
    assertEquals(await fresh.load(file.path, without), { cachedTokens: 0 });
    const again = await fresh.send("It was raining");
    assertEquals(again.stats.cachedTokens, 0);
    assertEquals(again.text, expected.text);
    assertEquals(again.stats.promptTokens, promptTokens);
  });
}

Deno.test("what was taken back is not saved", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  const fork = chat.fork(1);
  const [, , asked, replied] = chat.messages;
  chat.undo();
  for (const one of [chat, fork]) {
    const bytes = await bytesOf(one);
    const text = new TextDecoder("latin1").decode(bytes);
    assert(text.includes("Once upon a time"));
    for (const { content } of [asked, replied]) {
      assert(!text.includes(content as string));
    }
    const other = qwen.chat(GREEDY);
    const { cachedTokens } = await other.load(streamOf(bytes));
    assertEquals(other.messages, one.messages);
    assertEquals(cachedTokens, other.tokens);
    const { stats } = await other.send("It rained");
    assertEquals(stats.cachedTokens, cachedTokens);
  }
});

Deno.test("a chat is saved to a stream and loaded from one, with or without a cache", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  const whole = await bytesOf(chat), small = await bytesOf(chat, false);
  assert(small.length < 2000 && whole.length > 50 * small.length);
  for (const piece of [1, 7, 100_000]) {
    const other = qwen.chat(GREEDY);
    await other.load(streamOf(small, piece));
    assertEquals(other.messages, chat.messages);
    assertEquals(other.tokens, chat.tokens);
  }
  const other = qwen.chat(GREEDY);
  const { cachedTokens } = await other.load(streamOf(whole));
  assertEquals(cachedTokens, chat.tokens - 1);
  // An empty one.
  const empty = await bytesOf(qwen.chat(GREEDY));
  await other.load(streamOf(empty));
  assertEquals([other.messages, other.tokens, other.system], [
    [],
    0,
    undefined,
  ]);
});

Deno.test("a chat is piped into another of the same model", async () => {
  for (const loadsFirst of [false, true]) {
    using qwen = await story();
    const chat = await begun(qwen), other = qwen.chat(GREEDY);
    const { readable, writable } = new TransformStream<Uint8Array>();
    const both = [() => chat.save(writable), () => other.load(readable)];
    if (loadsFirst) both.reverse();
    const counts = await Promise.all(both.map((one) => one()));
    const expected = chat.tokens - 1;
    for (const one of counts) assertEquals(one.cachedTokens, expected);
    assertEquals(other.messages, chat.messages);
    const reply = await other.send("It was raining");
    assertEquals(reply.stats.cachedTokens, expected);
  }
});

Deno.test("a damaged file changes nothing", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  const whole = await bytesOf(chat), { messages } = chat, random = new Random();
  const refused = async (bytes: Uint8Array, why: RegExp) => {
    const error = await assertRejects(() => chat.load(streamOf(bytes)), Error);
    assert(why.test(error.message), error.message);
    assert(!/[\n\r]/.test(error.message) && error.message.length < 400);
    assertEquals(chat.messages, messages);
  };
  await refused(new Uint8Array(), /: it is damaged, it ends too early$/);
  await refused(whole.slice(0, -1), /: it is damaged, it ends too early$/);
  await refused(new Uint8Array([...whole, 0]), /bytes after its end$/);
  await refused(whole.with(0, 65), /: it is not a saved chat$/);
  await refused(
    whole.with(8, 2),
    /: it has version 2 of the format, must be 1$/,
  );
  const levels = new TextEncoder().encode(
    `${"[".repeat(600)}${"]".repeat(600)}`,
  );
  const deep = new Uint8Array(16 + levels.length);
  deep.set(whole.subarray(0, 12));
  new DataView(deep.buffer).setUint32(12, levels.length, true);
  deep.set(levels, 16);
  await refused(
    deep,
    /: it is damaged, its header has 600 levels, must have 500 at most$/,
  );
  for (let i = 0; i < 40; i++) {
    const at = random.int(0, i < 20 ? 900 : whole.length - 1);
    await refused(
      whole.with(at, whole[at] ^ (1 << random.int(0, 7))),
      /^Cannot load the chat: /,
    );
  }
  // The conversation goes on as if nothing had been tried.
  const reply = await chat.send("It was raining");
  using alone = await story();
  const same = await begun(alone);
  assertEquals(reply.text, (await same.send("It was raining")).text);
});

Deno.test("a chat of another model or cache is refused in one line", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  await using file = await tempFile();
  await chat.save(file.path);
  const cannot = `Cannot load the chat in ${file.path}:`;
  const refused = async (qwen: Qwen3, message: string) => {
    const chatTemplate = "{{ messages[0].content }}";
    const other = qwen.chat({ ...GREEDY, chatTemplate });
    const error = await assertRejects(() => other.load(file.path), Error);
    assertEquals(error.message, `${cannot} ${message}`);
  };
  using quantized = await story({ device: "cpu", kv: "q8_0" });
  await refused(
    quantized,
    "its keys and values are f32, this model's are q8_0; without them ({ cache: false }) the conversation runs again",
  );
  using short = await story({ device: "cpu", context: 16 });
  await refused(
    short,
    `it has ${chat.tokens - 1} tokens, the context of 16 has room for no reply`,
  );
  const weights = await Deno.readFile(
    new URL("model.safetensors", DEFAULT_MODEL),
  );
  const data = 8 + new DataView(weights.buffer).getUint32(0, true);
  await using copy = await copyCheckpoint(DEFAULT_MODEL, {
    // As tuned: the last bit of each weight is another.
    "model.safetensors": weights.map((byte, i) =>
      i >= data && (i - data) % 2 === 0 ? byte ^ 1 : byte
    ),
  });
  using tuned = await loadQwen3(copy.path, { device: "cpu" });
  await refused(
    tuned,
    `its model is the story model, this one is ${copy.path}`,
  );
  await assertRejects(
    () => chat.load("/none/chat"),
    Error,
    "Cannot load the chat in /none/chat: there is no such file",
  );
  await assertRejects(
    () => chat.save(`${file.folder}/none/chat`),
    Error,
    `Cannot save the chat to ${file.folder}/none/chat: No such file`,
  );
  await assertRejects(
    () => chat.save(file.path, { kv: false } as never),
    Error,
    "the option kv is unknown",
  );
});

Deno.test("what another run has replaced is not saved", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  await using file = await tempFile();
  await qwen.logits([1, 2, 3]);
  assertEquals((await chat.save(file.path)).cachedTokens, 0);
  const other = qwen.chat(GREEDY);
  assertEquals(await other.load(file.path), { cachedTokens: 0 });
  assertEquals(other.messages, chat.messages);
});

Deno.test("a failed save leaves the file that was there", async () => {
  using qwen = await story();
  const chat = await begun(qwen);
  await using file = await tempFile();
  await chat.save(file.path);
  const before = await Deno.readFile(file.path);
  const { kept } = qwen.runner;
  assert(kept);
  Object.defineProperty(kept, "save", {
    value: () => {
      throw new Error("the device is gone");
    },
  });
  await assertRejects(
    () => chat.save(file.path),
    Error,
    `Cannot save the chat to ${file.path}: the device is gone`,
  );
  assertEquals(await Deno.readFile(file.path), before);
  assertEquals((await Array.fromAsync(Deno.readDir(file.folder))).length, 1);
});
