/**
 * Shows the progress of downloads and loading on stderr: bars on a terminal, an occasional
 * line elsewhere.
 *
 * @module
 */
import { checkReadTimeout } from "../lib/checkpoint/fetch.ts";
import {
  notOneOf,
  quantizationNamed,
  quantizationNames,
} from "../lib/checkpoint/quantization.ts";
import { MOST_THREADS } from "../lib/cpu/ops.ts";
import {
  bytesText,
  type OpenOptions,
  scaledBytes,
} from "../lib/checkpoint/sources.ts";
import { CACHE_TYPES, type CacheRequest } from "../lib/dispatch/precision.ts";
import { errorText, printable } from "../lib/errors.ts";
import { ADAPTER_NAMES, WEBGPU_NAMES } from "../lib/webgpu/implementation.ts";
import { shortened, WIDTH, wrap } from "../lib/text/messages.ts";
import type { LoadProgress, Qwen3Options } from "../mod.ts";
import { asTyped } from "./command.ts";
import type { Flags, FlagTable } from "./flags.ts";

/** The part of npm's cli-progress that is used here; it comes without types. */
interface Bars {
  MultiBar: new (options: object) => MultiBar;
  Format: { BarFormat(progress: number, options: object): string };
}

interface MultiBar {
  create(total: number, start: number, payload: Payload): Bar;
  remove(bar: Bar): void;
  update(): void;
  log(text: string): void;
  stop(): void;
}

interface Bar {
  setTotal(total: number): void;
  update(value: number, payload: Payload): void;
}

/** What a bar shows, and the length of the longest name. */
interface Payload {
  track: Track;
  longest: number;
}

/** Flags of every task that opens a model. */
export const LOADING_FLAGS: FlagTable = {
  "quantize": [
    "text",
    `quantise the matrices on loading, one of ${quantizationNames()}`,
    "as stored",
  ],
  "read-timeout": [
    "number",
    "seconds without data after which a download is resumed",
    30,
  ],
};

/** Flags of tasks that open a GPU. */
export const DEVICE_FLAGS: FlagTable = {
  "webgpu": [
    "text",
    "deno (built in) or dawn (Chrome's, npm's webgpu, downloaded at its first use)",
    "deno",
  ],
  "adapter": [
    "text",
    "of several GPUs, the one of high performance or of low power: high or low",
    "high",
  ],
};

/** Reads {@linkcode DEVICE_FLAGS}. */
export const deviceOptions = (
  flags: Flags,
): Pick<Qwen3Options, "webgpu" | "adapter"> => ({
  webgpu: flags.oneOf("webgpu", WEBGPU_NAMES),
  adapter: flags.oneOf("adapter", ADAPTER_NAMES),
});

/** The flag of tasks that run a model on the CPU path. */
export const THREADS_FLAG: FlagTable = {
  "threads": [
    "number",
    `threads of the CPU path, at most ${MOST_THREADS}`,
    `one per core, here ${navigator.hardwareConcurrency}`,
  ],
};

/** The flag of tasks whose models cache keys and values. */
export const KV_FLAG: FlagTable = {
  "kv": [
    "text",
    "how keys and values are cached: auto, f16, f32 or q8_0 (half of f16)",
    "auto",
  ],
};

/** Reads {@linkcode KV_FLAG}. */
export const cacheRequest = (flags: Flags): CacheRequest | undefined =>
  flags.oneOf("kv", CACHE_TYPES);

/** Where progress is shown. */
export interface Screen {
  isTerminal: boolean;
  /** Columns of the terminal now. */
  columns(): number;
  write(text: string): void;
  /** Milliseconds from any point in time. */
  now(): number;
}

const STDERR: Screen = {
  isTerminal: Deno.stderr.isTerminal() && Deno.env.get("TERM") !== "dumb",
  columns() {
    try {
      return Deno.consoleSize().columns || WIDTH;
    } catch { // stdin, stdout and stderr are no terminals any more
      return WIDTH;
    }
  },
  write(text) {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) {
      at += Deno.stderr.writeSync(bytes.subarray(at));
    }
  },
  now: () => performance.now(),
};

/** Loading that takes less gets no bar. */
const QUIET_MS = 400;
/** Time between redraws, and between lines. */
const REDRAW_MS = 100, LINE_MS = 10_000;
/** The window over which rates are averaged. */
const RATE_MS = 10_000, SAMPLE_MS = 250;

/** Progress of one thing: a file, a download or the weights. */
class Track {
  done = 0;
  total?: number;
  /** What to say beside the numbers. */
  note = "";
  readonly #samples: { at: number; done: number }[] = [];

  constructor(
    readonly name: string,
    readonly begin: number,
    readonly there = 0,
    readonly unit?: string,
  ) {
    this.#samples.push({ at: begin, done: there });
  }

  /** Excludes bytes that were there before from the rate. */
  skip(bytes: number): void {
    for (const sample of this.#samples) sample.done += bytes;
  }

  update(now: number, done: number, total?: number): void {
    [this.done, this.total] = [done, total];
    const samples = this.#samples;
    if (done < samples.at(-1)!.done) samples.length = 0; // it started over
    if (samples.length && now - samples.at(-1)!.at < SAMPLE_MS) return;
    samples.push({ at: now, done });
    while (samples.length > 2 && now - samples[1].at > RATE_MS) samples.shift();
  }

  /** Bytes per second; undefined until that is meaningful. */
  rate(now: number): number | undefined {
    const [{ at, done }] = this.#samples;
    if (now - at < SAMPLE_MS) return undefined;
    return 1000 * (this.done - done) / (now - at);
  }

  get share(): number | undefined {
    return this.total ? Math.min(1, this.done / this.total) : undefined;
  }

  /** Size, rate and time left, from the most to the least important. */
  facts(now: number): string[] {
    const { done, total, share, unit, note } = this, rate = this.rate(now);
    const amount = (n: number) =>
      unit === undefined ? bytesText(n) : `${shortNumber(n)} ${unit}`;
    return [
      share === undefined ? "" : `${Math.floor(100 * share)} %`,
      total === undefined
        ? amount(done)
        : unit === undefined
        ? part(done, total)
        : `${done}/${total} ${unit}`,
      rate === undefined ? "" : `${amount(rate)}/s`,
      rate && total ? `${duration((total - done) / rate)} left` : "",
      note,
    ].filter(Boolean);
  }
}

/** A way to show tracks: the whole first, then files. */
interface Display {
  show(tracks: readonly Track[]): void;
  /** Prints a line that stays. */
  say(line: string): void;
  end(): void;
}

/** Shows progress until it is disposed. */
export class Progress implements Disposable {
  readonly #display: Display;
  #stage?: LoadProgress["stage"];
  #whole?: Track;
  readonly #files = new Map<string, Track>();

  private constructor(readonly screen: Screen, bars?: Bars) {
    this.#display = bars && screen.isTerminal
      ? new BarDisplay(screen, bars)
      : new LineDisplay(screen);
  }

  /** Progress on stderr, or on another screen. */
  static async start(screen: Screen = STDERR): Promise<Progress> {
    if (!screen.isTerminal) return new Progress(screen);
    try { // only terminals need the package
      return new Progress(screen, await import("npm:cli-progress@3.12.0"));
    } catch (error) {
      const progress = new Progress(screen);
      progress.notice(
        `Showing progress as lines, because the package for bars cannot be loaded: ${
          errorText(error)
        }`,
      );
      return progress;
    }
  }

  /** Takes `onProgress`. */
  readonly report = (progress: LoadProgress): void => {
    const { stage, file, done, total, fileDone, fileTotal } = progress;
    const now = this.screen.now();
    if (stage !== this.#stage) {
      this.#stage = stage;
      this.#files.clear();
      const name = stage === "weights" ? "loading the weights" : "in all";
      this.#whole = new Track(name, now);
    }
    if (file !== undefined && fileDone !== undefined) {
      this.#file(label(file), now, fileDone, fileTotal);
    }
    this.#whole!.update(now, done, total);
    if (done >= total) return this.#display.end(); // the task may print again
    // A download of one file is that file.
    const files = [...this.#files.values()];
    const isWhole = files.length === 1 && fileTotal === total;
    this.#display.show(isWhole ? files : [this.#whole!, ...files]);
  };

  /** Shows how many of `total` things are done. */
  count(name: string, unit: string, done: number, total: number, note = "") {
    const now = this.screen.now(), track = this.#whole;
    if (track?.unit !== unit) {
      this.#whole = new Track(name, now, done, unit);
    }
    this.#whole!.update(now, done, total);
    this.#whole!.note = note;
    this.#display.show([this.#whole!]);
  }

  #file(name: string, now: number, done: number, total?: number): void {
    let track = this.#files.get(name);
    if (track === undefined) {
      // What was there before does not count in the rates.
      track = new Track(name, now, done);
      this.#whole!.skip(done);
      this.#files.set(name, track);
    }
    track.update(now, done, total);
    if (total === undefined || done < total) return;
    this.#files.delete(name);
    const seconds = (now - track.begin) / 1000;
    if (seconds < LINE_MS / 1000) return; // a short one is not worth a line
    const rate = (total - track.there) / seconds;
    this.notice(
      `${name}: ${bytesText(total)} in ${duration(seconds)}, ${
        bytesText(rate)
      }/s.`,
    );
  }

  /** Takes `onNotice`: prints a line, above bars if there are any. */
  readonly notice = (notice: string): void => {
    const { isTerminal, columns } = this.screen;
    const width = isTerminal ? Math.min(WIDTH, columns() - 1) : WIDTH;
    for (
      const line of wrap(
        printable(asTyped(notice)),
        Math.max(10, width),
        "",
        "  ",
      )
    ) {
      this.#display.say(line);
    }
  };

  /** The options of `loadQwen3` that show its progress here. */
  get options(): Pick<OpenOptions, "onProgress" | "onNotice"> {
    return { onProgress: this.report, onNotice: this.notice };
  }

  /** Takes the bars away, until there is more to report. */
  clear(): void {
    this.#display.end();
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}

/** Lines for logs and pipes. */
class LineDisplay implements Display {
  #said?: number;

  constructor(readonly screen: Screen) {}

  show(tracks: readonly Track[]): void {
    const now = this.screen.now();
    this.#said ??= now;
    if (now - this.#said < LINE_MS) return;
    this.#said = now;
    const lines = tracks.toReversed().map((track) =>
      `${track.name}: ${track.facts(now).join(", ")}`
    );
    this.say(lines.join("; ")); // the file first, then the whole
  }

  say(line: string): void {
    this.screen.write(`${line}\n`);
  }

  end(): void {
    this.#said = undefined;
  }
}

/** Columns of a bar, and of what follows it at most. */
const BAR = 30, LEAST_BAR = 8, FACTS = 51;

/** Bars for a terminal, redrawn in place. */
class BarDisplay implements Display {
  #bars?: MultiBar;
  readonly #lines: Bar[] = [];
  #begun?: number;
  #drawn = -Infinity;

  constructor(readonly screen: Screen, readonly library: Bars) {}

  show(tracks: readonly Track[]): void {
    const now = this.screen.now();
    this.#begun ??= now;
    if (now - this.#begun < QUIET_MS || now - this.#drawn < REDRAW_MS) return;
    this.#drawn = now;
    const bars = this.#bars ??= this.#start(), lines = this.#lines;
    const longest = Math.max(...tracks.map(({ name }) => name.length));
    tracks.forEach((track, i) => {
      const payload = { track, longest };
      lines[i] ??= bars.create(1, 0, payload);
      lines[i].setTotal(track.total ?? 0);
      lines[i].update(track.done, payload);
    });
    while (lines.length > tracks.length) bars.remove(lines.pop()!);
    bars.update(); // its timer may not get a turn between synchronous reads
  }

  say(line: string): void {
    const bars = this.#bars;
    if (bars === undefined) return this.screen.write(`${line}\n`);
    bars.log(`${line}\x1b[K\n`);
    bars.update();
  }

  end = (): void => {
    removeEventListener("unload", this.end);
    this.#bars?.stop();
    this.#bars = undefined;
    this.#lines.length = 0;
    this.#begun = undefined;
  };

  #start(): MultiBar {
    addEventListener("unload", this.end); // for a task that exits
    const { screen, library: { MultiBar } } = this;
    const stream = {
      isTTY: true,
      get columns() {
        return screen.columns();
      },
      write(text: string) {
        screen.write(text);
        return true;
      },
    };
    return new MultiBar({
      stream,
      format: (
        options: object,
        { progress }: { progress: number },
        payload: Payload,
      ) => this.#line(options, progress, payload),
      barCompleteChar: "█",
      barIncompleteChar: "░",
      clearOnComplete: true,
      linewrap: true, // leaves the terminal's mode alone; lines are cut to its width
      gracefulExit: false, // signals are the task's
      forceRedraw: true, // lines move when a notice is printed above them
    });
  }

  /** Name, bar and numbers, as many as fit. */
  #line(
    options: object,
    progress: number,
    { track, longest }: Payload,
  ): string {
    const width = this.screen.columns() - 1;
    const names = Math.min(longest, Math.max(10, width - FACTS - LEAST_BAR));
    const name = shortened(track.name, names).padEnd(names);
    const room = Math.min(BAR, width - names - FACTS);
    const barsize = room < LEAST_BAR || track.total === undefined ? 0 : room;
    const bar = this.library.Format.BarFormat(progress, {
      ...options,
      barsize,
    });
    const parts = [name, ...(barsize > 0 ? [bar] : [])];
    for (const fact of track.facts(this.screen.now())) {
      if ([...parts, fact].join("  ").length > width) break;
      parts.push(fact);
    }
    return parts.join("  ");
  }
}

/** How much of a size has arrived, as `1.23/4.56 GB`. */
function part(done: number, total: number): string {
  const { number, unit } = scaledBytes(total, total);
  return `${scaledBytes(done, total).number}/${number} ${unit}`;
}

/** What a file is called here: of a URL its last part, of weights the stem. */
function label(file: string): string {
  return printable(file)
    .replace(/^https?:.*\/(?=.)/, "").replace(/\?…$/, "")
    .replace(/\.(safetensors|gguf)$/, "");
}

/** A number with about two digits, or all of its integer part. */
function shortNumber(n: number): string {
  return n >= 10 ? `${Math.round(n)}` : `${Number(n.toPrecision(2))}`;
}

/** Seconds as `54 s`, `12 min` or `3 h 20 min`. */
function duration(seconds: number): string {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The options that {@linkcode LOADING_FLAGS} and {@linkcode THREADS_FLAG} set. */
export function loadingOptions(
  flags: Flags,
): Pick<Qwen3Options, "quantize" | "readTimeout" | "threads"> {
  const readTimeout = flags.number("read-timeout");
  checkReadTimeout("Cannot read the flags", readTimeout, "--read-timeout");
  const quantize = flags.text("quantize");
  if (quantize !== undefined && quantizationNamed(quantize) === undefined) {
    throw new Error(
      `Cannot read the flags: --quantize is ${notOneOf(quantize)}, try --help`,
    );
  }
  const threads = flags.whole("threads", 1, MOST_THREADS);
  return { quantize, readTimeout, threads };
}
