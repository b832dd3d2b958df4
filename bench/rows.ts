/**
 * The rows of `deno task bench`, in order.
 *
 * @module
 */
import { tryInstead } from "../lib/text/messages.ts";
import { batchRow } from "./batch_row.ts";
import { compareRow, cpuRow } from "./cpu_rows.ts";
import { FreshProcesses } from "./fresh_rows.ts";
import {
  contextRow,
  decodeRow,
  firstTokenRow,
  prefillRow,
} from "./model_rows.ts";
import { matmulRow } from "./matmul_rows.ts";
import type { Measured } from "./report.ts";
import type { BenchSetting } from "./setting.ts";

/** One row: what it measures, how, and what to compare it with. */
export interface RowKind {
  what: string;
  measure(setting: BenchSetting): Promise<Measured>;
  /** What the project aims at, by the name of the measure. */
  targets?: Record<string, string>;
  /**
   * Workloads that peers run, each with our measure to compare it with; on the GPU by
   * default.
   */
  peers?: { on?: "cpu"; workloads: Record<string, string> };
}

const CONTEXT = 32768, SHORT = 128, BATCH = 16;
/** Names of measures by wall clock. */
const GENERATE = "generate", FIRST = "generate, to first token";

/** All rows by name. They share results, so each bench needs its own. */
export function rowKinds(): Map<string, RowKind> {
  return new Map<string, RowKind>([
    ...modelRows(),
    ...kernelRows(),
    ...processRows(),
    ...cpuRows(),
  ]);
}

type NamedRow = [name: string, kind: RowKind];

function modelRows(): NamedRow[] {
  return [
    decode(128),
    decode(2048),
    prefill(512, "30,000 tokens/s"),
    prefill(2048, "1.5 × llama.cpp without tensor cores"),
    ["first-token", {
      what: `from the call to the first token, prompt of ${SHORT}, warm`,
      measure: (setting) => firstTokenRow(setting, SHORT),
      targets: { [GENERATE]: "30 ms, better 20" },
      peers: { workloads: { [`pp${SHORT}`]: GENERATE } },
    }],
    [`batch-${BATCH}`, {
      what: `${BATCH} sequences decoded together after prompts of ${SHORT}`,
      measure: (setting) => batchRow(setting, SHORT, BATCH),
      targets: { "over one sequence": "6 ×, better 10" },
      peers: { workloads: { [`tg@${SHORT}x${BATCH}`]: "generateBatch" } },
    }],
    ["context", {
      what:
        `decode at the end of a context of ${CONTEXT}, also relative to decode after ${SHORT}`,
      measure: (setting) => contextRow(setting, CONTEXT, SHORT),
      targets: { "generate, end over start": "25 %, better 50" },
      peers: {
        workloads: {
          [`tg@${CONTEXT}`]: "generate at the end",
          [`tg@${SHORT}`]: "generate at the start",
        },
      },
    }],
  ];
}

function decode(prompt: number): NamedRow {
  return [`decode-${prompt}`, {
    what: `decode after a prompt of ${prompt}, batch 1, greedy`,
    measure: (setting) => decodeRow(setting, prompt),
    targets: { [GENERATE]: "1.6 × llama.cpp, better 2" },
    peers: { workloads: { [`tg@${prompt}`]: GENERATE } },
  }];
}

function prefill(tokens: number, target: string): NamedRow {
  return [`prefill-${tokens}`, {
    what: `a prompt of ${tokens}`,
    measure: (setting) => prefillRow(setting, tokens),
    targets: { [FIRST]: target },
    peers: {
      workloads: {
        [`pp${tokens}`]: FIRST,
        ...(tokens > 512 ? { [`pp${tokens}:${tokens}`]: FIRST } : {}),
      },
    },
  }];
}

function kernelRows(): NamedRow[] {
  const square = (dtype: "f32" | "f16") => (setting: BenchSetting) =>
    matmulRow(setting, dtype, setting.gpu.software ? 256 : 4096);
  return [
    ["gemm-f32", {
      what: "a square matmul in f32",
      measure: square("f32"),
      targets: { "GPU time": "38 TFLOP/s, better 45" },
    }],
    ["gemm-f16", {
      what: "a square matmul, multiplied in f16 and summed in f32",
      measure: square("f16"),
      targets: { "GPU time": "45 TFLOP/s, better 65" },
    }],
  ];
}

function processRows(): NamedRow[] {
  const fresh = new FreshProcesses();
  return [
    ["load", {
      what: "loading a checkpoint's files from the page cache",
      measure: (setting) => fresh.load(setting),
      targets: { loadQwen3: "1.5 s, better 0.8" },
    }],
    ["memory", {
      what: "host memory above that of a process that only opens a device",
      measure: (setting) => fresh.memory(setting),
      targets: { "peak, first tokens too": "400 MB" },
    }],
    ["first-use", {
      what:
        `from the call to the first token, prompt of ${SHORT}, in a fresh process`,
      measure: (setting) => fresh.firstUse(setting),
      targets: { [GENERATE]: "3 s, better 1" },
    }],
  ];
}

function cpuRows(): NamedRow[] {
  return [
    ["cpu", {
      what: `the CPU path: decode and prefill of ${SHORT}`,
      measure: (setting) => cpuRow(setting, SHORT),
      targets: { [GENERATE]: "2.1 tokens/s on 2 cores, better 7" },
      peers: {
        on: "cpu",
        workloads: { [`tg@${SHORT}`]: GENERATE, [`pp${SHORT}`]: FIRST },
      },
    }],
    ["gpu-over-cpu", {
      what: "speedup of the GPU path over the CPU path, prompt of 512",
      measure: (setting) => compareRow(setting, 512),
      targets: Object.fromEntries(
        ["prefill", "decode"].flatMap((phase) => [
          [`${phase}, Linear`, "10 ×"],
          [`${phase}, attention`, "8 ×"],
          [`${phase}, whole`, "10 ×"],
        ]),
      ),
    }],
  ];
}

/** Names from a comma-separated list, in the order of the table; all without a list. */
export function chooseRows(
  kinds: ReadonlyMap<string, RowKind>,
  list?: string,
): string[] {
  const known = [...kinds.keys()];
  if (list === undefined) return known;
  const chosen = list.split(",").map((name) => name.trim()).filter(Boolean);
  const wrong = chosen.find((name) => !kinds.has(name));
  if (wrong !== undefined || chosen.length === 0) {
    throw new Error(
      `Cannot bench: --only has ${
        wrong === undefined ? "no rows" : `"${wrong}"`
      }, ${tryInstead(wrong ?? "", known, "deno task bench --help")}`,
    );
  }
  return known.filter((name) => chosen.includes(name));
}
