/** Bars on an imagined terminal, and lines elsewhere. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { loadQwen3 } from "../../mod.ts";
import { serveRaw } from "../support/bad_server.ts";
import { runTask } from "../support/run_task.ts";
import { readFlags } from "../../tasks/flags.ts";
import {
  LOADING_FLAGS,
  loadingOptions,
  Progress,
  type Screen,
} from "../../tasks/progress.ts";
import { slowTest } from "../support/quick.ts";

/** A screen that obeys the escape sequences for cursors and clearing, and no others. */
class Terminal implements Screen {
  readonly lines: string[] = [""];
  raw = "";
  time = 0;
  #row = 0;
  #column = 0;

  constructor(readonly width = 100, readonly isTerminal = true) {}

  columns = () => this.width;
  now = () => this.time;

  write(text: string): void {
    this.raw += text;
    // deno-lint-ignore no-control-regex
    const parts = text.matchAll(/\x1b\[(\d*[A-Za-z])|[^\x1b]/gsu);
    for (const [part, code] of parts) {
      if (code === undefined) this.#put(part);
      else this.#obey(code);
    }
  }

  #put(character: string): void {
    if (character === "\r") return void (this.#column = 0);
    if (character === "\n") {
      [this.#row, this.#column] = [this.#row + 1, 0];
      this.lines[this.#row] ??= "";
      return;
    }
    const line = [...this.lines[this.#row].padEnd(this.#column)];
    line[this.#column++] = character;
    this.lines[this.#row] = line.join("");
    assert(this.#column <= this.width, `too long: ${line.join("")}`);
  }

  #obey(code: string): void {
    const number = Number(code.slice(0, -1) || 1);
    const line = this.lines[this.#row];
    const known: Record<string, () => void> = {
      A: () => this.#row -= number,
      B: () => this.#row += number,
      G: () => this.#column = number - 1,
      J: () => {
        this.lines.length = this.#row + 1;
        this.lines[this.#row] = line.slice(0, this.#column);
      },
      K: () => {
        const keeps = code === "2K" ? 0 : this.#column;
        this.lines[this.#row] = line.slice(0, keeps);
      },
    };
    const obey = known[code.at(-1)!];
    assert(obey !== undefined, `unknown escape sequence ${code}`);
    obey();
    assert(this.#row >= 0, "above the top");
  }

  /** What can be seen, without blank lines at the end. */
  get shown(): string[] {
    return this.lines.join("\n").trimEnd().split("\n").map((line) =>
      line.trimEnd()
    );
  }
}

const MB = 1e6;
const shard = (number: number) => `model-0000${number}-of-00002.safetensors`;

/** Downloads two shards of 400 and 600 MB at 50 MB/s. */
async function download(
  screen: Terminal,
  step: (progress: Progress, seconds: number) => void = () => {},
  resumedFrom = 0,
): Promise<void> {
  using progress = await Progress.start(screen);
  let done = 0;
  for (
    const [file, fileTotal] of [[shard(1), 400 * MB], [
      shard(2),
      600 * MB,
    ]] as const
  ) {
    const from = file === shard(1) ? resumedFrom : 0;
    done += from;
    for (let fileDone = from;; fileDone += 25 * MB, done += 25 * MB) {
      progress.report({
        stage: "download",
        file,
        done,
        total: 1000 * MB,
        fileDone,
        fileTotal,
        resumedFrom: from || undefined,
      });
      step(progress, screen.time / 1000);
      if (fileDone >= fileTotal) break;
      screen.time += 500;
    }
  }
}

Deno.test("a terminal shows a bar for the file and one in all, with rate and time left", async () => {
  const screen = new Terminal();
  const seen = new Map<number, string[]>();
  await download(screen, (_, seconds) => seen.set(seconds, screen.shown));
  assertEquals(seen.get(0), [""]); // a short download shows nothing
  assertEquals(seen.get(4), [
    "in all                ██████░░░░░░░░░░░░░░░░░░░░░░  20 %  0.20/1.00 GB  50.0 MB/s  16 s left",
    "model-00001-of-00002  ██████████████░░░░░░░░░░░░░░  50 %  200/400 MB  50.0 MB/s  4 s left",
  ]);
  assertEquals(seen.get(14), [
    "in all                ████████████████████░░░░░░░░  70 %  0.70/1.00 GB  50.0 MB/s  6 s left",
    "model-00002-of-00002  ██████████████░░░░░░░░░░░░░░  50 %  300/600 MB  50.0 MB/s  6 s left",
  ]);
  // The file that took long leaves a line, the bars nothing.
  assertEquals(screen.shown, [
    "model-00002-of-00002: 600 MB in 12 s, 50.0 MB/s.",
  ]);
  // deno-lint-ignore no-control-regex
  assert(!/\x1b\[[\d;]*m|\x1b\[\?/.test(screen.raw), "colors or modes");
});

Deno.test("bars fit terminals of any width", async () => {
  for (
    const [width, line] of [
      [
        200,
        "in all                ██████░░░░░░░░░░░░░░░░░░░░░░░░  20 %  0.20/1.00 GB  50.0 MB/s  16 s left",
      ],
      [
        80,
        "in all                ██░░░░░░  20 %  0.20/1.00 GB  50.0 MB/s  16 s left",
      ],
      [60, "in all      20 %  0.20/1.00 GB  50.0 MB/s  16 s left"],
      [40, "in all      20 %  0.20/1.00 GB"],
      [20, "in all      20 %"],
      [12, "in all"],
    ] as const
  ) {
    const screen = new Terminal(width);
    let first = "", second = "";
    await download(screen, (_, seconds) => {
      if (seconds === 4) [first, second] = screen.shown; // checks every width too
    });
    assertEquals(first, line);
    assert(second.startsWith("mod"), second);
  }
});

Deno.test("a notice is printed above the bars and stays", async () => {
  const screen = new Terminal(60);
  let during: string[] = [];
  await download(screen, (progress, seconds) => {
    if (seconds !== 4) return;
    progress.notice(
      "The server is busy and has asked to wait for quite a while; trying again in 60 s.",
    );
    during = screen.shown;
  });
  assertEquals(during, [
    "The server is busy and has asked to wait for quite a while;",
    "  trying again in 60 s.",
    "in all      20 %  0.20/1.00 GB  50.0 MB/s  16 s left",
    "model…0002  50 %  200/400 MB  50.0 MB/s  4 s left",
  ]);
  assertEquals(screen.shown.slice(0, 2), during.slice(0, 2));
});

Deno.test("what an earlier download left does not count towards the rate", async () => {
  const screen = new Terminal();
  let at2: string[] = [];
  await download(screen, (_, seconds) => {
    if (seconds === 2) at2 = screen.shown;
  }, 100 * MB);
  assertEquals(at2.map((line) => line.replace(/^.*░/, "")), [
    "  20 %  0.20/1.00 GB  50.0 MB/s  16 s left",
    "  50 %  200/400 MB  50.0 MB/s  4 s left",
  ]);
});

Deno.test("files that are already there do not count towards the rate", async () => {
  const screen = new Terminal();
  using progress = await Progress.start(screen);
  const total = 1000 * MB;
  let done = 0;
  const report = (file: string, fileDone: number, fileTotal: number) =>
    progress.report({
      stage: "download",
      file,
      done,
      total,
      fileDone,
      fileTotal,
    });
  for (let i = 0; i < 5; i++) {
    done += 100 * MB;
    report(`${i}`, 100 * MB, 100 * MB);
    screen.time += 50;
  }
  for (let i = 0; i <= 20; i++, done += 5 * MB, screen.time += 100) {
    report("new", i * 5 * MB, 500 * MB);
  }
  // 100 MB in 2 s, after 0.25 s for the others.
  assertMatch(screen.shown[0], /60 % {2}0.60\/1.00 GB {2}44.4 MB\/s/);
  assertMatch(screen.shown[1], /20 % {2}100\/500 MB {2}50.0 MB\/s/);
});

Deno.test("the bar of a download that starts over goes back", async () => {
  const screen = new Terminal();
  using progress = await Progress.start(screen);
  const report = (seconds: number, megabytes: number) => {
    screen.time = 1000 * seconds;
    const done = megabytes * MB, total = 100 * MB;
    const sizes = { fileDone: done, fileTotal: total, done, total };
    progress.report({
      stage: "download",
      file: "https://a.b/c/model.safetensors?…",
      ...sizes,
    });
    return screen.shown;
  };
  report(0, 0);
  assertMatch(
    report(4, 80)[0],
    /80 % {2}80\/100 MB {2}20.0 MB\/s {2}1 s left$/,
  );
  report(5, 10);
  const [line, ...more] = report(9, 30);
  assertEquals(
    line,
    "model  █████████░░░░░░░░░░░░░░░░░░░░░  30 %  30/100 MB  5.00 MB/s  14 s left",
  );
  assertEquals(more, []); // one file is all there is
});

Deno.test("a size that the server does not give has no bar", async () => {
  const screen = new Terminal();
  using progress = await Progress.start(screen);
  for (let i = 0; i <= 10; i++, screen.time += 100) {
    const done = i * 1000;
    progress.report({
      stage: "download",
      file: "model.safetensors",
      done,
      total: done + 1,
      fileDone: done,
    });
  }
  assertEquals(screen.shown.at(-1), "model   10.0 kB  10.0 kB/s");
});

Deno.test("loading shows one bar, and other output follows it cleanly", async () => {
  const screen = new Terminal();
  using progress = await Progress.start(screen);
  for (let i = 0; i <= 10; i++, screen.time += 100) {
    progress.report({
      stage: "weights",
      file: "model.norm.weight",
      done: i * 100 * MB,
      total: 1000 * MB,
    });
    if (i === 7) {
      assertEquals(screen.shown, [
        "loading the weights  ████████████████████░░░░░░░░░  70 %  0.70/1.00 GB  1.00 GB/s  1 s left",
      ]);
    }
  }
  screen.write("Running on cpu.\n");
  assertEquals(screen.shown, ["Running on cpu."]);
});

Deno.test("things are counted with their rate and the time left", async () => {
  const terminal = new Terminal();
  using progress = await Progress.start(terminal);
  for (let done = 0; done <= 30; done++) {
    terminal.time += 500;
    progress.count("batch", "requests", done, 120, "99 tokens/s");
  }
  const [line] = terminal.lines.filter((line) => line.startsWith("batch"));
  assertMatch(
    line.replaceAll("  ", "|"),
    /^batch\|█+░+\|25 %\|30\/120 requests\|2 requests\/s\|45 s left\|99 tokens\/s$/,
  );
});

Deno.test("without a terminal there is a line every ten seconds", async () => {
  const screen = new Terminal(200, false);
  await download(screen, (progress, seconds) => {
    if (seconds === 3) progress.notice("Something happened.");
  });
  assertEquals(screen.shown, [
    "Something happened.",
    "model-00002-of-00002: 16 %, 100/600 MB, 50.0 MB/s, 10 s left; in all: 50 %, 0.50/1.00 GB, 50.0 MB/s, 10 s left",
    "model-00002-of-00002: 600 MB in 12 s, 50.0 MB/s.",
  ]);
  // deno-lint-ignore no-control-regex
  assert(!/[\x1b\r]/.test(screen.raw));
});

Deno.test("long waits and sizes are in units that suit them", async () => {
  const screen = new Terminal(200);
  using progress = await Progress.start(screen);
  const lineAt = (seconds: number, done: number, total: number) => {
    screen.time = 1000 * seconds;
    progress.report({ stage: "weights", done, total });
    return screen.shown.at(-1)!.replace(/^.*░/, "");
  };
  lineAt(0, 0, 64e9);
  assertEquals(
    lineAt(5, 5e6, 64e9),
    "  0 %  0.0/64.0 GB  1.00 MB/s  17 h 47 min left",
  );
  assertEquals(
    lineAt(8, 80e6, 64e9),
    "  0 %  0.1/64.0 GB  10.0 MB/s  107 min left".replace(
      "107 min",
      "1 h 47 min",
    ),
  );
});

Deno.test("--read-timeout is a number of seconds", () => {
  const read = (...args: string[]) =>
    loadingOptions(readFlags(args, LOADING_FLAGS)).readTimeout;
  assertEquals(read(), undefined);
  assertEquals(read("--read-timeout", "2.5"), 2.5);
  for (const bad of ["0", "-1", "1e9"]) {
    assertThrows(
      () => read(`--read-timeout=${bad}`),
      RangeError,
      `Cannot read the flags: --read-timeout is ${
        Number(bad)
      }, must be a number of seconds above 0 and at most 86400`,
    );
  }
});

slowTest("a silent server ends loading after its read timeout", async () => {
  await using server = await serveRaw((_, connection) => connection.hang());
  const model = server.url.replace("//", "//me:secret@") + "/?key=secret";
  const file = `${server.url}/config.json?…`;
  const error = `Cannot read ${file}: no response for 0.2 s, tried 4 times`;
  const notices: string[] = [];
  const failed = await loadQwen3(model, {
    readTimeout: 0.2,
    onNotice: (notice) => notices.push(notice),
  }).catch(({ message }) => message);
  assertEquals(failed, error);
  const said = [0.2, 0.6, 1.8].map((seconds) =>
    `${file}: no response for 0.2 s; trying again in ${seconds} s.`
  );
  assertEquals(notices, said);
  const { code, stdout, stderr } = await runTask("generate", [
    "Hello",
    ...["--model", model, "--read-timeout", "0.2"],
  ]);
  assertEquals([code, stdout], [1, ""]);
  assertEquals(stderr.trimEnd().split("\n"), [...said, `error: ${error}`]);
});
