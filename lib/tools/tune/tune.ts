/**
 * Finds the kernels' best constants for a model on this adapter and stores them for later
 * runs.
 *
 * @module
 */
import { cacheRefusal, type CacheRequest } from "../../dispatch/precision.ts";
import { errorText, OptionError, wrongOption } from "../../errors.ts";
import type { OpenOptions } from "../../checkpoint/sources.ts";
import { openCheckpoint } from "../../checkpoint/open.ts";
import { openDevice } from "../../device/open_device.ts";
import { calibrated, untimed } from "../../webgpu/clock.ts";
import type { Gpu } from "../../webgpu/device.ts";
import {
  type DeviceOptions,
  deviceOptions,
} from "../../webgpu/implementation.ts";
import type { Plan } from "../../webgpu/plan.ts";
import { Bench } from "./bench.ts";
import { TUNED_KERNELS } from "../../../kernels/list.ts";
import type { Candidate } from "../../dispatch/limits.ts";
import { candidatesFor, candidateText } from "./candidates.ts";
import { casesOf, type TuneCase } from "./cases.ts";
import { race } from "./race.ts";
import type { TunedEntry } from "../../dispatch/tuned.ts";
import { saveTuning } from "../../device/tuning_file.ts";

/** Options of {@linkcode tune}. */
export interface TuneOptions extends DeviceOptions {
  /** Names of kernels; by default all that can be tuned. */
  kernels?: readonly string[];
  /** How keys and values are cached; as on loading by default. */
  kv?: CacheRequest;
  /** Time limit, loading included; 180 by default. */
  budgetSeconds?: number;
  /** Stores nothing. */
  dryRun?: boolean;
  /** How the checkpoint is opened, and where progress goes. */
  opening?: OpenOptions;
  /** Called before a case is timed, with its shape. */
  onProgress?: (what: string) => void;
  /** Called when a case is decided. */
  onCase?: (report: CaseReport) => void;
  /** Called when the model is loaded, with its name and the adapter's. */
  onBegin?: (what: string) => void;
  /** Ends tuning; cases decided by then are stored. */
  signal?: AbortSignal;
}

/** A class of shapes and its outcome. */
export interface CaseReport {
  key: string;
  labels: string[];
  default: Candidate;
  /** Set only if a candidate beat the default by more than the spread. */
  winner?: Candidate;
  /** Gain of the best candidate and its spread, as shares of the pass's time. */
  gain?: number;
  spread?: number;
  /** Milliseconds of the pass that it was timed in. */
  defaultMs?: number;
  bestMs?: number;
  /**
   * Candidates that were timed, that this device cannot run, that failed to compile,
   * that gave wrong results, and that were left when time ran out.
   */
  timed: number;
  invalid: number;
  refused: number;
  wrong: number;
  untried: number;
  /** The outcome in words. */
  outcome: string;
}

/** A candidate whose results are wrong. */
export interface WrongCandidate {
  key: string;
  constants: Candidate;
  problem: string;
}

/** The outcome of tuning. */
export interface TuneReport {
  model: string;
  adapter: string;
  seconds: number;
  /** Where winners were stored; absent in a dry run. */
  file?: string;
  /** Cases with a winner. */
  winners: number;
  cases: CaseReport[];
  wrong: WrongCandidate[];
  notes: string[];
}

/** The default time limit. */
export const BUDGET_SECONDS = 180;
const LATE = "no time was left to decide";
/** Share of a case's time for compiling and checking candidates. */
const PREPARING = 0.5;

/**
 * Tunes kernels for the shapes of `model`. Candidates are checked against the CPU first;
 * one with wrong results is never stored.
 *
 * @throws {Error} if there is no adapter, it has no timestamps, or the file cannot be
 * written.
 */
export async function tune(
  model: string,
  options: TuneOptions = {},
): Promise<TuneReport> {
  const {
    kernels = TUNED_KERNELS.map(({ name }) => name),
    budgetSeconds = BUDGET_SECONDS,
    signal,
  } = options;
  if (!(budgetSeconds > 0)) {
    throw new OptionError(
      "budgetSeconds",
      `Cannot tune: budgetSeconds is ${budgetSeconds}, must be more than 0`,
    );
  }
  const began = performance.now(), end = began + 1000 * budgetSeconds;
  await using checkpoint = await openCheckpoint(model, {
    ...options.opening,
    signal,
  });
  const must = cacheRefusal(checkpoint.config.headDim, options.kv);
  if (must !== undefined) {
    throw wrongOption(
      `Cannot tune ${checkpoint.name}`,
      "kv",
      options.kv,
      must,
    );
  }
  const gpu = await openDevice(deviceOptions(options));
  using closing = new DisposableStack();
  closing.use(gpu);
  await calibrated(gpu);
  if (!gpu.timestamps) {
    throw new Error(
      `Cannot tune ${gpu.name}: ${await untimed(
        gpu,
      )}, kernels cannot be compared`,
    );
  }
  gpu.tuned.clear(); // candidates have to beat the defaults
  const report: TuneReport = {
    model: checkpoint.name,
    adapter: gpu.name,
    seconds: 0,
    winners: 0,
    cases: [],
    wrong: [],
    notes: [...checkpoint.notices],
  };
  // Tests that the file can be written before anything is timed.
  if (!options.dryRun) await store(gpu, report, new Map());
  const loading = { ...options.opening, signal };
  const bench = await Bench.load(gpu, checkpoint, loading, options.kv);
  closing.use(bench);
  const { cases, notes } = casesOf(bench, kernels);
  report.notes.push(...notes);
  options.onBegin?.(
    `${checkpoint.name} on ${gpu.name}: ${cases.length} shapes, timed in passes through ${bench.layersText}, at most ${budgetSeconds} s`,
  );
  await tuneCases(bench, cases, report, end, options);
  const late = report.cases.filter(({ outcome }) => outcome === LATE).length;
  if (late) {
    report.notes.push(
      `${late} of ${cases.length} shapes were left when time ran out, allow more than ${budgetSeconds} seconds`,
    );
  }
  report.seconds = (performance.now() - began) / 1000;
  return report;
}

/** Stores outcomes by key in the adapter's file, and reports which file that is. */
async function store(
  gpu: Gpu,
  report: TuneReport,
  found: ReadonlyMap<string, TunedEntry | undefined>,
): Promise<void> {
  const { path, replaced } = await saveTuning(gpu, found);
  report.file = path;
  if (replaced) report.notes.push(`a new file was started: ${replaced}`);
}

/**
 * Tunes the cases one after another until `end`, each with an equal part of the time that
 * is left, and stores each outcome as soon as it is decided.
 */
async function tuneCases(
  bench: Bench,
  cases: readonly TuneCase[],
  report: TuneReport,
  end: number,
  { dryRun, signal, onCase, onProgress }: TuneOptions,
): Promise<void> {
  const { gpu } = bench, { wrong, notes, model } = report;
  for (const [i, one] of cases.entries()) {
    onProgress?.(`${one.key} (${i + 1} of ${cases.length})`);
    const now = performance.now();
    const deadline = now + Math.max(0, end - now) / (cases.length - i);
    const { decided, ...found } = await tuneCase(bench, one, {
      deadline,
      signal,
      wrong,
      notes,
    });
    report.cases.push(found);
    onCase?.(found);
    const { winner, gain, spread } = found;
    if (winner) {
      report.winners++;
      gpu.tuned.set(one.key, winner); // later cases are timed along with it
    }
    if (!decided || dryRun) continue;
    const entry = winner &&
      { constants: winner, gain: gain!, spread: spread!, model };
    await store(gpu, report, new Map([[one.key, entry]]));
  }
}

/** Checks and races the candidates of one case. */
async function tuneCase(
  bench: Bench,
  one: TuneCase,
  { deadline, signal, wrong, notes }: {
    deadline: number;
    signal?: AbortSignal;
    wrong: WrongCandidate[];
    notes: string[];
  },
): Promise<CaseReport & { decided: boolean }> {
  const { gpu } = bench, { key, kernel, labels, target, now, length } = one;
  const { candidates, invalid } = candidatesFor(kernel, target, gpu, now);
  const report: CaseReport = {
    key,
    labels,
    default: now,
    timed: 0,
    invalid,
    refused: 0,
    wrong: 0,
    untried: candidates.length,
    outcome: "",
  };
  const end = (outcome: string, decided = false) => ({
    ...report,
    outcome,
    decided,
  });
  const began = performance.now(), room = deadline - began;
  if (room <= 0) return end(LATE);
  using plans = new DisposableStack();
  const problem = await bench.check(one);
  if (problem) {
    wrong.push({ key, constants: now, problem });
    return end("the DEFAULT is wrong, run deno task doctor");
  }
  const first = { what: now, plan: plans.use(await bench.record(one)) };
  const others: { what: Candidate; plan: Plan }[] = [];
  bench.setLength(length);
  for (const what of candidates) {
    signal?.throwIfAborted();
    if (performance.now() > began + PREPARING * room) break;
    report.untried--;
    try {
      const problem = await bench.check(one, what);
      if (problem) {
        report.wrong++;
        wrong.push({ key, constants: what, problem });
        continue;
      }
      others.push({ what, plan: plans.use(await bench.record(one, what)) });
    } catch (error) {
      gpu.check(); // a lost device refuses everything
      if (!(error instanceof Error)) throw error;
      const why = errorText(error);
      if (!report.refused++) {
        notes.push(`${key} was refused with ${candidateText(what)}: ${why}`);
      }
    }
  }
  if (!others.length) {
    return report.untried ? end(LATE) : end("nothing else can run", true);
  }
  const best = await race(gpu, first, others, { length, deadline, signal });
  if (!best) {
    report.untried += others.length;
    return end(LATE);
  }
  Object.assign(report, {
    timed: best.entered,
    untried: report.untried + others.length - best.entered,
    gain: best.gain,
    spread: best.spread,
    defaultMs: best.firstMs,
    bestMs: best.ms,
  });
  if (best.gain <= best.spread) return end("the default stays", true);
  report.winner = best.what;
  return end("tuned", true);
}
