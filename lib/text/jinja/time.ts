/**
 * Dates and times as C's strftime writes them in English.
 *
 * @module
 */

const DAYS = [
  "Sunday",
  "Monday",
  "Tuesday",
  "Wednesday",
  "Thursday",
  "Friday",
  "Saturday",
];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/** A number with its usual width and padding; `-`, `_` and `0` change the padding. */
type Field = [value: number, width: number, fill: "0" | " "];

const DAY = 86_400_000;

/** Days since January 1. */
function dayOfYear(time: Date): number {
  const day = Date.UTC(time.getFullYear(), time.getMonth(), time.getDate());
  return (day - Date.UTC(time.getFullYear(), 0, 1)) / DAY;
}

/** The year and week of ISO 8601. */
function isoWeek(time: Date): [year: number, week: number] {
  const day = (time.getDay() + 6) % 7;
  const thursday = new Date(
    time.getFullYear(),
    time.getMonth(),
    time.getDate() - day + 3,
  );
  return [thursday.getFullYear(), Math.floor(dayOfYear(thursday) / 7) + 1];
}

const week = (time: Date, firstDay: number) =>
  Math.floor((dayOfYear(time) + 7 - (time.getDay() - firstDay + 7) % 7) / 7);
const hour12 = (time: Date) => (time.getHours() + 11) % 12 + 1;

const FIELDS: Readonly<Record<string, (time: Date) => string | Field>> = {
  a: (time) => DAYS[time.getDay()].slice(0, 3),
  A: (time) => DAYS[time.getDay()],
  b: (time) => MONTHS[time.getMonth()].slice(0, 3),
  B: (time) => MONTHS[time.getMonth()],
  C: (time) => [Math.floor(time.getFullYear() / 100), 2, "0"],
  d: (time) => [time.getDate(), 2, "0"],
  e: (time) => [time.getDate(), 2, " "],
  f: (time) => [time.getMilliseconds() * 1000, 6, "0"],
  g: (time) => [isoWeek(time)[0] % 100, 2, "0"],
  G: (time) => [isoWeek(time)[0], 4, "0"],
  H: (time) => [time.getHours(), 2, "0"],
  I: (time) => [hour12(time), 2, "0"],
  j: (time) => [dayOfYear(time) + 1, 3, "0"],
  k: (time) => [time.getHours(), 2, " "],
  l: (time) => [hour12(time), 2, " "],
  m: (time) => [time.getMonth() + 1, 2, "0"],
  M: (time) => [time.getMinutes(), 2, "0"],
  n: () => "\n",
  p: (time) => time.getHours() < 12 ? "AM" : "PM",
  P: (time) => time.getHours() < 12 ? "am" : "pm",
  s: (time) => [Math.floor(time.getTime() / 1000), 1, "0"],
  S: (time) => [time.getSeconds(), 2, "0"],
  t: () => "\t",
  u: (time) => [(time.getDay() + 6) % 7 + 1, 1, "0"],
  U: (time) => [week(time, 0), 2, "0"],
  V: (time) => [isoWeek(time)[1], 2, "0"],
  w: (time) => [time.getDay(), 1, "0"],
  W: (time) => [week(time, 1), 2, "0"],
  y: (time) => [time.getFullYear() % 100, 2, "0"],
  Y: (time) => [time.getFullYear(), 1, "0"],
  // A time of datetime.now() has no zone.
  z: () => "",
  Z: () => "",
  "%": () => "%",
};

/** Fields that abbreviate several others. */
const COMPOUND: Readonly<Record<string, string>> = {
  c: "%a %b %e %H:%M:%S %Y",
  D: "%m/%d/%y",
  F: "%Y-%m-%d",
  h: "%b",
  r: "%I:%M:%S %p",
  R: "%H:%M",
  T: "%H:%M:%S",
  x: "%m/%d/%y",
  X: "%H:%M:%S",
};

/** Writes a time in the local zone. */
export function formatTime(time: Date, format: string): string {
  return format.replaceAll(/%([-_0^])?([^])/g, (whole, flag, letter) => {
    if (Object.hasOwn(COMPOUND, letter)) {
      return formatTime(time, COMPOUND[letter]);
    }
    if (!Object.hasOwn(FIELDS, letter)) return whole;
    const field = FIELDS[letter](time);
    if (typeof field === "string") {
      return flag === "^" ? field.toUpperCase() : field;
    }
    const [value, width, fill] = field;
    if (flag === "-") return String(value);
    return String(value).padStart(
      width,
      flag === "_" ? " " : flag === "0" ? "0" : fill,
    );
  });
}
