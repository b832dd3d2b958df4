/**
 * What several schemas together ask of one value, as alternatives without `anyOf`, `oneOf`,
 * `allOf` and `$ref`.
 *
 * @module
 */
import { isObject } from "../../json.ts";
import { SchemaError } from "./error.ts";
import type { StateBudget } from "./words.ts";
import { isNever, type Schema, type Site, type Type, TYPES } from "./schema.ts";
import {
  canonical,
  isOfType,
  isValid,
  itemSteps,
  propertySteps,
} from "./valid.ts";

/** One way to be valid: all keywords of `sites`, except those that combine schemas. */
export interface Alternative {
  /** The types that are left; "number" covers "integer". */
  readonly types: ReadonlySet<Type>;
  /** The values that are left, if `enum` or `const` lists them. */
  readonly values?: readonly unknown[];
  /** Objects, no booleans. */
  readonly sites: readonly Keyworded[];
}

/** A site that is not a boolean. */
export interface Keyworded extends Site {
  readonly schema: Readonly<Record<string, unknown>>;
}

/** The most alternatives of one value. */
const MOST = 1000;

/** The most branches of a `oneOf`, of which each is compared with every other. */
const MOST_BRANCHES = 100;

/** A site to be read, with those that led to it in place. */
interface Pending {
  readonly site: Site;
  readonly from?: Pending;
}

/** Finds the alternatives that sets of sites leave. */
export class Alternatives {
  readonly #schema: Schema;
  readonly #known = new Map<string, readonly Alternative[]>();
  /** Sites whose `oneOf` is known to be one, or is being examined. */
  readonly #decided = new Set<Site>();
  /** Pairs of sets whose overlap is being examined. */
  readonly #examined = new Set<string>();

  /** What its patterns may still take: about a second's work. */
  readonly budget: StateBudget = { left: 300_000 };

  constructor(schema: Schema) {
    this.#schema = schema;
  }

  /**
   * The alternatives of a value to which all of `sites` apply.
   *
   * @throws {SchemaError} if one of them is wrong or cannot be guaranteed.
   */
  of(sites: readonly Site[]): readonly Alternative[] {
    const key = keyOf(sites);
    let found = this.#known.get(key);
    if (!found) {
      found = this.#read(sites.map((site) => ({ site })), [], [], {
        left: MOST,
      });
      this.#known.set(key, found);
    }
    return found;
  }

  /** Reads what is pending, then branches where a schema offers a choice. */
  #read(
    pending: readonly Pending[],
    before: readonly Site[],
    choices: readonly (readonly Pending[])[],
    budget: { left: number },
  ): Alternative[] {
    const schema = this.#schema;
    const sites = [...before], open = [...choices], work = [...pending];
    for (let one = work.shift(); one; one = work.shift()) {
      const { site } = one;
      for (let from = one.from; from; from = from.from) {
        if (from.site !== site) continue;
        throw new SchemaError(
          site.path,
          "$ref",
          "refers to itself without a value between",
        );
      }
      if (sites.includes(site)) continue;
      schema.check(site);
      if (isNever(site.schema)) return [];
      sites.push(site);
      if (typeof site.schema === "boolean") continue;
      const { $ref, allOf, anyOf, oneOf } = site.schema;
      const branches = (keyword: string, list: unknown): Pending[] =>
        (list as unknown[]).map((_, i) => ({
          site: schema.child(site, keyword, i),
          from: one,
        }));
      if ($ref !== undefined) {
        work.push({ site: schema.resolve(site), from: one });
      }
      if (allOf) work.push(...branches("allOf", allOf));
      if (anyOf) {
        // Known before any is read, each of which may compare a value with all others.
        if ((anyOf as unknown[]).length > MOST) throw tooMany(site.path);
        open.push(branches("anyOf", anyOf));
      }
      if (oneOf) open.push(this.#exclusive(site, branches("oneOf", oneOf)));
    }
    const [first, ...rest] = open;
    if (first) {
      return first.flatMap((branch) =>
        this.#read([branch], sites, rest, budget)
      );
    }
    if (budget.left-- === 0) throw tooMany(sites[0]?.path ?? "#");
    const merged = this.#merge(sites.filter(isKeyworded));
    return merged ? [merged] : [];
  }

  /** @throws {SchemaError} if two branches of a `oneOf` may be valid at once. */
  #exclusive(site: Site, branches: readonly Pending[]): readonly Pending[] {
    // Inside itself, a choice is taken for one; what asks decides whether it is.
    if (this.#decided.has(site)) return branches;
    this.#decided.add(site);
    if (branches.length > MOST_BRANCHES) {
      throw new SchemaError(
        site.path,
        "oneOf",
        `has ${branches.length} branches, must have at most ${MOST_BRANCHES}; anyOf may have more`,
      );
    }
    const { oneOf: _, ...own } = site.schema as Record<string, unknown>;
    // The schema's own keywords, too, keep branches apart.
    const base = this.#schema.at(own, site.path);
    return branches.filter(({ site: a }, i) => {
      for (const [j, { site: b }] of branches.slice(0, i).entries()) {
        if (!this.#overlap([base, a], [base, b])) continue;
        throw new SchemaError(
          site.path,
          "oneOf",
          `has branches ${j} and ${i} that may both be valid; anyOf allows that`,
        );
      }
      return true;
    });
  }

  /** Whether a value might be valid under both; true if that is not known. */
  #overlap(a: readonly Site[], b: readonly Site[]): boolean {
    const key = `${keyOf(a)}&${keyOf(b)}`;
    if (this.#examined.has(key)) return true;
    this.#examined.add(key);
    try {
      return this.of(a).some((one) =>
        this.of(b).some((other) => this.#meet(one, other))
      );
    } finally {
      this.#examined.delete(key);
    }
  }

  #meet(a: Alternative, b: Alternative): boolean {
    const sites = [...new Set([...a.sites, ...b.sites])];
    const both = this.#merge(sites);
    if (!both) return false;
    // Values were filtered by everything that applies to them.
    if (both.values) return both.values.length > 0;
    return [...both.types].some((type) => {
      if (type === "integer" || type === "number") {
        return !emptyRange(both, "minimum", "maximum");
      }
      if (type === "string") return !emptyCount(both, "minLength", "maxLength");
      if (type === "array") return !emptyCount(both, "minItems", "maxItems");
      return type !== "object" || !this.#apart(a, b);
    });
  }

  /** Whether no object can be valid under both, because of a property that one requires. */
  #apart(a: Alternative, b: Alternative): boolean {
    const needs = (one: Alternative) =>
      one.sites.flatMap(({ schema }) => (schema.required ?? []) as string[]);
    const names = new Set([...needs(a), ...needs(b)]);
    return [...names].some((name) => {
      const one = this.property(a.sites, name),
        other = this.property(b.sites, name);
      return !this.#overlap(one, other);
    });
  }

  /** What applies to an object's property; nothing is valid if its key is not. */
  property(sites: readonly Keyworded[], name: string): Site[] {
    const refused = this.#keySites(sites)
      .some((site) => !isValid(this.#schema, name, site));
    if (refused) return [this.#schema.at(false, "#")];
    return unique(sites.flatMap((site) =>
      propertySteps(site.schema, name)
        .map((steps) => this.#schema.child(site, ...steps))
    ));
  }

  /** What applies to properties without a name whose keys match exactly some patterns. */
  other(sites: readonly Keyworded[], matched: ReadonlySet<string>): Site[] {
    return unique(sites.flatMap((site) => {
      const own = Object.keys(site.schema.patternProperties ?? {})
        .filter((pattern) => matched.has(pattern));
      if (own.length > 0) {
        return own.map((one) =>
          this.#schema.child(site, "patternProperties", one)
        );
      }
      return site.schema.additionalProperties === undefined
        ? []
        : [this.#schema.child(site, "additionalProperties")];
    }));
  }

  /** What an object's keys may be. */
  keys(sites: readonly Keyworded[]): readonly Alternative[] {
    return this.of(this.#keySites(sites));
  }

  #keySites(sites: readonly Keyworded[]): Site[] {
    return sites.filter(({ schema }) => schema.propertyNames !== undefined)
      .map((site) => this.#schema.child(site, "propertyNames"));
  }

  /** What applies to an array's item. */
  item(sites: readonly Keyworded[], index: number): Site[] {
    return unique(sites.flatMap((site) => {
      const steps = itemSteps(site.schema, index);
      return steps ? [this.#schema.child(site, ...steps)] : [];
    }));
  }

  #merge(sites: readonly Keyworded[]): Alternative | undefined {
    let types = new Set<Type>(TYPES);
    let values: unknown[] | undefined;
    types.delete("integer");
    for (const { schema: { type } } of sites) {
      if (type === undefined) continue;
      types = intersect(types, new Set([type].flat() as Type[]));
    }
    for (const { schema } of sites) {
      if ("const" in schema) values = narrowed(values, [schema.const]);
      if (schema.enum) values = narrowed(values, schema.enum as unknown[]);
    }
    values = values?.filter((value) =>
      [...types].some((type) => isOfType(value, type)) &&
      // A thousand branches would each be compared with every other.
      sites.every((site) => isValid(this.#schema, value, site, true))
    );
    if (types.size === 0 || values?.length === 0) return undefined;
    return { types, values, sites };
  }
}

const tooMany = (path: string) =>
  new SchemaError(path, "anyOf", `leads to more than ${MOST} combinations`);

const isKeyworded = (site: Site): site is Keyworded => isObject(site.schema);

const unique = (sites: readonly Site[]) => [...new Set(sites)];

/** Equal for equal sets of sites. */
export function keyOf(sites: readonly Site[]): string {
  return [...new Set(sites)].map(({ id }) => id).sort((a, b) => a - b).join();
}

function intersect(a: ReadonlySet<Type>, b: ReadonlySet<Type>): Set<Type> {
  const both = new Set<Type>();
  for (const type of TYPES) {
    const inA = a.has(type) || (type === "integer" && a.has("number"));
    const inB = b.has(type) || (type === "integer" && b.has("number"));
    if (inA && inB) both.add(type);
  }
  if (both.has("number")) both.delete("integer");
  return both;
}

/** Those of `values` that are among others, each once. */
function narrowed(values: unknown[] | undefined, by: unknown[]): unknown[] {
  const texts = new Map(by.map((one) => [canonical(one), one]));
  return values?.filter((one) => texts.has(canonical(one))) ??
    [...texts.values()];
}

/** The tightest of the bounds that some keyword sets. */
export function tightest(
  { sites }: Pick<Alternative, "sites">,
  keyword: string,
  pick: (...values: number[]) => number,
): number {
  return pick(
    ...sites.flatMap(({ schema }) => (schema[keyword] ?? []) as number),
  );
}

function emptyCount(one: Alternative, min: string, max: string): boolean {
  return tightest(one, min, Math.max) > tightest(one, max, Math.min);
}

function emptyRange(one: Alternative, min: string, max: string): boolean {
  const low = tightest(one, min, Math.max), high = tightest(one, max, Math.min);
  const above = tightest(one, "exclusiveMinimum", Math.max);
  const below = tightest(one, "exclusiveMaximum", Math.min);
  return low > high || above >= high || low >= below || above >= below;
}
