/**
 * Reads the header of a safetensors file (https://huggingface.co/docs/safetensors). The
 * file has 8 bytes with the header's length, then the header as JSON with names,
 * element types, shapes and offsets, then the data.
 *
 * @module
 */
import { elements } from "../dtype.ts";
import { jsonText, quoted } from "../errors.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { FORMATS } from "../formats/mod.ts";
import { weightsKind } from "./file_kind.ts";
import { JsonCursor } from "./json_cursor.ts";

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
export interface SafetensorsEntry<Source extends ByteSource = ByteSource> {
  source: Source;
  name: string;
  /** The element type as the file names it, which may be one that is not read here. */
  dtype: string;
  shape: number[];
  begin: number;
  end: number;
}

/** Formats by their dtype in safetensors files. */
export const READABLE: ReadonlyMap<string, Format> = new Map(
  FORMATS.flatMap((format) =>
    format.safetensors ? [[format.safetensors, format]] : []
  ),
);

/** The file format's limit. */
const MOST_HEADER_BYTES = 100_000_000;
/** The longest description of a shape or of offsets, in bytes. */
const MOST_LIST_BYTES = 1000;
/** The most files in an index. The largest published models have a few hundred. */
const MOST_SHARDS = 1000;

type Refuse = (problem: string) => never;

/**
 * Reads and checks the header of a safetensors file; no weights are read. Element types
 * other than those of lib/formats are allowed, since a model may not need the tensor.
 *
 * @returns the tensors by name, in the order of the header
 * @throws {Error} if the file is truncated, the header is malformed, or the tensors do
 * not cover the data exactly once
 */
export async function readSafetensorsHeader<Source extends ByteSource>(
  source: Source,
): Promise<Map<string, SafetensorsEntry<Source>>> {
  const refuse: Refuse = (problem) => {
    throw new Error(`Cannot read ${source.name}: ${problem}`);
  };
  const refuseKind = async (problem: string): Promise<never> => {
    const head = new Uint8Array(Math.min(source.size, 400));
    await source.read(0, head);
    const kind = weightsKind(head);
    if (kind === undefined) return refuse(problem);
    return refuse(`it is ${kind}, must be a safetensors file`);
  };
  if (source.size < 8) {
    await refuseKind(
      `it has ${source.size} bytes, a safetensors file has at least 8`,
    );
  }
  const length = new Uint8Array(8);
  await source.read(0, length);
  const headerBytes = Number(new DataView(length.buffer).getBigUint64(0, true));
  if (headerBytes > source.size - 8) {
    await refuseKind(
      `its header should have ${headerBytes} bytes, but only ${
        source.size - 8
      } follow: it is truncated or not a safetensors file`,
    );
  }
  if (headerBytes > MOST_HEADER_BYTES) {
    await refuseKind(
      `its header has ${headerBytes} bytes, at most ${MOST_HEADER_BYTES} are allowed`,
    );
  }
  if (headerBytes < 2) {
    await refuseKind(
      `its header has ${headerBytes} bytes, must have at least 2`,
    );
  }
  const bytes = new Uint8Array(headerBytes);
  await source.read(8, bytes);
  if (!isUtf8(bytes)) await refuseKind("its header is not valid UTF-8");
  const dataBegin = 8 + headerBytes;
  const entries = readEntries(source, bytes, dataBegin, refuse);
  checkLayout(entries, dataBegin, source.size, refuse);
  return entries;
}

/** Whether bytes are valid UTF-8, without making a string of them all. */
function isUtf8(bytes: Uint8Array): boolean {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  try {
    for (let at = 0; at < bytes.length; at += 1 << 16) {
      const part = bytes.subarray(at, at + (1 << 16));
      decoder.decode(part, { stream: true });
    }
    decoder.decode();
    return true;
  } catch {
    return false;
  }
}

/** Parses the header's JSON. */
function readEntries<Source extends ByteSource>(
  source: Source,
  bytes: Uint8Array,
  dataBegin: number,
  refuse: Refuse,
): Map<string, SafetensorsEntry<Source>> {
  const cursor = new JsonCursor(bytes, `the header of ${source.name}`);
  if (!cursor.atObject) {
    cursor.value();
    refuse("its header must be a JSON object");
  }
  const entries = new Map<string, SafetensorsEntry<Source>>();
  let metadata = false;
  cursor.object((name) => {
    const described = cursor.atObject;
    if (entries.has(name) || metadata && name === "__metadata__") {
      refuse(`its header has ${jsonText(name)} twice`);
    }
    if (name !== "__metadata__") {
      if (!described) {
        cursor.value(); // reports broken JSON as such
        refuse(`tensor ${quoted(name)} must be described by an object`);
      }
      entries.set(name, readEntry(cursor, source, name, dataBegin, refuse));
    } else {
      metadata = true;
      const raw = cursor.raw(cursor.value(), MOST_LIST_BYTES);
      if (!described && raw !== "null") {
        refuse(`its __metadata__ is ${quoted(raw)}, must be an object`);
      }
    }
  });
  cursor.end();
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
  const refuse: Refuse = (problem) => {
    throw new Error(`Cannot use ${where}: ${problem}`);
  };
  const cursor = new JsonCursor(new TextEncoder().encode(text), where);
  const map = new Map<string, string>(), shards = new Map<string, string>();
  let found = false;
  if (cursor.atObject) {
    cursor.object((key) => {
      if (key !== "weight_map" || !cursor.atObject) return cursor.value();
      found = true;
      cursor.object((tensor) => {
        const raw = cursor.raw(cursor.value(), 600);
        if (map.has(tensor)) refuse(`it has ${jsonText(tensor)} twice`);
        const shard = shards.get(raw) ?? shardName(raw);
        if (shard === undefined) {
          refuse(
            `it puts ${quoted(tensor)} in ${
              quoted(raw)
            }, must be a .safetensors file in the same folder, by its plain name`,
          );
        }
        shards.set(raw, shard!);
        map.set(tensor, shard!);
      });
    });
  } else cursor.value();
  cursor.end();
  if (!found) refuse("it must have a weight_map, an object");
  if (map.size === 0) refuse("its weight_map is empty, must name tensors");
  if (shards.size > MOST_SHARDS) {
    refuse(`it names ${shards.size} files, must be at most ${MOST_SHARDS}`);
  }
  return map;
}

/**
 * A name that means one file, in the same folder, also as part of a URL; undefined for
 * anything else.
 */
function shardName(raw: string): string | undefined {
  if (!raw.startsWith('"') || !raw.endsWith('"') || raw.length > 258) return;
  const name: string = JSON.parse(raw);
  return /^[^\p{C}/\\:%?#]+\.safetensors$/u.test(name) && !name.includes("..")
    ? name
    : undefined;
}

/** Reads a tensor's description. */
function readEntry<Source extends ByteSource>(
  cursor: JsonCursor,
  source: Source,
  name: string,
  dataBegin: number,
  refuse: Refuse,
): SafetensorsEntry<Source> {
  const fields = new Map<string, string>();
  cursor.object((key) => {
    const raw = cursor.raw(cursor.value(), MOST_LIST_BYTES);
    if (key !== "dtype" && key !== "shape" && key !== "data_offsets") return;
    if (fields.has(key)) refuse(`tensor ${quoted(name)} has ${key} twice`);
    fields.set(key, raw);
  });
  const wrong = (key: string, must: string) =>
    refuse(
      `tensor ${quoted(name)} has ${key} ${
        quoted(fields.get(key) ?? "missing")
      }, must be ${must}`,
    );
  const dtype = fields.get("dtype") ?? "";
  if (!/^"[\w-]{1,30}"$/.test(dtype)) wrong("dtype", "the name of a type");
  const shape = counts(fields.get("shape")) ??
    wrong("shape", "a list of sizes");
  const offsets = counts(fields.get("data_offsets")) ?? [];
  const [begin, end] = offsets;
  if (offsets.length !== 2 || begin > end) {
    wrong("data_offsets", "[begin, end]");
  }
  const type = dtype.slice(1, -1), format = READABLE.get(type);
  const expected = format && storedRowBytes(format, elements(shape));
  if (format && expected !== end - begin) {
    refuse(
      `tensor ${quoted(name)} has ${end - begin} bytes, but ${type} of shape [${
        shape.join(", ")
      }] needs ${expected}`,
    );
  }
  return {
    source,
    name,
    dtype: type,
    shape,
    begin: dataBegin + begin,
    end: dataBegin + end,
  };
}

/** A list of whole numbers from JSON; undefined if it is anything else, or too long. */
function counts(raw = ""): number[] | undefined {
  if (raw.length >= MOST_LIST_BYTES || !/^\[[\d,\s]*\]$/.test(raw)) return;
  const list: number[] = JSON.parse(raw);
  return list.every(Number.isSafeInteger) ? list : undefined;
}

/** Rejects overlaps and gaps, which the file format forbids. */
function checkLayout(
  entries: ReadonlyMap<string, SafetensorsEntry>,
  dataBegin: number,
  fileSize: number,
  refuse: Refuse,
) {
  const inOrder = [...entries.values()].sort((a, b) =>
    a.begin - b.begin || a.end - b.end
  );
  let covered = dataBegin;
  let before = "";
  const previous = () => before === "" ? "the header" : quoted(before);
  for (const { name, begin, end } of inOrder) {
    if (begin < covered) {
      refuse(
        `tensor ${
          quoted(name)
        } begins at byte ${begin}, inside ${previous()}, which ends at ${covered}`,
      );
    }
    if (begin > covered) {
      refuse(
        `${begin - covered} bytes between ${previous()} and tensor ${
          quoted(name)
        } belong to no tensor`,
      );
    }
    if (end > fileSize) {
      refuse(
        `tensor ${
          quoted(name)
        } ends at byte ${end}, but the file has ${fileSize} bytes: it is truncated or its offsets are out of range`,
      );
    }
    covered = end;
    before = name;
  }
  if (covered < fileSize) {
    refuse(
      `the ${fileSize - covered} bytes after ${previous()} belong to no tensor`,
    );
  }
}
