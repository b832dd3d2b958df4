import { assert, assertEquals, assertMatch } from "@std/assert";

const log = await Deno.readTextFile(
  new URL("../../bench/log.md", import.meta.url),
);
const [, index, entries] = /## Index([^]*)\n## Entries\n([^]*)$/.exec(log)!;

/** Turns headings into anchors as GitHub does. */
const anchor = (heading: string) =>
  heading.toLowerCase().replaceAll(/[^\p{L}\p{N}_\- ]/gu, "")
    .replaceAll(" ", "-");

const sections = entries.split("\n### ").slice(1);
const anchors = sections.map((section) => anchor(section.split("\n")[0]));

Deno.test("every entry of the log has its fields", () => {
  let before = "9999";
  for (const section of sections) {
    const [title, empty, ...lines] = section.split("\n");
    assertEquals(empty, "", title);
    const [fields] = lines.join("\n").split("\n\n");
    const form =
      /^- Date: (.*)\n- Commit: .*\n- Card: .*\n- Command:\s.*\n- State: (.*)$/s;
    const [, date, state] = form.exec(fields) ?? [];
    assertMatch(date ?? fields, /^\d{4}-\d{2}-\d{2}$/, title);
    assertMatch(state, /^\*\*(kept|reverted|superseded|measured)\*\*$/, title);
    assert(date <= before, `${title}: newest first`);
    before = date;
  }
  assertEquals(new Set(anchors).size, sections.length, "titles are unique");
});

Deno.test("the log's index has every entry, and its links resolve", () => {
  const links = (text: string) =>
    Array.from(text.matchAll(/\]\(#([^)]*)\)/g), ([, link]) => link);
  for (const link of links(log)) assert(anchors.includes(link), link);
  assertEquals([...new Set(links(index))].sort(), anchors.toSorted());
});

/** Every TypeScript file below a folder. */
async function* filesBelow(folder: URL): AsyncGenerator<URL> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) yield* filesBelow(new URL(`${name}/`, folder));
    else if (name.endsWith(".ts")) yield new URL(name, folder);
  }
}

Deno.test("entries that the code cites exist", async () => {
  const titles = sections.map((section) => section.split("\n")[0]);
  const cited = new Set<string>();
  for (const folder of ["lib/", "kernels/"]) {
    for await (
      const file of filesBelow(new URL(`../../${folder}`, import.meta.url))
    ) {
      const text = await Deno.readTextFile(file);
      const comments = (text.match(/\/\*\*[^]*?\*\/|\/\/.*/g) ?? []).join("\n")
        .replaceAll(/\n\s*(?:\*|\/\/) /g, " ");
      // lib/dispatch cites as ("title"), other files name the log as well.
      const form = file.href.includes("/lib/dispatch/")
        ? /\("([^"]+ [^"]+)"(?: and "([^"]+)")?\)/g
        : /bench\/log\.md,\s"([^"]+)"(?:\sand\s"([^"]+)")?/g;
      for (const [, one, two] of comments.matchAll(form)) {
        for (const title of [one, two]) if (title) cited.add(title);
      }
    }
  }
  assert(cited.size >= 10, [...cited].join(", "));
  for (const title of cited) assert(titles.includes(title), title);
});
