/**
 * Whether a value is valid under a schema, for the values of `enum` and `const`.
 *
 * @module
 */
import { isObject } from "../../json.ts";
import { FORMATS } from "./formats.ts";
import { matches } from "./regex.ts";
import { isNever, type Schema, type Site } from "./schema.ts";

/** Whether a JSON value is of a type. */
export function isOfType(value: unknown, type: unknown): boolean {
  if (type === "null") return value === null;
  if (type === "integer") return Number.isInteger(value);
  if (type === "array") return Array.isArray(value);
  const kind = typeof value;
  return type === "object" ? isObject(value) : kind === type;
}

/** Equal texts for equal JSON values; the order of keys does not count. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (!isObject(value)) return JSON.stringify(value);
  const fields = Object.keys(value).sort()
    .map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${fields.join()}}`;
}

const listed = new WeakMap<readonly unknown[], ReadonlySet<string>>();

/** Whether one of `values` equals `value`. */
function isAmong(value: unknown, values: readonly unknown[]): boolean {
  let texts = listed.get(values);
  if (!texts) listed.set(values, texts = new Set(values.map(canonical)));
  return texts.has(canonical(value));
}

/**
 * Whether `value` is valid under a site, whose keywords are checked first.
 *
 * @param chosen whether a branch of its `anyOf` is looked at apart
 */
export function isValid(
  schema: Schema,
  value: unknown,
  site: Site,
  chosen = false,
): boolean {
  schema.check(site);
  if (isNever(site.schema)) return false;
  if (typeof site.schema === "boolean") return true;
  const keywords = site.schema;
  const valid = (one: unknown, ...steps: (string | number)[]) =>
    isValid(schema, one, schema.child(site, ...steps));
  const { type, enum: values, $ref, allOf, anyOf, oneOf } = keywords;
  const types = type === undefined ? undefined : [type].flat();
  if (types && !types.some((one) => isOfType(value, one))) return false;
  if (Array.isArray(values) && !isAmong(value, values)) {
    return false;
  }
  if ("const" in keywords && canonical(keywords.const) !== canonical(value)) {
    return false;
  }
  if ($ref !== undefined && !isValid(schema, value, schema.resolve(site))) {
    return false;
  }
  const under = (keyword: string) => (_: unknown, i: number) =>
    valid(value, keyword, i);
  if (allOf && !(allOf as unknown[]).every(under("allOf"))) return false;
  if (anyOf && !chosen && !(anyOf as unknown[]).some(under("anyOf"))) {
    return false;
  }
  if (oneOf && (oneOf as unknown[]).filter(under("oneOf")).length !== 1) {
    return false;
  }
  if (typeof value === "number") return isNumber(value, keywords);
  if (typeof value === "string") return isText(value, keywords);
  if (Array.isArray(value)) return isList(value, keywords, valid);
  return !isObject(value) || isRecord(value, keywords, valid);
}

type Keywords = Readonly<Record<string, unknown>>;
type Valid = (value: unknown, ...steps: (string | number)[]) => boolean;

function isNumber(value: number, keywords: Keywords): boolean {
  const { multipleOf } = keywords;
  const { minimum = -Infinity, maximum = Infinity } = keywords as Record<
    string,
    number
  >;
  const { exclusiveMinimum: above, exclusiveMaximum: below } = keywords;
  return value >= minimum && value <= maximum &&
    (above === undefined || value > (above as number)) &&
    (below === undefined || value < (below as number)) &&
    (multipleOf === undefined || value % (multipleOf as number) === 0);
}

function isText(value: string, keywords: Keywords): boolean {
  const { pattern, format } = keywords as Record<string, string | undefined>;
  const { minLength = 0, maxLength = Infinity } = keywords as Record<
    string,
    number
  >;
  const { length } = [...value];
  const patterns = [pattern, FORMATS.get(format ?? "")];
  return length >= minLength && length <= maxLength &&
    patterns.every((one) => one === undefined || matches(one, value));
}

function isList(value: unknown[], keywords: Keywords, valid: Valid): boolean {
  const { minItems = 0, maxItems = Infinity } = keywords as Record<
    string,
    number
  >;
  if (value.length < minItems || value.length > maxItems) return false;
  return value.every((one, i) => {
    const steps = itemSteps(keywords, i);
    return !steps || valid(one, ...steps);
  });
}

/** Which schema an array's item has; undefined if any. */
export function itemSteps(
  keywords: Keywords,
  index: number,
): (string | number)[] | undefined {
  // Until draft 2019-09, items was a list and additionalItems what follows.
  const [first, rest] = Array.isArray(keywords.items)
    ? ["items", "additionalItems"]
    : ["prefixItems", "items"];
  const list = keywords[first] as unknown[] | undefined;
  if (list && index < list.length) return [first, index];
  return keywords[rest] === undefined ? undefined : [rest];
}

function isRecord(
  value: Readonly<Record<string, unknown>>,
  keywords: Keywords,
  valid: Valid,
): boolean {
  const { required = [], propertyNames } = keywords;
  const { minProperties = 0, maxProperties = Infinity } = keywords as Record<
    string,
    number
  >;
  const keys = Object.keys(value);
  if (keys.length < minProperties || keys.length > maxProperties) return false;
  if (!(required as string[]).every((key) => Object.hasOwn(value, key))) {
    return false;
  }
  return keys.every((key) =>
    (propertyNames === undefined || valid(key, "propertyNames")) &&
    propertySteps(keywords, key).every((steps) => valid(value[key], ...steps))
  );
}

/** Which schemas the property `key` has. */
export function propertySteps(keywords: Keywords, key: string): string[][] {
  const { properties, patternProperties, additionalProperties } = keywords;
  const steps: string[][] = [];
  if (isObject(properties) && Object.hasOwn(properties, key)) {
    steps.push(["properties", key]);
  }
  for (const pattern of Object.keys(patternProperties ?? {})) {
    if (matches(pattern, key)) steps.push(["patternProperties", pattern]);
  }
  if (steps.length === 0 && additionalProperties !== undefined) {
    steps.push(["additionalProperties"]);
  }
  return steps;
}
