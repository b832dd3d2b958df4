/** Damages JSON where its structure is: values, keys, nesting, and the text itself. */
import type { Random } from "../support/random.ts";

/** A parsed value, in which a {@linkcode Raw} may stand for one. */
export type Tree = unknown;

/** Text that is written verbatim, though it may not be JSON. */
export class Raw {
  constructor(readonly text: string) {}
}

/** Values that stand where another one should. */
const VALUES: readonly (() => Tree)[] = [
  ...[
    ...[null, true, false, 0, 1, -1, 2, 3, 7, 64, 0.5, 1.5, -0.1, 1e-9, 65535],
    ...[2 ** 31, 2 ** 32, 2 ** 53, 2 ** 53 + 2, 1e308, 1e6, 1e9, 1e12],
    ...["", "x", "0", "true", "null", "qwen3", "BF16", "F16", "../x", "\u0000"],
    ...["\x1b[2J", "\u009b31m", "\n", "\u202e", "\ud800", "😀", "__proto__"],
    ...["constructor", "toString", "NaN", "1e999", "<|endoftext|>"],
  ].map((value) => () => value),
  () => [],
  () => ({}),
  () => [[]],
  () => [null],
  () => [1, 2, 3],
  () => ["a", "b"],
  () => ({ a: 1 }),
  () => ({ length: 3 }),
  () => new Raw("1e999"),
  () => new Raw("-1e999"),
  () => new Raw("-0"),
  () => new Raw("NaN"),
  () => new Raw('{"a":1,"a":2}'),
  () => new Raw('{"__proto__":{"a":1}}'),
  () => new Raw("[".repeat(20_000)),
  () => new Raw("[".repeat(3000) + "]".repeat(3000)),
  () => new Raw('{"a":'.repeat(3000) + "1" + "}".repeat(3000)),
  () => "x".repeat(100_000),
  () => "\\".repeat(50_000),
  () => "\u0001".repeat(20_000),
  () => Array(20_000).fill(0),
  () => Array(20_000).fill("word"),
  () => Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [i, i])),
  () => new Raw("123456789".repeat(1000)),
];

/** A value of any kind. */
export function anyValue(random: Random): Tree {
  return random.pick(VALUES)();
}

/** A place in a tree: what holds it, and its key there. */
interface Place {
  holder: Record<string, Tree>;
  key: string;
}

/** A place in a tree, chosen level by level, so that large lists do not win. */
function anyPlace(tree: Tree, random: Random): Place | undefined {
  let found: Place | undefined;
  for (let at = tree; isHolder(at);) {
    const keys = Object.keys(at);
    if (keys.length === 0) break;
    found = { holder: at, key: random.pick(keys) };
    if (random.int(0, 3) === 0) break;
    at = at[found.key];
  }
  return found;
}

function isHolder(tree: Tree): tree is Record<string, Tree> {
  return typeof tree === "object" && tree !== null && !(tree instanceof Raw);
}

/** Changes one place of a tree; `names` are keys worth adding. */
export function damage(
  tree: Tree,
  random: Random,
  names: readonly string[] = [],
): void {
  if (names.length > 0 && isHolder(tree) && random.int(0, 2) === 0) {
    tree[random.pick(names)] = anyValue(random);
    return;
  }
  const place = anyPlace(tree, random);
  if (!place) return;
  const { holder, key } = place;
  const value = holder[key];
  const other = anyPlace(tree, random)!;
  switch (random.int(0, 8)) {
    case 0:
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete holder[key];
      break;
    case 1:
      holder[key] = nearby(value, random);
      break;
    case 2:
      holder[key] = other.holder[other.key];
      break;
    case 3:
      if (Array.isArray(holder)) holder.push(value);
      else holder[`${key}${random.pick(["", "_", "x", " "])}`] = value;
      break;
    case 4:
      if (!Array.isArray(holder)) {
        delete holder[key];
        holder[random.pick([...names, "x", "", "__proto__ "])] = value;
      }
      break;
    case 5:
      holder[key] = [value];
      break;
    default:
      holder[key] = anyValue(random);
  }
  // A tree that holds itself cannot be written.
  try {
    write(tree);
  } catch {
    holder[key] = null;
  }
}

/** A value like another one. */
function nearby(value: Tree, random: Random): Tree {
  if (typeof value === "number") {
    return random.pick([
      ...[value + 1, value - 1, value * 2, value / 2, -value, value * 1000],
      ...[value + 0.5, value * 1e9, 0],
    ]);
  }
  if (typeof value === "string") {
    return random.pick([
      ...[value + value, value.slice(1), value.toUpperCase(), ` ${value}`],
      ...[value.slice(0, -1), value.split("").reverse().join("")],
    ]);
  }
  if (typeof value === "boolean") return !value;
  if (Array.isArray(value)) return [...value, ...value];
  return anyValue(random);
}

/** Writes a tree as JSON. */
export function write(tree: Tree): string {
  if (tree instanceof Raw) return tree.text;
  if (Array.isArray(tree)) return `[${tree.map(write).join(",")}]`;
  if (!isHolder(tree)) return JSON.stringify(tree) ?? "null";
  const fields = Object.entries(tree)
    .map(([key, value]) => `${JSON.stringify(key)}:${write(value)}`);
  return `{${fields.join(",")}}`;
}

/** Damages the text of a file. */
export function damageText(text: string, random: Random): string {
  const at = random.int(0, text.length);
  switch (random.int(0, 6)) {
    case 0:
      return text.slice(0, at);
    case 1:
      return text.slice(0, at) +
        random.pick(["\0", "\ufeff", '"', "{", "}", ",", "\\", "\u2028"]) +
        text.slice(at);
    case 2:
      return `\ufeff${text}`;
    case 3:
      return "";
    case 4:
      return `${text}${text}`;
    case 5:
      return "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    default:
      return text.slice(0, at) + text.slice(at + random.int(1, 9));
  }
}
