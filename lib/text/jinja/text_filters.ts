/**
 * Jinja2's filters of strings and numbers.
 *
 * @module
 */
import { percentFormat } from "./format.ts";
import { escapeHtml, stripTags } from "./html.ts";
import { atMost, Fault, MOST } from "./meter.ts";
import {
  arithmetic,
  fixed,
  isNegative,
  numberOf,
  parseFloating,
  parseInteger,
  round,
  toFloat,
  toInt,
} from "./numbers.ts";
import { center, replaceText } from "./methods.ts";
import { compare } from "./operators.ts";
import { pretty } from "./pretty.ts";
import { str, toJson } from "./print.ts";
import { asInt, asText, builtin, onText } from "./signature.ts";
import {
  capitalize,
  lengthOf,
  SPACES,
  splitLines,
  strip,
  substring,
} from "./unicode.ts";
import {
  type Builtin,
  Dict,
  iterate,
  listOf,
  Markup,
  type Run,
  sizeOf,
  textOf,
  truth,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";
import { wrap } from "./wrap.ts";

/** A string as it is; anything else as it prints. */
function soft(run: Run, value: Value): string | Markup {
  return textOf(value) === undefined ? str(run, value) : value as string;
}

const escape = builtin(
  "escape(s)",
  (run, value) =>
    new Markup(
      value instanceof Markup ? value.text : escapeHtml(str(run, value)),
    ),
);

function indent(
  run: Run,
  value: Value,
  width: Value,
  first: Value,
  blank: Value,
): Value {
  const text = asText(value);
  const space = textOf(width) ?? " ".repeat(Math.max(0, checkedWidth(width)));
  const lines = splitLines(`${text}\n`);
  run.text(text.length + lines.length * (space.length + 1));
  const all = truth(blank);
  const rest = lines.slice(1).map((line) =>
    "\n" + (all || line !== "" ? space + line : line)
  );
  const result = (truth(first) ? space : "") + lines[0] + rest.join("");
  return value instanceof Markup ? new Markup(result) : result;
}

function checkedWidth(value: Value): number {
  const width = asInt(value);
  atMost(width, MOST.text, "a width is {}");
  return width;
}

function truncate(
  run: Run,
  value: Value,
  length: Value,
  killWords: Value,
  end: Value,
  leeway: Value,
): Value {
  const tail = asText(end), most = asInt(length);
  const tailLength = lengthOf(tail);
  if (most < tailLength) {
    throw new Fault(`expected length >= ${tailLength}, got ${most}`);
  }
  const slack = leeway === null ? 5 : asInt(leeway);
  if (slack < 0) throw new Fault(`expected leeway >= 0, got ${slack}`);
  // A short value stays as it is, even if it is not a string.
  if ((sizeOf(value) ?? Infinity) <= most + slack) return value;
  const text = asText(value);
  run.work(text.length);
  const kept = substring(text, 0, most - tailLength);
  const space = kept.lastIndexOf(" ");
  const cut = truth(killWords) || space < 0 ? kept : kept.slice(0, space);
  const result = cut + (value instanceof Markup ? escapeHtml(end) : tail);
  return value instanceof Markup ? new Markup(result) : result;
}

const BREAK = new RegExp(`([-({\\[<]|${SPACES.source})+`, "g");

function title(text: string): string {
  // Words begin after white space, hyphens and opening brackets only.
  let result = "", begin = 0;
  const word = (end: number) => {
    if (end <= begin) return;
    const first = String.fromCodePoint(text.codePointAt(begin)!);
    const rest = text.slice(begin + first.length, end);
    result += first.toUpperCase() + rest.toLowerCase();
  };
  for (const match of text.matchAll(BREAK)) {
    word(match.index);
    result += match[0];
    begin = match.index + match[0].length;
  }
  word(text.length);
  return result;
}

function toInteger(
  _run: Run,
  value: Value,
  fallback: Value,
  base: Value,
): Value {
  const text = textOf(value);
  const radix = asInt(base);
  if (text !== undefined) {
    const trimmed = strip(text, null, true, true);
    const int = parseInteger(trimmed, radix);
    if (int !== undefined) return int;
    const float = parseFloating(trimmed);
    return float !== undefined && Number.isFinite(float)
      ? toInt(float)
      : fallback;
  }
  if (value instanceof Undefined) value.fail();
  const number = numberOf(value);
  if (number === undefined || !Number.isFinite(Number(number))) {
    return typeof number === "bigint" ? number : fallback;
  }
  return toInt(number);
}

function toFloating(_run: Run, value: Value, fallback: Value): Value {
  const text = textOf(value);
  if (text !== undefined) {
    return parseFloating(strip(text, null, true, true)) ?? fallback;
  }
  if (value instanceof Undefined) value.fail();
  const number = numberOf(value);
  return number === undefined ? fallback : toFloat(number);
}

function rounded(
  run: Run,
  value: Value,
  precision: Value,
  method: Value,
): Value {
  const how = textOf(method);
  if (how !== "common" && how !== "ceil" && how !== "floor") {
    throw new Fault("method must be common, ceil or floor");
  }
  const number = numberOf(value);
  if (number === undefined) {
    if (value instanceof Undefined) value.fail();
    throw new Fault(`type ${typeName(value)} doesn't define __round__ method`);
  }
  if (how === "common") return round(number, asInt(precision));
  run.step();
  const unit = arithmetic("**", 10n, BigInt(asInt(precision)));
  const scaled = arithmetic("*", number, unit);
  const whole = typeof scaled === "bigint"
    ? scaled
    : toInt(how === "ceil" ? Math.ceil(scaled) : Math.floor(scaled));
  return arithmetic("/", whole, unit);
}

const UNITS = ["k", "M", "G", "T", "P", "E", "Z", "Y"];

function fileSize(run: Run, value: Value, binary: Value): Value {
  const bytes = toFloating(run, value, null);
  if (typeof bytes !== "number") {
    throw new Fault(`could not convert ${typeName(value)} to float`);
  }
  const base = truth(binary) ? 1024 : 1000;
  if (bytes === 1) return "1 Byte";
  if (bytes < base) return `${toInt(bytes)} Bytes`;
  let at = 0;
  while (at < UNITS.length - 1 && bytes >= base ** (at + 2)) at++;
  const unit = truth(binary) ? `${UNITS[at].toUpperCase()}iB` : `${UNITS[at]}B`;
  return `${fixed(base * bytes / base ** (at + 2), 1)} ${unit}`;
}

function percent(run: Run, args: Value[], named: Map<string, Value>): Value {
  const [template, ...values] = args;
  if (values.length > 0 && named.size > 0) {
    throw new Fault(
      "can't handle positional and keyword arguments at the same time",
    );
  }
  return percentFormat(
    run,
    soft(run, template),
    named.size > 0 ? new Dict(named, run) : new Tuple(values),
  );
}

function quoteUrl(run: Run, value: Value, inQuery: boolean): string {
  const text = str(run, value);
  run.text(text.length);
  // Well-formed first, because a lone surrogate cannot be encoded.
  const encoded = encodeURIComponent(text.toWellFormed())
    .replaceAll(
      /[!'()*]/g,
      (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
    );
  return inQuery
    ? encoded.replaceAll("%20", "+")
    : encoded.replaceAll("%2F", "/");
}

function unpackPair(run: Run, value: Value): Value[] {
  const items = listOf(run, value);
  if (items.length === 2) return items;
  throw new Fault(`a pair has ${items.length} items, must have 2`);
}

function urlEncode(run: Run, value: Value): Value {
  if (
    textOf(value) !== undefined || numberOf(value) !== undefined ||
    value === null
  ) {
    return quoteUrl(run, value, false);
  }
  const pairs = value instanceof Dict
    ? [...value.entries()]
    : listOf(run, value).map((pair) => unpackPair(run, pair));
  return pairs.map(([key, item]) =>
    `${quoteUrl(run, key, true)}=${quoteUrl(run, item, true)}`
  ).join("&");
}

function xmlAttributes(run: Run, value: Value, autospace: Value): Value {
  if (!(value instanceof Dict)) {
    throw new Fault(`'${typeName(value)}' object has no attribute 'items'`);
  }
  const parts: string[] = [];
  for (const [key, item] of value.entries()) {
    if (item === null || item instanceof Undefined) continue;
    const name = asText(key);
    run.items(1);
    if (/[ \t\n\r\f\v/>=]/.test(name)) {
      throw new Fault(`Invalid character in attribute name: '${name}'`);
    }
    const text = item instanceof Markup ? item : str(run, item);
    parts.push(`${escapeHtml(key)}="${escapeHtml(text)}"`);
  }
  const text = parts.join(" ");
  return truth(autospace) && text !== "" ? ` ${text}` : text;
}

function json(run: Run, ...args: Value[]): Value {
  const [value, ensureAscii, indentation, separators, sortKeys] = args;
  const width = indentation === null
    ? null
    : textOf(indentation) ?? " ".repeat(Math.max(0, checkedWidth(indentation)));
  const pair = separators === null ? undefined : [...iterate(run, separators)];
  return toJson(run, value, {
    ensureAscii: truth(ensureAscii),
    indent: width,
    itemSeparator: pair ? asText(pair[0]) : width === null ? ", " : ",",
    keySeparator: pair ? asText(pair[1]) : ": ",
    sortKeys: truth(sortKeys),
    compare: (a, b) => compare(run, a, b),
  });
}

const WORD = /[\p{L}\p{N}_]+/gu;

function wordWrap(run: Run, ...args: Value[]): Value {
  const [value, width, breakLong, separator, breakHyphens] = args;
  const text = asText(value);
  run.slowly(text.length);
  const newline = separator === null ? "\n" : asText(separator);
  const lines = splitLines(text).map((line) =>
    wrap(line, asInt(width), truth(breakLong), truth(breakHyphens)).join(
      newline,
    )
  );
  return lines.join(newline);
}

const change = (name: string, change: (text: string) => string): Builtin =>
  builtin(`${name}(s)`, (run, value) => onText(run, value, change));

/** Filters by name. */
export const TEXT_FILTERS: Readonly<Record<string, Builtin>> = {
  abs: builtin("abs(x)", (_, value) => {
    const number = numberOf(value);
    if (number === undefined) {
      if (value instanceof Undefined) value.fail();
      throw new Fault(`bad operand type for abs(): '${typeName(value)}'`);
    }
    return isNegative(number) ? -number : number;
  }),
  capitalize: change("capitalize", capitalize),
  center: builtin("center(value, width=80)", (run, value, width) => {
    const text = soft(run, value);
    const result = center(run, text, width, " ");
    return text instanceof Markup ? new Markup(asText(result)) : result;
  }),
  e: escape,
  escape,
  filesizeformat: builtin("filesizeformat(value, binary=False)", fileSize),
  float: builtin("float(value, default=0.0)", toFloating),
  forceescape: builtin(
    "forceescape(value)",
    (run, value) => new Markup(escapeHtml(str(run, value))),
  ),
  format: percent,
  indent: builtin("indent(s, width=4, first=False, blank=False)", indent),
  int: builtin("int(value, default=0, base=10)", toInteger),
  lower: change("lower", (text) => text.toLowerCase()),
  pprint: builtin("pprint(value)", pretty),
  replace: builtin("replace(s, old, new, count=None)", (run, ...args) => {
    const [text, old, replacement] = args.slice(0, 3)
      .map((value) => str(run, value));
    const count = args[3] === null ? -1 : asInt(args[3]);
    return replaceText(run, text, old, replacement, count);
  }),
  round: builtin("round(value, precision=0, method='common')", rounded),
  safe: builtin("safe(value)", (run, value) => new Markup(str(run, value))),
  string: builtin("string(object)", soft),
  striptags: builtin("striptags(value)", (run, value) => {
    const text = str(run, value);
    run.work(text.length);
    return stripTags(text);
  }),
  title: builtin("title(s)", (run, value) =>
    onText(run, value, (text) => {
      run.slowly(text.length);
      return title(text);
    })),
  tojson: builtin(
    "tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)",
    json,
  ),
  trim: builtin(
    "trim(value, chars=None)",
    (run, value, chars) =>
      onText(
        run,
        value,
        (text) =>
          strip(text, chars === null ? null : asText(chars), true, true),
      ),
  ),
  truncate: builtin(
    "truncate(s, length=255, killwords=False, end='...', leeway=None)",
    truncate,
  ),
  upper: change("upper", (text) => text.toUpperCase()),
  urlencode: builtin("urlencode(value)", urlEncode),
  wordcount: builtin("wordcount(s)", (run, value) => {
    const text = str(run, value);
    run.work(text.length);
    return BigInt(text.match(WORD)?.length ?? 0);
  }),
  wordwrap: builtin(
    "wordwrap(s, width=79, break_long_words=True, wrapstring=None, break_on_hyphens=True)",
    wordWrap,
  ),
  xmlattr: builtin("xmlattr(d, autospace=True)", xmlAttributes),
};
