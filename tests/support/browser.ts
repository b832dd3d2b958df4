/** Pages in Debian's Chromium, from the package chromium. */
import {
  type Browser,
  type BrowserContextOptions,
  chromium,
  type Page,
} from "npm:playwright-core@1.56.1";

const CHROMIUM = "/usr/bin/chromium";
const ARGS = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** No browser is here, and tests may do without one. */
export const LACKS_BROWSER: boolean =
  Deno.env.get("QWEN3_REQUIRE_GPU") !== "1" &&
  !await Deno.stat(CHROMIUM).catch(() => undefined);

/** Ends a test that would wait forever; judges no time. */
export const PATIENCE_MS = 300_000;

/** Registers a test that needs a browser; without one it is ignored, and the suite says so. */
export function browserTest(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: LACKS_BROWSER, fn });
}

/** Arguments of a browser without WebGPU, the default. */
const WITHOUT_GPU = ["--disable-gpu"];
/** Of one whose WebGPU is SwiftShader, a software renderer. */
export const WITH_GPU = ["--enable-unsafe-webgpu"];

/** How a page looked. */
export type Look = BrowserContextOptions;

/** Browsers by their arguments: the tests of a file share them. */
const browsers = new Map<string, Promise<Browser>>();

Deno.test.afterAll(async () => {
  for (const browser of browsers.values()) await (await browser).close();
});

function launched(more: readonly string[]): Promise<Browser> {
  const args = [...ARGS, ...more], key = args.join();
  const known = browsers.get(key) ??
    chromium.launch({ executablePath: CHROMIUM, args });
  browsers.set(key, known);
  return known;
}

/**
 * Opens an empty page, which has `PATIENCE_MS` for everything; cookies and storage are its
 * own.
 */
export async function openPage(
  look: Look,
  more: readonly string[] = WITHOUT_GPU,
): Promise<{ page: Page } & AsyncDisposable> {
  const context = await (await launched(more)).newContext(look);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  return {
    page,
    [Symbol.asyncDispose]: () => context.close(),
  };
}

/** Whether the page is wider than its window. */
export async function isTooWide(page: Page): Promise<boolean> {
  return await page.evaluate(
    "document.documentElement.scrollWidth > innerWidth",
  ) as boolean;
}
