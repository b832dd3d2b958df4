import { assertEquals, assertRejects } from "@std/assert";
import { CheckpointFolder } from "../../bench/checkpoint_folder.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";

for (const dtype of ["bf16", "q4_k_m"]) {
  Deno.test(`a synthetic checkpoint in ${dtype} is the same as files`, async () => {
    const spec = `synthetic:qwen3-0.6b?layers=1&vocab=33&dtype=${dtype}`;
    await using made = await openCheckpoint(spec);
    let path: string;
    {
      await using folder = await CheckpointFolder.of(spec);
      path = folder.path;
      await using read = await openCheckpoint(path);
      assertEquals(read.config.intermediateSize, 3072);
      assertEquals(
        new Set(read.tensors.keys()),
        new Set(made.tensors.keys()),
      );
      for (const [name, { format, shape, byteLength }] of made.tensors) {
        const other = read.tensors.get(name)!;
        assertEquals([other.format, other.shape], [format, shape]);
        const [a, b] = [new Uint8Array(byteLength), new Uint8Array(byteLength)];
        await made.read(name, 0, a);
        await read.read(name, 0, b);
        assertEquals(a.findIndex((byte, i) => byte !== b[i]), -1, name);
      }
    }
    await assertRejects(() => Deno.stat(path), Deno.errors.NotFound);
  });
}
