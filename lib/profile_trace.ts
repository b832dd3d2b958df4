/**
 * A profile as Chrome trace events, for https://ui.perfetto.dev and chrome://tracing.
 * Format: "Trace Event Format", the JSON object form.
 *
 * @module
 */
import type { ProfileReport, TimelineEvent } from "./profile_report.ts";

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

/** A lane for the GPU and one for the CPU, by the clock of the CPU. */
export function traceOf(
  { timeline, model, device }: ProfileReport,
): { traceEvents: TraceEvent[]; displayTimeUnit: "ms" } {
  const named = (name: string, tid: number, value: string): TraceEvent => ({
    name,
    ph: "M",
    pid: PROCESS,
    tid,
    args: { name: value },
  });
  return {
    displayTimeUnit: "ms",
    traceEvents: [
      named("process_name", 0, model),
      named("thread_name", LANES.GPU, `GPU: ${device.adapter}`),
      named("thread_name", LANES.CPU, "CPU"),
      ...timeline.map(({ lane, part, name, begin, ms }): TraceEvent => ({
        name,
        ph: "X",
        pid: PROCESS,
        tid: LANES[lane],
        ts: begin * 1000,
        dur: ms * 1000,
        cat: part,
      })),
    ],
  };
}
