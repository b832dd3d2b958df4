/**
 * The examination of a device in a process of its own: a kernel that hangs blocks
 * its thread inside the driver, where no timer and no signal of Deno's gets
 * through, and a driver may crash.
 *
 * @module
 */
import type { Find, Finding } from "./doctor_report.ts";

/** What the process says, a line of JSON each: what it starts, what it found. */
export type News = { starts: string } | Finding;

/** A kernel takes milliseconds, its compilation at most seconds. */
const DEADLINE_MS = 60_000;

/** What the process runs. */
const SCRIPT = new URL("doctor_process.ts", import.meta.url);

/**
 * `examineDevice` on the default adapter. A kernel that is not done by its
 * deadline, or that ends the process, is a finding.
 */
export async function examineApart(
  weights: number | undefined,
  find: Find,
  { script = SCRIPT, deadlineMs = DEADLINE_MS } = {},
): Promise<void> {
  const process = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-config", script.href, String(weights ?? "")],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = process.stdout.pipeThrough(new TextDecoderStream())
    .getReader();
  const complaints = new Response(process.stderr).text();
  let running = "self-test", late = false;
  let deadline: ReturnType<typeof setTimeout> | undefined;
  const wait = (ms: number) => {
    clearTimeout(deadline);
    deadline = setTimeout(() => {
      late = true;
      process.kill("SIGKILL");
      process.unref();
      reader.cancel(); // a driver may keep even a killed process
    }, ms);
  };
  wait(DEADLINE_MS); // opening the device is no kernel
  for (let text = "";;) {
    const { value, done } = await reader.read();
    if (done) break;
    wait(deadlineMs);
    const lines = (text + value).split("\n");
    text = lines.pop()!;
    for (const line of lines) {
      if (!line.startsWith("{")) continue; // a driver's own words
      const news: News = JSON.parse(line);
      if ("starts" in news) running = news.starts;
      else find(news.severity, news.topic, news.text, news.data);
    }
  }
  clearTimeout(deadline);
  if (late) {
    return find(
      "red",
      running,
      `hangs: not done in ${deadlineMs / 1000} s, its process was ended; \
update the driver, or take another adapter with DENO_WEBGPU_BACKEND`,
    );
  }
  const { success, code, signal } = await process.status;
  if (success) return;
  const last = (await complaints).trim().split("\n").at(-1);
  const end = signal ?? `exit code ${code}`;
  find(
    "red",
    running,
    `its process ended with ${end}${last && `: ${last}`}; update the driver, \
and report this line`,
  );
}
