/**
 * A fuzzer: everything that is not trusted (the files of a checkpoint, chat templates,
 * messages, options, tuned constants) is damaged where its structure is. The library
 * works, or refuses it with one line; it never hangs or takes much memory.
 *
 * `deno task test --inputs 10000 tests/fuzz_test.ts` tries more inputs.
 */
import { assertEquals } from "@std/assert";
import { QUICK } from "./support/quick.ts";
import { randomTest } from "./support/random.ts";
import { RUN } from "./support/run_task.ts";

/** The number of inputs: an environment variable, which `--inputs` sets. */
const INPUTS = "QWEN3_TEST_INPUTS";
/** The first input, to repeat one. */
const FIRST = "QWEN3_TEST_INPUT";

/** Inputs that one process takes. */
const PORTION = 250;
/** Seconds of processor time, and on the clock, after which an input hangs. */
const BUSY = 5, IDLE = 60;
/** The most memory of a process that took one input, in bytes. */
const MEMORY = 1e9;
/** The most characters of an error. */
const LENGTH = 2000;

/** What the process says. */
interface Line {
  /** The memory it needs without a damaged input. */
  base?: number;
  begins?: number;
  what?: string;
  ended?: number;
  outcome?: string;
  stray?: string[];
  peak?: number;
  done?: true;
}

/** Processor seconds that a process has taken; on Linux only. */
function busySeconds(pid: number): number | undefined {
  try {
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return undefined;
  }
}

/** What is wrong with an outcome, if anything. */
function fault({ outcome, stray = [] }: Line): string | undefined {
  if (stray.length > 0) return stray.join("; ");
  if (outcome === undefined) return undefined;
  if (!outcome.startsWith("Cannot ")) return `it is no refusal: ${outcome}`;
  if (outcome.includes("\n")) return `it has several lines: ${outcome}`;
  if (outcome.length >= LENGTH) {
    return `it has ${outcome.length} characters: ${outcome.slice(0, 300)}…`;
  }
  return INSIDE.test(outcome) ? `it comes from inside: ${outcome}` : undefined;
}

/** Errors of the JavaScript engine, where a check of ours is missing. */
const INSIDE =
  /^Cannot [^:]*$|Cannot (read|set|create|define|redefine) propert|Cannot (destructure|convert undefined|mix BigInt|access ')|Maximum call stack|Invalid (array|string|typed array) length|^Cannot (?!render a chat).* is not (a function|iterable|defined)/;

interface Result {
  /** The first input that was not run. */
  next: number;
  faults: { index: number; what: string; fault: string }[];
  refused: number;
}

/** Runs inputs in a process, which ends early at an input that hangs or takes much memory. */
async function give(
  seed: number,
  first: number,
  count: number,
): Promise<Result> {
  const folder = await Deno.makeTempDir();
  const child = new Deno.Command(Deno.execPath(), {
    args: [...RUN, "tests/fuzz/child.ts", `${seed}`, `${first}`, `${count}`],
    cwd: new URL("..", import.meta.url),
    env: {
      QWEN3_TUNING_DIR: `${folder}/tuned`,
      QWEN3_CACHE_DIR: `${folder}/cache`,
      TMPDIR: folder,
      NO_COLOR: "1",
    },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text();
  const result: Result = { next: first, faults: [], refused: 0 };
  let what = "the start", hangs: string | undefined, done = false;
  let since = performance.now(), busyBefore = 0, most = MEMORY;
  const watch = setInterval(() => {
    const busy = (busySeconds(child.pid) ?? 0) - busyBefore;
    const idle = (performance.now() - since) / 1000;
    // Many threads are soon busy for seconds, a busy machine takes long for little.
    if (Math.min(busy, idle) < BUSY && idle < IDLE) return;
    if (what === "the start" && idle < IDLE) return; // it compiles
    hangs ??= busy < BUSY ? `${IDLE} s idle` : `${BUSY} s of processor time`;
    try {
      child.kill("SIGKILL");
    } catch { /* it has ended */ }
  }, 200);
  const blame = (fault: string) =>
    result.faults.push({ index: result.next, what, fault });

  let rest = "";
  const lines = child.stdout.pipeThrough(new TextDecoderStream());
  for await (const text of lines) {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    for (const line of parts.map((part): Line => JSON.parse(part))) {
      if (line.base !== undefined) {
        // Where a thread for every core takes much by itself.
        most = Math.max(MEMORY, line.base + MEMORY / 2);
      } else if (line.begins !== undefined) {
        what = line.what!;
        since = performance.now();
        busyBefore = busySeconds(child.pid) ?? 0;
      } else if (line.ended !== undefined) {
        const much = line.peak! > most;
        if (much && count > 1) {
          hangs = "memory"; // alone, it shows whether it was this input
          child.kill("SIGKILL");
          break;
        }
        const wrong = much ? `${line.peak! / 1e6} MB of memory` : fault(line);
        if (wrong) blame(wrong);
        if (line.outcome !== undefined) result.refused++;
        result.next = line.ended + 1;
      } else done = line.done === true;
    }
    if (hangs === "memory") break;
  }
  clearInterval(watch);
  await child.status;
  await Deno.remove(folder, { recursive: true });
  if (hangs === "memory") {
    const alone = await give(seed, result.next, 1);
    result.faults.push(...alone.faults);
    result.refused += alone.refused;
    result.next++;
  } else if (hangs !== undefined || !done) {
    if (result.next < first + count) {
      blame(hangs ?? `the process ended: ${(await stderr).slice(0, 1000)}`);
      result.next++;
    }
  }
  return result;
}

randomTest("damaged input works or is refused in one line", async (random) => {
  const inputs = Number(Deno.env.get(INPUTS) ?? (QUICK ? 50 : 500));
  const begin = Number(Deno.env.get(FIRST) ?? 0);
  const seed = random.int(0, 2 ** 31 - 1);
  const faults: Result["faults"] = [];
  let refused = 0;
  for (let at = begin; at < begin + inputs;) {
    const count = Math.min(PORTION, begin + inputs - at);
    const result = await give(seed, at, count);
    faults.push(...result.faults);
    refused += result.refused;
    at = result.next;
  }
  console.log(`${refused} of ${inputs} inputs were refused`);
  assertEquals(
    faults.map(({ index, what, fault }) =>
      `${what}: ${fault} (with ${FIRST}=${index} ${INPUTS}=1)`
    ),
    [],
  );
});
