/**
 * The rows of `deno task bench`, in order.
 *
 * @module
 */
import { nearest, shortened } from "../lib/text/messages.ts";
import { batchRow } from "./batch_row.ts";
import { compareRow, CPU_TOKENS, cpuRow } from "./cpu_rows.ts";
import type { Speed } from "./estimate.ts";
import { FreshProcesses } from "./fresh_rows.ts";
import {
  contextRow,
  decodeRow,
  FIRST_TOKENS,
  firstTokenRow,
  prefillRow,
} from "./model_rows.ts";
import { matmulRow, matmulSize } from "./matmul_rows.ts";
import type { Measured } from "./report.ts";
import { MIDDLE, REQUESTS, requestsRow } from "./requests_row.ts";
import { type BenchSetting, FEW_RUNS } from "./setting.ts";

/** One row: what it measures, how, and what to compare it with. */
export interface RowKind {
  what: string;
  measure(setting: BenchSetting): Promise<Measured>;
  /** About how many seconds that takes. */
  seconds(speed: Speed): number;
  /** Whether some or all of its measures take {@linkcode FEW_RUNS} at most. */
  few?: "some" | "all";
  /** Whether it runs without a GPU. */
  onCpu?: boolean;
  /** What the project aims at, by the name of the measure; see also targets.ts. */
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
    ...resizedRows(new Map(modelRows())),
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
      seconds: (speed) => speed.runs() * speed.generate(SHORT, FIRST_TOKENS),
      targets: { [GENERATE]: "30 ms, better 20" },
      peers: { workloads: { [`pp${SHORT}`]: GENERATE } },
    }],
    [`batch-${BATCH}`, {
      what: `${BATCH} sequences decoded together after prompts of ${SHORT}`,
      measure: (setting) => batchRow(setting, SHORT, BATCH),
      seconds: (speed) => {
        const { maxTokens } = speed.options;
        // Together, alone, and a profile of a few steps with its own model.
        return speed.runs() * (speed.generate(SHORT, maxTokens, BATCH) +
              speed.generate(SHORT, maxTokens)) +
          speed.load + 2 * speed.generate(SHORT, maxTokens, BATCH);
      },
      targets: { "over one sequence": "6 ×, better 10" },
      peers: { workloads: { [`tg@${SHORT}x${BATCH}`]: "generateBatch" } },
    }],
    [`requests-${REQUESTS.count}`, {
      what:
        `${REQUESTS.count} requests at once, prompts and replies of ${REQUESTS.least} to ${REQUESTS.most} tokens`,
      measure: requestsRow,
      seconds: (speed) => {
        // As much work as this many batches of 64; the context must do for the longest.
        const batches = REQUESTS.count / 64;
        return speed.generate(REQUESTS.most, REQUESTS.most) &&
          speed.runs(FEW_RUNS) *
            (batches * speed.generate(MIDDLE, MIDDLE, 64) +
              speed.generate(MIDDLE, MIDDLE, 32));
      },
      few: "all",
      targets: { "over 32 rows alone": "0.7 ×" },
    }],
    ["context", {
      what:
        `decode at the end of a context of ${CONTEXT}, also relative to decode after ${SHORT}`,
      measure: (setting) => contextRow(setting, CONTEXT, SHORT),
      seconds: (speed) => {
        const { maxTokens } = speed.options;
        const far = speed.generate(CONTEXT - maxTokens, maxTokens);
        // Half of such a prompt's time is attention.
        return far && speed.load + speed.runs() *
              speed.generate(SHORT, maxTokens) +
            speed.runs(FEW_RUNS) * 2 * far;
      },
      few: "some",
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

/** The other model sizes that rows measure, and the targets for each. */
const SIZES = ["4b", "8b"];
const RESIZED: readonly [row: string, targets: RowKind["targets"]][] = [
  [`decode-${SHORT}`, { "8b": "75 % of peak, better 85" }],
  ["prefill-512", { "8b": "1.4 × llama.cpp without tensor cores" }],
  [`batch-${BATCH}`, { "8b": "2,390 tokens/s, better 3,350" }],
];

function resizedRows(rows: ReadonlyMap<string, RowKind>): NamedRow[] {
  return SIZES.flatMap((size) =>
    RESIZED.map(([row, targets]): NamedRow => {
      const { what, measure, seconds, peers } = rows.get(row)!;
      const [compared] = Object.values(peers!.workloads),
        target = targets![size];
      return [`${row}-${size}`, {
        what: `Qwen3-${size.toUpperCase()}: ${what}`,
        measure: (setting) => setting.resized(size, measure),
        seconds: (speed) => {
          const there = speed.resized(size);
          // Loaded once for all of its rows.
          return there ? there.load / RESIZED.length + seconds(there) : 0;
        },
        ...target ? { targets: { [compared]: target } } : {},
      }];
    })
  );
}

function decode(prompt: number): NamedRow {
  return [`decode-${prompt}`, {
    what: `decode after a prompt of ${prompt}, batch 1, greedy`,
    measure: (setting) => decodeRow(setting, prompt),
    seconds: (speed) =>
      2 * speed.runs() * speed.generate(prompt, speed.options.maxTokens),
    targets: { [GENERATE]: "1.6 × llama.cpp, better 2" },
    peers: { workloads: { [`tg@${prompt}`]: GENERATE } },
  }];
}

function prefill(tokens: number, target: string): NamedRow {
  return [`prefill-${tokens}`, {
    what: `a prompt of ${tokens}`,
    measure: (setting) => prefillRow(setting, tokens),
    seconds: (speed) => 2 * speed.runs() * speed.generate(tokens, 1),
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
  const square = (dtype: "f32" | "f16") => ({
    measure: (setting: BenchSetting) => matmulRow(setting, dtype),
    seconds: (speed: Speed) => {
      const size = matmulSize(speed.gpu?.software ?? false);
      // At a sixth of the peak, 4 times as often as other rows.
      return 24 * speed.runs() * speed.multiply(2 * size ** 3);
    },
  });
  return [
    ["gemm-f32", {
      what: "a square matmul in f32",
      ...square("f32"),
      targets: { "GPU time": "38 TFLOP/s, better 45" },
    }],
    ["gemm-f16", {
      what: "a square matmul, multiplied in f16 and summed in f32",
      ...square("f16"),
      targets: { "GPU time": "45 TFLOP/s, better 65" },
    }],
  ];
}

function processRows(): NamedRow[] {
  const fresh = new FreshProcesses();
  // Three rows of the same processes, and a synthetic model has to be written first.
  const seconds = (speed: Speed) =>
    (speed.runs(FEW_RUNS) * (2 * speed.load + speed.generate(SHORT, 4)) +
      4 * speed.load) / 3;
  return [
    ["load", {
      what: "loading a checkpoint's files from the page cache",
      measure: (setting) => fresh.load(setting),
      seconds,
      few: "all",
      targets: { loadQwen3: "1.5 s, better 0.8" },
    }],
    ["memory", {
      what: "host memory above that of a process that only opens a device",
      measure: (setting) => fresh.memory(setting),
      seconds,
      few: "all",
      targets: { "peak, first tokens too": "400 MB" },
    }],
    ["first-use", {
      what:
        `from the call to the first token, prompt of ${SHORT}, in a fresh process`,
      measure: (setting) => fresh.firstUse(setting),
      seconds,
      few: "all",
      targets: { [GENERATE]: "3 s, better 1" },
    }],
  ];
}

function cpuRows(): NamedRow[] {
  return [
    ["cpu", {
      what: `the CPU path: decode and prefill of ${SHORT}`,
      measure: (setting) => cpuRow(setting, SHORT),
      seconds: (speed) =>
        speed.load + speed.runs(FEW_RUNS) *
          speed.generateOnCpu(
            SHORT,
            Math.min(speed.options.maxTokens, CPU_TOKENS),
          ),
      few: "all",
      onCpu: true,
      peers: {
        on: "cpu",
        workloads: { [`tg@${SHORT}`]: GENERATE, [`pp${SHORT}`]: FIRST },
      },
    }],
    ["gpu-over-cpu", {
      what: "speedup of the GPU path over the CPU path, prompt of 512",
      measure: (setting) => compareRow(setting, 512),
      seconds: (speed) =>
        2 * speed.load + 4 * speed.generate(512, CPU_TOKENS) +
        speed.runs(FEW_RUNS) * speed.generateOnCpu(512, CPU_TOKENS),
      few: "all",
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

/** How often the rows run: `5 runs`, or `3 to 5 runs` where some take long. */
export function runsText(kinds: readonly RowKind[], runs: number): string {
  const few = Math.min(runs, FEW_RUNS);
  const least = kinds.some((kind) => kind.few) ? few : runs;
  const most = kinds.every((kind) => kind.few === "all") ? few : runs;
  if (most === 1) return "1 run";
  return least === most ? `${most} runs` : `${least} to ${most} runs`;
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
    const close = wrong === undefined ? undefined : nearest(wrong, known);
    throw new Error(
      `Cannot bench: --only has ${
        wrong === undefined ? "no rows" : `"${shortened(wrong, 30)}"`
      }, ${
        close === undefined
          ? "try deno task bench --help"
          : `did you mean ${close}?`
      }`,
    );
  }
  return known.filter((name) => chosen.includes(name));
}
