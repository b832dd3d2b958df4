/** Decodes a binary float with these field widths, by the definition. */
export function decodeFloat(
  bits: number,
  exponentBits: number,
  mantissaBits: number,
): number {
  const sign = bits >>> (exponentBits + mantissaBits) ? -1 : 1;
  const exponent = (bits >>> mantissaBits) & (2 ** exponentBits - 1);
  const fraction = (bits & (2 ** mantissaBits - 1)) / 2 ** mantissaBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) {
    return fraction ? NaN : sign * Infinity;
  }
  return exponent
    ? sign * (1 + fraction) * 2 ** (exponent - bias)
    : sign * fraction * 2 ** (1 - bias);
}
