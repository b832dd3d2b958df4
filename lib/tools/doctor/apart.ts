/**
 * Examines a device in another process: a kernel that hangs blocks its thread inside
 * the driver, out of reach of Deno's timers and signals, and a driver may crash.
 *
 * @module
 */
import type { DeviceOptions } from "../../webgpu/implementation.ts";
import type { Examination } from "./device.ts";
import type { Finding, Reporter } from "./report.ts";

/** A line of JSON from the process: what runs next, or a finding. */
export type News = { starts: string } | Finding;

/** What is examined on which adapter, as JSON. */
export type ApartExamination =
  & Examination
  & Pick<DeviceOptions, "webgpu" | "adapter">;

/** Kernels take milliseconds to run and at most seconds to compile. */
const DEADLINE_MS = 60_000;

/** The process's script. */
const SCRIPT = new URL("process.ts", import.meta.url);

/**
 * `examineDevice` on an adapter. A kernel that misses its deadline or crashes
 * the process is a finding.
 */
export async function examineApart(
  examination: ApartExamination,
  reporter: Reporter,
  { script = SCRIPT, deadlineMs = DEADLINE_MS } = {},
): Promise<void> {
  const process = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-config", script.href],
      JSON.stringify(examination),
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = process.stdout.pipeThrough(new TextDecoderStream())
    .getReader();
  const stderr = new Response(process.stderr).text();
  let running = "self-test", late = false;
  let deadline: ReturnType<typeof setTimeout> | undefined;
  const wait = (ms: number) => {
    clearTimeout(deadline);
    deadline = setTimeout(() => {
      late = true;
      process.kill("SIGKILL");
      process.unref();
      reader.cancel(); // the driver may keep even a killed process alive
    }, ms);
  };
  wait(DEADLINE_MS); // for opening the device, before any kernel
  for (let text = "";;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (text + value).split("\n");
    text = lines.pop()!;
    for (const line of lines) {
      if (!line.startsWith("{")) continue; // output of the driver
      wait(deadlineMs);
      const news: News = JSON.parse(line);
      if ("starts" in news) {
        running = news.starts;
        reporter.starting?.(running);
      } else reporter.found(news);
    }
  }
  clearTimeout(deadline);
  if (late) {
    reporter.found({
      severity: "red",
      topic: running,
      text: `hangs: not done after ${
        deadlineMs / 1000
      } s, its process was killed; \
update the driver, or choose another adapter with DENO_WEBGPU_BACKEND`,
    });
    return;
  }
  const { success, code, signal } = await process.status;
  if (success) return;
  const last = (await stderr).trim().split("\n").at(-1);
  const end = signal ?? `exit code ${code}`;
  reporter.found({
    severity: "red",
    topic: running,
    text: `its process ended with ${end}${last && `: ${last}`}; update the \
driver and report this message`,
  });
}
