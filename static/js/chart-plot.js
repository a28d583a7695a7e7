/* Draws a chart's columns with uPlot in the theme's colours: bands, dashes, stage rules, a gutter for
   non-finite values and reference lines. Colours come from the design tokens at the time of drawing. */
import uPlot from "../vendor/uplot@1.6.32/uPlot.esm.js";
import { format } from "./number-format.js";

export const DASHES = [
  [],
  [7, 3],
  [2, 3],
  [9, 3, 2, 3],
  [4, 4],
  [12, 3],
  [1, 2],
  [6, 2, 1, 2, 1, 2],
];
const FONT = "11px system-ui, sans-serif";
const GUTTER = 7;
const POINTS_UP_TO = 40;

export const colourOf = (index) => `var(--sr-series-${(index % DASHES.length) + 1})`;

export function palette(host) {
  const probe = document.createElement("span");
  probe.style.transition = "none";
  host.append(probe);
  const read = (value) => {
    probe.style.color = value;
    return getComputedStyle(probe).color;
  };
  const colours = {
    series: DASHES.map((_, index) => read(colourOf(index))),
    bands: DASHES.map((_, index) =>
      read(`color-mix(in srgb, ${colourOf(index)} 20%, transparent)`),
    ),
    axis: read("var(--sr-text-faint)"),
    grid: read("var(--sr-border)"),
    rule: read("var(--sr-border-strong)"),
    bad: read("var(--sr-bad)"),
    mark: read("var(--sr-copper)"),
  };
  probe.remove();
  return colours;
}

function lines(store, colours) {
  return store.keys.map((key, index) => ({
    label: key,
    stroke: colours.series[index % DASHES.length],
    width: 1.75,
    dash: DASHES[index % DASHES.length],
    points: {
      show: () => store.series.get(key).x.length <= POINTS_UP_TO,
      size: 4,
      fill: colours.series[index % DASHES.length],
    },
  }));
}

function edges(store) {
  const hidden = { width: 0, stroke: "transparent", points: { show: false } };
  return store.keys.flatMap(() => [{ ...hidden }, { ...hidden }]);
}

function bands(store, colours) {
  const first = store.keys.length + 1;
  return store.keys.map((_, index) => ({
    series: [first + 2 * index + 1, first + 2 * index],
    fill: colours.bands[index % DASHES.length],
  }));
}

function axes(colours, format) {
  const shared = { stroke: colours.axis, font: FONT };
  const ticks = { stroke: colours.rule, width: 1, size: 4 };
  const grid = { stroke: colours.grid, width: 1 };
  return [
    { ...shared, size: 26, gap: 4, ticks, grid: { show: false }, incrs: stepIncrements() },
    { ...shared, size: 50, gap: 4, grid, ticks: { show: false }, values: (_, v) => v.map(format) },
  ];
}

/* Steps are counted, so the x axis never has fractions. */
function stepIncrements() {
  const powers = Array.from({ length: 9 }, (_, power) => 10 ** power);
  return powers.flatMap((power) => [power, 2 * power, 5 * power]);
}

/* A single point stands at the left of one step, where the next one will come. */
function xRange(low, high) {
  return low === high && low !== null ? [low, low + 1] : [low, high];
}

function yRange(fixed, store) {
  return (_, low, high) => {
    if (fixed) return fixed;
    const values = [low, high, ...store.references.values()].filter((value) => value !== null);
    if (!values.length) return [0, 1];
    return uPlot.rangeNum(Math.min(...values), Math.max(...values), 0.1, true);
  };
}

function drawStages(u, store, colours) {
  const { ctx } = u;
  ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.fillStyle = colours.axis;
  ctx.strokeStyle = colours.rule;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  const started = store.stages.filter((stage) => stage && stage.steps > 0);
  if (started.length < 2) return;
  for (const stage of started) {
    const left = u.valToPos(stage.offset, "x", true);
    if (left < u.bbox.left - 1 || left > u.bbox.left + u.bbox.width) continue;
    if (stage.offset > 0) stroke(ctx, [left, u.bbox.top], [left, u.bbox.top + u.bbox.height]);
    const name = stage.kind.replaceAll("_", " ");
    ctx.fillText(name, left + 4 * devicePixelRatio, u.bbox.top + 2 * devicePixelRatio);
  }
}

function drawNonfinite(u, store, colours) {
  const { ctx } = u;
  const bottom = u.bbox.top + u.bbox.height;
  ctx.setLineDash([]);
  ctx.strokeStyle = colours.bad;
  ctx.lineWidth = 2 * devicePixelRatio;
  for (const x of store.nonfinite()) {
    const left = u.valToPos(x, "x", true);
    if (left < u.bbox.left || left > u.bbox.left + u.bbox.width) continue;
    stroke(ctx, [left, bottom], [left, bottom - GUTTER * devicePixelRatio]);
  }
}

function drawReferences(u, store, colours) {
  const { ctx } = u;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.strokeStyle = colours.axis;
  ctx.fillStyle = colours.axis;
  ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  ctx.textBaseline = "bottom";
  for (const [key, value] of store.references) {
    const top = u.valToPos(value, "y", true);
    const right = u.bbox.left + u.bbox.width;
    stroke(ctx, [u.bbox.left, top], [right, top]);
    ctx.fillText(`${key.replaceAll("_", " ")} ${format(value)}`, right, top - devicePixelRatio);
  }
}

/* The step that was pointed at: a rule over the whole height with its number beside it. */
function drawMark(u, mark, colours) {
  if (mark === null) return;
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const x = u.valToPos(mark, "x", true);
  if (x < left - 1 || x > left + width + 1) return;
  ctx.setLineDash([]);
  ctx.strokeStyle = colours.mark;
  ctx.lineWidth = 2 * devicePixelRatio;
  stroke(ctx, [x, top], [x, top + height]);
  const before = x > left + width / 2;
  ctx.font = `600 ${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.fillStyle = colours.mark;
  ctx.textAlign = before ? "right" : "left";
  ctx.textBaseline = "top";
  const aside = (before ? -5 : 5) * devicePixelRatio;
  ctx.fillText(`step ${mark}`, x + aside, top + 2 * devicePixelRatio);
}

function stroke(ctx, from, to) {
  ctx.beginPath();
  ctx.moveTo(...from);
  ctx.lineTo(...to);
  ctx.stroke();
}

export function columns(store) {
  const { x, columns: byKey } = store.table();
  const last = byKey.map((column) => column.last);
  return [x, ...last, ...byKey.flatMap((column) => [column.min, column.max])];
}

export function plot(host, store, { fixed, format, mark, onCursor }) {
  const colours = palette(host);
  const layer = (draw) => (u) => {
    u.ctx.save();
    draw(u, store, colours);
    u.ctx.restore();
  };
  const options = {
    width: host.clientWidth,
    height: host.clientHeight,
    padding: [10, 10, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: "stillroom", setSeries: false },
      drag: { x: true, y: false, dist: 6 },
      points: { size: 7, width: 1.5 },
      y: false,
    },
    scales: { x: { time: false, range: (_, low, high) => xRange(low, high) }, y: { range: yRange(fixed, store) } },
    axes: axes(colours, format),
    series: [{}, ...lines(store, colours), ...edges(store)],
    bands: bands(store, colours),
    hooks: {
      draw: [
        ...[drawStages, drawReferences, drawNonfinite].map(layer),
        layer((u) => drawMark(u, mark(), colours)),
      ],
      setCursor: [(u) => onCursor(u.cursor.idx)],
    },
  };
  return new uPlot(options, columns(store), host);
}

/* New data keeps a zoom that the reader chose. */
export function redraw(u, store) {
  const [x] = u.data;
  const { min, max } = u.scales.x;
  const zoomed = x.length > 1 && (min > x[0] || max < x.at(-1));
  u.setData(columns(store), !zoomed);
  if (zoomed) u.redraw(true, true);
}
