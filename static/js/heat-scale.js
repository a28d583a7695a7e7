/* The colours of a heat map: a table of 256 between the stops that the design tokens name, dark for low
   and bright for high in both themes and to every kind of colour vision. It knows no data. */
const STOPS = 9;

export function heatColours(host) {
  const probe = document.createElement("span");
  host.append(probe);
  const stops = Array.from({ length: STOPS }, (_, index) => {
    probe.style.color = `var(--sr-heat-${index + 1})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  });
  probe.remove();
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let index = 0; index < 256; index += 1) {
    const at = (index / 255) * (STOPS - 1);
    const low = Math.min(STOPS - 2, Math.floor(at));
    for (let part = 0; part < 3; part += 1) {
      const [from, to] = [stops[low][part], stops[low + 1][part]];
      bytes[4 * index + part] = from + (to - from) * (at - low);
    }
    bytes[4 * index + 3] = 255;
  }
  return table;
}

/* The least and the greatest of all values; a share may be shown on its whole range instead. */
export function rangeOf(rows, whole) {
  if (whole) return [0, 1];
  let low = Infinity;
  let high = -Infinity;
  for (const row of rows) {
    for (const value of row) {
      if (value === null || value === undefined) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}
