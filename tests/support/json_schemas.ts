/** JSON schemas at random, of the keywords that grammars offer. */
import type { Random } from "./random.ts";

type Json = Record<string, unknown>;

const NAMES = ["a", "b", "ab", "é", 'q"', "1", "a/b~c", ""];
const PATTERNS = [
  "^[a-z]+$",
  "a|b",
  "^(x|yz)*$",
  "\\d{2,4}$",
  '"',
  "^\\S",
  "^(?!a)[a-c\\n]{1,3}$",
  "^[^é]*$",
  "^\\p{Lu}",
];
const FORMATS = [
  "date",
  "time",
  "date-time",
  "duration",
  "uuid",
  "email",
  "hostname",
  "ipv4",
  "ipv6",
  "uri",
];

/** A schema that nests at most `depth` levels. */
export function randomSchema(random: Random, depth: number): Json | boolean {
  const chance = (n: number) => random.int(1, n) === 1;
  const kind = random.int(0, depth > 0 ? 9 : 5);
  switch (kind) {
    case 0:
      return chance(6) ? chance(3) ? false : true : { type: "boolean" };
    case 1:
      return {
        enum: Array.from(
          { length: random.int(1, 4) },
          () => randomValue(random, 2),
        ),
      };
    case 2:
      return randomNumbers(random);
    case 3:
    case 4:
      return randomStrings(random);
    case 5:
      return {
        type: [
          ...new Set([
            "null",
            random.pick(["string", "integer", "boolean", "number"]),
          ]),
        ],
      };
    case 6:
      return randomArrays(random, depth);
    case 7:
    case 8:
      return randomObjects(random, depth);
    default: {
      const several = () =>
        Array.from(
          { length: random.int(1, 3) },
          () => randomSchema(random, depth - 1),
        );
      const base = chance(2) ? randomSchema(random, depth - 1) : {};
      const own = typeof base === "object" ? base : {};
      return {
        ...own,
        [random.pick(["anyOf", "anyOf", "oneOf", "allOf"])]: several(),
      };
    }
  }
}

/** Each key with the given probability of 1 in `n`. */
function some(
  random: Random,
  n: number,
  keys: Record<string, () => unknown>,
): Json {
  const json: Json = {};
  for (const [key, make] of Object.entries(keys)) {
    if (random.int(1, n) === 1) json[key] = make();
  }
  return json;
}

function randomNumber(random: Random): number {
  const digits = 10 ** random.int(0, 4);
  const value = Math.round(random.next() * digits * 100) / 100;
  return random.pick([
    value,
    Math.round(value),
    0,
    1e20,
    -1e20,
    0.1,
    9007199254740993,
  ]);
}

function randomNumbers(random: Random): Json {
  return {
    type: random.pick(["integer", "number"]),
    ...some(random, 3, {
      minimum: () => randomNumber(random),
      maximum: () => randomNumber(random),
      exclusiveMinimum: () => randomNumber(random),
      exclusiveMaximum: () => randomNumber(random),
    }),
    ...some(random, 6, {
      multipleOf: () => random.pick([1, 2, 3, 7, 0.5, 0.25, 100]),
    }),
  };
}

function randomStrings(random: Random): Json {
  return {
    type: "string",
    ...some(random, 3, {
      minLength: () => random.int(0, 4),
      maxLength: () => random.int(0, 12),
      pattern: () => random.pick(PATTERNS),
    }),
    ...some(random, 6, { format: () => random.pick(FORMATS) }),
  };
}

function randomArrays(random: Random, depth: number): Json {
  const child = () => randomSchema(random, depth - 1);
  return {
    type: "array",
    ...some(random, 2, {
      items: child,
      minItems: () => random.int(0, 3),
      maxItems: () => random.int(0, 4),
    }),
    ...some(random, 4, { prefixItems: () => [child(), child()] }),
  };
}

function randomObjects(random: Random, depth: number): Json {
  const child = () => randomSchema(random, depth - 1);
  const map = (keys: readonly string[]) =>
    Object.fromEntries(keys.map((key) => [key, child()]));
  const names = () => NAMES.filter(() => random.int(0, 3) === 0);
  return {
    type: "object",
    properties: map(names()),
    ...some(random, 2, { required: () => names().slice(0, 2) }),
    ...some(random, 3, { additionalProperties: child }),
    ...some(random, 5, {
      patternProperties: () =>
        map([random.pick(PATTERNS), random.pick(PATTERNS)]),
      minProperties: () => random.int(0, 3),
      maxProperties: () => random.int(1, 4),
      propertyNames: () =>
        random.pick<unknown>([{ maxLength: 3 }, { enum: ["a", "z"] }, {
          pattern: "^[a-z]*$",
        }]),
    }),
  };
}

/** A JSON value at random. */
export function randomValue(random: Random, depth: number): unknown {
  const list = () =>
    Array.from(
      { length: random.int(0, 2) },
      () => randomValue(random, depth - 1),
    );
  switch (random.int(0, depth > 0 ? 6 : 4)) {
    case 0:
      return null;
    case 1:
      return random.int(0, 1) === 0;
    case 2:
      return randomNumber(random);
    case 3:
    case 4:
      return random.pick(["", "a", 'say "hi"\n', "é漢😀", "/\\", "2024-02-29"]);
    case 5:
      return list();
    default:
      return Object.fromEntries(
        list().map((value) => [random.pick(NAMES), value]),
      );
  }
}
