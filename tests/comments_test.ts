/** Doc comments say what something is, not that it resembles its neighbor. */
import { assert, assertEquals } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

/** Doc comments of `text` that begin with "The same" or "Told", by their first line. */
function vagueComments(text: string): string[] {
  return Array.from(
    text.matchAll(/\/\*\*[\s*]*((?:The\s[\s*]*same|Told)\b.*)/g),
    ([, line]) => line.replace(/\s*\*\/.*/, ""),
  );
}

async function* filesBelow(folder: string): AsyncGenerator<string> {
  for await (
    const { name, isDirectory } of Deno.readDir(new URL(folder, ROOT))
  ) {
    if (isDirectory) yield* filesBelow(`${folder}${name}/`);
    else if (name.endsWith(".ts")) yield folder + name;
  }
}

Deno.test("vague doc comments are found", () => {
  const text = `/** The same, transposed. */
/**
 * Told when a case ends.
 */
  /** The
   * same in f16. */
// The same is fine in a plain comment.
/** Stores the same value. */
/** The samples of a round. */
/* Told. */
`;
  assertEquals(vagueComments(text), [
    "The same, transposed.",
    "Told when a case ends.",
    "The\n   * same in f16.",
  ]);
});

Deno.test('no doc comment begins with "The same" or "Told"', async () => {
  const files = ["mod.ts"];
  for (const folder of ["lib/", "kernels/", "tasks/"]) {
    for await (const file of filesBelow(folder)) files.push(file);
  }
  assert(files.length > 100, `only ${files.length} files were found`);
  const found: string[] = [];
  for (const file of files) {
    const text = await Deno.readTextFile(new URL(file, ROOT));
    for (const line of vagueComments(text)) found.push(`${file}: ${line}`);
  }
  assertEquals(found, []);
});
