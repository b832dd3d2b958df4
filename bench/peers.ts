/**
 * llama.cpp for comparison, run by bench/peers/run.sh.
 *
 * @module
 */
import { fileURLToPath } from "node:url";
import type { PeerMeasure, Row } from "./report.ts";
import type { RowKind } from "./rows.ts";

const SCRIPT = new URL("peers/run.sh", import.meta.url);
/** Programs that run.sh knows, and the device of each if not the GPU. */
const PROGRAMS = [
  ["vulkan", undefined],
  ["vulkan-without-tensor-cores", undefined],
  ["cpu", "cpu"],
] as const;

/** Rejects a folder without peers, before anything slow starts. */
export function requirePeers(folder: string): void {
  if (SCRIPT.protocol !== "file:") {
    throw new Error(
      "Cannot run peers: bench/peers/ is not on this machine, run bench in a copy of the tree",
    );
  }
  try {
    Deno.statSync(`${folder}/llama.tar.xz`);
  } catch {
    throw new Error(
      `Cannot run peers: ${folder} has no llama.tar.xz, must be made by bench/peers/pack.sh`,
    );
  }
}

/**
 * What llama.cpp measures: a GGUF file itself, other checkpoints converted to f16.
 *
 * @param location of the checkpoint that `model` opens
 * @throws {Error} if it is a GGUF file on the web
 */
export function modelOfPeers(model: string, location: string): string {
  if (!/\.gguf$/i.test(location)) return model;
  if (!/^https?:/i.test(location)) return location;
  throw new Error(
    `Cannot run peers: ${location} is on the web, must be a file of this machine`,
  );
}

/**
 * Runs each program once with the workloads of all `rows` and adds the results to
 * their rows; returns the failures.
 */
export async function runPeers(
  { folder, model, runs, threads, rows, kinds, onProgress }: {
    folder: string;
    model: string;
    runs: number;
    /** Of the CPU; undefined for all. */
    threads?: number;
    rows: readonly Row[];
    kinds: ReadonlyMap<string, RowKind>;
    onProgress: (what: string) => void;
  },
): Promise<string[]> {
  const failed: string[] = [];
  for (const [program, on] of PROGRAMS) {
    const mine = rows.filter(({ row, measures }) => {
      const { peers } = kinds.get(row)!;
      return measures.length && peers && peers.on === on;
    });
    const workloads = new Set(
      mine.flatMap(({ row }) => Object.keys(kinds.get(row)!.peers!.workloads)),
    );
    if (workloads.size === 0) continue;
    onProgress(`llama.cpp ${program}`);
    const found: Omit<PeerMeasure, "measure">[] = [];
    const { code, stdout, stderr } = await new Deno.Command("bash", {
      args: [fileURLToPath(SCRIPT), folder, model, ...workloads],
      env: {
        PROGRAMS: program,
        RUNS: String(runs),
        ...threads === undefined ? {} : { THREADS: String(threads) },
        DENO: Deno.execPath(),
      },
    }).output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
    for (const line of text(stdout).split("\n")) {
      if (line) found.push(JSON.parse(line));
    }
    if (code !== 0) {
      failed.push(`${program}: ${text(stderr).split("\n").at(-1)}`);
    }
    for (const row of mine) {
      const { workloads } = kinds.get(row.row)!.peers!;
      for (const peer of found) {
        const measure = workloads[peer.workload];
        if (measure === undefined) continue;
        const ours = row.measures.find(({ name }) => name === measure);
        const factor = ours?.unit === "tokens/s"
          ? { factor: ours.median / peer.tokensPerSecond }
          : {};
        row.peers.push({ ...peer, measure, ...factor });
      }
    }
  }
  return failed;
}
