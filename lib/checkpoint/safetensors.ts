/**
 * Reads the header of a safetensors file (https://huggingface.co/docs/safetensors). The
 * file has 8 bytes with the header's length, then the header as JSON with names,
 * element types, shapes and offsets, then the data.
 *
 * @module
 */
import { elements } from "../dtype.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { FORMATS } from "../formats/mod.ts";
import { isObject, parseJson } from "../json.ts";

/** A local or remote file that can be read by byte range. */
export interface ByteSource {
  /** A path or URL, for errors. */
  readonly name: string;
  /** Size in bytes. */
  readonly size: number;
  /** Fills `into` with bytes, starting at `begin`. */
  read(begin: number, into: Uint8Array): Promise<void>;
}

/** Where one tensor is stored; `begin` and `end` are byte offsets in the file. */
export interface SafetensorsEntry {
  format: Format;
  shape: number[];
  begin: number;
  end: number;
}

const READABLE = FORMATS.filter(({ safetensors }) => safetensors);

/** The file format's limit. */
const MAX_HEADER_BYTES = 100_000_000;

/**
 * Reads and checks the header of a safetensors file; no weights are read.
 *
 * @returns the tensors by name, in the order of the header
 * @throws {Error} if the file is truncated, the header is malformed, an element type is
 * not in lib/formats, or the tensors do not cover the data exactly once
 */
export async function readSafetensorsHeader(
  source: ByteSource,
): Promise<Map<string, SafetensorsEntry>> {
  const refuse = (problem: string): never => {
    throw new Error(`Cannot read ${source.name}: ${problem}`);
  };
  if (source.size < 8) {
    refuse(`it has ${source.size} bytes, a safetensors file has at least 8`);
  }
  const length = new Uint8Array(8);
  await source.read(0, length);
  const headerBytes = Number(new DataView(length.buffer).getBigUint64(0, true));
  if (headerBytes > source.size - 8) {
    refuse(
      `its header should have ${headerBytes} bytes, but only ${
        source.size - 8
      } follow: it is truncated or not a safetensors file`,
    );
  }
  if (headerBytes > MAX_HEADER_BYTES) {
    refuse(
      `its header has ${headerBytes} bytes, at most ${MAX_HEADER_BYTES} are allowed`,
    );
  }
  const bytes = new Uint8Array(headerBytes);
  await source.read(8, bytes);

  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    refuse("its header is not valid UTF-8");
  }
  const header = parseJson(text, `the header of ${source.name}`);
  if (!isObject(header)) return refuse("its header must be a JSON object");
  const twice = repeatedKey(text);
  if (twice !== undefined) {
    refuse(`its header has ${JSON.stringify(twice)} twice`);
  }

  const dataBegin = 8 + headerBytes;
  const entries = new Map<string, SafetensorsEntry>();
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    entries.set(name, parseEntry(name, value, dataBegin, refuse));
  }
  checkLayout(entries, dataBegin, source.size, refuse);
  return entries;
}

/**
 * Reads `model.safetensors.index.json`, which maps tensors to shards.
 *
 * @param where the file, for errors
 * @returns shards (files in the same folder) by tensor
 * @throws {Error} if it is not JSON or has no usable `weight_map`
 */
export function parseSafetensorsIndex(
  text: string,
  where: string,
): Map<string, string> {
  const index = parseJson(text, where);
  const map = isObject(index) ? index.weight_map : undefined;
  if (!isObject(map)) {
    throw new Error(
      `Cannot use ${where}: it must have a weight_map, an object`,
    );
  }
  for (const [tensor, shard] of Object.entries(map)) {
    if (typeof shard !== "string" || !isPlainName(shard)) {
      throw new Error(
        `Cannot use ${where}: it puts ${tensor} in ${
          JSON.stringify(shard)
        }, must be a .safetensors file in the same folder, by its plain name`,
      );
    }
  }
  return new Map(Object.entries(map) as [string, string][]);
}

/** Whether a shard's name means one file, in the same folder, also as part of a URL. */
function isPlainName(shard: string): boolean {
  return /^[^\p{C}/\\:%?#]+\.safetensors$/u.test(shard) &&
    !shard.includes("..");
}

function parseEntry(
  name: string,
  value: unknown,
  dataBegin: number,
  refuse: (problem: string) => never,
): SafetensorsEntry {
  if (!isObject(value)) {
    return refuse(`tensor ${name} must be described by an object`);
  }
  const { dtype, shape, data_offsets: offsets } = value;
  const format = READABLE.find(({ safetensors }) => safetensors === dtype);
  if (format === undefined) {
    return refuse(
      `tensor ${name} has dtype ${JSON.stringify(dtype)}, must be one of ${
        READABLE.map(({ safetensors }) => safetensors).join(", ")
      }`,
    );
  }
  if (!isListOfCounts(shape)) {
    return refuse(
      `tensor ${name} has shape ${
        JSON.stringify(shape)
      }, must be a list of sizes`,
    );
  }
  if (
    !isListOfCounts(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]
  ) {
    return refuse(
      `tensor ${name} has data_offsets ${
        JSON.stringify(offsets)
      }, must be [begin, end]`,
    );
  }
  const [begin, end] = offsets;
  const expected = storedRowBytes(format, elements(shape));
  if (expected !== end - begin) {
    refuse(
      `tensor ${name} has ${end - begin} bytes, but ${dtype} of shape [${
        shape.join(", ")
      }] needs ${expected}`,
    );
  }
  return {
    format,
    shape,
    begin: dataBegin + begin,
    end: dataBegin + end,
  };
}

/** Rejects overlaps and gaps, which the file format forbids. */
function checkLayout(
  entries: Map<string, SafetensorsEntry>,
  dataBegin: number,
  fileSize: number,
  refuse: (problem: string) => never,
) {
  const inOrder = [...entries].sort(([, a], [, b]) =>
    a.begin - b.begin || a.end - b.end
  );
  let covered = dataBegin;
  let previous = "the header";
  for (const [name, { begin, end }] of inOrder) {
    if (begin < covered) {
      refuse(
        `tensor ${name} begins at byte ${begin}, inside ${previous}, which ends at ${covered}`,
      );
    }
    if (begin > covered) {
      refuse(
        `${
          begin - covered
        } bytes between ${previous} and tensor ${name} belong to no tensor`,
      );
    }
    if (end > fileSize) {
      refuse(
        `tensor ${name} ends at byte ${end}, but the file has ${fileSize} bytes: it is truncated or its offsets are out of range`,
      );
    }
    covered = end;
    previous = name;
  }
  if (covered < fileSize) {
    refuse(
      `the ${fileSize - covered} bytes after ${previous} belong to no tensor`,
    );
  }
}

function isListOfCounts(value: unknown): value is number[] {
  return Array.isArray(value) &&
    value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

/**
 * Returns the first duplicate key of a JSON object; JSON.parse would silently keep the
 * last value.
 */
function repeatedKey(text: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  let expectKey = true;
  for (const [token] of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],]/g)) {
    if (token === "{" || token === "[") depth++;
    else if (token === "}" || token === "]") depth--;
    else if (depth !== 1) continue;
    else if (token === ",") expectKey = true;
    else if (expectKey) {
      const key = JSON.parse(token);
      if (seen.has(key)) return key;
      seen.add(key);
      expectKey = false;
    }
  }
}
