/**
 * A value that tells checkpoints apart.
 *
 * @module
 */
import { textHash } from "../host.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** Tensors of which some bytes are read, and how many. */
const TENSORS = 16, BYTES = 256;

/**
 * Hashes a checkpoint's configuration, the names, types and shapes of its tensors, and a few
 * bytes from the middle of some of them, which fine-tuning changes.
 */
export async function fingerprintOf(checkpoint: Checkpoint): Promise<string> {
  const { config, tensors } = checkpoint;
  const lines = [...tensors.values()].map(({ name, format, shape }) =>
    `${name} ${format.name} ${shape}`
  ).sort();
  // As stored: encoding takes longer, and the formats are in the list.
  const source = checkpoint.original ?? checkpoint;
  const names = [...source.tensors.keys()].sort();
  const step = Math.max(1, names.length / TENSORS);
  for (let at = 0; at < names.length; at += step) {
    const { name, byteLength } = source.tensors.get(names[Math.floor(at)])!;
    const bytes = new Uint8Array(Math.min(BYTES, byteLength));
    await source.read(name, Math.floor((byteLength - bytes.length) / 2), bytes);
    lines.push(`${name} ${bytes}`);
  }
  return await textHash([JSON.stringify(config), ...lines].join("\n"), 32);
}
