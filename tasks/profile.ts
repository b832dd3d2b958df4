/**
 * Where the time of a model goes, with a verdict in plain words first.
 *
 *   deno task profile --model Qwen/Qwen3-0.6B --html profile.html
 *   deno task profile --kernels gemv      # the failure that started this project
 *
 * `--json` writes one line of JSON last on stdout, `--json FILE` writes it to a file;
 * it is a `ProfileReport` of lib/tools/profile/report.ts, where every field is described:
 *
 * - `verdicts`: `rule`, `severity` (red, yellow, green) and `text`, the most
 *   important first;
 * - `model`, `device` (`kind`, `adapter`, `software`, `choices` with reasons),
 *   `promptTokens`, `maxTokens`, `batch`, `notes`;
 * - `peaks`: what the adapter can do, measured in this run: `readGBps`, `bufferGBps`
 *   (where it reads textures faster), `f32TFLOPS`, `f16TFLOPS`, `fillWorkgroups` (of 256
 *   threads);
 * - `timedBy`: `timestamps`, `passes` (an adapter without them) or `verbs` (the CPU);
 * - `phases`: prefill and decode, each with `ms` of a step as it runs, `profiledMs`
 *   with a pass per dispatch, their `factor`, `betweenMs` between those passes,
 *   `tokensPerSecond`, `dispatches`, `flops`, `bytes` and its `operations`: `name`,
 *   `shape`, `dtypes`, `kernel`, `constants`, `reason`, `fused`, `calls`, `ms`,
 *   `share`, `flops`, `bytes`, `tflops`, `gbps`, the `bound` that applies (memory,
 *   f32, f16) and the `fraction` of it that was reached, per step;
 * - `coverage`: `calls` and `flops` of matrix products on the GPU and in total, and
 *   `refusals` by reason and shape; `fallbacks`: the operations that they hit;
 * - `loop`: the decode loop: `steps` and `tokens`, and of each step `encodeMs`,
 *   `submitMs`, `waitMs`, `readbackMs`, `gpuMs`; `idle`, `gaps`, `tokensPerSecond`
 *   with and without idling;
 * - `compare`: GPU and CPU times of Linear layers, attention and the whole;
 * - `timeline`: what `--trace` has: `lane`, `part`, `name`, `detail`, `begin` and `ms`,
 *   in milliseconds.
 */
import type { DeviceKind } from "../mod.ts";
import { profile } from "../lib/tools/profile/profile.ts";
import { profileHtml } from "../lib/tools/profile/html.ts";
import { profileText } from "../lib/tools/profile/text.ts";
import { traceOf } from "../lib/tools/profile/trace.ts";
import { parseKernels } from "../lib/tools/profile/kernels.ts";
import { type FlagTable, helpText, readFlags, runTask } from "./flags.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "directory, URL, owner/name[@revision] or synthetic:qwen3-0.6b; default: the embedded story model",
  ],
  "device": ["text", "auto (default), gpu or cpu"],
  "prompt-tokens": ["number", "tokens of the prompt; 512 by default"],
  "max-tokens": ["number", "tokens to generate; 64 by default"],
  "batch": [
    "number",
    "sequences that run together, 1 by default",
  ],
  "chunk": [
    "number",
    "steps between two readbacks, always; 1 shows what a readback costs",
  ],
  "kernels": [
    "text",
    "allow only these matmul kernels, of gemv (2D×1D, as it once was), gemm, batchedGemm; a list with commas",
  ],
  "compare": [
    "switch",
    "run the CPU path too, and say how much faster the GPU is",
  ],
  "json": [
    "text",
    "the report as one line of JSON, last on stdout or to a file; lib/tools/profile/report.ts has its fields",
  ],
  "trace": ["text", "a file for Chrome trace events, for ui.perfetto.dev"],
  "html": ["text", "a file for one self-contained page"],
  "help": ["switch", "this text"],
};

/** In place of a file: stdout. */
const STDOUT = "-";

await runTask(async () => {
  const flags = readFlags(bareJson(Deno.args), FLAGS);
  if (flags.on("help")) {
    console.log(helpText("deno task profile [flags]", FLAGS));
    return 0;
  }
  if (flags.words.length) {
    throw new Error(
      `Cannot profile: ${
        flags.words[0]
      } is not a flag, all there is to say is said by flags`,
    );
  }
  const device = flags.text("device");
  if (device !== undefined && !["auto", "gpu", "cpu"].includes(device)) {
    throw new Error(
      `Cannot profile: --device is "${device}", must be auto, gpu or cpu`,
    );
  }
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
        `Cannot write --${flag} to ${path}: --${other} goes there, it must be another file`,
      );
    }
    flagOf.set(path, flag);
    if (path !== STDOUT) requireWritable(flag, path);
  }
  const report = await profile(flags.text("model"), {
    device: device as DeviceKind | undefined,
    promptTokens: flags.number("prompt-tokens"),
    maxTokens: flags.number("max-tokens"),
    batch: flags.number("batch"),
    chunk: flags.number("chunk"),
    kernels,
    compare: flags.on("compare"),
    onProgress: (what) => console.error(`${what} …`),
  });
  console.log(profileText(report));
  const { json, trace, html } = files;
  if (trace !== undefined) {
    await write(trace, JSON.stringify(traceOf(report)));
  }
  if (html !== undefined) await write(html, await profileHtml(report));
  if (json !== undefined) await write(json, JSON.stringify(report));
  return 0;
});

/** `--json` without a file means stdout. */
function bareJson(args: string[]): string[] {
  return args.map((arg, i) =>
    arg === "--json" && (args[i + 1] ?? "--").startsWith("--")
      ? `--json=${STDOUT}`
      : arg
  );
}

/** Refuses a file that cannot be written before anything long begins. */
function requireWritable(flag: string, path: string): void {
  try {
    try {
      Deno.openSync(path, { write: true, createNew: true }).close();
      Deno.removeSync(path); // nothing is left behind should profiling fail
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      Deno.openSync(path, { write: true }).close();
    }
  } catch (error) {
    const why = error instanceof Deno.errors.NotFound
      ? "there is no such folder"
      : error instanceof Deno.errors.IsADirectory
      ? "it is a folder"
      : error instanceof Deno.errors.PermissionDenied
      ? "there is no permission"
      : error instanceof Error
      ? error.message
      : String(error);
    throw new Error(
      `Cannot write --${flag} to "${path}": ${why}, must be a file that can be written`,
    );
  }
}

async function write(path: string, text: string): Promise<void> {
  if (path === STDOUT) console.log(text);
  else await Deno.writeTextFile(path, text + "\n");
}
