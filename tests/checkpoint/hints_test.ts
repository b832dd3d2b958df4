/** Names that are no checkpoint's: what to pass instead, before anything is requested. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  serveHub,
} from "../support/serve_hub.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const NO_FILE = "there is no such file";
const FILE = "it is a file, must be the folder of a checkpoint";

/** What is said about a name, without the beginning that quotes it. */
async function said(spec: string): Promise<string> {
  const { message } = await assertRejects(() => openCheckpoint(spec), Error);
  const begin = `Cannot open ${JSON.stringify(spec)}: `;
  assert(message.startsWith(begin), message);
  assert(message.length <= 200 && !message.includes("\n"), message);
  return message.slice(begin.length);
}

for (
  const [spec, expected] of [
    ["model-q8_0.gguf", NO_FILE],
    ["/nowhere/Model-Q4_K_M.GGUF", NO_FILE],
    ["unsloth/model.gguf", NO_FILE],
    [
      "models/qwen/x.gguf",
      `${NO_FILE}, a file of a repository is models/qwen:x.gguf`,
    ],
    ["./models/qwen/x.gguf", NO_FILE],
    [
      "a/B-GGUF:Q4_K_M@v1",
      "the revision comes first, pass a/B-GGUF@v1:Q4_K_M",
    ],
    [
      "qwen3-8b-gguf:Q4_K_M",
      "there is no such directory, did you mean Qwen/Qwen3-8B-GGUF:Q4_K_M",
    ],
    [
      "https://huggingface.co/a/B-GGUF/blob/main/B-Q8_0.gguf",
      "it is a page, pass the file of the repository: a/B-GGUF:B-Q8_0.gguf",
    ],
    [
      "https://huggingface.co/a/B-GGUF/blob/v1/C/B-Q8_0.gguf",
      "it is a page, pass the file of the repository: a/B-GGUF@v1:C/B-Q8_0.gguf",
    ],
    [
      "https://hf.co/a/B-GGUF:Q4_K_M",
      "it is a page, pass the repository a/B-GGUF:Q4_K_M",
    ],
    ["qwen3:0.6b", "it is a name of Ollama's, pass Qwen/Qwen3-0.6B"],
    [
      "Qwen3:32b-q8_0",
      "it is a name of Ollama's, pass Qwen/Qwen3-32B-GGUF:Q8_0",
    ],
    [
      "qwen3:latest",
      "it is a name of Ollama's, pass a repository such as Qwen/Qwen3-0.6B",
    ],
    [
      "qwen3",
      "the size is missing, pass a repository such as Qwen/Qwen3-0.6B",
    ],
    [
      "Qwen3-0.6B",
      "there is no such directory, did you mean Qwen/Qwen3-0.6B, or synthetic:qwen3-0.6b",
    ],
    [
      "qwen3-0.6b",
      "there is no such directory, did you mean Qwen/Qwen3-0.6B, or synthetic:qwen3-0.6b",
    ],
    [
      "qwen3-30b-a3b",
      "there is no such directory, did you mean Qwen/Qwen3-30B-A3B, or synthetic:qwen3-30b-a3b",
    ],
    [
      "qwen3-0.6b@main",
      "there is no such directory, did you mean Qwen/Qwen3-0.6B@main, or synthetic:qwen3-0.6b",
    ],
    [
      "localhost:8000",
      "there is no such directory, did you mean http://localhost:8000",
    ],
    [
      "192.168.0.2:8000/models/x/",
      "there is no such directory, did you mean http://192.168.0.2:8000/models/x/",
    ],
    [
      "Qwen3-4B-Instruct-2507",
      "there is no such directory, did you mean Qwen/Qwen3-4B-Instruct-2507",
    ],
    [
      "synthetc:qwen3-0.6b?layers=2",
      "did you mean synthetic:qwen3-0.6b?layers=2",
    ],
    [
      "synthetic:qwen3-0.7b",
      "try synthetic:qwen3-0.6b (1.7b, 4b, 8b, 14b, 32b, 30b-a3b)",
    ],
    [
      "https://huggingface.co/Qwen/Qwen3-0.6B",
      "it is a page, pass the repository Qwen/Qwen3-0.6B",
    ],
    [
      "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main",
      "it is a page, pass the repository Qwen/Qwen3-0.6B",
    ],
    [
      "https://hf.co/Qwen/Qwen3-0.6B-GGUF/tree/v1.0/",
      "it is a page, pass the repository Qwen/Qwen3-0.6B-GGUF@v1.0",
    ],
    [
      "huggingface.co/Qwen/Qwen3-0.6B/tree/v1",
      "it is a page, pass the repository Qwen/Qwen3-0.6B@v1",
    ],
    ["hf.co/Qwen", "did you mean https://hf.co/Qwen"],
    [
      "http://127.0.0.1:9/a/model.safetensors",
      `${FILE}: http://127.0.0.1:9/a/`,
    ],
    ["http://127.0.0.1:9/config.json", `${FILE}: http://127.0.0.1:9/`],
    [
      "~/models/qwen",
      "there is no such directory: the shell expands ~ only unquoted and first, write $HOME",
    ],
    ["/nowhere/qwen", "there is no such directory"],
    ["file:///nowhere/qwen", "there is no such directory"],
  ]
) {
  Deno.test(`--model ${spec} is refused with what to pass`, async () => {
    assertEquals(await said(spec), expected);
  });
}

Deno.test("a path that does not exist is refused before the Hub is asked", async () => {
  await using _cache = await emptyCache();
  await using server = await serveHub("tiny-tied-bf16");
  const looked = `there is no such directory (looked in ${Deno.cwd()})`;
  for (const spec of ["./models/nope", "models/nope/x", "../nope", "nope"]) {
    assert((await said(spec)).startsWith(looked), spec);
  }
  assertEquals(server.requests.length, 0);
});

Deno.test("a repository's owner may be the name of a folder", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub("tiny-tied-bf16");
  await using folder = await tempFolder({});
  await Deno.mkdir(`${folder.path}/Some/Other`, { recursive: true });
  const before = Deno.cwd();
  Deno.chdir(folder.path);
  try {
    await using checkpoint = await openCheckpoint("Some/Model");
    assertEquals(checkpoint.location, cache.snapshot);
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Typo"),
      Error,
    );
    // A mistyped path is as likely.
    assertMatch(
      message,
      /^Cannot open "Some\/Typo": the directory Some has no Typo; the repository cannot be downloaded from .*: there is no such repository/,
    );
    Deno.env.set("HF_ENDPOINT", "http://nowhere.invalid");
    await assertRejects(
      () =>
        openCheckpoint("Some/Typo:Q8_0", { sleep: () => Promise.resolve() }),
      Error,
      'Cannot open "Some/Typo:Q8_0": the directory Some has no Typo, and no repository can be downloaded: there is no connection',
    );
  } finally {
    Deno.chdir(before);
  }
});

Deno.test("a repository in the cache is not taken for a missing path", async () => {
  await using cache = await emptyCache();
  const entry = `${cache.path}/models--models--nope`;
  await fillCache(entry, await fixtureFiles("tiny-tied-bf16"));
  await using checkpoint = await openCheckpoint("models/nope");
  assertEquals(checkpoint.location, `${entry}/snapshots/${COMMIT}`);
});

Deno.test("a file in place of its folder is refused with the folder", async () => {
  await using folder = await tempFolder({
    "model.safetensors": "",
    "config.json": "{}",
    "LICENSE": "",
  });
  const { path } = folder;
  assertEquals(await said(`${path}/LICENSE`), FILE);
  for (const name of ["model.safetensors", "config.json"]) {
    assertEquals(await said(`${path}/${name}`), `${FILE}: ${path}/`);
  }
  assertEquals(await said("deno.json"), `${FILE}: .`);
});

/** A fetch that fails as Deno's does. */
const failing = (cause: string): typeof fetch => () =>
  Promise.reject(
    new TypeError("fetch failed", {
      cause: new Error(
        `error sending request for url (https://huggingface.co/x): client error (Connect): ${cause}`,
      ),
    }),
  );
const OFFLINE =
  "; without a network, pass a folder or a repository in the cache";

for (
  const [cause, words, instead] of [
    [
      "dns error: failed to lookup address information: Name or service not known",
      "the name cannot be resolved (no network?)",
      OFFLINE,
    ],
    [
      "tcp connect error: Connection refused (os error 111)",
      "the connection was refused",
      OFFLINE,
    ],
    [
      "tcp connect error: Connection timed out (os error 110)",
      "the connection timed out",
      OFFLINE,
    ],
    [
      "tcp connect error: Network is unreachable (os error 101)",
      "the network is unreachable",
      OFFLINE,
    ],
    [
      "invalid peer certificate: UnknownIssuer",
      "the certificate is not trusted",
      "",
    ],
  ]
) {
  Deno.test(`without a network the cause takes a few words: ${words}`, async () => {
    await using _cache = await emptyCache();
    Deno.env.set("HF_ENDPOINT", "https://huggingface.co");
    const open = (spec: string) =>
      openCheckpoint(spec, {
        fetch: failing(cause),
        sleep: () => Promise.resolve(),
      });
    const { message } = await assertRejects(
      () => open("Qwen/Qwen3-0.6B"),
      Error,
    );
    assertEquals(
      message,
      `Cannot open Qwen/Qwen3-0.6B: it cannot be downloaded from https://huggingface.co: ${words}, tried 4 times${instead}`,
    );
    const web = await assertRejects(() => open("http://nowhere/x"), Error);
    assertEquals(
      web.message,
      `Cannot read http://nowhere/x/config.json: ${words}, tried 4 times`,
    );
  });
}
