/**
 * Reads the calls in the `<tool_call>` blocks of a reply: JSON as Qwen3 and Hermes models
 * write it, and Qwen3-Coder's XML.
 *
 * @module
 */
import type { Tool, ToolCall } from "./conversation.ts";
import { exactJson, isObject } from "../json.ts";

/** The beginning of Qwen3-Coder's calls. */
export const XML_CALL = "<function=";

/**
 * Reads the text between `<tool_call>` and a `</tool_call>`: calls, or "open" if that end
 * lies inside a string or parameter, so that a later one may be meant, or "broken".
 */
export function readBlock(
  body: string,
  tools: readonly Tool[],
): ToolCall[] | "open" | "broken" {
  if (!isXml(body)) {
    return endsInString(body) ? "open" : readJson(body) ?? "broken";
  }
  const [calls, open] = readXml(body, tools);
  return calls ?? (open ? "open" : "broken");
}

/**
 * Reads as much as possible of a broken block; undefined if it has no name. Arguments that
 * are not JSON stay text.
 */
export function readBroken(
  body: string,
  tools: readonly Tool[],
): ToolCall[] | undefined {
  return isXml(body) ? readBrokenXml(body, tools) : readBrokenJson(body);
}

function isXml(body: string): boolean {
  return body.trimStart().startsWith(XML_CALL);
}

function call(name: string, args: Record<string, unknown> | string): ToolCall {
  return { type: "function", function: { name, arguments: args } };
}

/** A call, or a list of calls; undefined if `body` is not JSON or lacks a name. */
function readJson(body: string): ToolCall[] | undefined {
  const json = tryJson(body);
  const calls = (Array.isArray(json) ? json : [json]).map((item) => {
    // OpenAI's own form has the name one level down.
    const called = isObject(item) && isObject(item.function)
      ? item.function
      : item;
    if (!isObject(called) || typeof called.name !== "string") return undefined;
    const { name, arguments: given, parameters } = called;
    return name === ""
      ? undefined
      : call(name, argumentsOf(given ?? parameters));
  });
  return calls.length > 0 && calls.every((one) => one !== undefined)
    ? calls
    : undefined;
}

function argumentsOf(given: unknown): Record<string, unknown> | string {
  if (given === undefined || given === null) return {};
  if (isObject(given)) return given;
  if (typeof given !== "string") return exactJson(given);
  const parsed = tryJson(given);
  return isObject(parsed) ? parsed : given;
}

/** `undefined` if `text` is not JSON. */
function tryJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whether JSON breaks off inside a string. */
function endsInString(json: string): boolean {
  let inside = false;
  for (let i = 0; i < json.length; i++) {
    if (inside && json[i] === "\\") i++;
    else if (json[i] === '"') inside = !inside;
  }
  return inside;
}

/** Reads the name at the beginning; the rest is taken as the arguments. */
function readBrokenJson(body: string): ToolCall[] | undefined {
  const head =
    /^\s*\{\s*(["'])name\1\s*:\s*(["'])((?:\\.|(?!\2)[^\\])+)\2\s*,?\s*/s
      .exec(body);
  if (!head) return undefined;
  const rest = body.slice(head[0].length)
    .replace(/^(["'])(?:arguments|parameters)\1\s*:\s*/, "").trim();
  const shorter = (text: string) =>
    text.endsWith("}") ? text.slice(0, -1).trimEnd() : text;
  // The brace that closes the call may be missing, or there may be one too many.
  for (const text of [rest, shorter(rest), shorter(shorter(rest))]) {
    const parsed = tryJson(text);
    if (isObject(parsed)) return [call(head[3], parsed)];
  }
  return [call(head[3], shorter(rest))];
}

const PARAMETER = /\s*<parameter=([^>\n]+)>/y;
const PARAMETER_END = /<\/parameter>(?=\s*<(?:parameter=|\/function>))/g;
const FUNCTION = /\s*<function=([^>\n]+)>/y;
const FUNCTION_END = /\s*<\/function>\s*(?=<function=|$)/y;

/**
 * Scans the calls of a block: the name of each, its parameters up to their ends, and its
 * end. Returns the calls if all are whole, and whether a parameter has no end.
 */
function readXml(
  body: string,
  tools: readonly Tool[],
): [calls: ToolCall[] | undefined, open: boolean] {
  const calls: ToolCall[] = [];
  let at = 0;
  const take = (pattern: RegExp) => {
    pattern.lastIndex = at;
    const found = pattern.exec(body);
    if (found) at = pattern.lastIndex;
    return found;
  };
  do {
    const head = take(FUNCTION);
    if (!head) return [undefined, false];
    const values: [name: string, value: string][] = [];
    for (let one = take(PARAMETER); one; one = take(PARAMETER)) {
      const begin = at, end = take(PARAMETER_END);
      if (!end) return [undefined, true];
      values.push([one[1].trim(), body.slice(begin, end.index)]);
    }
    if (!take(FUNCTION_END)) return [undefined, false];
    const name = head[1].trim();
    calls.push(call(name, typed(name, values, tools)));
  } while (at < body.length);
  return [calls, false];
}

/** Reads a call whose parameters or function lack their closing tags. */
function readBrokenXml(
  body: string,
  tools: readonly Tool[],
): ToolCall[] | undefined {
  FUNCTION.lastIndex = 0;
  const head = FUNCTION.exec(body);
  if (!head) return undefined;
  const name = head[1].trim();
  const rest = body.slice(head[0].length);
  const values = Array.from(
    rest.matchAll(
      /<parameter=([^>\n]+)>(.*?)(?:<\/parameter>|(?=<parameter=)|(?=<\/function>)|$)/gs,
    ),
    ([, parameter, value]): [string, string] => [parameter.trim(), value],
  );
  const raw = rest.replace(/<\/function>\s*$/, "").trim();
  return [
    call(
      name,
      values.length > 0 || raw === "" ? typed(name, values, tools) : raw,
    ),
  ];
}

/** Gives each value the type that the tool's schema declares; others stay text. */
function typed(
  name: string,
  values: readonly [name: string, value: string][],
  tools: readonly Tool[],
): Record<string, unknown> {
  const schema = tools.find((tool) => tool.function.name === name)
    ?.function.parameters ?? {};
  const properties = isObject(schema.properties) ? schema.properties : {};
  return Object.fromEntries(values.map(([parameter, value]) => {
    // The template writes a line break on each side.
    const text = value.replace(/^\n/, "").replace(/\n$/, "");
    const declared = Object.hasOwn(properties, parameter)
      ? properties[parameter]
      : undefined;
    return [parameter, convert(text, declared, schema)];
  }));
}

function convert(text: string, declared: unknown, root: object): unknown {
  const types = new Set<string>(), constants: unknown[] = [];
  collectTypes(declared, root, types, constants);
  if (constants.includes(text)) return text;
  const word = text.trim();
  const parsed = tryJson(
    /^(?:True|False)$/.test(word) ? word.toLowerCase() : word,
  );
  const nullable = types.has("null") ||
    (types.size > 0 && !types.has("string"));
  if ((word === "None" || parsed === null) && nullable) return null;
  if (parsed === undefined) return text;
  const type = typeOf(parsed);
  const fits = types.has(type) ||
    (type === "integer" && types.has("number")) || constants.includes(parsed);
  return fits ? parsed : text;
}

function typeOf(json: unknown): string {
  if (json === null) return "null";
  if (Array.isArray(json)) return "array";
  return Number.isInteger(json) ? "integer" : typeof json;
}

/** The types and constants that a JSON Schema allows. */
function collectTypes(
  schema: unknown,
  root: object,
  types: Set<string>,
  constants: unknown[],
  depth = 0,
): void {
  if (!isObject(schema) || depth > 16) return;
  for (const type of [schema.type].flat()) {
    if (typeof type === "string") types.add(type.toLowerCase());
  }
  if (Array.isArray(schema.enum)) constants.push(...schema.enum);
  if ("const" in schema) constants.push(schema.const);
  const nested = [schema.anyOf, schema.oneOf, schema.allOf].flat();
  if (typeof schema.$ref === "string" && schema.$ref.startsWith("#/")) {
    let target: unknown = root;
    for (const key of schema.$ref.slice(2).split("/")) {
      target = isObject(target) && Object.hasOwn(target, key)
        ? target[key]
        : undefined;
    }
    nested.push(target);
  }
  for (const one of nested) {
    collectTypes(one, root, types, constants, depth + 1);
  }
}
