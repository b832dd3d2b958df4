/**
 * What an alternative asks of each type: terminals for what does not nest, and lists of
 * schemas for what does.
 *
 * @module
 */
import { isObject } from "../../json.ts";
import { jsonText } from "../../errors.ts";
import type { State } from "./automaton.ts";
import {
  type Alternative,
  type Alternatives,
  type Keyworded,
  tightest,
} from "./alternatives.ts";
import { SchemaError } from "./error.ts";
import { FORMATS } from "./formats.ts";
import { numberOf } from "./numbers.ts";
import { readRegex } from "./regex.ts";
import type { Site } from "./schema.ts";
import { stringOf } from "./strings.ts";
import {
  anyWord,
  atLeast,
  type Automaton,
  every,
  except,
  not,
  type StateBudget,
  TooManyWords,
  type Word,
  wordOf,
} from "./words.ts";

/** What applies to a value; all of it. */
export type Sites = readonly Site[];

/** The objects that are allowed. */
export interface ObjectShape {
  /** Properties with a name, in the order in which they are written. */
  readonly named: readonly { name: string; required: boolean; value: Sites }[];
  /** Further keys, and what applies to their values. */
  readonly others: readonly { key: State; value: Sites }[];
  readonly min: number;
  readonly max: number;
}

/** The arrays that are allowed. */
export interface ArrayShape {
  /** What applies to the first items. */
  readonly first: readonly Sites[];
  /** What applies to all further ones. */
  readonly rest: Sites;
  readonly min: number;
  readonly max: number;
}

/** The values that are allowed; undefined for those of which there are none. */
export interface Shape {
  /** Whole values as JSON texts. */
  readonly texts: readonly string[];
  readonly terminals: readonly State[];
  readonly object?: ObjectShape;
  readonly array?: ArrayShape;
}

/** The most patterns for the keys of one object. */
const MOST_PATTERNS = 4;

/** The shape of an alternative. */
export function shapeOf(one: Alternative, all: Alternatives): Shape {
  const { types, values } = one;
  if (values) {
    return { texts: values.map((value) => written(value, one)), terminals: [] };
  }
  const texts: string[] = [], terminals: State[] = [];
  if (types.has("null")) texts.push("null");
  if (types.has("boolean")) texts.push("true", "false");
  if (types.has("number") || types.has("integer")) {
    const numbers = numbersOf(one, !types.has("number"));
    if (numbers) terminals.push(numbers);
  }
  if (types.has("string")) {
    const word = textsOf(one, all.budget);
    if (word) terminals.push(stringOf(word));
  }
  return {
    texts,
    terminals,
    object: types.has("object") ? objectOf(one, all) : undefined,
    array: types.has("array") ? arrayOf(one, all) : undefined,
  };
}

function written(value: unknown, { sites }: Alternative): string {
  const text = JSON.stringify(value);
  if (!hasHalf(value)) return text;
  const site = sites.find(({ schema }) =>
    "enum" in schema || "const" in schema
  )!;
  throw new SchemaError(
    site.path,
    "enum" in site.schema ? "enum" : "const",
    `has ${jsonText(value, 40)} with half of a surrogate pair`,
  );
}

function hasHalf(value: unknown): boolean {
  if (typeof value === "string") return !value.isWellFormed();
  if (Array.isArray(value)) return value.some(hasHalf);
  return isObject(value) && Object.entries(value).some((both) => hasHalf(both));
}

function numbersOf(one: Alternative, integer: boolean): State | undefined {
  const low = tightest(one, "minimum", Math.max);
  const high = tightest(one, "maximum", Math.min);
  const above = tightest(one, "exclusiveMinimum", Math.max);
  const below = tightest(one, "exclusiveMaximum", Math.min);
  const multipleOf = one.sites.flatMap(({ schema }) =>
    (schema.multipleOf ?? []) as number
  );
  return numberOf({
    integer,
    min: Math.max(low, above),
    max: Math.min(high, below),
    aboveMin: above >= low && above > -Infinity,
    belowMax: below <= high && below < Infinity,
    multipleOf,
  });
}

/** The texts that a string may be, also by `automata`; undefined if there are none. */
function textsOf(
  one: Alternative,
  budget: StateBudget,
  automata: Automaton<unknown>[] = [],
  blame?: readonly [Site, keyword: string],
): Word | undefined {
  const min = Math.max(0, tightest(one, "minLength", Math.max));
  const max = tightest(one, "maxLength", Math.min);
  if (min > max) return undefined;
  for (const site of one.sites) {
    const { pattern, format } = site.schema;
    const formed = typeof format === "string" ? FORMATS.get(format) : undefined;
    for (const source of [pattern, formed]) {
      if (typeof source !== "string") continue;
      automata.push(readRegex(source));
      blame ??= [site, source === pattern ? "pattern" : "format"];
    }
  }
  if (!blame) return anyWord(min, max);
  if (min > 0) automata.push(atLeast(min));
  const { format } = blame[0].schema as Keyworded["schema"];
  if (automata.length > 1 || max < Infinity || blame[1] !== "format") {
    return determined(automata, budget, max, ...blame);
  }
  // Many schemas have formats without anything else.
  const name = format as string;
  if (!formatted.has(name)) {
    formatted.set(name, determined(automata, budget, max, ...blame));
  }
  return formatted.get(name);
}

/** The words of formats alone. */
const formatted = new Map<string, Word | undefined>();

function determined(
  automata: readonly Automaton<unknown>[],
  budget: StateBudget,
  longest: number,
  { path }: Site,
  keyword: string,
): Word | undefined {
  try {
    return wordOf(every(automata), budget, longest);
  } catch (error) {
    if (!(error instanceof TooManyWords)) throw error;
    throw new SchemaError(
      path,
      keyword,
      "has too many states with what else applies",
    );
  }
}

/** Whether an object may have properties that its schemas do not name. */
function isOpen(
  sites: readonly Keyworded[],
  names: number,
  min: number,
): boolean {
  const says = (keyword: string) =>
    sites.some(({ schema }) => keyword in schema);
  return says("additionalProperties") || says("patternProperties") ||
    min > names ||
    !says("properties");
}

function objectOf(one: Alternative, all: Alternatives): ObjectShape {
  const { sites } = one;
  const listed = sites.flatMap(({ schema }) =>
    Object.keys(schema.properties ?? {})
  );
  const required = new Set(
    sites.flatMap(({ schema }) => (schema.required ?? []) as string[]),
  );
  const keys = all.keys(sites);
  const names = new Set([...listed, ...required]);
  // Where keys are listed, each is written once at most.
  for (const { values = [] } of keys) {
    for (const value of values) if (typeof value === "string") names.add(value);
  }
  for (const name of names) requireWhole(name, sites);
  const named = [...names].map((name) => ({
    name,
    required: required.has(name),
    value: all.property(sites, name),
  }));
  const min = Math.max(0, tightest(one, "minProperties", Math.max));
  const max = tightest(one, "maxProperties", Math.min);
  const others = isOpen(sites, names.size, min)
    ? keys.filter(({ values, types }) => !values && types.has("string"))
      .flatMap((key) => othersOf(sites, key, names, all))
    : [];
  return { named, others, min, max };
}

function requireWhole(name: string, sites: readonly Keyworded[]): void {
  if (name.isWellFormed()) return;
  throw new SchemaError(
    sites[0].path,
    "properties",
    `has ${jsonText(name, 40)} with half of a surrogate pair`,
  );
}

/** Keys without a name, one entry for each set of patterns that they may match. */
function othersOf(
  sites: readonly Keyworded[],
  key: Alternative,
  names: ReadonlySet<string>,
  alternatives: Alternatives,
): { key: State; value: Sites }[] {
  const patterns = [
    ...new Set(
      sites.flatMap(({ schema }) =>
        Object.keys(schema.patternProperties ?? {})
      ),
    ),
  ];
  const blame = sites.find(({ schema }) => "patternProperties" in schema) ??
    sites.find(({ schema }) => "propertyNames" in schema) ?? key.sites[0] ??
    sites[0];
  if (patterns.length > MOST_PATTERNS) {
    throw new SchemaError(
      blame.path,
      "patternProperties",
      `has ${patterns.length} patterns together, must have at most ${MOST_PATTERNS}`,
    );
  }
  const others: { key: State; value: Sites }[] = [];
  for (let chosen = 0; chosen < 2 ** patterns.length; chosen++) {
    const matched = new Set(patterns.filter((_, i) => chosen >>> i & 1));
    const automata: Automaton<unknown>[] = patterns.map((pattern) =>
      matched.has(pattern) ? readRegex(pattern) : not(readRegex(pattern))
    );
    if (names.size > 0) automata.push(except(names));
    const word = textsOf(
      key,
      alternatives.budget,
      automata,
      automata.length > 0 ? [blame, "patternProperties"] : undefined,
    );
    if (word) {
      others.push({
        key: stringOf(word),
        value: alternatives.other(sites, matched),
      });
    }
  }
  return others;
}

function arrayOf(one: Alternative, all: Alternatives): ArrayShape {
  const { sites } = one;
  const listed = sites.map(({ schema: { prefixItems, items } }) =>
    ((Array.isArray(items) ? items : prefixItems ?? []) as unknown[]).length
  );
  const length = Math.max(0, ...listed);
  return {
    first: Array.from({ length }, (_, i) => all.item(sites, i)),
    rest: all.item(sites, length),
    min: Math.max(0, tightest(one, "minItems", Math.max)),
    max: tightest(one, "maxItems", Math.min),
  };
}
