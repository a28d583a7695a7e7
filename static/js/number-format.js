const SIZES = ["B", "kB", "MB", "GB", "TB"];

/* A measured number as short text; a dash where it is missing. */
export function format(value) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/* The same with a true minus sign, for numbers among words. */
export const signed = (text) => text.replace(/^-/, "\u2212");

/* The format of a unit: bytes are told in the size that suits them, all else as it is. */
export const formatOf = (unit) => (unit === "bytes" ? bytes : format);

function bytes(value) {
  if (!value) return format(value);
  const power = Math.min(SIZES.length - 1, Math.floor(Math.log10(Math.abs(value)) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))} ${SIZES[power]}`;
}
