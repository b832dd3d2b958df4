/**
 * Counts of what a server does, in Prometheus' text format
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 *
 * @module
 */
import type { RunStats } from "../generate.ts";
import type { Queue } from "./queue.ts";

/** Upper bounds of the buckets of a histogram, in seconds. */
const BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];

/** Seconds that something took. */
class Histogram {
  readonly #counts = BUCKETS.map(() => 0);
  #sum = 0;
  #count = 0;

  add(seconds: number): void {
    const at = BUCKETS.findIndex((bound) => seconds <= bound);
    if (at >= 0) this.#counts[at]++;
    this.#sum += seconds;
    this.#count++;
  }

  lines(name: string): string[] {
    let below = 0;
    return [
      ...BUCKETS.map((bound, i) =>
        `${name}_bucket{le="${bound}"} ${below += this.#counts[i]}`
      ),
      `${name}_bucket{le="+Inf"} ${this.#count}`,
      `${name}_sum ${this.#sum}`,
      `${name}_count ${this.#count}`,
    ];
  }
}

/** What a server has done. */
export class Metrics {
  readonly #requests = new Map<string, number>();
  readonly #seconds = new Histogram();
  readonly #first = new Histogram();
  #promptTokens = 0;
  #cachedTokens = 0;
  #tokens = 0;

  /**
   * Counts a request.
   *
   * @param path one that the server has, so that their number is bounded
   */
  request(path: string, status: number): void {
    const labels = `path="${path}",status="${status}"`;
    this.#requests.set(labels, (this.#requests.get(labels) ?? 0) + 1);
  }

  /** Counts the seconds from a request to the end of its last text. */
  answered(seconds: number): void {
    this.#seconds.add(seconds);
  }

  /** Counts the seconds from a request to the first token of a text. */
  firstToken(seconds: number): void {
    this.#first.add(seconds);
  }

  /** Counts the tokens of a text. */
  generated({ promptTokens, cachedTokens, tokens }: RunStats): void {
    if (tokens > 0) this.#promptTokens += promptTokens;
    this.#cachedTokens += cachedTokens;
    this.#tokens += tokens;
  }

  /** The text for Prometheus. */
  text({ slots, running, waiting }: Queue): string {
    const one = (
      name: string,
      type: "counter" | "gauge",
      help: string,
      value: number,
    ) => metric(name, type, help, [`qwen3_${name} ${value}`]);
    const parts = [
      metric(
        "requests_total",
        "counter",
        "Requests answered.",
        [...this.#requests].map(([labels, count]) =>
          `qwen3_requests_total{${labels}} ${count}`
        ),
      ),
      one("slots", "gauge", "Texts that can be generated at once.", slots),
      one("running", "gauge", "Texts that are being generated.", running),
      one("waiting", "gauge", "Texts that wait for a slot.", waiting),
      one(
        "prompt_tokens_total",
        "counter",
        "Tokens of prompts.",
        this.#promptTokens,
      ),
      one(
        "cached_tokens_total",
        "counter",
        "Tokens of prompts whose keys and values were cached.",
        this.#cachedTokens,
      ),
      one("tokens_total", "counter", "Tokens generated.", this.#tokens),
      metric(
        "time_to_first_token_seconds",
        "histogram",
        "From a request to the first token, with the time in the queue.",
        this.#first.lines("qwen3_time_to_first_token_seconds"),
      ),
      metric(
        "request_seconds",
        "histogram",
        "From a request to the end of its last text.",
        this.#seconds.lines("qwen3_request_seconds"),
      ),
    ];
    return parts.map((lines) => lines.join("\n") + "\n").join("");
  }
}

function metric(
  name: string,
  type: string,
  help: string,
  lines: readonly string[],
): string[] {
  return [
    `# HELP qwen3_${name} ${help}`,
    `# TYPE qwen3_${name} ${type}`,
    ...lines,
  ];
}
