import { assertEquals, assertRejects } from "@std/assert";
import { openFile } from "../../lib/checkpoint/sources.ts";

const content = Uint8Array.from({ length: 3000 }, (_, i) => (i * 31) >> 3);

Deno.test("openFile reads ranges, and returns undefined for a missing file", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, content);
    await using source = (await openFile(path))!;
    assertEquals([source.name, source.size], [path, content.length]);
    const bytes = new Uint8Array(1000);
    await source.read(77, bytes);
    assertEquals(bytes.join(), content.subarray(77, 1077).join());
    await Deno.truncate(path, 500);
    await assertRejects(
      () => source.read(77, bytes),
      Error,
      `Cannot read ${path}: it ends at byte 500, must have 1077`,
    );
  } finally {
    await Deno.remove(path);
  }
  assertEquals(await openFile(path), undefined);
});

Deno.test("a folder in the place of a file is named", async () => {
  const path = await Deno.makeTempDir();
  try {
    await assertRejects(
      () => openFile(path),
      Error,
      `Cannot read ${path}: it is not a regular file`,
    );
  } finally {
    await Deno.remove(path);
  }
});
