/**
 * What {@linkcode doctor} finds, as data and as text.
 *
 * @module
 */
import { shortened, WIDTH, wrap } from "../../text/messages.ts";

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
  /** Whether another finding sums it up, so that only `--verbose` shows it. */
  detail?: boolean;
}

/** A complete diagnosis. */
export interface DoctorReport {
  /** Whether no finding is red. */
  ok: boolean;
  findings: Finding[];
}

/** Receives the findings of an examination while it runs. */
export interface Reporter {
  /** Takes a finding; its text becomes one line. */
  found(finding: Finding): void;
  /** Called before something that takes long or may hang, such as a kernel's test. */
  starting?(what: string): void;
}

const MARKS: Record<Severity, string> = { green: "✓", yellow: "!", red: "✗" };

/** Whether a finding is shown without `--verbose`: problems always are. */
export const isShown = ({ severity, detail }: Finding): boolean =>
  !detail || severity === "red";

/**
 * A finding for a terminal, in lines of at most 100 columns: a mark, the topic and the
 * text, which continues on indented lines. A long word, such as a path, gets a line of its
 * own and is cut only if it does not fit there either.
 */
export function findingText({ severity, topic, text }: Finding): string {
  const first = `${MARKS[severity]} ${topic.padEnd(18)} `;
  const indent = " ".repeat(first.length), room = WIDTH - first.length;
  const lines: string[] = [];
  let words: string[] = [];
  const flush = () => {
    if (words.length === 0) return;
    const begin = lines.length ? indent : first;
    lines.push(...wrap(words.join(" "), WIDTH, begin, indent));
    words = [];
  };
  for (const word of text.split(" ")) {
    if (word.length <= room) words.push(word);
    else {
      flush();
      if (lines.length === 0) lines.push(first.trimEnd());
      lines.push(shortened(word, WIDTH).padStart(WIDTH));
    }
  }
  flush();
  return lines.join("\n");
}

/**
 * The last line of a diagnosis: the topics of all problems, or else of what is slow. If
 * only the CPU path will run models, it says so.
 */
export function summaryText({ findings }: DoctorReport): string {
  const topics = (wanted: Severity) => {
    const found = findings.filter(({ severity }) => severity === wanted);
    return [...new Set(found.map(({ topic }) => topic))].join(", ");
  };
  const problems = topics("red"), slow = topics("yellow");
  const onCpu = findings.some(({ topic, data }) =>
    topic === "device" && data?.device === "cpu"
  );
  const text = problems
    ? `✗ problems: ${problems}`
    : onCpu
    ? "! the CPU path works, and models run on it: a GPU would be faster"
    : slow
    ? `! everything works, but slower than it could: ${slow}`
    : "✓ no problems";
  return wrap(text, WIDTH, "", "  ").join("\n");
}
