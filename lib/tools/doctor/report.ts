/**
 * What {@linkcode doctor} finds, as data and as lines.
 *
 * @module
 */

/** `green`; `yellow`: works, but slower, and why; `red`: what to do. */
export type Severity = "green" | "yellow" | "red";

/** One line of a diagnosis. */
export interface Finding {
  severity: Severity;
  /** What was looked at: `runtime`, `adapter`, `shader-f16`, `gemm`, … */
  topic: string;
  /** One sentence. */
  text: string;
  /** The numbers behind it. */
  data?: Readonly<Record<string, unknown>>;
}

/** A whole diagnosis. */
export interface DoctorReport {
  /** False where a finding is red. */
  ok: boolean;
  findings: Finding[];
}

/** Takes what was found; the text may have several lines. */
export type Find = (
  severity: Severity,
  topic: string,
  text: string,
  data?: Finding["data"],
) => void;

const MARKS: Record<Severity, string> = { green: "✓", yellow: "!", red: "✗" };

/** A finding as a line. */
export function findingText({ severity, topic, text }: Finding): string {
  return `${MARKS[severity]} ${topic.padEnd(18)} ${text}`;
}

/** All findings in a line, for the end of a list that scrolled by. */
export function summaryText({ findings }: DoctorReport): string {
  const of = (wanted: Severity) =>
    [
      ...new Set(
        findings.filter(({ severity }) => severity === wanted)
          .map(({ topic }) => topic),
      ),
    ].join(", ");
  const wrong = of("red"), slower = of("yellow");
  if (wrong) return `✗ to be mended: ${wrong}`;
  return slower
    ? `! everything works, slower than it could: ${slower}`
    : "✓ everything is fine";
}

/** What went wrong, as text. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
