/**
 * Python's numbers: `int` of any size as bigint, `float` as number, and their exact decimal text.
 *
 * @module
 */
import { atMost, Fault, MOST } from "./meter.ts";
import type { Value } from "./values.ts";

/** A number; a bool is an int, as in Python. Undefined for other values. */
export function numberOf(value: Value): bigint | number | undefined {
  if (typeof value === "boolean") return value ? 1n : 0n;
  return typeof value === "bigint" || typeof value === "number"
    ? value
    : undefined;
}

/** Whether a number has a minus sign, as -0.0 does too. */
export function isNegative(value: bigint | number): boolean {
  return value < 0 || Object.is(value, -0);
}

/** A double as fraction · 2^exponent, without its sign. */
function partsOf(value: number): [fraction: bigint, exponent: number] {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, value);
  const high = bits.getUint32(0) & 0x7fffffff;
  const exponent = high >>> 20;
  const fraction = (BigInt(high & 0xfffff) << 32n) | BigInt(bits.getUint32(4));
  return exponent === 0
    ? [fraction, -1074]
    : [fraction | (1n << 52n), exponent - 1075];
}

function divideToEven(above: bigint, below: bigint): bigint {
  const quotient = above / below, rest = 2n * (above % below);
  const up = rest > below || (rest === below && quotient % 2n === 1n);
  return up ? quotient + 1n : quotient;
}

/** |value| · 10^digits, rounded exactly, half to even. */
function scaled(value: number, digits: number): bigint {
  const [fraction, exponent] = partsOf(value);
  let above = fraction, below = 1n;
  if (exponent > 0) above <<= BigInt(exponent);
  else below <<= BigInt(-exponent);
  if (digits > 0) above *= 10n ** BigInt(digits);
  else below *= 10n ** BigInt(-digits);
  return divideToEven(above, below);
}

function checkDigits(digits: number): void {
  atMost(digits, MOST.digits, "a number has {} digits after the point");
}

/** |value| with `digits` digits after the point. */
export function fixed(value: number, digits: number): string {
  checkDigits(digits);
  const text = String(scaled(value, digits)).padStart(digits + 1, "0");
  return digits === 0
    ? text
    : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
}

function exponentText(exponent: number): string {
  const sign = exponent < 0 ? "-" : "+";
  return `e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

/** The digits of |value| and the exponent of the first one. */
function significant(value: number, digits: number): [string, number] {
  if (value === 0) return ["0".repeat(digits), 0];
  let exponent = Number(value.toExponential().split("e")[1]);
  let text = String(scaled(value, digits - 1 - exponent));
  if (text.length > digits) {
    exponent++;
    text = text.slice(0, digits);
  }
  return [text, exponent];
}

/** |value| like 1.50e+00. */
export function exponential(value: number, digits: number): string {
  checkDigits(digits);
  const [text, exponent] = significant(value, digits + 1);
  const rest = text.slice(1);
  return text[0] + (rest && `.${rest}`) + exponentText(exponent);
}

/** |value| with `precision` digits in the shorter of the two ways, as %g. */
export function general(
  value: number,
  precision: number,
  keepZeros = false,
): string {
  checkDigits(precision);
  const [digits, exponent] = significant(value, Math.max(1, precision));
  const kept = keepZeros ? digits : digits.replace(/(?<=.)0+$/, "");
  if (exponent < -4 || exponent >= Math.max(1, precision)) {
    const rest = kept.slice(1);
    return kept[0] + (rest && `.${rest}`) + exponentText(exponent);
  }
  return point(kept, exponent, keepZeros);
}

/** Puts the point after the digit of exponent 0. */
function point(digits: string, exponent: number, keepPoint: boolean): string {
  if (exponent < 0) return `0.${"0".repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  const rest = digits.slice(exponent + 1);
  return rest || keepPoint ? `${whole}.${rest}` : whole;
}

/** A float as repr writes it: the shortest text that reads back, with a point or exponent. */
export function floatText(value: number): string {
  if (!Number.isFinite(value)) {
    return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  const [mantissa, power] = Math.abs(value).toExponential().split("e");
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    return sign + mantissa + exponentText(exponent);
  }
  const text = point(mantissa.replace(".", ""), exponent, false);
  return sign + (text.includes(".") ? text : `${text}.0`);
}

/** The number of bits of |value|. */
function bitsOf(value: bigint): number {
  const magnitude = value < 0n ? -value : value;
  return magnitude < 2n ** 53n
    ? Math.ceil(Math.log2(Number(magnitude) + 1))
    : magnitude.toString(16).length * 4;
}

function checkBits(bits: number): void {
  atMost(bits, MOST.bits, "an integer has {} bits");
}

/** An int as a float; fails if it is too large. */
export function toFloat(value: bigint | number): number {
  const float = Number(value);
  if (typeof value === "bigint" && !Number.isFinite(float)) {
    throw new Fault("int too large to convert to float");
  }
  return float;
}

/** A float as an int, towards zero. */
export function toInt(value: bigint | number): bigint {
  if (typeof value === "bigint") return value;
  if (Number.isNaN(value)) {
    throw new Fault("cannot convert float NaN to integer");
  }
  if (!Number.isFinite(value)) {
    throw new Fault("cannot convert float infinity to integer");
  }
  return BigInt(Math.trunc(value));
}

function nonZero<T extends bigint | number>(value: T, what: string): T {
  if (value == 0) throw new Fault(what);
  return value;
}

/** The quotient of ints, rounded once. */
function ratio(a: bigint, b: bigint): number {
  nonZero(b, "division by zero");
  const x = Number(a), y = Number(b);
  if (Number.isSafeInteger(x) && Number.isSafeInteger(y)) return x / y;
  const negative = (a < 0n) !== (b < 0n);
  const above = a < 0n ? -a : a, below = b < 0n ? -b : b;
  const shift = 66 + bitsOf(below) - bitsOf(above);
  const [n, d] = shift > 0
    ? [above << BigInt(shift), below]
    : [above, below << BigInt(-shift)];
  // The lowest bit says whether something was cut off, so that Number() rounds correctly.
  const quotient = (n / d) | (n % d ? 1n : 0n);
  const size = Number(quotient) * 2 ** -shift;
  if (!Number.isFinite(size)) {
    throw new Fault("integer division result too large for a float");
  }
  return negative ? -size : size;
}

function floorDivide(a: bigint, b: bigint): bigint {
  nonZero(b, "integer division or modulo by zero");
  const quotient = a / b;
  return a % b !== 0n && (a < 0n) !== (b < 0n) ? quotient - 1n : quotient;
}

function floatModulo(a: number, b: number): number {
  nonZero(b, "float modulo by zero");
  const rest = a % b;
  if (rest === 0) return b < 0 ? -0 : 0;
  return (rest < 0) !== (b < 0) ? rest + b : rest;
}

/** As in Python, the quotient that goes with the modulo, not the rounded quotient. */
function floatFloorDivide(a: number, b: number): number {
  nonZero(b, "float floor division by zero");
  const quotient = (a - floatModulo(a, b)) / b;
  if (quotient === 0) return (a < 0) !== (b < 0) ? -0 : 0;
  const floor = Math.floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

function power(a: bigint, b: bigint): bigint | number {
  if (b < 0n) return floatPower(toFloat(a), toFloat(b));
  if (a !== 0n && a !== 1n && a !== -1n) {
    checkBits((bitsOf(a) - 1) * Number(b));
  }
  return a ** (a === -1n ? b % 2n : a === 1n ? 0n : b);
}

function floatPower(a: number, b: number): number {
  if (a === 0 && b < 0) {
    throw new Fault("0.0 cannot be raised to a negative power");
  }
  if (
    a < 0 && Number.isFinite(a) && Number.isFinite(b) && !Number.isInteger(b)
  ) {
    throw new Fault("a negative number has no real power with a fraction");
  }
  // As in C, and unlike in JavaScript.
  if (a === 1 || (a === -1 && !Number.isFinite(b) && !Number.isNaN(b))) {
    return 1;
  }
  const result = a ** b;
  if (!Number.isFinite(result) && Number.isFinite(a) && Number.isFinite(b)) {
    throw new Fault("the result of ** is too large for a float");
  }
  return result;
}

interface Operation {
  ints(a: bigint, b: bigint): bigint | number;
  floats(a: number, b: number): number;
}

/** The arithmetic operators. */
const ARITHMETIC: Readonly<Record<string, Operation>> = {
  "+": { ints: (a, b) => a + b, floats: (a, b) => a + b },
  "-": { ints: (a, b) => a - b, floats: (a, b) => a - b },
  "*": {
    ints: (a, b) => {
      checkBits(bitsOf(a) + bitsOf(b));
      return a * b;
    },
    floats: (a, b) => a * b,
  },
  "/": {
    ints: ratio,
    floats: (a, b) => a / nonZero(b, "float division by zero"),
  },
  "//": { ints: floorDivide, floats: floatFloorDivide },
  "%": {
    ints: (a, b) => a - b * floorDivide(a, b),
    floats: floatModulo,
  },
  "**": { ints: power, floats: floatPower },
};

/** Applies an operator to two numbers. */
export function arithmetic(
  operator: string,
  a: bigint | number,
  b: bigint | number,
): bigint | number {
  const { ints, floats } = ARITHMETIC[operator];
  return typeof a === "bigint" && typeof b === "bigint"
    ? ints(a, b)
    : floats(toFloat(a), toFloat(b));
}

/** Python's round: half to even, of the exact value. */
export function round(value: bigint | number, digits: number): bigint | number {
  if (typeof value === "bigint") {
    if (digits >= 0) return value;
    if (-digits > MOST.digits) return 0n;
    const unit = 10n ** BigInt(-digits);
    const size = divideToEven(value < 0n ? -value : value, unit) * unit;
    return value < 0n ? -size : size;
  }
  if (!Number.isFinite(value) || digits > 323) return value;
  const sign = value < 0 || Object.is(value, -0) ? -1 : 1;
  if (digits < -308) return sign * 0;
  if (digits >= 0) return sign * Number(fixed(value, digits));
  return sign * Number(`${scaled(value, digits)}e${-digits}`);
}

const DIGITS = /^([+-]?)(0[box])?((?:_?[\da-z])+)$/i;
const PREFIXES: Readonly<Record<string, number>> = {
  "0b": 2,
  "0o": 8,
  "0x": 16,
};

/** Reads an int as Python's `int(text, base)`; undefined if it is none. */
export function parseInteger(text: string, base = 10): bigint | undefined {
  const plain = asciiDigits(text);
  const match = DIGITS.exec(plain);
  if (!match || plain.length > MOST.bits / 4) return undefined;
  const [, sign, prefix = "", found] = match;
  let digits = prefix + found, radix = base;
  const prefixed = PREFIXES[prefix.toLowerCase()];
  if (prefixed !== undefined && (base === 0 || base === prefixed)) {
    [digits, radix] = [found, prefixed];
  } else if (base === 0) {
    if (/^0[_\d]*[1-9]/.test(digits)) return undefined;
    radix = 10;
  }
  digits = digits.replaceAll("_", "").toLowerCase();
  let value = 0n;
  for (const digit of digits) {
    const number = parseInt(digit, 36);
    if (!(number < radix)) return undefined;
    value = value * BigInt(radix) + BigInt(number);
  }
  return sign === "-" ? -value : value;
}

const FLOAT =
  /^[+-]?((\d+_)*\d+(\.((\d+_)*\d+)?)?|\.(\d+_)*\d+)(e[+-]?(\d+_)*\d+)?$/i;

/** Reads a float as Python's `float(text)`; undefined if it is none. */
export function parseFloating(text: string): number | undefined {
  const plain = asciiDigits(text);
  if (FLOAT.test(plain)) return Number(plain.replaceAll("_", ""));
  const match = /^([+-]?)(inf|infinity|nan)$/i.exec(plain);
  if (!match) return undefined;
  if (match[2].toLowerCase() === "nan") return NaN;
  return match[1] === "-" ? -Infinity : Infinity;
}

/** Writes the decimal digits of other scripts as 0 to 9, as Python reads them. */
function asciiDigits(text: string): string {
  if (/^\p{ASCII}*$/u.test(text)) return text;
  return text.replaceAll(/\p{Nd}/gu, (digit) => {
    // The ten digits of a script follow each other.
    let value = 0;
    const code = digit.codePointAt(0)!;
    while (/\p{Nd}/u.test(String.fromCodePoint(code - value - 1))) value++;
    return String(value % 10);
  });
}
