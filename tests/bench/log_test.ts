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
