/** Temporary checkpoints: copies with some files changed. */
import { f32ToBf16Bits } from "../../lib/dtype.ts";

/** A folder that is deleted when disposed. */
export interface TempCheckpoint extends AsyncDisposable {
  path: string;
}

/** Copies a checkpoint's folder; `changes` has files by name, undefined to leave one out. */
export async function copyCheckpoint(
  folder: URL | string,
  changes: Record<string, FileContent> = {},
): Promise<TempCheckpoint> {
  const from = new URL(folder);
  const files: Record<string, FileContent> = { ...changes };
  for await (const { name, isFile } of Deno.readDir(from)) {
    if (!isFile || name in changes || name.startsWith("golden.")) continue;
    files[name] = await Deno.readFile(new URL(name, from));
  }
  return await tempFolder(files);
}

type FileContent = string | Uint8Array | undefined;

/** Writes files, by name, to a temporary folder; undefined ones are left out. */
export async function tempFolder(
  files: Record<string, FileContent>,
): Promise<TempCheckpoint> {
  const path = await Deno.realPath(await Deno.makeTempDir());
  for (const [name, content] of Object.entries(files)) {
    if (content === undefined) continue;
    const data = typeof content === "string"
      ? new TextEncoder().encode(content)
      : content;
    await Deno.writeFile(`${path}/${name}`, data);
  }
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

/** The header of a safetensors file: type, shape and offsets of each tensor. */
export type Header = Record<string, {
  dtype: string;
  shape: number[];
  data_offsets: [begin: number, end: number];
}>;

/** A safetensors file's header, and where its data begins. */
function readHeader(file: Uint8Array): { header: Header; data: number } {
  const view = new DataView(file.buffer, file.byteOffset);
  const data = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, data)));
  delete header.__metadata__;
  return { header, data };
}

/** The file with its header changed by `edit`. */
export function editHeader(
  file: Uint8Array,
  edit: (header: Header) => void,
): Uint8Array<ArrayBuffer> {
  const { header, data } = readHeader(file);
  edit(header);
  const text = new TextEncoder().encode(JSON.stringify(header));
  const edited = new Uint8Array(8 + text.length + file.length - data);
  new DataView(edited.buffer).setBigUint64(0, BigInt(text.length), true);
  edited.set(text, 8);
  edited.set(file.subarray(data), 8 + text.length);
  return edited;
}

/** Multiplies tensors with matching names by 2 ** exponent, in a bf16 file. */
export function scaleWeights(
  safetensors: Uint8Array,
  names: RegExp,
  exponent: number,
): Uint8Array<ArrayBuffer> {
  const file = Uint8Array.from(safetensors);
  const { header, data } = readHeader(file);
  for (const [name, { data_offsets }] of Object.entries(header)) {
    if (!names.test(name)) continue;
    const [begin, end] = data_offsets;
    const bits = new DataView(file.buffer, data + begin, end - begin);
    for (let at = 0; at < bits.byteLength; at += 2) {
      const old = bits.getUint16(at, true);
      // The exponent is above 7 bits of fraction; zeros stay zeros.
      if (old & 0x7fff) bits.setUint16(at, old + (exponent << 7), true);
    }
  }
  return file;
}

/** The file with elements of f32 or bf16 tensors replaced: by name, by index. */
export function replaceElements(
  safetensors: Uint8Array,
  changes: Readonly<Record<string, Readonly<Record<number, number>>>>,
): Uint8Array<ArrayBuffer> {
  const file = Uint8Array.from(safetensors);
  const { header, data } = readHeader(file);
  for (const [name, values] of Object.entries(changes)) {
    const { dtype, data_offsets: [begin, end] } = header[name];
    const bits = new DataView(file.buffer, data + begin, end - begin);
    for (const [at, value] of Object.entries(values)) {
      if (dtype === "F32") bits.setFloat32(4 * Number(at), value, true);
      else bits.setUint16(2 * Number(at), f32ToBf16Bits(value), true);
    }
  }
  return file;
}

/**
 * A copy with values that f16 cannot hold, or with a smaller exponent only some: v_proj times
 * 2 ** exponent, o_proj divided by it.
 */
export async function withLargeValues(
  folder: string,
  exponent = 24,
): Promise<TempCheckpoint> {
  const file = await Deno.readFile(new URL("model.safetensors", folder));
  const larger = scaleWeights(file, /v_proj/, exponent);
  return await copyCheckpoint(folder, {
    "model.safetensors": scaleWeights(larger, /o_proj/, -exponent),
  });
}

/** A tensor of a safetensors file. */
export interface FileTensor {
  dtype: string;
  shape: number[];
  bytes: Uint8Array;
}

/** The tensors of a safetensors file, by name. */
export function tensorsOf(file: Uint8Array): Map<string, FileTensor> {
  const { header, data } = readHeader(file);
  return new Map(
    Object.entries(header).map(([name, { dtype, shape, data_offsets }]) => {
      const [begin, end] = data_offsets;
      const bytes = file.slice(data + begin, data + end);
      return [name, { dtype, shape, bytes }];
    }),
  );
}

/** A safetensors file with these tensors, in this order. */
export function safetensorsOf(
  tensors: ReadonlyMap<string, FileTensor>,
): Uint8Array<ArrayBuffer> {
  let end = 0;
  const header = new Map<string, unknown>();
  for (const [name, { dtype, shape, bytes }] of tensors) {
    const data_offsets = [end, end += bytes.length];
    header.set(name, { dtype, shape, data_offsets });
  }
  const json = JSON.stringify(Object.fromEntries(header));
  const text = new TextEncoder().encode(json);
  const file = new Uint8Array(8 + text.length + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  let at = 8 + text.length;
  for (const { bytes } of tensors.values()) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}

/** A copy of a checkpoint in one file, with other settings and tensors. */
export async function changedCheckpoint(
  folder: string,
  { config, tensors }: {
    config?: Record<string, unknown>;
    tensors?: (tensors: Map<string, FileTensor>) => void;
  },
): Promise<TempCheckpoint> {
  const file = await Deno.readFile(new URL("model.safetensors", folder));
  const map = tensorsOf(file);
  tensors?.(map);
  const url = new URL("config.json", folder);
  const settings = JSON.parse(await Deno.readTextFile(url));
  return await copyCheckpoint(folder, {
    "config.json": JSON.stringify({ ...settings, ...config }),
    "model.safetensors": safetensorsOf(map),
  });
}
