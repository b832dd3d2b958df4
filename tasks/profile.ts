/**
 * Shows where a model's time goes. Verdicts in plain words come first.
 *
 *   deno task profile --model Qwen/Qwen3-0.6B --html profile.html
 *   deno task profile --json | jq .verdicts
 *   deno task profile --kernels gemv      # what happens with a 2D×1D kernel alone
 *
 * `--json` prints one line of JSON on stdout instead of the text. It is a `ProfileReport`
 * of lib/tools/profile/report.ts, which describes every field:
 *
 * - `verdicts`: `rule`, `severity` (red, yellow, green) and `text`, most important
 *   first;
 * - `rates`: `tokensPerSecond` of prefill and decode, and the `kind` of time it is from;
 *   decode's is the rate of `deno task generate`;
 * - `model`, `device` (`kind`, `adapter`, `software`, `choices` with reasons),
 *   `promptTokens`, `maxTokens`, `batch`, `notes`;
 * - `peaks`: the adapter's best rates, measured in this run: `readGBps`, `bufferGBps`
 *   (if textures are faster), `f32TFLOPS`, `f16TFLOPS`, `fillWorkgroups` (of 256
 *   threads);
 * - `timedBy`: `timestamps`, `passes` (an adapter without timestamps) or `verbs` (the
 *   ops of the CPU);
 * - `phases`: prefill and decode, each with `ms` of a step as it runs, `profiledMs` with
 *   one pass per dispatch, their `factor`, `betweenMs` between those passes,
 *   `dispatches`, `flops`, `bytes` and its `operations`: `name`, `shape`, `dtypes`,
 *   `kernel`, `constants`, `reason`, `fused`, `calls`, `ms`, `share`, `flops`, `bytes`,
 *   `tflops`, `gbps`, the `bound` that applies (memory, f32, f16) and the `fraction` of
 *   it that was reached, per step;
 * - `coverage`: `calls` and `flops` of matmuls on the GPU and in total, and `refusals`
 *   by reason and shape; `fallbacks`: the operations they affect;
 * - `loop`: the decode loop: `steps` and `tokens`, and per step `stepMs` in all,
 *   `encodeMs`, `submitMs`, `waitMs`, `readbackMs`, `gpuMs`; `idle`, `gaps`;
 * - `compare`: GPU and CPU times of Linear layers, attention and whole steps;
 * - `timeline`: the events of `--trace`: `lane`, `part`, `name`, `detail`, `begin` and
 *   `ms`, in milliseconds.
 */
import { errorText } from "../lib/errors.ts";
import { unusedThreads } from "../lib/place.ts";
import { shortened } from "../lib/text/messages.ts";
import { profile } from "../lib/tools/profile/profile.ts";
import { profileHtml } from "../lib/tools/profile/html.ts";
import { profileText, type TextOptions } from "../lib/tools/profile/text.ts";
import { traceOf } from "../lib/tools/profile/trace.ts";
import { parseKernels } from "../lib/tools/profile/kernels.ts";
import { stdout } from "./colour.ts";
import { asTyped } from "./command.ts";
import { type FlagTable, runTask } from "./flags.ts";
import {
  cacheRequest,
  DEVICE_FLAGS,
  deviceOptions,
  KV_FLAG,
  LOADING_FLAGS,
  loadingOptions,
  Progress,
  THREADS_FLAG,
} from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    "the story model",
  ],
  "device": ["text", "auto, gpu or cpu", "auto"],
  ...KV_FLAG,
  ...DEVICE_FLAGS,
  "prompt-tokens": ["number", "length of the prompt", 512],
  "max-tokens": ["number", "tokens to generate", 64],
  "batch": ["number", "sequences decoded together", 1],
  "chunk": [
    "number",
    "steps between readbacks; 1 shows what a readback costs",
    "as generate: few at first, then more",
  ],
  "kernels": [
    "text",
    "allow only these, comma-separated: gemv (limited to 2D×1D), gemm, batchedGemm",
    "all, packed and fused",
  ],
  "compare": ["switch", "also run the CPU path and report the GPU's speedup"],
  "verbose": ["switch", "also say why each kernel was chosen"],
  "json": ["switch", "print the report as one line of JSON instead of text"],
  "trace": [
    "text",
    "write Chrome trace events to this file, for ui.perfetto.dev",
  ],
  "html": ["text", "write a self-contained page to this file"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

/** Colours the line of a verdict. */
const paint: TextOptions["paint"] = (severity, line) => stdout[severity](line);

/** The path that means stdout. */
const STDOUT = "-";

await runTask({
  usage: "deno task profile [flags]",
  flags: FLAGS,
  notes:
    "The report goes to stdout; --html - or --trace - writes that file there instead.",
  examples: [
    "deno task profile --model Qwen/Qwen3-0.6B --html profile.html",
    "deno task profile --json | jq .verdicts",
  ],
}, async (flags) => {
  const json = flags.on("json") ?? false;
  refuseWords(flags.words, json);
  const list = flags.text("kernels");
  const kernels = list === undefined ? undefined : parseKernels(list);
  const files = { trace: flags.text("trace"), html: flags.text("html") };
  requireFiles(files, json);
  using progress = await Progress.start();
  const report = await profile(flags.text("model"), {
    device: flags.oneOf("device", ["auto", "gpu", "cpu"]),
    kv: cacheRequest(flags),
    ...deviceOptions(flags),
    promptTokens: flags.number("prompt-tokens"),
    maxTokens: flags.number("max-tokens"),
    batch: flags.number("batch"),
    chunk: flags.number("chunk"),
    kernels,
    compare: flags.on("compare"),
    opening: { ...loadingOptions(flags), ...progress.options },
    onProgress: (what) => progress.notice(`${what} …`),
  });
  const { threads } = loadingOptions(flags);
  const onCpu = report.device.kind === "cpu" || flags.on("compare") || kernels;
  if (threads !== undefined && !onCpu) progress.notice(unusedThreads(threads));
  if (json) console.log(JSON.stringify(report));
  else if (!Object.values(files).includes(STDOUT)) {
    const verbose = flags.on("verbose");
    console.log(asTyped(profileText(report, { verbose, paint })));
  }
  const write = async (flag: string, path: string, text: string) => {
    if (path === STDOUT) return console.log(text);
    await Deno.writeTextFile(path, `${text}\n`);
    progress.notice(`--${flag} is in ${path}`);
  };
  const { trace, html } = files;
  if (trace !== undefined) {
    await write("trace", trace, JSON.stringify(traceOf(report)));
  }
  if (html !== undefined) await write("html", html, await profileHtml(report));
  return 0;
});

/** Refuses words, such as a file after `--json`, which prints. */
function refuseWords([word]: readonly string[], json: boolean): void {
  if (word === undefined) return;
  const name = shortened(word, 30);
  throw new Error(
    json
      ? `Cannot profile: --json takes no file, must be --json > ${name}`
      : `Cannot profile: unexpected argument "${name}", this task takes flags only`,
  );
}

/** Checks before anything slow starts that each file can be written, and is only one's. */
function requireFiles(
  files: Record<string, string | undefined>,
  json: boolean,
): void {
  const flagOf = new Map<string, string>(json ? [[STDOUT, "json"]] : []);
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
