import { assert, assertEquals, assertRejects } from "@std/assert";
import { openFile } from "../../lib/checkpoint/sources.ts";
import { fetchText, openUrl } from "../../lib/checkpoint/http.ts";
import { brokenResponse, serveFiles } from "../support/serve_folder.ts";

const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 31) >> 3);
const files = new Map([["/big.bin", content], [
  "/a.txt",
  new TextEncoder().encode("text"),
]]);

/**
 * A server that answers its first `broken` requests with `how`, except for the first
 * byte.
 */
function flaky(
  broken: number,
  how: (request: Request) => Response | Promise<Response>,
) {
  return serveFiles(files, {
    intercept: (request) =>
      request.headers.get("range") !== "bytes=0-0" && broken-- > 0
        ? how(request)
        : undefined,
  });
}

const busy = () => new Response("later", { status: 503 });

const breaking = (request: Request) => brokenResponse(request, content, 1000);

Deno.test("openFile reads ranges, and returns undefined for a missing file", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, content);
    await using source = (await openFile(path))!;
    assertEquals([source.name, source.size], [path, content.length]);
    const bytes = new Uint8Array(1000);
    await source.read(77, bytes);
    assertEquals(bytes.join(), content.subarray(77, 1077).join());
    await Deno.truncate(path, 500);
    await assertRejects(
      () => source.read(77, bytes),
      Error,
      `Cannot read ${path}: it ends at byte 500, must have 1077`,
    );
  } finally {
    await Deno.remove(path);
  }
  assertEquals(await openFile(path), undefined);
});

Deno.test("requests are retried after temporary failures", async () => {
  await using server = flaky(2, busy);
  assertEquals(await fetchText(`${server.url}/a.txt`, {}), "text");
  assertEquals(server.requests.length, 3);
  assertEquals(await fetchText(`${server.url}/none`, {}), undefined);
  assertEquals(server.requests.length, 4);
});

Deno.test("a failed request is reported with its status", async () => {
  await using server = flaky(100, () => new Response("no", { status: 403 }));
  const url = `${server.url}/a.txt`;
  await assertRejects(
    () => fetchText(url, {}),
    Error,
    `Cannot read ${url}: the server returned 403 Forbidden`,
  );
  assertEquals(server.requests.length, 1);
});

Deno.test("a range continues where its connection broke", async () => {
  await using server = flaky(2, breaking);
  await using source = (await openUrl(`${server.url}/big.bin`, {}))!;
  assertEquals(source.size, content.length);
  const bytes = new Uint8Array(200_000);
  await source.read(50_000, bytes);
  assertEquals(bytes.join(), content.subarray(50_000, 250_000).join());
  const ranges = server.requests.map(({ headers }) => headers.get("range"));
  assertEquals(ranges[1], "bytes=50000-249999");
  assertEquals(ranges.length, 4);
  for (const range of ranges.slice(2)) {
    assert(/^bytes=5[0-2]\d{3}-249999$/.test(range!));
  }
});

Deno.test("an answer other than the requested range is refused", async () => {
  await using server = flaky(1, () => new Response(content.slice()));
  await using source = (await openUrl(`${server.url}/big.bin`, {}))!;
  await assertRejects(
    () => source.read(5, new Uint8Array(10)),
    Error,
    "asked for bytes 5-14, the server sent another file",
  );
});

Deno.test("a server without ranges is read through a temporary copy", async () => {
  const made: string[] = [];
  const { makeTempFile } = Deno;
  Deno.makeTempFile = async (options) => {
    const path = await makeTempFile(options);
    made.push(path);
    return path;
  };
  try {
    await using server = serveFiles(files, { ranges: false });
    let last = { done: 0, total: 0 };
    {
      await using source = (await openUrl(`${server.url}/big.bin`, {
        onProgress: (progress) => last = progress,
      }))!;
      const bytes = new Uint8Array(10);
      await source.read(200_000, bytes);
      assertEquals(bytes.join(), content.subarray(200_000, 200_010).join());
      await source.read(3, bytes);
      assertEquals(bytes.join(), content.subarray(3, 13).join());
    }
    assertEquals([last.done, last.total], [content.length, content.length]);
    assertEquals(server.requests.length, 1);
  } finally {
    Deno.makeTempFile = makeTempFile;
  }
  assertEquals(made.length, 1);
  await assertRejects(() => Deno.stat(made[0]), Deno.errors.NotFound);
});

Deno.test("a signal ends the wait for a server", async () => {
  const abort = new AbortController(), { signal } = abort;
  await using server = flaky(100, () => {
    abort.abort();
    return busy();
  });
  await assertRejects(
    () => fetchText(`${server.url}/a.txt`, { signal }),
    DOMException,
  );
  assertEquals(server.requests.length, 1);
});
