/** Files over HTTP; bad_server_test.ts has what servers do wrong. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { askForText, probe, sourceOf } from "../../lib/checkpoint/http.ts";
import type {
  LoadProgress,
  OpenOptions,
} from "../../lib/checkpoint/sources.ts";
import {
  head,
  rangeOf,
  raw,
  reply,
  serveRaw,
  serveWell,
} from "../support/bad_server.ts";
import { serveFiles } from "../support/serve_folder.ts";

const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 31) >> 3);
const files = new Map([["/big.bin", content], [
  "/a.txt",
  new TextEncoder().encode("text"),
]]);
const fetchText = async (url: string, options: OpenOptions) =>
  (await askForText(url, options))?.text;
async function openUrl(url: string, options: OpenOptions) {
  const answer = await probe(url, options);
  return answer && await sourceOf(url, answer, options);
}
/** Instead of a pause, nothing. */
const sleep = () => Promise.resolve();

Deno.test("text is fetched whole, and undefined if there is none", async () => {
  await using server = serveFiles(files);
  assertEquals(await fetchText(`${server.url}/a.txt`, {}), "text");
  assertEquals(await fetchText(`${server.url}/none`, {}), undefined);
  assertEquals(server.requests.length, 2);
});

Deno.test("a file is read by range", async () => {
  await using server = serveFiles(files);
  await using source = (await openUrl(`${server.url}/big.bin`, {}))!;
  assertEquals([source.name, source.size], [
    `${server.url}/big.bin`,
    content.length,
  ]);
  for (const [begin, end] of [[0, 1], [50_000, 250_000], [299_999, 300_000]]) {
    const bytes = new Uint8Array(end - begin);
    await source.read(begin, bytes);
    assertEquals(bytes.join(), content.subarray(begin, end).join());
    assertEquals(
      server.requests.at(-1)!.headers.get("range"),
      `bytes=${begin}-${end - 1}`,
    );
  }
  await source.read(5, new Uint8Array(0));
  assertEquals(server.requests.length, 4);
  assertEquals(await openUrl(`${server.url}/none`, {}), undefined);
});

Deno.test("a range may break any number of times while bytes arrive", async () => {
  const step = 70_000;
  await using server = await serveRaw((request, connection) => {
    const range = rangeOf(request)!;
    if (range.end === 0) return serveWell(content)(request, connection);
    return raw([
      head(
        "206 Partial Content",
        `Content-Range: bytes ${range.begin}-${range.end}/${content.length}`,
        `Content-Length: ${range.end - range.begin + 1}`,
      ),
      content.subarray(range.begin, range.begin + step),
    ])(request, connection);
  });
  const pauses: number[] = [];
  await using source = (await openUrl(server.url, {
    sleep: (ms) => Promise.resolve(void pauses.push(ms)),
  }))!;
  const bytes = new Uint8Array(content.length);
  await source.read(0, bytes);
  assertEquals(bytes.join(), content.join());
  assertEquals(pauses, [200, 200, 200, 200]);
  const begins = server.requests.slice(1).map((request) =>
    rangeOf(request)!.begin
  );
  assertEquals(begins, [0, step, 2 * step, 3 * step, 4 * step]);
});

Deno.test("a server without ranges is read through a copy, with progress", async () => {
  await using server = serveFiles(files, {
    intercept: () =>
      new Response(content.slice(), {
        headers: { "content-length": `${content.length}` },
      }),
  });
  const seen: LoadProgress[] = [];
  const url = `${server.url.replace("//", "//me:secret@")}/big.bin?key=secret`;
  await using source = (await openUrl(url, {
    onProgress: (progress) => seen.push(progress),
  }))!;
  const bytes = new Uint8Array(10);
  await source.read(200_000, bytes);
  assertEquals(bytes.join(), content.subarray(200_000, 200_010).join());
  await source.read(3, bytes);
  assertEquals(bytes.join(), content.subarray(3, 13).join());
  await assertRejects(
    () => source.read(299_995, bytes),
    Error,
    `Cannot read the copy of ${server.url}/big.bin?…: it ends at byte 300000, must have 300005`,
  );
  assertEquals(server.requests.length, 1);
  const size = content.length;
  assertEquals(seen.at(-1), {
    stage: "download",
    file: `${server.url}/big.bin?…`,
    done: size,
    total: size,
    fileDone: size,
    fileTotal: size,
  });
  let done = 0;
  for (const { fileDone, fileTotal } of seen) {
    assert(fileDone! > done && fileTotal === size);
    done = fileDone!;
  }
});

Deno.test("a copy that cannot be written is reported with its URL", async () => {
  await using server = serveFiles(files, { ranges: false });
  const full = () => {
    throw new Error("No space left on device (os error 28)");
  };
  const { makeTempFileSync } = Deno, { write } = Deno.FsFile.prototype;
  const assertFull = () =>
    assertRejects(
      () => openUrl(`${server.url}/big.bin`, {}),
      Error,
      `Cannot read ${server.url}/big.bin: its temporary copy cannot be written: No space left on device (os error 28)`,
    );
  try {
    Deno.makeTempFileSync = full;
    await assertFull();
    Deno.makeTempFileSync = makeTempFileSync;
    Deno.FsFile.prototype.write = full;
    await assertFull();
  } finally {
    Deno.makeTempFileSync = makeTempFileSync;
    Deno.FsFile.prototype.write = write;
  }
});

Deno.test("a signal ends a copy, a range and a pause, and leaves no file", async () => {
  const folder = await Deno.makeTempDir();
  const before = Deno.env.get("TMPDIR");
  Deno.env.set("TMPDIR", folder);
  try {
    const reason = new Error("stop");
    const begin = head("200 OK", `Content-Length: ${content.length}`);
    const hanging = {
      copy: raw([begin, content.subarray(0, 1000)], "hang"),
      range: raw([], "hang"),
      pause: reply("429 Too Many Requests", ["Retry-After: 100"]),
    };
    for (const [what, answer] of Object.entries(hanging)) {
      const abort = new AbortController(), { signal } = abort;
      await using server = await serveRaw((request, connection) => {
        const isProbe = rangeOf(request)?.end === 0;
        if (isProbe && what !== "copy") {
          return serveWell(content)(request, connection);
        }
        setTimeout(() => abort.abort(reason), 50);
        return answer(request, connection);
      });
      const failed = await (async () => {
        await using source = await openUrl(server.url, { signal });
        await source!.read(0, new Uint8Array(10));
      })().catch((error) => error);
      assertEquals(failed, reason, what);
      assertEquals([...Deno.readDirSync(folder)], []);
    }
  } finally {
    if (before === undefined) Deno.env.delete("TMPDIR");
    else Deno.env.set("TMPDIR", before);
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a custom fetch is used, and responses that it decompressed are accepted", async () => {
  const packed = { "content-encoding": "gzip", "content-length": "3" };
  const text = await fetchText("http://nowhere/a.txt", {
    fetch: () => Promise.resolve(new Response("longer", { headers: packed })),
  });
  assertEquals(text, "longer");
  const short = new Headers({ "content-length": "10" });
  await assertRejects(
    () =>
      fetchText("http://nowhere/a.txt", {
        sleep,
        fetch: () => Promise.resolve(new Response("short", { headers: short })),
      }),
    Error,
    "Cannot read http://nowhere/a.txt: the connection ended after 5 of 10 bytes, tried 4 times",
  );
});
