/** Streams of events, without a server. */
import { assertEquals, assertRejects } from "@std/assert";
import { EventStream } from "../../lib/server/sse.ts";

/** What a reader gets next, as text. */
async function next(reader: ReadableStreamDefaultReader<Uint8Array>) {
  const { done, value } = await reader.read();
  return done ? undefined : new TextDecoder().decode(value);
}

Deno.test("what was sent while nobody read goes out together", async () => {
  const events = new EventStream(() => {}, 1e6);
  const reader = events.response.body!.getReader();
  const first = next(reader); // waits
  events.send("1");
  assertEquals(await first, "data: 1\n\n");
  events.send("2");
  events.send("{}", "named");
  events.close();
  events.send("3"); // too late
  assertEquals(await next(reader), "data: 2\n\nevent: named\ndata: {}\n\n");
  assertEquals(await next(reader), undefined);
});

Deno.test("a client that goes away, or takes nothing, is reported once", async () => {
  let gone = 0;
  const left = new EventStream(() => gone++, 1e6);
  left.send("1");
  await left.response.body!.cancel();
  left.send("2");
  left.close();
  assertEquals(gone, 1);
  const stuck = new EventStream(() => gone++, 1);
  stuck.send("1");
  const { body } = stuck.response;
  await new Promise((done) => setTimeout(done, 50));
  assertEquals(gone, 2);
  await assertRejects(() => body!.getReader().read(), Error, "takes nothing");
});
