/**
 * Numbers as the tools print them.
 *
 * @module
 */

/** Up to three significant digits; integers from 100 up. */
export function significant(value: number): string {
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}

/** `71 %`; only exactly 0 and 1 print as 0 % and 100 %. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  const digits = value > 0 && value < 2 || value > 99 && value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} %`;
}

/** `4.50 TB/s` or `310 GB/s`. */
export function bandwidth(gbps: number): string {
  return gbps >= 1000
    ? `${(gbps / 1000).toFixed(2)} TB/s`
    : `${significant(gbps)} GB/s`;
}

/** `38.4 TFLOP/s` or `9.1 GFLOP/s`. */
export function arithmetic(tflops: number): string {
  return tflops >= 1
    ? `${significant(tflops)} TFLOP/s`
    : `${significant(tflops * 1000)} GFLOP/s`;
}

/** `12.0 s`, `1.2 ms` or `35.0 µs`. */
export function milliseconds(ms: number): string {
  if (ms < 1) return `${significant(ms * 1000)} µs`;
  return ms < 10_000 ? `${significant(ms)} ms` : `${significant(ms / 1000)} s`;
}

/** `1.5 G`: a count with its SI prefix. */
export function prefixed(value: number): string {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return `${significant(value / 1000 ** power)} ${" kMGT"[power]}`.trimEnd();
}

/** `7.1 MB` or `2.1 GB`: bytes in decimal units. */
export function bytes(count: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0, value = count;
  for (; value >= 999.5 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit ? significant(value) : count} ${units[unit]}`;
}

/**
 * A number of a kernel as people write it: integers whole, others with seven digits, as
 * many as f32 has; very large and very small ones as `1.5 × 10^-9`.
 */
export function decimal(value: number): string {
  const size = Math.abs(value);
  if (!Number.isFinite(value) || Number.isInteger(value) && size < 2 ** 32) {
    return String(value);
  }
  if (size >= 1e-4 && size < 1e7) return String(Number(value.toPrecision(7)));
  const [digits, power] = value.toExponential(6).split("e");
  return `${Number(digits)} × 10^${Number(power)}`;
}
