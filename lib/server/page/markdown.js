/**
 * Renders the little of Markdown that replies use: paragraphs, headings, lists, code, bold
 * and italics. Text becomes text nodes, never markup. page.ts embeds this script.
 */
"use strict";
// deno-lint-ignore-file no-unused-vars

/** An element with properties (or attributes, if their names have a dash) and children. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]*)/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)/;

/** Splits a text into blocks: their kind and their lines. */
function blocksOf(text) {
  const lines = text.split("\n"), blocks = [];
  for (let at = 0; at < lines.length;) {
    const begin = at, line = lines[at], fence = FENCE.exec(line);
    let kind = "text";
    if (line.trim() === "") {
      at++;
      continue;
    } else if (fence) {
      kind = "code";
      const end = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},} *$`);
      do at++; while (at < lines.length && !end.test(lines[at]));
      at++;
    } else if (HEADING.test(line)) {
      kind = "heading";
      at++;
    } else if (ITEM.test(line)) {
      kind = "list";
      const ordered = isOrdered(line);
      do at++; while (at < lines.length && continuesList(lines, at, ordered));
    } else {
      do at++; while (at < lines.length && isPlain(lines[at]));
    }
    blocks.push({ kind, lines: lines.slice(begin, at) });
  }
  return blocks;
}

function isPlain(line) {
  return line.trim() !== "" &&
    ![FENCE, HEADING, ITEM].some((p) => p.test(line));
}

const isOrdered = (line) => /^ *\d/.test(line);

/** A list goes on with an item of its kind, an indented line, or blank lines before these. */
function continuesList(lines, at, ordered) {
  while (at < lines.length && lines[at].trim() === "") at++;
  const line = lines[at] ?? "";
  return /^ {2,}\S/.test(line) ||
    ITEM.test(line) && isOrdered(line) === ordered;
}

/** Renders into an element; what did not change since the last time stays as it is. */
function renderMarkdown(element, text) {
  const blocks = blocksOf(text), old = element.rendered ?? [];
  const sources = blocks.map(({ kind, lines }) => kind + lines.join("\n"));
  let same = 0;
  while (same < old.length && old[same] === sources[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map(blockElement));
  element.rendered = sources;
}

function blockElement({ kind, lines }) {
  if (kind === "code") return codeElement(lines);
  if (kind === "list") return listElement(lines);
  if (kind === "text") return el("p", {}, ...inline(lines.join("\n")));
  const [, , text] = HEADING.exec(lines[0]);
  return el("p", { className: "heading" }, ...inline(text));
}

function codeElement([first, ...rest]) {
  const [, fence, language] = FENCE.exec(first);
  const closed = rest.length > 0 && rest.at(-1).trim().startsWith(fence);
  const text = rest.slice(0, closed ? -1 : undefined).join("\n");
  const copy = el("button", { type: "button" }, "Copy code");
  copy.addEventListener("click", () => copyText(text));
  return el(
    "div",
    { className: "code" },
    el("div", {}, el("span", {}, language), copy),
    // Focusable, so that the keyboard can scroll it.
    el(
      "pre",
      { tabIndex: 0, role: "region", ariaLabel: `Code ${language}`.trim() },
      el("code", {}, text),
    ),
  );
}

function listElement(lines) {
  const [, , marker] = ITEM.exec(lines[0]);
  const ordered = isOrdered(lines[0]), items = [];
  for (const line of lines) {
    const item = ITEM.exec(line), inner = items.at(-1);
    if (item && (!inner || item[1].length < inner.indent)) {
      const indent = item[0].trimEnd().length + 1;
      items.push({ indent, lines: [line.slice(item[0].length)] });
    } else {
      const spaces = /^ */.exec(line)[0].length;
      inner.lines.push(line.slice(Math.min(spaces, inner.indent)));
    }
  }
  const list = el(ordered ? "ol" : "ul");
  if (ordered) list.start = parseInt(marker);
  for (const { lines } of items) {
    const item = el("li");
    renderMarkdown(item, lines.join("\n"));
    list.append(item);
  }
  return list;
}

/** Lengths are bounded, so that unclosed marks cost no more than their number. */
const INLINE = new RegExp(
  [
    "(?<ticks>`+)(?!`)(?<code>[^]{1,1000}?)(?<!`)\\k<ticks>(?!`)",
    "\\*\\*(?=\\S)(?<bold>[^]{1,1000}?)(?<=\\S)\\*\\*",
    "(?<![*\\w])\\*(?=[^*\\s])(?<italic>[^*]{1,1000}?)(?<=\\S)\\*(?![*\\w])",
  ].join("|"),
  "g",
);

/** The nodes of a text with code, bold and italics in it. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const { 0: whole, index, groups } of text.matchAll(INLINE)) {
    const { code, bold, italic } = groups;
    nodes.push(text.slice(end, index));
    if (code !== undefined) nodes.push(el("code", {}, code));
    else if (bold !== undefined) nodes.push(el("strong", {}, ...inline(bold)));
    else nodes.push(el("em", {}, ...inline(italic)));
    end = index + whole.length;
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}
