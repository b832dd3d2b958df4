/**
 * The rows of `deno task bench`, in order.
 *
 * @module
 */
import { batchRow } from "./batch_row.ts";
import { compareRow, cpuRow } from "./cpu_rows.ts";
import { FreshProcesses } from "./fresh_rows.ts";
import {
  contextRow,
  decodeRow,
  firstTokenRow,
  prefillRow,
} from "./model_rows.ts";
import { productRow } from "./product_rows.ts";
import type { Measured } from "./report.ts";
import type { BenchSetting } from "./setting.ts";

/** What can be measured. */
export interface RowKind {
  what: string;
  measure(setting: BenchSetting): Promise<Measured>;
  /**
   * Workloads that peers run beside it, on the GPU unless said otherwise, each with
   * the measure of ours that is its like.
   */
  peers?: { on?: "cpu"; workloads: Record<string, string> };
}

const CONTEXT = 32768, SHORT = 128, BATCH = 16;
/** Prompts are measured to the first token. */
const FIRST = "generate, to first token";

/** All rows by name; fresh ones for each bench, because some share what they saw. */
export function rowKinds(): Map<string, RowKind> {
  const fresh = new FreshProcesses();
  const product = (dtype: "f32" | "f16") => (setting: BenchSetting) =>
    productRow(setting, dtype, setting.gpu.software ? 256 : 4096);
  const decode = (prompt: number): [string, RowKind] => [`decode-${prompt}`, {
    what: `decode after a prompt of ${prompt}, batch 1, greedy`,
    measure: (setting) => decodeRow(setting, prompt),
    peers: { workloads: { [`tg@${prompt}`]: "generate" } },
  }];
  const prefill = (tokens: number): [string, RowKind] => [`prefill-${tokens}`, {
    what: `a prompt of ${tokens}`,
    measure: (setting) => prefillRow(setting, tokens),
    peers: {
      workloads: {
        [`pp${tokens}`]: FIRST,
        ...(tokens > 512 ? { [`pp${tokens}:${tokens}`]: FIRST } : {}),
      },
    },
  }];
  return new Map<string, RowKind>([
    decode(128),
    decode(2048),
    prefill(512),
    prefill(2048),
    ["first-token", {
      what: `from the call to the first token, prompt of ${SHORT}, warm`,
      measure: (setting) => firstTokenRow(setting, SHORT),
      peers: { workloads: { [`pp${SHORT}`]: "generate" } },
    }],
    [`batch-${BATCH}`, {
      what: `${BATCH} sequences decoded together after prompts of ${SHORT}`,
      measure: (setting) => batchRow(setting, SHORT, BATCH),
      peers: { workloads: { [`tg@${SHORT}x${BATCH}`]: "generateBatch" } },
    }],
    ["context", {
      what:
        `decode at the end of a context of ${CONTEXT}, and over decode after ${SHORT}`,
      measure: (setting) => contextRow(setting, CONTEXT, SHORT),
      peers: {
        workloads: {
          [`tg@${CONTEXT}`]: "generate at the end",
          [`tg@${SHORT}`]: "generate at the start",
        },
      },
    }],
    ["gemm-f32", {
      what: "a square matrix product in f32",
      measure: product("f32"),
    }],
    ["gemm-f16", {
      what: "a square matrix product, f16 products summed in f32",
      measure: product("f16"),
    }],
    ["load", {
      what: "loading a checkpoint's files from the page cache",
      measure: (setting) => fresh.load(setting),
    }],
    ["memory", {
      what: "host memory above that of a process that only opens a device",
      measure: (setting) => fresh.memory(setting),
    }],
    ["first-use", {
      what:
        `from the call to the first token, prompt of ${SHORT}, in a fresh process`,
      measure: (setting) => fresh.firstUse(setting),
    }],
    ["cpu", {
      what: `the CPU path: decode and prefill of ${SHORT}`,
      measure: (setting) => cpuRow(setting, SHORT),
      peers: {
        on: "cpu",
        workloads: { [`tg@${SHORT}`]: "generate", [`pp${SHORT}`]: FIRST },
      },
    }],
    ["gpu-over-cpu", {
      what:
        "times that the GPU path is faster than the CPU path, prompt of 512",
      measure: (setting) => compareRow(setting, 512),
    }],
  ]);
}

/** The rows of a list with commas; all of them without one. */
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
      }, must be of ${known.join(", ")}`,
    );
  }
  return known.filter((name) => chosen.includes(name));
}
