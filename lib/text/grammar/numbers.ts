/**
 * Numbers as JSON writes them. Bounds are exact: what has been written is always the
 * beginning of a number that is allowed.
 *
 * @module
 */
import { State } from "./automaton.ts";

/** Which numbers are allowed. */
export interface Numbers {
  /** Only whole numbers, which are written without a fraction. */
  readonly integer: boolean;
  /** The bounds, both included, unless they are exclusive. */
  readonly min: number;
  readonly max: number;
  readonly aboveMin: boolean;
  readonly belowMax: boolean;
  /** Positive; undefined if any number will do. */
  readonly multipleOf: readonly number[];
}

/** All digits of a number with bounds; numbers of so many digits survive a double. */
const DIGITS = 15;
/** The digits before the point, after it, and of the exponent of a number without bounds. */
const FREE = { whole: 17, fraction: 17, exponent: 2 };
/** Numbers with bounds are multiplied by 10 to this power, which makes integers of them. */
const SCALE = 10n ** BigInt(DIGITS);
const SAFE = BigInt(Number.MAX_SAFE_INTEGER);

const ZERO = 0x30, MINUS = 0x2d, POINT = 0x2e;

/**
 * The start of the numbers; undefined if there are none.
 *
 * - Whole numbers have no fraction and no exponent. Without bounds, their magnitude is below
 *   2⁵³.
 * - Numbers with bounds or a divisor have no exponent, and at most 15 digits or as many as
 *   the bounds need.
 * - Others have up to 17 digits before and after the point and an exponent of up to two.
 */
export function numberOf(numbers: Numbers): State | undefined {
  const { integer, min, max, multipleOf } = numbers;
  const free = min === -Infinity && max === Infinity && multipleOf.length === 0;
  if (!integer && free) return FREE_START;
  const range = readRange(numbers);
  const start = new Bounded(range, { negative: false, whole: "" });
  return start.alive() ? start : undefined;
}

/** A range of numbers, multiplied by {@linkcode SCALE}. */
interface Range {
  readonly low: bigint;
  readonly high: bigint;
  /** What all numbers are multiples of. */
  readonly step: bigint;
  readonly integer: boolean;
  /** The most digits before the point. */
  readonly digits: number;
}

function readRange(numbers: Numbers): Range {
  const { integer, min, max, aboveMin, belowMax, multipleOf } = numbers;
  let step = integer ? SCALE : 1n;
  for (const one of multipleOf) step = lcm(step, scaled(one).floor);
  const from = bound(min, aboveMin, 1), to = bound(max, belowMax, -1);
  const most = multipleOf.length > 0 ? SAFE * SCALE : undefined;
  // An open end leaves room for numbers that are as large as the other bound.
  const reach = largest(integer, from, to);
  let low = from ?? -reach, high = to ?? reach;
  if (most !== undefined) {
    if (low < -most) low = -most;
    if (high > most) high = most;
  }
  const longest = low < 0n && -low > high ? -low : high;
  const digits = Math.max(1, (longest / SCALE).toString().length);
  return { low, high, step, integer, digits };
}

function largest(integer: boolean, from?: bigint, to?: bigint): bigint {
  let reach = integer ? SAFE * SCALE : SCALE * SCALE - 1n;
  for (const one of [from ?? 0n, to ?? 0n]) {
    const room = (one < 0n ? -one : one) * 10n;
    if (room > reach * 10n) reach = room;
  }
  return reach;
}

/** A bound as the first scaled integer that keeps it; undefined if there is none. */
function bound(
  value: number,
  exclusive: boolean,
  inwards: 1 | -1,
): bigint | undefined {
  if (!Number.isFinite(value)) return undefined;
  if (exclusive && Math.abs(value) >= 2 ** 53) {
    // Digits beyond a double's would round to the bound itself.
    return scaled(neighbour(value, inwards)).floor;
  }
  const { floor, exact } = scaled(value);
  if (inwards > 0) return exact && !exclusive ? floor : floor + 1n;
  return exact && exclusive ? floor - 1n : floor;
}

/** The next double above or below. */
function neighbour(value: number, direction: 1 | -1): number {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  const away = (value > 0) === (direction > 0) ? 1n : -1n;
  view.setBigInt64(0, view.getBigInt64(0) + away);
  return view.getFloat64(0);
}

/** The decimal number that JavaScript writes for a double, multiplied by the scale. */
function scaled(value: number): { floor: bigint; exact: boolean } {
  const [, sign, whole, fraction = "", power = "0"] =
    /^(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(value))!;
  const digits = BigInt(whole + fraction);
  const zeros = Number(power) - fraction.length + DIGITS;
  if (zeros >= 0) {
    const all = digits * 10n ** BigInt(zeros);
    return { floor: sign ? -all : all, exact: true };
  }
  const unit = 10n ** BigInt(-zeros), exact = digits % unit === 0n;
  const down = digits / unit;
  return { floor: sign ? -down - (exact ? 0n : 1n) : down, exact };
}

/** Whether a divisor's multiples are exact for everyone who computes with doubles. */
export function isExactDivisor(value: number): boolean {
  if (!(value > 0) || value > Number.MAX_SAFE_INTEGER) return false;
  return Number.isInteger(value * 1024) && scaled(value).exact;
}

function lcm(a: bigint, b: bigint): bigint {
  let x = a, y = b;
  while (y > 0n) [x, y] = [y, x % y];
  return a / x * b;
}

/** What has been written of a number. */
interface Prefix {
  readonly negative: boolean;
  readonly whole: string;
  /** The digits after the point; undefined before it. */
  readonly fraction?: string;
}

/** A state of a number with bounds. */
class Bounded extends State {
  readonly accepts: boolean;

  constructor(readonly range: Range, readonly prefix: Prefix) {
    super();
    this.accepts = this.#accepts();
  }

  next(byte: number): State | undefined {
    const { negative, whole, fraction } = this.prefix;
    const digit = byte >= ZERO && byte <= ZERO + 9
      ? String(byte - ZERO)
      : undefined;
    let prefix: Prefix;
    if (byte === MINUS) {
      if (negative || whole !== "") return undefined;
      prefix = { negative: true, whole };
    } else if (byte === POINT) {
      if (this.range.integer || whole === "" || fraction !== undefined) {
        return undefined;
      }
      prefix = { negative, whole, fraction: "" };
    } else if (digit === undefined) return undefined;
    else if (fraction !== undefined) {
      if (fraction.length >= DIGITS - whole.length) return undefined;
      prefix = { negative, whole, fraction: fraction + digit };
    } else {
      if (whole === "0" || whole.length >= this.range.digits) return undefined;
      prefix = { negative, whole: whole + digit };
    }
    const next = new Bounded(this.range, prefix);
    return next.alive() ? next : undefined;
  }

  #accepts(): boolean {
    const { negative, whole, fraction } = this.prefix;
    if (whole === "" || fraction === "") return false;
    const value = magnitude(whole, fraction ?? "");
    if (negative && value === 0n) return false;
    return this.#some(value, value, 1n, negative);
  }

  /** Whether this is the beginning of an allowed number. */
  alive(): boolean {
    const { negative, whole, fraction } = this.prefix;
    if (whole === "") {
      const some = this.#someWhole(negative);
      return some || (!negative && this.#someWhole(true));
    }
    if (fraction !== undefined) {
      const room = DIGITS - whole.length;
      if (room < 1) return false;
      const low = magnitude(whole, fraction);
      const unit = power(DIGITS - fraction.length);
      return this.#some(low, low + unit - 1n, power(DIGITS - room), negative);
    }
    const most = whole === "0" ? 1 : this.range.digits;
    for (let digits = whole.length; digits <= most; digits++) {
      const unit = power(DIGITS + digits - whole.length);
      const low = BigInt(whole) * unit;
      if (this.#some(low, low + unit - 1n, grid(digits), negative)) return true;
    }
    return false;
  }

  /** Whether some number with this sign is allowed. */
  #someWhole(negative: boolean): boolean {
    for (let digits = 1; digits <= this.range.digits; digits++) {
      const low = digits === 1 ? 0n : power(DIGITS + digits - 1);
      const high = power(DIGITS + digits) - 1n;
      if (this.#some(low, high, grid(digits), negative)) return true;
    }
    return false;
  }

  /** Whether an allowed number has a magnitude from `low` to `high`, a multiple of `unit`. */
  #some(low: bigint, high: bigint, unit: bigint, negative: boolean): boolean {
    const { range } = this, step = lcm(range.step, unit);
    let from = negative ? -range.high : range.low;
    let to = negative ? -range.low : range.high;
    if (from < low) from = low;
    if (to > high) to = high;
    if (negative && from < 1n) from = 1n; // there is no -0
    if (from < 0n) from = 0n;
    return (from + step - 1n) / step * step <= to;
  }
}

/** The distance of numbers that have so many digits before the point. */
const grid = (digits: number) => power(Math.min(DIGITS, digits));

const power = (exponent: number) => 10n ** BigInt(exponent);

function magnitude(whole: string, fraction: string): bigint {
  return BigInt(whole + fraction.padEnd(DIGITS, "0"));
}

/** Which part of a number without bounds comes next. */
type Place =
  | "sign"
  | "whole"
  | "zero"
  | "fraction"
  | "exponent sign"
  | "exponent";

/** A state of a number without bounds. */
class Free extends State {
  readonly accepts: boolean;

  /** @param digits how many the place has so far */
  constructor(readonly place: Place, readonly digits: number) {
    super();
    this.accepts = digits > 0;
  }

  next(byte: number): State | undefined {
    const { place, digits } = this;
    if (byte >= ZERO && byte <= ZERO + 9) return this.#digit(byte);
    if (byte === MINUS || byte === 0x2b) {
      if (place === "exponent sign") return free("exponent", 0);
      return place === "sign" && byte === MINUS ? free("whole", 0) : undefined;
    }
    const whole = digits > 0 && (place === "whole" || place === "zero");
    if (byte === POINT) return whole ? free("fraction", 0) : undefined;
    const e = (byte | 0x20) === 0x65;
    const ended = whole || (digits > 0 && place === "fraction");
    return e && ended ? free("exponent sign", 0) : undefined;
  }

  #digit(byte: number): State | undefined {
    const { place, digits } = this;
    switch (place) {
      case "sign":
      case "whole":
        if (digits === 0 && byte === ZERO) return free("zero", 1);
        return digits < FREE.whole ? free("whole", digits + 1) : undefined;
      case "zero":
        return undefined;
      case "fraction":
        return digits < FREE.fraction ? free(place, digits + 1) : undefined;
      case "exponent sign":
      case "exponent":
        return digits < FREE.exponent
          ? free("exponent", digits + 1)
          : undefined;
    }
  }
}

const made = new Map<string, Free>();

function free(place: Place, digits: number): Free {
  const key = `${place}${digits}`;
  let state = made.get(key);
  if (!state) made.set(key, state = new Free(place, digits));
  return state;
}

const FREE_START = free("sign", 0);
