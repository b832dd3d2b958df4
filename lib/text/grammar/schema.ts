/**
 * Reads JSON schemas (drafts 4 to 2020-12): which keywords apply to a value, and whether
 * they can be guaranteed.
 *
 * @module
 */
import { isObject, requireJsonValue } from "../../json.ts";
import { described, errorText, jsonText, listed } from "../../errors.ts";
import { SchemaError } from "./error.ts";
import { FORMATS, REFUSED_FORMATS } from "./formats.ts";
import { isExactDivisor } from "./numbers.ts";
import { PatternError, readRegex } from "./regex.ts";

/** A schema, or a part of one that is a schema. */
export interface Site {
  /** Where it is, as a JSON pointer. */
  readonly path: string;
  /** A number of its own. */
  readonly id: number;
  readonly schema: boolean | Readonly<Record<string, unknown>>;
}

/** The types of JSON values that schemas know. */
export const TYPES = [
  "null",
  "boolean",
  "integer",
  "number",
  "string",
  "array",
  "object",
] as const;
/** A type of JSON values. */
export type Type = typeof TYPES[number];

/** What must hold for a keyword's value, as a check and in words. */
type Check = readonly [(value: unknown) => boolean, string];

const count: Check = [
  (v) => Number.isSafeInteger(v) && (v as number) >= 0,
  "an integer of at least 0",
];
const number: Check = [Number.isFinite, "a number"];
const schema: Check = [
  (v) => typeof v === "boolean" || isObject(v),
  "a schema",
];
const text: Check = [(v) => typeof v === "string", "a string"];
const schemaMap: Check = [
  (v) => isObject(v) && Object.values(v).every(schema[0]),
  "an object of schemas",
];
const schemaList: Check = [
  (v) => Array.isArray(v) && v.length > 0 && v.every(schema[0]),
  "a list of one or more schemas",
];
const isType = (v: unknown) => (TYPES as readonly unknown[]).includes(v);

/** The keywords that are offered. */
const OFFERED: Readonly<Record<string, Check>> = {
  type: [
    (v) => isType(v) || (Array.isArray(v) && v.length > 0 && v.every(isType)),
    "a type, or a list of types",
  ],
  enum: [Array.isArray, "a list"],
  const: [() => true, ""],
  $ref: text,
  allOf: schemaList,
  anyOf: schemaList,
  oneOf: schemaList,
  properties: schemaMap,
  patternProperties: schemaMap,
  additionalProperties: schema,
  propertyNames: schema,
  required: [
    (v) => Array.isArray(v) && v.every((one) => typeof one === "string"),
    "a list of names",
  ],
  minProperties: count,
  maxProperties: count,
  items: [
    (v) => schema[0](v) || (Array.isArray(v) && v.every(schema[0])),
    "a schema",
  ],
  prefixItems: [
    (v) => Array.isArray(v) && v.every(schema[0]),
    "a list of schemas",
  ],
  additionalItems: schema,
  minItems: count,
  maxItems: count,
  minimum: number,
  maximum: number,
  exclusiveMinimum: number,
  exclusiveMaximum: number,
  multipleOf: [
    (v) => Number.isFinite(v) && (v as number) > 0,
    "a number above 0",
  ],
  minLength: count,
  maxLength: count,
  pattern: text,
  format: text,
};

/** Keywords that assert nothing. */
const ANNOTATIONS: ReadonlySet<string> = new Set([
  ..."$schema $id id $comment $defs definitions $anchor $vocabulary title"
    .split(" "),
  ..."description default examples example deprecated readOnly writeOnly".split(
    " ",
  ),
  ..."contentEncoding contentMediaType contentSchema discriminator".split(" "),
  ..."externalDocs xml markdownDescription enumNames".split(" "),
  // Without `contains` and `if`, which are refused, these mean nothing.
  ..."minContains maxContains then else".split(" "),
]);

/** Values with which a keyword that is not offered asserts nothing. */
const VOID: Readonly<Record<string, readonly unknown[]>> = {
  uniqueItems: [false],
  unevaluatedProperties: [true],
  unevaluatedItems: [true],
  nullable: [false],
  not: [false],
};

/** Whether a schema refuses everything, as false or what `not` makes of true. */
export function isNever(schema: Site["schema"]): boolean {
  if (typeof schema === "boolean") return !schema;
  const { not } = schema;
  return not === true || (isObject(not) && Object.keys(not).length === 0);
}

/** A schema with an index of its parts. */
export class Schema {
  readonly root: Site;
  readonly #sites = new Map<object, Site>();
  readonly #checked = new Set<Site>();
  readonly #booleans = new Map<string, Site>();
  readonly #anchors = new Map<string, { schema: object; path: string }>();

  /** @throws {SchemaError} if it is no schema. */
  constructor(schema: unknown) {
    if (typeof schema !== "boolean" && !isObject(schema)) {
      throw new SchemaError(
        "#",
        "",
        `is ${described(schema)}, must be an object`,
      );
    }
    try {
      requireJsonValue(schema, "it");
    } catch (error) {
      throw new SchemaError("#", "", `is no JSON: ${errorText(error)}`);
    }
    this.root = this.at(schema, "#");
    this.#index(schema, "#");
  }

  /** The site of a part of the schema. */
  at(schema: unknown, path: string): Site {
    if (typeof schema === "boolean") {
      const key = `${schema}`;
      let site = this.#booleans.get(key);
      if (!site) {
        site = { path, id: this.#booleans.size + this.#sites.size, schema };
        this.#booleans.set(key, site);
      }
      return site;
    }
    const known = this.#sites.get(schema as object);
    if (known) return known;
    const site = {
      path,
      id: this.#booleans.size + this.#sites.size,
      schema: schema as Record<string, unknown>,
    };
    this.#sites.set(site.schema, site);
    return site;
  }

  /** The site of a child. */
  child({ path, schema }: Site, ...steps: (string | number)[]): Site {
    let value: unknown = schema;
    for (const step of steps) value = (value as Record<string, unknown>)[step];
    return this.at(value, [path, ...steps.map(escaped)].join("/"));
  }

  /**
   * Checks a site's own keywords, once.
   *
   * @throws {SchemaError} if one is wrong or not offered.
   */
  check(site: Site): void {
    if (this.#checked.has(site)) return;
    this.#checked.add(site);
    const { schema, path } = site;
    if (typeof schema === "boolean" || isNever(schema)) return;
    for (const [keyword, value] of Object.entries(schema)) {
      if (value === undefined || ANNOTATIONS.has(keyword)) continue;
      if (keyword.startsWith("x-")) continue;
      const check = Object.hasOwn(OFFERED, keyword)
        ? OFFERED[keyword]
        : undefined;
      if (Object.hasOwn(VOID, keyword) && VOID[keyword].includes(value)) {
        continue;
      }
      if (!check) {
        throw new SchemaError(path, keyword, `is not offered${hint(keyword)}`);
      }
      if (check[0](value)) continue;
      throw new SchemaError(
        path,
        keyword,
        `is ${jsonText(value, 60)}, must be ${check[1]}`,
      );
    }
    if (path !== "#" && typeof schema.$id === "string" && hasRef(schema)) {
      throw new SchemaError(
        path,
        "$id",
        "is not offered inside a schema with $ref",
      );
    }
    checkDeep(site);
  }

  /**
   * What a `$ref` refers to.
   *
   * @throws {SchemaError} if it is not in this schema.
   */
  resolve(site: Site): Site {
    const ref = (site.schema as Record<string, unknown>).$ref as string;
    const wrong = (why: string) =>
      new SchemaError(site.path, "$ref", `is ${jsonText(ref, 80)}, ${why}`);
    const local = this.#local(ref);
    if (local === undefined) {
      throw wrong("must be in this schema: # and a path");
    }
    let name: string;
    try {
      name = decodeURIComponent(local);
    } catch {
      throw wrong("which is no URI");
    }
    if (name === "") return this.root;
    if (!name.startsWith("/")) {
      const found = this.#anchors.get(name);
      if (!found) throw wrong("which is not in this schema");
      return this.at(found.schema, found.path);
    }
    let value: unknown = this.root.schema;
    for (const step of name.slice(1).split("/")) {
      const key = step.replaceAll("~1", "/").replaceAll("~0", "~");
      const inside = typeof value === "object" && value !== null &&
        Object.hasOwn(value, key);
      if (!inside) throw wrong("which is not in this schema");
      value = (value as Record<string, unknown>)[key];
      if (isObject(value) && typeof value.$id === "string") {
        throw wrong("which has an $id of its own; that is not offered");
      }
    }
    if (!schema[0](value)) throw wrong("which is not a schema");
    return this.at(value, `#${name}`);
  }

  /** The part of a reference after #; undefined if it leads elsewhere. */
  #local(ref: string): string | undefined {
    if (ref.startsWith("#")) return ref.slice(1);
    const { $id: id } = isObject(this.root.schema)
      ? this.root.schema
      : {} as { $id?: unknown };
    if (typeof id !== "string" || id === "" || !ref.startsWith(id)) {
      return undefined;
    }
    const rest = ref.slice(id.replace(/#$/, "").length);
    return rest === "" ? "" : rest.startsWith("#") ? rest.slice(1) : undefined;
  }

  /** Finds the anchors below a value. */
  #index(value: unknown, path: string): void {
    if (Array.isArray(value)) {
      value.forEach((one, i) => this.#index(one, `${path}/${i}`));
    } else if (isObject(value)) {
      const { $anchor: anchor, $id: id } = value;
      // A part with an $id is a document of its own.
      if (typeof id === "string" && path !== "#") return;
      if (typeof anchor === "string") {
        this.#anchors.set(anchor, { schema: value, path });
      }
      for (const [key, one] of Object.entries(value)) {
        if (key !== "enum" && key !== "const") {
          this.#index(one, `${path}/${escaped(key)}`);
        }
      }
    }
  }
}

const escaped = (step: string | number) =>
  `${step}`.replaceAll("~", "~0").replaceAll("/", "~1");

function hasRef(value: unknown): boolean {
  if (Array.isArray(value)) return value.some(hasRef);
  if (!isObject(value)) return false;
  return "$ref" in value || Object.values(value).some(hasRef);
}

function hint(keyword: string): string {
  if (keyword === "nullable") return '; type: ["string", "null"] allows null';
  const names = Object.keys(OFFERED);
  const near = names.find((name) =>
    name.toLowerCase() === keyword.toLowerCase()
  );
  return near ? `; ${near} is` : "";
}

/** Checks what a table of kinds cannot. */
function checkDeep({ path, schema }: Site): void {
  const {
    pattern,
    format,
    multipleOf,
    patternProperties = {},
    items,
    prefixItems,
  } = schema as Record<string, unknown>;
  const wrong = (keyword: string, why: string) =>
    new SchemaError(path, keyword, why);
  if (typeof pattern === "string") {
    checkPattern(pattern, (why) => wrong("pattern", why));
  }
  for (const key of Object.keys(patternProperties as object)) {
    checkPattern(key, (why) => wrong("patternProperties", why));
  }
  if (typeof format === "string" && REFUSED_FORMATS.has(format)) {
    throw wrong(
      "format",
      `is ${jsonText(format, 40)}, offered are ${
        listed([...FORMATS.keys()], 20)
      }`,
    );
  }
  if (typeof multipleOf === "number" && !isExactDivisor(multipleOf)) {
    throw wrong(
      "multipleOf",
      `is ${multipleOf}, must be an integer or a fraction such as 0.5 that is exact in binary`,
    );
  }
  if (Array.isArray(items) && prefixItems !== undefined) {
    throw wrong("items", "is a list, must be a schema beside prefixItems");
  }
}

function checkPattern(pattern: string, wrong: (why: string) => Error): void {
  try {
    readRegex(pattern);
  } catch (error) {
    if (error instanceof PatternError) {
      throw wrong(`${jsonText(pattern, 60)} ${error.message}`);
    }
    throw wrong(
      `${jsonText(pattern, 60)} is not a pattern: ${errorText(error)}`,
    );
  }
}
