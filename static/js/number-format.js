/* A measured number as short text; a dash where it is missing. */
export function format(value) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
