import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import type { Page } from "npm:playwright-core@1.56.1";
import { profile } from "../../../lib/tools/profile/profile.ts";
import { profileHtml } from "../../../lib/tools/profile/html.ts";
import type { ProfileReport } from "../../../lib/tools/profile/report.ts";
import {
  browserTest,
  isTooWide,
  LACKS_BROWSER,
  type Look,
  openPage,
  PATIENCE_MS,
} from "../../support/browser.ts";
import { gpuTest } from "../../support/gpu.ts";

const TINY =
  new URL("../../fixtures/tiny-tied-bf16/", import.meta.url).pathname;

const pageTest = LACKS_BROWSER ? browserTest : gpuTest;

/** Opens the page of a report; console messages and network requests are failures. */
async function open(
  report: ProfileReport,
  options: Look,
  look: (page: Page) => Promise<void>,
) {
  const path = await Deno.makeTempFile({ suffix: ".html" });
  await Deno.writeTextFile(path, await profileHtml(report));
  const complaints: string[] = [];
  try {
    await using opened = await openPage(options);
    const { page } = opened;
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("request", (request) => {
      if (!/^(file|data):/.test(request.url())) complaints.push(request.url());
    });
    await page.goto(`file://${path}`);
    await look(page);
    assert(!await isTooWide(page), "the page is wider than its window");
    assertEquals(complaints, []);
  } finally {
    await Deno.remove(path);
  }
}

const DESK = { viewport: { width: 1280, height: 900 } };
const DARK_PHONE = {
  viewport: { width: 390, height: 844 },
  colorScheme: "dark" as const,
};

const report = () =>
  profile(TINY, {
    device: "gpu",
    promptTokens: 9,
    maxTokens: 6,
    compare: true,
  });
let known: ReturnType<typeof report> | undefined;
const tiny = () => known ??= report();

pageTest(
  "the page shows a mark for every operation, with a tooltip",
  async () => {
    const report = await tiny();
    await open(report, DESK, async (page) => {
      assertStringIncludes(
        await page.locator("#verdict li").first().innerText(),
        report.verdicts[0].text,
      );
      for (const id of ["breakdown", "roofline", "timeline"]) {
        const marks = await page.locator(`#${id} svg path`).count();
        assert(marks >= 8, `${id} has ${marks} marks`);
      }
      const rows = await page.locator("#table tbody tr").count();
      assertEquals(
        rows,
        report.phases.flatMap(({ operations }) => operations).length,
      );
      const cut = await page.evaluate(
        `[...document.querySelectorAll("#table .scroll")]
          .filter((e) => e.scrollWidth > e.clientWidth).length`,
      );
      assertEquals(cut, 0, "a table is wider than the page");
      // The slowest operation is the uppermost bar.
      const chart = page.locator("#breakdown .chart").nth(1);
      const box = (await chart.boundingBox())!;
      await page.mouse.move(box.x + 160, box.y + 18);
      const slowest = report.phases[1].operations
        .filter(({ share }) => share !== undefined)
        .toSorted((a, b) => b.ms! - a.ms!)[0];
      const tooltip = page.locator("#breakdown .chart").nth(1)
        .getByText(slowest.shape);
      await tooltip.waitFor({ state: "visible", timeout: PATIENCE_MS });
      const shown = await tooltip.innerText();
      assertStringIncludes(shown, slowest.name);
      assertStringIncludes(shown, slowest.dtypes);
    });
  },
);

/** A script for the page: pairs of texts in a chart that overlap. */
const overlapping = (id: string) =>
  `(() => {
  const boxes = [...document.querySelectorAll("#${id} svg text")]
    .map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([, y]) =>
    x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 2 && y.top < x.bottom - 2
  ).map(([b]) => a + " on " + b));
})()`;

pageTest("texts do not overlap, and legends explain the marks", async () => {
  const report = await tiny();
  // Marks at one position are the worst case: decode's matmuls all read each weight once.
  // Shares decide which marks are named, and measured ones vary with the machine's load.
  for (const operation of report.phases.flatMap((phase) => phase.operations)) {
    const linear = operation.group === "linear";
    if (linear) operation.tflops = 1e-3;
    if (operation.share !== undefined) operation.share = linear ? 0.15 : 0.05;
  }
  for (const look of [DESK, DARK_PHONE]) {
    await open(report, look, async (page) => {
      for (const id of ["breakdown", "roofline", "timeline"]) {
        assertEquals(await page.evaluate(overlapping(id)), [], id);
      }
      const named = await page.locator("#roofline svg text").allTextContents();
      assert(named.some((text) => /gate_up_proj/.test(text)), named.join());
      const legend = (id: string) =>
        page.locator(`#${id} .legend span`).allInnerTexts();
      assertEquals((await legend("roofline")).slice(0, 3), [
        "decode",
        "prefill",
        "linear",
      ]);
      assertEquals(await legend("timeline"), [
        "GPU: steps up to a readback",
        "CPU: encode",
        "CPU: submit",
        "CPU: wait",
        "CPU: readback",
      ]);
    });
  }
});

pageTest(
  "the page fits a phone in dark mode, and its timeline has parts",
  async () => {
    await open(await tiny(), DARK_PHONE, async (page) => {
      const background = await page.evaluate(
        "getComputedStyle(document.body).backgroundColor",
      );
      const [red] = /\d+/.exec(String(background))!;
      assert(Number(red) < 60, `the background is ${background}`);
      // There may be as many marks as before, but not the same ones.
      const drawn = "document.querySelector('#timeline svg').innerHTML";
      const before = await page.evaluate(drawn);
      await page.getByRole("button", { name: "profiled prefill" }).click();
      await page.waitForFunction(
        `${drawn} !== ${JSON.stringify(before)}`,
        undefined,
        { timeout: PATIENCE_MS },
      );
    });
  },
);

pageTest("on a phone, time and share are seen without scrolling", async () => {
  const report = await tiny();
  await open(report, DARK_PHONE, async (page) => {
    const right = await page.evaluate(
      `[...document.querySelectorAll("#table table")].map((table) => {
        const room = table.parentElement.getBoundingClientRect().right;
        return [...table.querySelectorAll("th")]
          .filter((th) => th.getBoundingClientRect().right <= room)
          .map((th) => th.textContent);
      })`,
    );
    for (const seen of right as string[][]) {
      assertEquals(seen.slice(0, 3), ["operation, kernel", "time", "share"]);
    }
    const titles = await page.locator("#table th").allInnerTexts();
    assertEquals(titles.at(-1), "shape, types");
  });
});

pageTest(
  "the page states one rate of decode, as generate runs it",
  async () => {
    const report = await tiny();
    await open(report, DESK, async (page) => {
      const text = await page.locator("#page").innerText();
      assertEquals(text.match(/tokens\/s|tokens a second/g)?.length, 2, text);
      const [first] = await page.locator(".tile").allInnerTexts();
      assertMatch(
        first,
        /^decode, tokens\/s\n+[\d.,]+\n+as generate runs it, sampling and readbacks/,
      );
    });
  },
);

pageTest("the page lists refusals", async () => {
  const report = await profile(TINY, {
    promptTokens: 2,
    maxTokens: 2,
    kernels: ["gemv"],
  });
  await open(report, DESK, async (page) => {
    assertEquals(
      await page.locator("#refusals tbody tr").count(),
      report.coverage.refusals.length,
    );
    assertEquals(await page.locator("#verdict li.red").count(), 1);
  });
});

browserTest(
  "the page of a CPU run has no roofline, and no markup from a name",
  async () => {
    const report = await profile(TINY, {
      device: "cpu",
      promptTokens: 2,
      maxTokens: 2,
    });
    report.model = "</script><script>console.log('broke out')</script>";
    await open(report, DESK, async (page) => {
      assertEquals(await page.locator("#roofline").count(), 0);
      assertStringIncludes(await page.locator("h1").innerText(), "broke out");
      assert(await page.locator("#breakdown svg path").count() > 8);
    });
  },
);
