/**
 * A profile as Chrome trace events, for https://ui.perfetto.dev and chrome://tracing.
 * Format: "Trace Event Format", the JSON object form.
 *
 * @module
 */
import type { ProfileReport, TimelineEvent } from "./report.ts";

/** A Chrome trace event; times are microseconds. */
export interface TraceEvent {
  name: string;
  /** `X`: complete, `M`: metadata. */
  ph: "X" | "M";
  pid: number;
  tid: number;
  ts?: number;
  dur?: number;
  cat?: string;
  args?: Record<string, string | number>;
}

const PROCESS = 1;
const LANES: Record<TimelineEvent["lane"], number> = { GPU: 1, CPU: 2 };

/** A lane each for the GPU and the CPU, both by the CPU's clock. */
export function traceOf(
  { timeline, model, device }: ProfileReport,
): { traceEvents: TraceEvent[]; displayTimeUnit: "ms" } {
  const about = (
    name: string,
    tid: number,
    args: TraceEvent["args"],
  ): TraceEvent => ({ name, ph: "M", pid: PROCESS, tid, args });
  const lanes = [
    [LANES.GPU, `GPU: ${device.adapter}`],
    [LANES.CPU, "CPU"],
  ] as const;
  return {
    displayTimeUnit: "ms",
    traceEvents: [
      about("process_name", 0, { name: model }),
      ...lanes.flatMap(([tid, name]) => [
        about("thread_name", tid, { name }),
        about("thread_sort_index", tid, { sort_index: tid }),
      ]),
      ...timeline.map((
        { lane, part, name, detail, begin, ms },
      ): TraceEvent => ({
        name,
        ph: "X",
        pid: PROCESS,
        tid: LANES[lane],
        ts: begin * 1000,
        dur: ms * 1000,
        cat: part,
        args: { part, ...(detail !== undefined && { detail }) },
      })),
    ],
  };
}
