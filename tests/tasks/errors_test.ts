/** What tasks refuse, in one line that fits a terminal. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertFits } from "../support/ruler.ts";
import { type Outcome, runTask } from "../support/run_task.ts";

function assertRefused(outcome: Outcome, message: string): void {
  const { code, stdout, stderr } = outcome;
  assertEquals([code, stdout], [1, ""], stderr);
  assertMatch(stderr, /^error: Cannot [^\n]*\n$/);
  assert(stderr.includes(message), stderr);
  assertFits(stderr);
}

for (
  const [task, args, message] of [
    ["bench", ["--model"], "--model has no value, must be followed by a text"],
    ["bench", ["--markdwn"], "--markdwn is unknown, did you mean --markdown?"],
    ["bench", ["--only", "lod"], '--only has "lod", did you mean load?'],
    [
      "bench",
      ["--only", "load", "--threads", "2"],
      "--threads is 2, must be left out without the rows cpu and gpu-over-cpu",
    ],
    ["bench", ["--only", "nosuch"], '--only has "nosuch", try deno task bench'],
    ["cache", ["--claer"], "--claer is unknown, did you mean --clear?"],
    ["cache", ["a", "b"], "Cannot show the cache of 2 URLs: give one or none"],
    [
      "cache",
      ["--clear", "http://me:secret@127.0.0.1/none?sig=secret"],
      "Cannot find http://127.0.0.1/none?… in the cache: deno task cache",
    ],
    [
      "doctor",
      ["--contxt", "9"],
      "--contxt is unknown, did you mean --context?",
    ],
    ["doctor", ["--context"], "--context has no value, must be followed by"],
    ["doctor", ["words"], 'unexpected argument "words", this task takes'],
    ["generate", ["--modl", "x"], "--modl is unknown, did you mean --model?"],
    ["generate", ["-x"], "-x is unknown, try --help (text like this goes"],
    ["generate", ["hi", "--seed"], "--seed has no value, must be followed by"],
    [
      "generate",
      ["hi", "--repetition-penalt", "1"],
      "--repetition-penalt is unknown, did you mean --repetition-penalty?",
    ],
    [
      "generate",
      ["--a text of many words that begins with two dashes"],
      "is unknown, try --help (text like this goes after --)",
    ],
    [
      "generate",
      ["hi", "--model", "/none"],
      'Cannot open "/none": there is no such directory',
    ],
    [
      "generate",
      ["hi", "--model", "synthetic:qwen3-9b"],
      'Cannot open "synthetic:qwen3-9b": try synthetic:qwen3-0.6b (1.7b, ',
    ],
    [
      "generate",
      ["hi", "--webgpu", "wgpu"],
      '--webgpu is "wgpu", must be deno or dawn',
    ],
    [
      "generate",
      ["hi", "--device", "cpu", "--webgpu", "dawn"],
      '--webgpu is "dawn", must be left out when device is cpu',
    ],
    ["doctor", ["--adapter", "fast"], '--adapter is "fast", must be high or'],
    ["profile", ["--context", "9"], "--context is unknown, try --help"],
    [
      "profile",
      ["--device", "cpu", "--adapter", "low"],
      '--adapter is "low", must be left out when device is cpu',
    ],
    [
      "profile",
      ["--device", "cpu", "--webgpu", "dawn"],
      '--webgpu is "dawn", must be left out when device is cpu',
    ],
    ["profile", ["--kernels", "gem"], "gem is unknown, must be some of gemv, "],
    ["profile", ["--model", "/none"], 'Cannot open "/none": there is no such'],
    ["radv", ["--nosuch", "1"], "--nosuch is unknown, try --help"],
    ["radv", ["--chips"], "--chips has no value, must be followed by a text"],
    [
      "radv",
      ["--chips", "navy21"],
      'for "navy21": no such chip, try navi21 or',
    ],
    ["radv", [], "--mesa DIR is missing; tasks/get_mesa.sh DIR unpacks Mesa"],
    [
      "show",
      [],
      "name one, deno task show --help lists",
    ],
    ["show", ["nosuch"], 'Cannot show "nosuch": no such kernel, try deno task'],
    [
      "show",
      ["sampleHistogrm"],
      '"sampleHistogrm": no such kernel, try sampleHistogram or deno task show',
    ],
    [
      "show",
      ["gemm", "--dtype", "u8"],
      '--dtype is "u8", must be a stored type: try',
    ],
    ["show", ["gemm", "--dtype", "Q4_K"], "a stored type: try q4_k or --help"],
    ["show", ["gemm", "--set", "x"], '--set is "x", must be like WORKGROUP=64'],
    ["show", ["gemm", "--set", "TH=1"], "it has no constant TH, try "],
    ["show", ["gemm", "--tokens", "0"], "--tokens is 0, must be an integer"],
    ["test", ["--seeds", "x"], "--seeds is x, must be a positive integer"],
    [
      "tune",
      ["--budget", "5"],
      "--budget is unknown, did you mean --budget-seconds?",
    ],
    [
      "tune",
      ["--kernels", "gem"],
      "gem is unknown, did you mean gemm?",
    ],
    ["tune", ["--kernels"], "--kernels has no value, must be followed by a"],
  ] as const
) {
  Deno.test(`deno task ${[task, ...args].join(" ")} is refused in one line of at most 100 columns`, async () => {
    assertRefused(await runTask(task, args), message);
  });
}
