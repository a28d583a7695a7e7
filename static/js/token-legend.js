/* The scale of a measure: a swatch a level with its border values, and above it how many tokens fall there
   (heights by square root, so that few are still seen); tokens without a value are counted beside it. */
import { element } from "./dom.js";
import { bins } from "./token-measures.js";

/* Wide enough for an underline to run through the whole swatch. */
const SWATCH_SPACES = 8;

export function legend(measure, levels) {
  const found = bins(measure);
  const counts = new Map(found.map(({ level }) => [level, 0]));
  for (const level of levels) counts.set(level, (counts.get(level) ?? 0) + 1);
  const most = Math.max(1, ...found.map(({ level }) => counts.get(level)));
  const cells = found.map((bin) => cell(bin, counts.get(bin.level), most, levels.length));
  const missing = counts.get(null) ?? 0;
  return element("div", { className: "token-scale", role: "group", "aria-label": `Scale of ${measure.label}` }, [
    element("div", { className: "token-scale-cells" }, cells),
    element("span", {
      className: "token-scale-unit",
      text: `${measure.unit ?? "share"}${missing ? ` \u00b7 ${missing} without a value` : ""}`,
    }),
  ]);
}

function cell({ level, from, to }, count, most, all) {
  const swatch = element("span", { className: "token", text: "\u00a0".repeat(SWATCH_SPACES), "aria-hidden": "true" });
  if (level) swatch.dataset.level = level;
  const bar = element("span", { className: "token-scale-bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", Math.sqrt(count / most));
  const share = all ? Math.round((1000 * count) / all) / 10 : 0;
  const range = between(from, to);
  const node = element("span", { className: "token-scale-cell", title: `${range}: ${count} tokens, ${share} %` }, [
    bar,
    swatch,
    element("span", { className: "visually-hidden", text: `${range}: ${count} tokens. ` }),
  ]);
  if (from !== null) node.append(element("span", { className: "token-scale-border", "aria-hidden": "true", text: number(from) }));
  return node;
}

const between = (from, to) =>
  from === null ? `up to ${number(to)}` : to === null ? `from ${number(from)}` : `${number(from)} to ${number(to)}`;

const number = (value) => String(value).replace("-", "\u2212").replace("0.", ".");
