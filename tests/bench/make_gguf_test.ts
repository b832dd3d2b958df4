import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  bf16ToF32,
  elements,
  f16ToF32,
  f32ToF16Bits,
} from "../../lib/dtype.ts";
import { familyOf } from "../../lib/model/families.ts";
import { tensorShapes } from "../../lib/model/family.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

interface Entry {
  shape: number[];
  type: number;
  offset: number;
}

/** Parses a value as GGUF defines it, of the types that we write. */
function readGguf(bytes: Uint8Array<ArrayBuffer>) {
  const view = new DataView(bytes.buffer);
  let at = 0;
  const u32 = () => view.getUint32((at += 4) - 4, true);
  const u64 = () => Number(view.getBigUint64((at += 8) - 8, true));
  const text = () => {
    const length = u64();
    return new TextDecoder().decode(bytes.subarray(at, at += length));
  };
  const magic = new TextDecoder().decode(bytes.subarray(0, at += 4));
  assertEquals([magic, u32()], ["GGUF", 3]);
  const tensors = u64(), values = u64();
  const metadata: Record<string, number | string | boolean> = {};
  for (let i = 0; i < values; i++) {
    const key = text(), kind = u32();
    metadata[key] = kind === 8
      ? text()
      : kind === 4
      ? u32()
      : kind === 6
      ? view.getFloat32((at += 4) - 4, true)
      : view.getUint8(at++) === 1;
  }
  const entries = new Map<string, Entry>();
  for (let i = 0; i < tensors; i++) {
    const name = text();
    const shape = Array.from({ length: u32() }, u64).reverse();
    entries.set(name, { shape, type: u32(), offset: u64() });
  }
  return { metadata, entries, data: Math.ceil(at / 32) * 32 };
}

for (
  const [model, check] of [
    ["tiny-tied-bf16", "model.layers.1.mlp.down_proj.weight"],
    ["tiny-untied-f32", "lm_head.weight"],
    ["tiny-sharded-f16", "model.layers.0.self_attn.k_norm.weight"],
  ]
) {
  Deno.test(`a GGUF holds the weights of ${model}`, async () => {
    const path = await Deno.makeTempFile();
    try {
      const folder = `${ROOT}tests/fixtures/${model}`;
      const { success, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-A", "--no-lock", "--no-check"],
          ...["bench/peers/make_gguf.ts", folder, path],
        ],
        cwd: ROOT,
      }).output();
      assert(success, new TextDecoder().decode(stderr));
      const bytes = await Deno.readFile(path);
      const { metadata, entries, data } = readGguf(bytes);
      await using checkpoint = await openCheckpoint(folder);
      const { config, tensors } = checkpoint;

      assertEquals(metadata["general.architecture"], "qwen3");
      assertEquals(metadata["qwen3.block_count"], config.numHiddenLayers);
      assertEquals(metadata["qwen3.rope.freq_base"], config.ropeTheta);
      const shapes = tensorShapes(familyOf(config).weights(config));
      assertEquals(entries.size, shapes.size);
      let end = 0; // tensors are consecutive, each aligned to 32
      for (const { shape, type, offset } of entries.values()) {
        assertEquals([offset, type], [end, shape.length > 1 ? 1 : 0]);
        end += Math.ceil(elements(shape) * (type === 1 ? 2 : 4) / 32) * 32;
      }
      assertEquals(bytes.length, data + end);

      const { format, shape, byteLength } = tensors.get(check)!;
      const name = [...entries.keys()][[...tensors.keys()].indexOf(check)];
      const entry = entries.get(name)!;
      assertEquals(entry.shape, shape);
      const stored = new Uint8Array(byteLength);
      await checkpoint.read(check, 0, stored);
      const source = new DataView(stored.buffer);
      const view = new DataView(bytes.buffer, data + entry.offset);
      for (let i = 0; i < elements(shape); i++) {
        const value = format.name === "f32"
          ? source.getFloat32(4 * i, true)
          : (format.name === "f16" ? f16ToF32 : bf16ToF32)(
            source.getUint16(2 * i, true),
          );
        if (entry.type === 0) {
          assertEquals(view.getFloat32(4 * i, true), value);
        } else assertEquals(view.getUint16(2 * i, true), f32ToF16Bits(value));
      }
    } finally {
      await Deno.remove(path);
    }
  });
}
