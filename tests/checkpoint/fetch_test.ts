import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import {
  checkReadTimeout,
  type FetchOptions,
  patientFetch,
  pause,
  retry,
  shownUrl,
  TemporaryFailure,
} from "../../lib/checkpoint/fetch.ts";
import { head, type RawAnswer, serveRaw } from "../support/bad_server.ts";
import { slowTest } from "../support/quick.ts";

/** Options that record pauses and notices; no pause takes time. */
function recorded(options: FetchOptions = {}) {
  const pauses: number[] = [], notices: string[] = [];
  return {
    pauses,
    notices,
    options: {
      ...options,
      onNotice: (notice: string) => notices.push(notice),
      sleep: (ms: number) => Promise.resolve(void pauses.push(ms)),
    },
  };
}

const fine: RawAnswer = (_, connection) =>
  connection.write(head("200 OK", "Content-Length: 4") + "fine");

/** Answers each request with the next of `answers`, then with the last. */
function inTurn(...answers: RawAnswer[]): RawAnswer {
  return (request, connection) =>
    (answers.length > 1 ? answers.shift()! : answers[0])(request, connection);
}

const status = (status: string, ...lines: string[]): RawAnswer => (_, conn) =>
  conn.write(head(status, "Content-Length: 0", ...lines));

async function textOf(
  url: string,
  options: FetchOptions,
): Promise<string> {
  return await (await patientFetch(options)(url)).text();
}

async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await assertRejects(() => work, Error);
  assertEquals(error.cause, undefined);
  return error.message;
}

for (
  const [name, answer, why] of [
    ["408", status("408 Request Timeout"), "408 Request Timeout"],
    ["425", status("425 Too Early"), "425 Too Early"],
    ["429", status("429 Too Many Requests"), "429 Too Many Requests"],
    ["500", status("500 Internal Server Error"), "500 Internal Server Error"],
    ["a status without text", status("599"), "599"],
  ] as [string, RawAnswer, string][]
) {
  Deno.test(`${name} is tried 4 times`, async () => {
    await using passing = await serveRaw(inTurn(answer, answer, fine));
    const short = recorded();
    assertEquals(await textOf(passing.url, short.options), "fine");
    assertEquals(short.pauses, [200, 600]);
    await using lasting = await serveRaw(answer);
    const long = recorded();
    assertEquals(
      await failureOf(textOf(lasting.url, long.options)),
      `the server returned ${why}, tried 4 times`,
    );
    assertEquals(long.pauses, [200, 600, 1800]);
    assertEquals([...short.notices, ...long.notices], []);
  });
}

Deno.test("connections that fail are tried again, other refusals are not", async () => {
  await using server = await serveRaw(
    inTurn((_, connection) => connection.reset(), () => {}, fine),
  );
  const { options, pauses } = recorded();
  assertEquals(await textOf(server.url, options), "fine");
  assertEquals(pauses, [200, 600]);

  const { url } = await serveRaw(fine).then(async (server) => {
    await server[Symbol.asyncDispose]();
    return server;
  });
  assertMatch(
    await failureOf(textOf(url, options)),
    /^the connection was refused, tried 4 times$/, // the rest is the system's
  );
  for (const code of ["400 Bad Request", "401 Unauthorized", "404 No"]) {
    await using server = await serveRaw(status(code));
    const response = await patientFetch({})(server.url);
    assertEquals(`${response.status}`, code.slice(0, 3));
    await response.body?.cancel();
    assertEquals(server.requests.length, 1);
  }
  await using circle = await serveRaw(status("302 Found", "Location: /x"));
  assertEquals(
    await failureOf(textOf(circle.url, options)),
    "Fetch failed: Maximum number of redirects (20) reached",
  );
  assertEquals(circle.requests.length, 21);
});

Deno.test("a body that is given up is cancelled, not only aborted", async () => {
  // What closes its connection even if the runtime has forgotten the signal.
  for (const isAborted of [false, true]) {
    const cancelled = Promise.withResolvers<void>();
    const body = new ReadableStream({ cancel: () => cancelled.resolve() });
    const abort = new AbortController();
    const response = await patientFetch({
      fetch: () => Promise.resolve(new Response(body)),
      readTimeout: isAborted ? undefined : 0.01,
      signal: abort.signal,
    })("http://server");
    const text = assertRejects(() => response.text());
    if (isAborted) abort.abort();
    await Promise.all([text, cancelled.promise]);
  }
});

slowTest("a silent server is given up after the read timeout", async () => {
  await using server = await serveRaw(
    inTurn((_, connection) => connection.hang(), fine),
  );
  const { options, pauses, notices } = recorded({ readTimeout: 0.5 });
  assertEquals(await textOf(`${server.url}/a?sig=1`, options), "fine");
  assertEquals(pauses, [200]);
  assertEquals(notices, [
    `${server.url}/a?…: no response for 0.5 s; trying again in 0.2 s.`,
  ]);
  await using loris = await serveRaw(async (_, connection) => {
    await connection.write("HTTP/1.1 200 OK\r\n");
    for (let i = 0; !connection.gone; i++) {
      await connection.write(`X-${i}: y\r\n`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  });
  assertEquals(
    await failureOf(textOf(loris.url, options)),
    "no response for 0.5 s, tried 4 times",
  );
});

slowTest(
  "a body fails when it breaks or stalls, not when it is slow",
  async () => {
    const begin = head("200 OK", "Content-Length: 6");
    await using slow = await serveRaw(async (_, connection) => {
      await connection.write(begin);
      for (const letter of "steady") {
        await new Promise((resolve) => setTimeout(resolve, 400));
        await connection.write(letter);
      }
    });
    assertEquals(await textOf(slow.url, { readTimeout: 2 }), "steady");
    await using stalling = await serveRaw(async (_, connection) => {
      await connection.write(`${begin}sto`);
      await connection.hang();
    });
    await assertRejects(
      () => textOf(stalling.url, { readTimeout: 0.1 }),
      TemporaryFailure,
      "no data for 0.1 s",
    );
    await using breaking = await serveRaw(async (_, connection) => {
      await connection.write(`${begin}bro`);
      await connection.reset();
    });
    await assertRejects(
      () => textOf(breaking.url, {}),
      TemporaryFailure,
      "the connection broke",
    );
  },
);

slowTest("time counts only while somebody waits for bytes", async () => {
  await using server = await serveRaw(fine);
  const response = await patientFetch({ readTimeout: 0.5 })(server.url);
  assertEquals(response.url, `${server.url}/`);
  await new Promise((resolve) => setTimeout(resolve, 800));
  assertEquals(await response.text(), "fine");
});

Deno.test("Retry-After is honoured up to a bound", async () => {
  const now = "Date: Sun, 06 Nov 1994 08:49:37 GMT";
  const cases: [string[], number][] = [
    [["Retry-After: 3"], 3000],
    [["Retry-After: 0"], 200], // not sooner than otherwise
    [["Retry-After: 300"], 300_000],
    [["Retry-After: -1"], 200],
    [["Retry-After: soon"], 200],
    [[now, "Retry-After: Sun, 06 Nov 1994 08:50:37 GMT"], 60_000],
    [[now, "Retry-After: Sunday, 06-Nov-94 08:49:47 GMT"], 10_000],
    [[now, "Retry-After: Sun Nov  6 08:49:47 1994"], 10_000],
    [[now, "Retry-After: Sun, 06 Nov 1994 08:49:07 GMT"], 200],
  ];
  for (const [lines, ms] of cases) {
    await using server = await serveRaw(
      inTurn(status("503 Service Unavailable", ...lines), fine),
    );
    const { options, pauses, notices } = recorded();
    assertEquals(await textOf(server.url, options), "fine");
    assertEquals(pauses, [ms], lines.join());
    assertEquals(
      notices,
      ms <= 5000 ? [] : [
        `${server.url}: the server returned 503 Service Unavailable; trying again in ${
          ms / 1000
        } s.`,
      ],
    );
  }
  await using server = await serveRaw(
    status("429 Too Many Requests", "Retry-After: 3600"),
  );
  const { options, pauses } = recorded();
  assertEquals(
    await failureOf(textOf(server.url, options)),
    "the server returned 429 Too Many Requests, asking to wait 3,600 s, which must be at most 300 s",
  );
  assertEquals(pauses, []);
});

Deno.test("a signal ends requests, bodies and pauses at once", async () => {
  const reason = new Error("stop");
  const hanging: [string, RawAnswer][] = [
    ["the answer", (_, connection) => connection.hang()],
    ["the body", async (_, connection) => {
      await connection.write(head("200 OK", "Content-Length: 5") + "a");
      await connection.hang();
    }],
    ["a pause", status("503 Busy", "Retry-After: 200")],
  ];
  for (const [what, answer] of hanging) {
    const abort = new AbortController();
    await using server = await serveRaw(async (request, connection) => {
      setTimeout(() => abort.abort(reason), 30);
      await answer(request, connection);
    });
    const failed = await textOf(server.url, { signal: abort.signal })
      .catch((error) => error);
    assertEquals(failed, reason, what);
    assertEquals(server.requests.length, 1);
  }
  const signal = AbortSignal.abort(reason);
  assertEquals(await pause(1e6, { signal }).catch((error) => error), reason);
});

Deno.test("a fetch that ignores signals is left alone", async () => {
  const never = () => new Promise<Response>(() => {});
  const { options } = recorded({ fetch: never, readTimeout: 0.01 });
  assertEquals(
    await failureOf(textOf("http://nowhere/", options)),
    "no response for 0.01 s, tried 4 times",
  );
  const signal = AbortSignal.timeout(20);
  await assertRejects(
    () => textOf("http://nowhere/", { fetch: never, signal }),
    DOMException,
  );
});

Deno.test("attempts that bring data do not count as failed", async () => {
  const { options, pauses } = recorded();
  let bytes = 0, tries = 0;
  const attempt = () => {
    bytes += tries < 9 ? 1 << 16 : 10;
    if (tries++ < 12) throw new TemporaryFailure("broke");
    return Promise.resolve(tries);
  };
  const failed = retry("file", attempt, options, () => bytes);
  assertEquals(await failureOf(failed), "broke, tried 4 times");
  assertEquals(tries, 12);
  assertEquals(pauses, [...Array(9).fill(200), 600, 1800]);
});

Deno.test("a user and password become basic authentication", async () => {
  await using other = await serveRaw(fine);
  await using server = await serveRaw((request, connection) =>
    request.target === "/moved"
      ? connection.write(
        head("302 Found", `Location: ${other.url}/`, "Content-Length: 0"),
      )
      : fine(request, connection)
  );
  const at = (user: string) => server.url.replace("//", `//${user}@`);
  const sent: [string, string | undefined][] = [
    [at("me:p%C3%A4ss%3A"), btoa("me:p\u00c3\u00a4ss:")],
    [at("me"), btoa("me:")],
    [at("me:100%"), btoa("me:100%")],
    [server.url, undefined],
  ];
  for (const [url, credentials] of sent) {
    assertEquals(await textOf(url, {}), "fine");
    const { target, headers } = server.requests.at(-1)!;
    assertEquals(target, "/");
    assertEquals(
      headers.get("authorization"),
      credentials === undefined ? null : `Basic ${credentials}`,
    );
  }
  assertEquals(await textOf(`${at("me:secret")}/moved`, {}), "fine");
  assertEquals(other.requests[0].headers.get("authorization"), null);
});

Deno.test("messages show no user, password, query or fragment", async () => {
  const shown: [string, string][] = [
    ["https://a.b/c/d", "https://a.b/c/d"],
    [
      "https://me:secret@a.b:8443/c?token=secret#secret",
      "https://a.b:8443/c?…",
    ],
    ["http://secret@a.b", "http://a.b/"],
    ["http:\\\\me:secret@a.b\\c", "http://a.b/c"],
    ["http://me:sec/ret@a.b/c?token=secret", "http://a.b/c?…"],
    ["http://me:secret@?token=secret", "http://?…"],
    ["https://a.b/c@v1", "https://a.b/c@v1"],
    ["some/folder?", "some/folder?"],
    [" https://me:secret@a.b/c?token=secret", "https://a.b/c?…"],
    ["ftp://me:secret@a.b/c", "ftp://a.b/c"],
    ["s3://me:sec/ret@a.b/c?token=secret", "s3://a.b/c?…"],
    ["git+https://secret@a.b/c", "git+https://a.b/c"],
    ["me:secret@a.b/c", "a.b/c"],
    ["//me:secret@a.b/c", "//a.b/c"],
    ["hf://some/model@v1", "hf://some/model@v1"],
    ["some/model@v1", "some/model@v1"],
    ["synthetic:qwen3-0.6b?seed=1", "synthetic:qwen3-0.6b?seed=1"],
    ["C:\\models\\me:x@v1", "C:\\models\\me:x@v1"],
    ["/models/me:x@v1?", "/models/me:x@v1?"],
  ];
  for (const [url, safe] of shown) assertEquals(shownUrl(url), safe, url);

  const url = "http://me:secret@a.b/f(1)?token=secret";
  const asked = "http://a.b/f(1)?token=secret";
  const inner =
    `no route to ${asked}): see https://x:secret@c.d/e?k=secret, or`;
  const throwing = () => {
    throw new Error(inner);
  };
  for (
    const fetch of [
      () =>
        Promise.reject(
          new TypeError("fetch failed", { cause: new Error(inner) }),
        ),
      () => Promise.reject(new Error(inner)),
      throwing,
    ]
  ) {
    const { options } = recorded({ fetch });
    const failed = await failureOf(textOf(url, options));
    assertEquals(
      failed,
      "no route to it): see https://c.d/e?…, or, tried 4 times",
    );
  }
});

Deno.test("a read timeout must be a usable number of seconds", () => {
  for (const good of [undefined, 0.001, 30, 86_400]) {
    checkReadTimeout("Cannot load m", good);
  }
  for (const bad of [0, -1, NaN, Infinity, 86_401, "30", null]) {
    const error = assertThrows(
      () => checkReadTimeout("Cannot load m", bad as number),
      RangeError,
    );
    assert(
      error.message.startsWith(`Cannot load m: readTimeout is ${bad}, must be`),
    );
  }
});
