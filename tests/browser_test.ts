/** mod.ts, bundled, in a browser: the same text as in Deno, and a cache of its own. */
import { Buffer } from "node:buffer";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import type { Page } from "npm:playwright-core@1.56.1";
import { loadQwen3, type Qwen3Options } from "../mod.ts";
import { readFolder } from "./support/serve_folder.ts";
import {
  browserTest,
  isTooWide,
  LACKS_BROWSER,
  type Look,
  openPage,
  WITH_GPU,
} from "./support/browser.ts";
import {
  type Asked,
  bundled,
  etagOf,
  MODEL,
  serveSite,
  type Site,
  WEIGHTS,
} from "./support/site.ts";

const PROMPT = "Once upon a time", TOKENS = 48;
const LOOK: Look = {};
const ISOLATED = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

const FILES = LACKS_BROWSER ? undefined : bundled();
const site = async (): Promise<Site> => serveSite((await FILES)!);

/** What a page says about a run. */
interface Told {
  ids: number[];
  adapter: string;
  choices: Record<string, string>;
  notices: string[];
  downloads: { done: number; total: number; resumedFrom?: number }[];
  error?: string;
}

/** Generates in an opened page. */
async function generate(
  page: Page,
  model: string | undefined,
  options: Qwen3Options,
): Promise<Told> {
  return await page.evaluate(
    async ({ model, options, prompt, maxTokens }) => {
      const notices: string[] = [];
      const downloads: Told["downloads"] = [];
      // Not the test's own module: the page has it under this name.
      const bundle = "/mod.js";
      const { loadQwen3 }: typeof import("../mod.ts") = await import(bundle);
      const none = { ids: [], adapter: "", choices: {}, notices, downloads };
      try {
        using qwen = await loadQwen3(model, {
          ...options,
          onNotice: (notice) => notices.push(notice),
          onProgress: ({ stage, done, total, resumedFrom }) => {
            if (stage === "download") {
              downloads.push({ done, total, resumedFrom });
            }
          },
        });
        const ids: number[] = [];
        const run = qwen.generate(prompt, { temperature: 0, maxTokens });
        for await (const { tokenId } of run) {
          if (tokenId !== null) ids.push(tokenId);
        }
        const { adapter, choices } = qwen.device;
        const reasons = choices.map(({ what, reason }) => [what, reason]);
        return { ...none, ids, adapter, choices: Object.fromEntries(reasons) };
      } catch (error) {
        return { ...none, error: (error as Error).message };
      }
    },
    { model, options, prompt: PROMPT, maxTokens: TOKENS },
  );
}

let inDeno: Promise<number[]> | undefined;
/** What the CPU path generates here. */
function expected(): Promise<number[]> {
  return inDeno ??= (async () => {
    using qwen = await loadQwen3(undefined, { device: "cpu" });
    const options = { temperature: 0, maxTokens: TOKENS };
    return (await qwen.generate(PROMPT, options)).tokenIds;
  })();
}

/** Requests for weights that were answered with more than a header of them. */
const contents = ({ asked }: Site) =>
  asked.filter(({ path, bytes }) => path === WEIGHTS && bytes > 1e5);

browserTest(
  "a page generates what Deno does; the next time no weights are sent, unless they changed",
  async () => {
    await using own = await site();
    await using opened = await openPage(LOOK);
    const { page } = opened;
    await page.goto(own.url);
    const first = await generate(page, undefined, { device: "cpu" });
    assertEquals(first.error, undefined);
    assertEquals(first.ids, await expected());
    assertEquals(first.adapter, "CPU (1 thread)");
    assertStringIncludes(
      first.choices.threads,
      "the page is not cross-origin isolated (COOP and COEP headers)",
    );
    assertEquals(contents(own).length, 1);
    const { length } = own.files.get(WEIGHTS)!;
    assertEquals(first.downloads.at(-1)?.done, length);
    assertEquals(first.downloads.at(-1)?.total, length);
    assertEquals(first.notices.length, 1);
    assertMatch(first.notices[0], /kept by the browser .*6\.70 MB/);

    own.asked.length = 0;
    await page.goto(own.url); // a new page of the same site
    const second = await generate(page, undefined, { device: "cpu" });
    assertEquals(second.ids, first.ids);
    assertEquals([second.downloads, second.notices], [[], []]);
    const again = own.asked.filter(({ path }) => path.startsWith(MODEL));
    assertEquals(again.filter(({ status }) => status === 200), []);
    assertEquals(contents(own), []);

    own.asked.length = 0;
    const changed = own.files.get(WEIGHTS)!.slice();
    changed.fill(0, -64); // the end of a norm
    own.files.set(WEIGHTS, changed);
    const third = await generate(page, undefined, { device: "cpu" });
    assertEquals(third.error, undefined);
    assertEquals(contents(own).length, 1);
    assertEquals(third.downloads.at(-1)?.done, length);
  },
);

browserTest("an isolated page computes in threads", async () => {
  await using own = await site();
  own.headers = ISOLATED;
  await using opened = await openPage(LOOK);
  const { page } = opened;
  await page.goto(own.url);
  const hasWorker = () =>
    own.asked.some(({ path }) => path === "/lib/cpu/worker.js");
  // A run does not wait for its threads, and may end before the page asks for their script.
  for (let runs = 0; runs < 10 && !hasWorker(); runs++) {
    const how = { device: "cpu", threads: 2 } as const;
    const told = await generate(page, undefined, how);
    assertEquals(told.error, undefined);
    assertEquals(told.ids, await expected());
    assertEquals(told.adapter, "CPU (2 threads)");
  }
  assert(hasWorker());
});

browserTest(
  "a page generates on its GPU what Deno does on the CPU",
  async () => {
    await using own = await site();
    await using opened = await openPage(LOOK, WITH_GPU);
    const { page } = opened;
    const complaints: string[] = [];
    page.on("console", (message) => {
      if (/WGSL|Invalid|GPU/.test(message.text())) {
        complaints.push(message.text());
      }
    });
    await page.goto(own.url);
    const told = await generate(page, undefined, { device: "gpu" });
    assertEquals(told.error, undefined);
    assertEquals(told.ids, await expected());
    assertEquals(told.adapter, "google swiftshader");
    assertEquals(complaints, []);
  },
);

browserTest("a download that a page left is resumed", async () => {
  await using own = await site();
  await using opened = await openPage(LOOK);
  const { page } = opened;
  const weights = own.files.get(WEIGHTS)!, SENT = 2_000_000;
  const etag = await etagOf(weights);
  own.intercept = ({ headers }, path) => {
    if (path !== WEIGHTS || headers.has("range")) return undefined;
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(weights.slice(0, SENT)),
    });
    return new Response(body, {
      headers: { "content-length": `${weights.length}`, etag },
    });
  };
  await page.goto(own.url);
  const arrived = Promise.withResolvers<void>();
  await page.exposeFunction("arrived", () => arrived.resolve());
  await page.evaluate((sent) => {
    const bundle = "/mod.js";
    void (async () => {
      const { loadQwen3 }: typeof import("../mod.ts") = await import(bundle);
      const onProgress = ({ done }: { done: number }) => {
        if (done === sent) (globalThis as unknown as Arrived).arrived();
      };
      await loadQwen3(undefined, { device: "cpu", onProgress });
    })();
  }, SENT);
  await arrived.promise;
  await page.goto(own.url);
  own.intercept = undefined;
  const told = await generate(page, undefined, { device: "cpu" });
  assertEquals(told.ids, await expected());
  assertEquals(told.downloads[0].resumedFrom, SENT);
  assertMatch(told.notices[0], /^Resuming model\.safetensors at byte 2000000/);
});

interface Arrived {
  arrived(): void;
}

browserTest(
  "without room nothing is kept, which is said, and the model runs",
  async () => {
    await using own = await site();
    await using opened = await openPage(LOOK);
    const { page } = opened;
    await page.goto(own.url);
    const devtools = await page.context().newCDPSession(page);
    const limit = (quotaSize: number) =>
      devtools.send("Storage.overrideQuotaForOrigin", {
        origin: own.url,
        quotaSize,
      });
    await limit(5e6);
    const full = await generate(page, undefined, { device: "cpu" });
    assertEquals(full.error, undefined);
    assertEquals(full.ids, await expected());
    assertEquals(full.notices.length, 1);
    assertMatch(
      full.notices[0],
      /nothing is kept .*: the browser's storage for this site is full \(QuotaExceededError\), at byte \d+ of 6698472\.$/,
    );
    // Chromium tells pages that there are 10 GB, other browsers what there is.
    await page.evaluate(() =>
      Object.assign((navigator as unknown as { storage: object }).storage, {
        estimate: () => Promise.resolve({ quota: 9e6, usage: 5e6 }),
      })
    );
    const known = await generate(page, undefined, { device: "cpu" });
    assertEquals(known.ids, full.ids);
    assertEquals(known.downloads, []);
    assertEquals(known.notices.length, 1);
    assertMatch(
      known.notices[0],
      /nothing is kept .* 4\.00 MB free, 70\.7 MB are needed/,
    );
  },
);

interface Arrived {
  arrived(): void;
}

browserTest(
  "a page that is not secure has no cache and no GPU, and says so",
  async () => {
    await using own = await site();
    // Only loopback is secure without TLS.
    const { port } = new URL(own.url);
    await using opened = await openPage(LOOK, [
      "--host-resolver-rules=MAP example.test 127.0.0.1",
    ]);
    const { page } = opened;
    await page.goto(`http://example.test:${port}`);
    const told = await generate(page, undefined, {});
    assertEquals(told.error, undefined);
    assertEquals(told.ids, await expected());
    assertEquals(told.choices.device, "this page has no WebGPU");
    assertEquals(told.notices.length, 2);
    assertEquals(told.notices[0], "Running on cpu: this page has no WebGPU.");
    assertMatch(told.notices[1], /nothing is kept .*: the page is not secure/);
  },
);

browserTest(
  "a repository of the Hub is a folder of another origin, read without asking first",
  async () => {
    await using own = await site();
    await using opened = await openPage(LOOK);
    const { page } = opened;
    const hub: Asked[] = [];
    await page.route("https://huggingface.co/**", async (route) => {
      const request = route.request(), { pathname } = new URL(request.url());
      const path = pathname.replace(/^\/owner\/story\/resolve\/v1\//, MODEL);
      const headers = new Headers(await request.allHeaders());
      const answer = await fetch(own.url + path, {
        headers: [...headers].filter(([name]) => /^range$/i.test(name)),
      });
      const body = Buffer.from(await answer.arrayBuffer());
      const { status } = answer;
      hub.push({
        path,
        method: request.method(),
        headers,
        status,
        bytes: body.length,
      });
      await route.fulfill({
        status,
        headers: {
          ...Object.fromEntries(answer.headers),
          "access-control-allow-origin": "*",
          "access-control-expose-headers": "content-range, etag",
        },
        body,
      });
    });
    await page.goto(own.url);
    for (const time of ["first", "second"]) {
      hub.length = 0;
      const told = await generate(page, "owner/story@v1", { device: "cpu" });
      assertEquals(told.error, undefined);
      assertEquals(told.ids, await expected());
      const contents = hub.filter(({ path, bytes }) =>
        path === WEIGHTS && bytes > 1e5
      );
      assertEquals(contents.length, time === "first" ? 1 : 0);
      assertEquals(hub.filter(({ method }) => method !== "GET"), []);
      const conditional = hub.filter(({ headers }) =>
        headers.has("if-none-match") || headers.has("if-range")
      );
      assertEquals(conditional, []);
    }
    const refused = await generate(page, "owner/story:Q4_K_M", {
      device: "cpu",
    });
    assertEquals(
      refused.error,
      'Cannot open "owner/story:Q4_K_M": a page needs the whole name, such as :Q4_K_M.gguf',
    );
    const path = await generate(page, "C:\\models", { device: "cpu" });
    assertMatch(path.error ?? "", /^Cannot open "C:.*a page opens URLs/);
  },
);

const EXAMPLE = new URL("../examples/browser/", import.meta.url);

/** Serves the example page with what its first lines say. */
async function example(): Promise<Site> {
  const own = await site();
  for (const [name, bytes] of await readFolder(EXAMPLE)) {
    own.files.set(name === "/index.html" ? "/" : name, bytes);
  }
  return own;
}

browserTest(
  "the example page loads with progress and streams; it names the device and errors",
  async () => {
    const source = await Deno.readTextFile(new URL("index.html", EXAMPLE));
    assert(source.split("\n").length <= 100);
    await using own = await example();
    await using opened = await openPage({
      viewport: { width: 360, height: 740 },
    });
    const { page } = opened;
    const complaints: string[] = [];
    page.on("pageerror", ({ message }) => complaints.push(message));
    // Half of the weights arrive, the rest when the test has seen the progress.
    const weights = own.files.get(WEIGHTS)!, half = weights.length >> 1;
    const seen = Promise.withResolvers<void>();
    own.intercept = ({ headers }, path) => {
      if (path !== WEIGHTS || headers.has("range")) return undefined;
      const body = new ReadableStream<Uint8Array>({
        async start(controller) {
          controller.enqueue(weights.slice(0, half));
          await seen.promise;
          controller.enqueue(weights.slice(half));
          controller.close();
        },
      });
      const length = `${weights.length}`;
      return new Response(body, { headers: { "content-length": length } });
    };
    await page.goto(own.url);
    const go = page.getByRole("button", { name: "Generate" });
    await go.click();
    const status = page.getByRole("status");
    await status.getByText("Downloading: 3.3 of 6.7 MB").waitFor();
    const bar = page.getByRole("progressbar", { name: "Loading" });
    assertMatch(await bar.getAttribute("value") ?? "", /^0\.(49|5)/);
    seen.resolve();
    await status.getByText(/tokens at/).waitFor();
    assert(await bar.isHidden());
    const reply = await page.locator("#reply").innerText();
    assert(reply.length > 100, reply);
    const notice = await page.locator("#notice").innerText();
    assertStringIncludes(notice, "Running on cpu: no WebGPU adapter here.\n");
    assertEquals(await isTooWide(page), false);

    await page.getByLabel("Model").fill("./nowhere/");
    await go.click();
    await status.getByText(`there is no ${own.url}/nowhere/config.json`)
      .waitFor();
    await go.click({ trial: true }); // another try is possible
    assertEquals(complaints, []);
  },
);
