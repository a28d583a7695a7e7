/* Draws metrics by position with uPlot: for one step or two, each a mean with the band of the steps that
   it averages. Sides differ by colour, the second step by dashes. It knows no run. */
import uPlot from "../vendor/uplot@1.6.32/uPlot.esm.js";
import { colourOf, palette } from "./chart-plot.js";

const FONT = "11px system-ui, sans-serif";
const DASH = [5, 4];
const POINTS_UP_TO = 32;

/* `lines`: [{name, colour: index, dashed, mean, low, high}], one value a chunk of `edges`. */
export function curves(host, { edges, lines, format, fixed }) {
  const colours = palette(host);
  const middles = edges.slice(1).map((edge, chunk) => (edge + edges[chunk] - 1) / 2);
  const few = middles.length <= POINTS_UP_TO;
  const tint = (index) => colours.bands[index];
  const options = {
    width: host.clientWidth,
    height: host.clientHeight,
    padding: [8, 10, 0, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: false, range: [edges[0], edges.at(-1)] },
      y: { range: (_, low, high) => span(low, high, fixed) },
    },
    axes: [
      {
        stroke: colours.axis, font: FONT, size: 26, gap: 4, grid: { show: false },
        ticks: { stroke: colours.rule, width: 1, size: 4 },
      },
      {
        stroke: colours.axis, font: FONT, size: 50, gap: 4, ticks: { show: false },
        grid: { stroke: colours.grid, width: 1 }, values: (_, v) => v.map(format),
      },
    ],
    series: [
      {},
      ...lines.map(({ colour, dashed }) => ({
        stroke: colours.series[colour], width: dashed ? 1.75 : 2, dash: dashed ? DASH : [],
        points: { show: few, size: dashed ? 5 : 6, fill: dashed ? undefined : colours.series[colour] },
      })),
      ...lines.flatMap(() => [edge(), edge()]),
    ],
    bands: lines.map(({ colour }, index) => ({
      series: [lines.length + 2 + 2 * index, lines.length + 1 + 2 * index],
      fill: tint(colour),
    })),
  };
  const data = [middles, ...lines.map((line) => line.mean), ...lines.flatMap((l) => [l.low, l.high])];
  return new uPlot(options, data, host);
}

export { colourOf };

const edge = () => ({ width: 0, stroke: "transparent", points: { show: false } });

function span(low, high, fixed) {
  if (fixed) return fixed;
  return low === null ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}
