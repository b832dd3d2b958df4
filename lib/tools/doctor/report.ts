/**
 * What {@linkcode doctor} finds, as data and as text.
 *
 * @module
 */
import { WIDTH, wrap } from "../../text/messages.ts";

/** `green`: fine; `yellow`: works, but slowly; `red`: a problem. */
export type Severity = "green" | "yellow" | "red";

/** One line of a diagnosis. */
export interface Finding {
  severity: Severity;
  /** What was examined: `runtime`, `adapter`, `shader-f16`, `gemm`, … */
  topic: string;
  /** One sentence: the finding and its cause; for a problem, also how to fix it. */
  text: string;
  /** The numbers behind the text. */
  data?: Readonly<Record<string, unknown>>;
}

/** A complete diagnosis. */
export interface DoctorReport {
  /** Whether no finding is red. */
  ok: boolean;
  findings: Finding[];
}

/** Receives the findings of an examination while it runs. */
export interface Reporter {
  /** Takes a finding; its text may have several lines. */
  found(
    severity: Severity,
    topic: string,
    text: string,
    data?: Finding["data"],
  ): void;
  /** Called before something runs that may hang. */
  starting?(what: string): void;
}

const MARKS: Record<Severity, string> = { green: "✓", yellow: "!", red: "✗" };

/** A finding for a terminal. Longer text continues on indented lines. */
export function findingText({ severity, topic, text }: Finding): string {
  const first = `${MARKS[severity]} ${topic.padEnd(18)} `;
  return wrap(text, WIDTH, first, " ".repeat(first.length)).join("\n");
}

/** The last line of a diagnosis: the topics of all problems, or else of what is slow. */
export function summaryText({ findings }: DoctorReport): string {
  const topics = (wanted: Severity) => {
    const found = findings.filter(({ severity }) => severity === wanted);
    return [...new Set(found.map(({ topic }) => topic))].join(", ");
  };
  const problems = topics("red"), slow = topics("yellow");
  const text = problems
    ? `✗ problems: ${problems}`
    : slow
    ? `! everything works, but slower than it could: ${slow}`
    : "✓ no problems";
  return wrap(text, WIDTH, "", "  ").join("\n");
}
