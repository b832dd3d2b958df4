/**
 * Shows where a model's time goes. Verdicts in plain words come first.
 *
 *   deno task profile --model Qwen/Qwen3-0.6B --html profile.html
 *   deno task profile --kernels gemv      # what happens with a 2D×1D kernel alone
 *
 * `--json` prints one line of JSON last on stdout; `--json FILE` writes it to a file. It
 * is a `ProfileReport` of lib/tools/profile/report.ts, which describes every field:
 *
 * - `verdicts`: `rule`, `severity` (red, yellow, green) and `text`, most important
 *   first;
 * - `model`, `device` (`kind`, `adapter`, `software`, `choices` with reasons),
 *   `promptTokens`, `maxTokens`, `batch`, `notes`;
 * - `peaks`: the adapter's best rates, measured in this run: `readGBps`, `bufferGBps`
 *   (if textures are faster), `f32TFLOPS`, `f16TFLOPS`, `fillWorkgroups` (of 256
 *   threads);
 * - `timedBy`: `timestamps`, `passes` (an adapter without timestamps) or `verbs` (the
 *   ops of the CPU);
 * - `phases`: prefill and decode, each with `ms` of a step as it runs, `profiledMs` with
 *   one pass per dispatch, their `factor`, `betweenMs` between those passes,
 *   `tokensPerSecond`, `dispatches`, `flops`, `bytes` and its `operations`: `name`,
 *   `shape`, `dtypes`, `kernel`, `constants`, `reason`, `fused`, `calls`, `ms`, `share`,
 *   `flops`, `bytes`, `tflops`, `gbps`, the `bound` that applies (memory, f32, f16) and
 *   the `fraction` of it that was reached, per step;
 * - `coverage`: `calls` and `flops` of matmuls on the GPU and in total, and `refusals`
 *   by reason and shape; `fallbacks`: the operations they affect;
 * - `loop`: the decode loop: `steps` and `tokens`, and per step `encodeMs`, `submitMs`,
 *   `waitMs`, `readbackMs`, `gpuMs`; `idle`, `gaps`, `tokensPerSecond` with and without
 *   idling;
 * - `compare`: GPU and CPU times of Linear layers, attention and whole steps;
 * - `timeline`: the events of `--trace`: `lane`, `part`, `name`, `detail`, `begin` and
 *   `ms`, in milliseconds.
 */
import { errorText } from "../lib/errors.ts";
import { profile } from "../lib/tools/profile/profile.ts";
import { profileHtml } from "../lib/tools/profile/html.ts";
import { profileText } from "../lib/tools/profile/text.ts";
import { traceOf } from "../lib/tools/profile/trace.ts";
import { parseKernels } from "../lib/tools/profile/kernels.ts";
import { asTyped, taskArgs } from "./command.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, URL, owner/name[@revision] or synthetic:…; default: story model",
  ],
  "device": ["text", "auto (default), gpu or cpu"],
  "prompt-tokens": ["number", "length of the prompt; 512 by default"],
  "max-tokens": ["number", "tokens to generate; 64 by default"],
  "batch": ["number", "sequences decoded together; 1 by default"],
  "chunk": [
    "number",
    "fixed number of steps between readbacks; 1 shows what a readback costs",
  ],
  "kernels": [
    "text",
    "allow only these: gemv (limited to 2D×1D), gemm, batchedGemm",
  ],
  "compare": ["switch", "also run the CPU path and report the GPU's speedup"],
  "json": [
    "text",
    "write the report as one line of JSON, to this file or last on stdout",
  ],
  "trace": [
    "text",
    "write Chrome trace events to this file, for ui.perfetto.dev",
  ],
  "html": ["text", "write a self-contained page to this file"],
  ...LOADING_FLAGS,
};

/** The path that means stdout. */
const STDOUT = "-";

await runTask({
  usage: "deno task profile [flags]",
  flags: FLAGS,
  args: bareJson(taskArgs()),
  flagsOnly: "profile",
}, async (flags) => {
  const list = flags.text("kernels");
  const kernels = list === undefined ? undefined : parseKernels(list);
  const files = {
    json: flags.text("json"),
    trace: flags.text("trace"),
    html: flags.text("html"),
  };
  const flagOf = new Map<string, string>();
  for (const [flag, path] of Object.entries(files)) {
    if (path === undefined) continue;
    const other = flagOf.get(path);
    if (other !== undefined) {
      throw new Error(
        `Cannot write --${flag} to ${path}: --${other} is written there, must be another file`,
      );
    }
    flagOf.set(path, flag);
    if (path !== STDOUT) requireWritable(flag, path);
  }
  using progress = await Progress.start();
  const report = await profile(flags.text("model"), {
    device: flags.oneOf("device", ["auto", "gpu", "cpu"]),
    promptTokens: flags.number("prompt-tokens"),
    maxTokens: flags.number("max-tokens"),
    batch: flags.number("batch"),
    chunk: flags.number("chunk"),
    kernels,
    compare: flags.on("compare"),
    opening: { ...loadingOptions(flags), ...progress.options },
    onProgress: (what) => progress.notice(`${what} …`),
  });
  console.log(asTyped(profileText(report)));
  const { json, trace, html } = files;
  if (trace !== undefined) {
    await write(trace, JSON.stringify(traceOf(report)));
  }
  if (html !== undefined) await write(html, await profileHtml(report));
  if (json !== undefined) await write(json, JSON.stringify(report));
  return 0;
});

/** Makes `--json` without a file mean stdout. */
function bareJson(args: string[]): string[] {
  return args.map((arg, i) =>
    arg === "--json" && (args[i + 1] ?? "--").startsWith("--")
      ? `--json=${STDOUT}`
      : arg
  );
}

/** Rejects a file that cannot be written before anything slow starts. */
function requireWritable(flag: string, path: string): void {
  try {
    try {
      Deno.openSync(path, { write: true, createNew: true }).close();
      Deno.removeSync(path); // profiling may fail and must leave nothing behind
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      Deno.openSync(path, { write: true }).close();
    }
  } catch (error) {
    const why = error instanceof Deno.errors.NotFound
      ? "no such folder"
      : error instanceof Deno.errors.IsADirectory
      ? "it is a folder"
      : error instanceof Deno.errors.PermissionDenied
      ? "permission is denied"
      : errorText(error);
    throw new Error(
      `Cannot write --${flag} to "${path}": ${why}, must be a writable file`,
    );
  }
}

async function write(path: string, text: string): Promise<void> {
  if (path === STDOUT) console.log(text);
  else await Deno.writeTextFile(path, text + "\n");
}
