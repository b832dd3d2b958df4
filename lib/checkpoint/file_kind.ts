// deno-lint-ignore-file no-control-regex
/**
 * Recognises what was saved in place of a file: a Git LFS pointer, a web page, another
 * container of weights.
 *
 * @module
 */
import { quoted } from "../errors.ts";

/** Containers and archives by their first bytes, in Latin-1. */
const MAGIC: readonly [RegExp, string][] = [
  [/^PK\x03\x04/, "a zip archive, as PyTorch saves checkpoints"],
  [/^\x80[\x02-\x05]/, "a Python pickle, as PyTorch saves checkpoints"],
  [/^GGUF/, "a GGUF file"],
  [/^\x89HDF\r\n/, "an HDF5 file, as Keras saves checkpoints"],
  [/^\x93NUMPY/, "a NumPy array"],
  [/^\x1f\x8b/, "gzip data"],
  [/^\x28\xb5\x2f\xfd/, "zstd data"],
  [
    /^\x00{8}/,
    "a file that begins with zeros, as an unfinished download leaves",
  ],
];

/**
 * Says what a text is if it only stands in for a file; undefined if it may be the file.
 *
 * @param text the beginning of the file
 */
export function pageKind(text: string): string | undefined {
  if (text.startsWith("version https://git-lfs.github.com/spec/")) {
    const size = /^size (\d+)$/m.exec(text)?.[1];
    const of = size === undefined ? "" : ` to ${size} bytes`;
    return `a Git LFS pointer${of} (git lfs pull fetches the file)`;
  }
  if (/^\s*<(!doctype html|html|head|body)\b/i.test(text)) {
    const title = /<title[^>]*>([^<]+)/i.exec(text)?.[1].trim();
    return title ? `an HTML page titled "${quoted(title)}"` : "an HTML page";
  }
  if (/^\s*<(\?xml|Error>)/.test(text)) return "an XML document";
}

/** Whether a file of these first bytes is a GGUF file. */
export function isGguf(head: Uint8Array): boolean {
  return String.fromCharCode(...head.subarray(0, 4)) === "GGUF";
}

/**
 * Says what a supposed safetensors file really is; undefined if that is unknown.
 *
 * @param head the first bytes of the file
 */
export function weightsKind(head: Uint8Array): string | undefined {
  const latin1 = String.fromCharCode(...head.subarray(0, 400));
  const page = pageKind(latin1);
  if (page !== undefined) return page;
  const known = MAGIC.find(([magic]) => magic.test(latin1));
  if (known) return known[1];
  if (latin1.length > 0 && /^[\t\n\r -~]+$/.test(latin1)) {
    return `text that begins ${JSON.stringify(quoted(latin1.slice(0, 60)))}`;
  }
}

/** @throws {Error} if the text is a Git LFS pointer or a web page in place of a file. */
export function refusePage(text: string, where: string): void {
  const kind = pageKind(text.slice(0, 1000));
  if (kind === undefined) return;
  throw new Error(
    `Cannot read ${where}: it is ${kind}, must be the file itself`,
  );
}
