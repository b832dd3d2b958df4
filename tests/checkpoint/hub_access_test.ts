import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  cacheFolder,
  hubAccess,
  offlineBy,
} from "../../lib/checkpoint/hub_access.ts";
import { useHost } from "../../lib/host.ts";
import { hostOf } from "../support/other_host.ts";
import { serveFiles } from "../support/serve_folder.ts";
import {
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  serveHub,
} from "../support/serve_hub.ts";

Deno.test("the environment decides where the cache is", async () => {
  await using cache = await emptyCache();
  Deno.env.delete("HF_HUB_CACHE");
  Deno.env.delete("HF_HOME");
  Deno.env.set("HF_HUB_OFFLINE", "1");
  Deno.env.set("BASE", cache.path);
  const places: [string, string, string][] = [
    ["HF_HOME", `${cache.path}/1`, "1/hub"],
    ["XDG_CACHE_HOME", `${cache.path}/2`, "2/huggingface/hub"],
    ["HOME", `${cache.path}/3`, "3/.cache/huggingface/hub"],
    ["HF_HUB_CACHE", "~/4", "3/4"], // HOME is set by the line above
    ["HUGGINGFACE_HUB_CACHE", "$BASE/5/", "5"],
    ["HF_HOME", "~/${BASE}", `3/${cache.path}/hub`],
  ];
  for (const [variable, value, folder] of places) {
    Deno.env.set(variable, value);
    const entry = `${cache.path}/${folder}/models--Some--Model`;
    await fillCache(entry, await fixtureFiles("tiny-tied-bf16"));
    await using checkpoint = await openCheckpoint("Some/Model");
    assertEquals(checkpoint.location, `${entry}/snapshots/${COMMIT}`);
    if (variable !== "HOME") Deno.env.delete(variable);
  }
  Deno.env.delete("BASE");
});

Deno.test("HF_HUB_CACHE has priority over HUGGINGFACE_HUB_CACHE and HF_HOME", () => {
  const env = {
    HF_HUB_CACHE: "/a",
    HUGGINGFACE_HUB_CACHE: "/b",
    HF_HOME: "/c",
  };
  using _host = useHost(hostOf("linux", env));
  assertEquals(cacheFolder(), "/a");
});

for (
  const [os, env, expected] of [
    ["darwin", { HOME: "/Users/a" }, "/Users/a/.cache/huggingface/hub"],
    [
      "windows",
      { USERPROFILE: "C:\\Users\\a", HOME: "/c/Users/a" },
      "C:\\Users\\a/.cache/huggingface/hub",
    ],
    [
      "windows",
      { USERPROFILE: "C:\\Users\\a", HF_HOME: "~\\hf" },
      "C:\\Users\\a\\hf/hub",
    ],
    ["windows", { HF_HUB_CACHE: "%DATA%\\hub", DATA: "D:\\d" }, "D:\\d\\hub"],
    ["windows", { HF_HUB_CACHE: "D:\\hub\\" }, "D:\\hub"],
    ["linux", { HF_HUB_CACHE: "/" }, "/"],
  ] as [string, Record<string, string>, string][]
) {
  Deno.test(`on ${os} ${JSON.stringify(env)} means ${expected}`, () => {
    using _host = useHost(hostOf(os, env));
    assertEquals(cacheFolder(), expected);
  });
}

Deno.test("without a home folder, the variable to set is named", async () => {
  for (const [os, name] of [["linux", "HOME"], ["windows", "USERPROFILE"]]) {
    using _host = useHost(hostOf(os, {}));
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertEquals(
      message,
      `Cannot find the Hugging Face cache: ${name} is not set, set it or HF_HOME`,
    );
  }
});

Deno.test("HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE forbid downloads, as in huggingface_hub", () => {
  for (
    const [env, expected] of [
      [{}, undefined],
      [{ HF_HUB_OFFLINE: "1" }, "HF_HUB_OFFLINE"],
      [{ HF_HUB_OFFLINE: "Yes" }, "HF_HUB_OFFLINE"],
      [{ HF_HUB_OFFLINE: "on" }, "HF_HUB_OFFLINE"],
      [{ HF_HUB_OFFLINE: "" }, undefined],
      [{ TRANSFORMERS_OFFLINE: "TRUE" }, "TRANSFORMERS_OFFLINE"],
      [{ HF_HUB_OFFLINE: "0", TRANSFORMERS_OFFLINE: "1" }, undefined],
    ] as [Record<string, string>, string | undefined][]
  ) {
    using _host = useHost(hostOf("linux", env));
    assertEquals(offlineBy(), expected, JSON.stringify(env));
  }
});

/** The tokens that the Hub saw while `Some/Model` was downloaded. */
async function tokensSeen(
  server: Awaited<ReturnType<typeof serveHub>>,
): Promise<(string | null)[]> {
  await using _checkpoint = await openCheckpoint("Some/Model");
  const seen = server.requests.map(({ headers }) =>
    headers.get("authorization")
  );
  assert(seen.length > 4);
  return [...new Set(seen)];
}

for (
  const [what, env, files, expected] of [
    ["nothing", {}, {}, null],
    ["HF_TOKEN", { HF_TOKEN: "hf_env" }, { token: "hf_file" }, "hf_env"],
    ["blanks around it", { HF_TOKEN: " hf_env\r\n" }, {}, "hf_env"],
    [
      "a token that does not begin with hf_",
      { HF_TOKEN: "api_x" },
      {},
      "api_x",
    ],
    ["HUGGING_FACE_HUB_TOKEN", { HUGGING_FACE_HUB_TOKEN: "hf_old" }, {
      token: "hf_file",
    }, "hf_old"],
    [
      "HF_TOKEN first",
      { HF_TOKEN: "hf_env", HUGGING_FACE_HUB_TOKEN: "hf_old" },
      {},
      "hf_env",
    ],
    ["$HF_HOME/token", {}, { token: "hf_file\n" }, "hf_file"],
    ["an empty HF_TOKEN", { HF_TOKEN: "  " }, { token: "hf_file" }, "hf_file"],
    ["an empty file", {}, { token: "\n" }, null],
    ["HF_TOKEN_PATH", { HF_TOKEN_PATH: "$HF_HOME/mine" }, {
      token: "hf_file",
      mine: "hf_mine",
    }, "hf_mine"],
    ["HF_TOKEN_PATH without a file", { HF_TOKEN_PATH: "/nowhere/token" }, {
      token: "hf_file",
    }, null],
    [
      "HF_HUB_DISABLE_IMPLICIT_TOKEN",
      { HF_TOKEN: "hf_env", HF_HUB_DISABLE_IMPLICIT_TOKEN: "1" },
      { token: "hf_file" },
      null,
    ],
  ] as [string, Record<string, string>, Record<string, string>, string | null][]
) {
  Deno.test(`the token of the user: ${what}`, async () => {
    await using cache = await emptyCache();
    await using server = await serveHub("tiny-tied-bf16");
    for (const [name, value] of Object.entries(env)) Deno.env.set(name, value);
    await Deno.mkdir(`${cache.path}/home`);
    for (const [name, text] of Object.entries(files)) {
      await Deno.writeTextFile(`${cache.path}/home/${name}`, text);
    }
    assertEquals(await tokensSeen(server), [expected && `Bearer ${expected}`]);
  });
}

for (
  const [what, token, why] of [
    [
      "a line break",
      "hf_secret1\nhf_secret2",
      "it has a line break, must be one word",
    ],
    [
      "a blank",
      "hf_secret1 hf_secret2",
      "it has whitespace or a character that is not ASCII",
    ],
    [
      "another alphabet",
      "hf_secret1ß",
      "it has whitespace or a character that is not ASCII",
    ],
    [
      "UTF-16",
      "h\0f\0_secret1",
      "it has whitespace or a character that is not ASCII",
    ],
  ]
) {
  Deno.test(`a token with ${what} is refused before a request, and not shown`, async () => {
    await using cache = await emptyCache();
    await using server = await serveHub("tiny-tied-bf16");
    await Deno.mkdir(`${cache.path}/home`);
    const path = `${cache.path}/home/token`;
    await Deno.writeTextFile(path, token);
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertStringIncludes(message, `Cannot use the token from ${path}: ${why}`);
    assert(!message.includes("secret"), message);
    assertEquals(server.requests.length, 0);
    // A cache entry needs no token.
    await fillCache(cache.entry, server.files);
    await using _checkpoint = await openCheckpoint("Some/Model");
  });
}

Deno.test("a token file that cannot be read is named", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub("tiny-tied-bf16");
  await Deno.mkdir(`${cache.path}/home/token`, { recursive: true });
  await assertRejects(
    () => openCheckpoint("Some/Model"),
    Error,
    `Cannot read the token for the Hugging Face Hub in ${cache.path}/home/token: Is a directory`,
  );
});

Deno.test("the token goes to the Hub only, through every kind of redirect", async () => {
  await using cache = await emptyCache();
  const files = await fixtureFiles("tiny-tied-bf16");
  await using storage = serveFiles(
    new Map([...files].map(([name, bytes]) => [`/${name}`, bytes])),
  );
  const { port } = new URL(storage.url);
  // The same host by another name, and a host below the Hub's own.
  const hosts = [storage.url, `http://localhost:${port}`];
  await using server = await serveHub(files, (request, path, file) => {
    if (path.includes("/tree/") && !request.url.includes("cursor")) {
      return new Response(null, {
        status: 307,
        headers: { location: `${path}?cursor=1` },
      });
    }
    if (file === undefined) return;
    return new Response(null, {
      status: [301, 302, 307, 308][file.length % 4],
      headers: { location: `${hosts[file.length % 2]}/${file}?sig=secret` },
    });
  });
  Deno.env.set("HF_ENDPOINT", server.url.replace("127.0.0.1", "localhost"));
  Deno.env.set("HF_TOKEN", "hf_mine");
  await using _checkpoint = await openCheckpoint("Some/Model");
  assert(server.requests.length >= 5 && storage.requests.length >= 2);
  for (const { headers } of server.requests) {
    assertEquals(headers.get("authorization"), "Bearer hf_mine");
  }
  for (const { headers } of storage.requests) {
    assertEquals(headers.get("authorization"), null);
  }
  assert(cache.path);
});

Deno.test("the next page of a list on another host gets no token", async () => {
  await using _cache = await emptyCache();
  await using other = serveFiles(new Map(), {
    intercept: () => Response.json([]),
  });
  await using server = await serveHub(
    "tiny-tied-bf16",
    (_, path) =>
      path.includes("/tree/")
        ? Response.json([], {
          headers: { link: `<${other.url}/x>; rel="next"` },
        })
        : undefined,
  );
  Deno.env.set("HF_TOKEN", "hf_mine");
  await assertRejects(() => openCheckpoint("Some/Model"), Error, "no files");
  assertEquals(other.requests.length, 1);
  assertEquals(other.requests[0].headers.get("authorization"), null);
  assertEquals(
    server.requests[0].headers.get("authorization"),
    "Bearer hf_mine",
  );
});

Deno.test("an endpoint may have a path; others are refused", async () => {
  await using _cache = await emptyCache();
  Deno.env.set("HF_ENDPOINT", "https://mirror.example/hub//");
  const { endpoint } = await hubAccess("a/b", {});
  assertEquals(endpoint, "https://mirror.example/hub");
  for (
    const bad of [
      "huggingface.co",
      "ftp://huggingface.co",
      "https://user:secret@huggingface.co",
      "https://huggingface.co?token=secret",
    ]
  ) {
    Deno.env.set("HF_ENDPOINT", bad);
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertMatch(
      message,
      /^Cannot use HF_ENDPOINT: it must be an http\(s\) URL/,
    );
    assert(!message.includes("secret"));
  }
});

for (
  const [what, status, headers, body, token, expected] of [
    [
      "a gated repository without a token",
      401,
      { "x-error-code": "GatedRepo" },
      { error: "Access to model Some/Model is restricted." },
      undefined,
      /the repository is gated: its conditions must be accepted at \S+\/Some\/Model, and a token is needed: set HF_TOKEN or run hf auth login$/,
    ],
    [
      "a gated repository with a token",
      403,
      { "x-error-code": "GatedRepo" },
      {},
      "hf_mine",
      /its conditions must be accepted at \S+\/Some\/Model, and the token from HF_TOKEN does not give access$/,
    ],
    [
      "a token that is not valid",
      401,
      { "x-error-message": "Invalid credentials in Authorization header" },
      {},
      "hf_mine",
      /it answered 401 \(Invalid credentials in Authorization header\) for \S+: the token from HF_TOKEN is refused$/,
    ],
    [
      "a private repository of others",
      404,
      { "x-error-code": "RepoNotFound" },
      { error: "Repository not found" },
      "hf_mine",
      /there is no such repository \(404; check the spelling\), or the token from HF_TOKEN does not give access$/,
    ],
    [
      "a request that it quotes",
      400,
      {},
      { error: "bad header Authorization: Bearer hf_mine" },
      "hf_mine",
      /it answered 400 \(bad header Authorization: Bearer …\) for /,
    ],
    [
      "with a long text of several lines",
      499,
      {},
      { error: `one\ntwo ${"x".repeat(5000)}` },
      undefined,
      /it answered 499 \(one two x{192}\) for /,
    ],
    [
      "a page of a proxy",
      407,
      {},
      "<html>",
      undefined,
      /it answered 407 for /,
    ],
  ] as [
    string,
    number,
    Record<string, string>,
    unknown,
    string | undefined,
    RegExp,
  ][]
) {
  Deno.test(`the Hub refuses: ${what}`, async () => {
    await using _cache = await emptyCache();
    await using _server = await serveHub(
      "tiny-tied-bf16",
      (_, path) =>
        path.includes("/revision/")
          ? Response.json(body, { status, headers })
          : undefined,
    );
    if (token !== undefined) Deno.env.set("HF_TOKEN", token);
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertMatch(message, expected);
    assert(!message.includes("hf_mine"));
  });
}
