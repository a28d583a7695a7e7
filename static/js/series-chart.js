/* <series-chart keys="overlap_ratio,overlap_mass" src="/.../series.json" label="Overlap" unit="share"
   names="ratio,mass" fixed="0,1" reference="teacher_accuracy">: metric series of one run.

   `reference` names metrics whose latest value is drawn as a level, `bounds` the two that are the band
   of the first key. Loads src?keys=..., all charts of a page in one request, then follows the document's
   `run-events`; with `unbegun` there is nothing to load, with `again` it loads anew every so many seconds. It draws while it is in view or near it.
   Charts of one page share the cursor. Drag zooms, a double click shows all. A summary and a table say the same in words and numbers.
   The document's `show-metric` with one of its keys opens it, marks the step and moves the focus there. */
import { colourOf, columns, DASHES, plot, redraw } from "./chart-plot.js";
import { element, icon } from "./dom.js";
import { formatOf } from "./number-format.js";
import { fetchSeries } from "./series-source.js";
import { SeriesStore } from "./series-store.js";

const TABLE_ROWS = 200;
const AHEAD = "300px";
const UNBEGUN = { seq: 0, series: {}, stages: [] };
const SVG = "http://www.w3.org/2000/svg";

class SeriesChart extends HTMLElement {
  connectedCallback() {
    this.keys = this.getAttribute("keys")
      .split(",")
      .map((key) => key.trim());
    this.names =
      this.getAttribute("names")?.split(",") ?? this.keys.map((k) => k.replaceAll("_", " "));
    this.references = this.getAttribute("reference")?.split(",") ?? [];
    this.bounds = this.getAttribute("bounds")?.split(",") ?? [];
    this.store = new SeriesStore(this.keys, this.references, this.bounds);
    this.format = formatOf(this.getAttribute("unit"));
    this.waiting = [];
    this.marked = null;
    this.build();
    this.heard = (event) => this.receive(event.detail.events);
    this.rethemed = () => this.repaint();
    this.pointed = ({ detail }) => this.point(detail);
    document.addEventListener("run-events", this.heard);
    document.addEventListener("show-metric", this.pointed);
    document.documentElement.addEventListener("theme-change", this.rethemed);
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.host);
    this.sight = new IntersectionObserver((entries) => this.look(entries.at(-1)), {
      rootMargin: AHEAD,
    });
    this.sight.observe(this);
    this.printed = () => this.undrawn && this.draw();
    addEventListener("beforeprint", this.printed);
    const again = Number(this.getAttribute("again"));
    if (again) this.loading = setInterval(() => this.near && this.load(), 1000 * again);
    this.load();
  }

  disconnectedCallback() {
    document.removeEventListener("run-events", this.heard);
    document.removeEventListener("show-metric", this.pointed);
    document.documentElement.removeEventListener("theme-change", this.rethemed);
    this.sizes.disconnect();
    this.sight.disconnect();
    removeEventListener("beforeprint", this.printed);
    clearInterval(this.loading);
    cancelAnimationFrame(this.frame);
    this.plot?.destroy();
    this.plot = null;
  }

  build() {
    const label = this.getAttribute("label") ?? this.names.join(", ");
    const title = element("h3", { className: "chart-title", text: label });
    const unit = this.getAttribute("unit");
    if (unit && unit !== "bytes") title.append(" ", element("span", { className: "unit", text: unit }));
    this.switch = element(
      "button",
      {
        type: "button",
        className: "btn btn-quiet btn-icon btn-sm",
        "aria-pressed": "false",
        "aria-label": `Show ${label} as a table`,
        title: "Table",
      },
      [icon("table")],
    );
    this.switch.addEventListener("click", () => this.toggleTable());
    this.legend = element("div", { className: "chart-legend" });
    this.values = this.keys.map((key, index) => this.legendKey(index));
    this.bad = element("span", { className: "chart-nonfinite" });
    this.at = element("span", { className: "chart-step" });
    this.mark = element("button", { type: "button", className: "chart-mark" });
    this.mark.addEventListener("click", () => this.unmark());
    this.mark.hidden = true;
    this.legend.append(this.bad, this.mark, this.at);
    this.host = element("div", {
      className: "chart-plot",
      role: "img",
      tabindex: "-1",
      "aria-label": label,
    });
    this.table = element("div", {
      className: "chart-table",
      tabindex: "0",
      role: "region",
      "aria-label": label,
    });
    this.table.hidden = true;
    this.summary = element("p", { className: "visually-hidden" });
    this.replaceChildren(
      element("div", { className: "chart-head" }, [title, this.switch]),
      this.legend,
      this.host,
      this.table,
      this.summary,
    );
  }

  legendKey(index) {
    const line = document.createElementNS(SVG, "svg");
    line.setAttribute("viewBox", "0 0 22 8");
    line.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", "M0 4h22");
    path.setAttribute("stroke", "currentColor");
    path.setAttribute("stroke-width", "2");
    path.setAttribute("stroke-dasharray", DASHES[index % DASHES.length].join(" "));
    line.append(path);
    line.style.color = colourOf(index);
    const value = element("span", { className: "chart-value" });
    const key = element(
      "button",
      { type: "button", className: "chart-key", "aria-pressed": "true" },
      [line, this.names[index], value],
    );
    key.addEventListener("click", () => this.toggleKey(key, index));
    this.legend.append(key);
    return value;
  }

  async load() {
    const keys = [...this.keys, ...this.references, ...this.bounds];
    try {
      const unbegun = this.hasAttribute("unbegun");
      this.store.load(unbegun ? UNBEGUN : await fetchSeries(this.getAttribute("src"), keys));
    } catch (error) {
      return this.failed(error);
    }
    this.loaded = true;
    this.store.apply(this.waiting.splice(0));
    this.schedule();
  }

  failed(error) {
    const retry = element("button", { type: "button", className: "btn btn-sm", text: "Try again" });
    retry.addEventListener("click", () => this.load());
    this.blank(`Could not load: ${error.message}. `, [retry]);
  }

  /* Another metric's mark is taken away, so that only one chart is pointed at. */
  point(place) {
    const here = place && this.keys.includes(place.metric);
    if (!here) return this.unmark();
    this.marked = place.x;
    this.mark.hidden = place.x === null;
    this.mark.replaceChildren(`step ${place.x}`, icon("close"));
    this.mark.setAttribute("aria-label", `Step ${place.x} is marked. Take the mark away`);
    this.toggleAttribute("pointed", true);
    this.dispatchEvent(new CustomEvent("reveal", { bubbles: true }));
    this.remark();
    this.scrollIntoView({ block: "center" });
    this.host.focus({ preventScroll: true });
  }

  unmark() {
    if (!this.hasAttribute("pointed")) return;
    const focused = this.contains(document.activeElement);
    this.removeAttribute("pointed");
    this.marked = null;
    this.mark.hidden = true;
    if (focused) this.host.focus({ preventScroll: true });
    this.remark();
  }

  /* A mark outside a zoom ends the zoom. */
  remark() {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    const hidden = this.marked !== null && (this.marked < min || this.marked > max);
    if (hidden) this.plot.setData(this.plot.data, true);
    this.plot.redraw(false, false);
    this.showValues(null);
    this.describe();
  }

  receive(events) {
    if (!this.loaded) this.waiting.push(...events);
    else if (this.store.apply(events)) this.schedule();
  }

  look({ isIntersecting }) {
    this.near = isIntersecting;
    if (this.near && this.undrawn) this.schedule();
  }

  /* However many events come, the chart is drawn at most once a frame, and not where nobody looks. */
  schedule() {
    this.undrawn = !this.near;
    if (this.frame || !this.near) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    if (!this.store.count()) {
      this.forget();
      this.blank("No values yet");
    } else if (this.plot) redraw(this.plot, this.store);
    else this.paint();
    this.showValues(null);
    this.describe();
    if (!this.table.hidden) this.fillTable();
  }

  paint() {
    if (!this.host.clientWidth) return;
    this.host.replaceChildren();
    const fixed = this.getAttribute("fixed")?.split(",").map(Number);
    this.plot = plot(this.host, this.store, {
      fixed,
      format: this.format,
      mark: () => this.marked,
      onCursor: (index) => this.showValues(index),
    });
  }

  forget() {
    this.plot?.destroy();
    this.plot = null;
  }

  repaint() {
    if (!this.plot) return;
    this.forget();
    this.schedule();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (!width || !this.loaded) return;
    if (!this.plot) this.schedule();
    else if (this.plot.width !== width || this.plot.height !== height)
      this.plot.setSize({ width, height });
  }

  blank(text, children = []) {
    this.host.replaceChildren(
      element("div", { className: "chart-empty" }, [element("span", { text }, children)]),
    );
  }

  showValues(index) {
    const [x, ...rows] = this.plot?.data ?? [[]];
    const at = index ?? this.restIndex(x);
    this.values.forEach((node, key) => {
      const value = rows[key] && latest(rows[key], at, index === null);
      node.textContent = rows[key] ? this.format(value) : "";
    });
    this.at.textContent = x.length ? `step ${x[at]}` : "";
    const bad = this.store.nonfinite();
    const here = bad.includes(x[at]);
    this.bad.replaceChildren();
    if (bad.length) {
      const text = here
        ? "not finite here"
        : `not finite at ${bad.length} ${bad.length > 1 ? "points" : "point"}`;
      this.bad.append(icon("warning"), text);
    }
  }

  /* What the legend tells while nobody points: the marked step, else the last one. */
  restIndex(x) {
    if (this.marked === null) return x.length - 1;
    const after = x.findIndex((value) => value >= this.marked);
    return after < 0 ? x.length - 1 : after;
  }

  toggleKey(key, index) {
    const show = key.getAttribute("aria-pressed") !== "true";
    key.setAttribute("aria-pressed", String(show));
    const first = this.keys.length + 1 + 2 * index;
    for (const series of [index + 1, first, first + 1]) this.plot?.setSeries(series, { show });
  }

  toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.host.hidden = !this.table.hidden;
    this.switch.setAttribute("aria-pressed", String(!this.table.hidden));
    if (!this.table.hidden) this.fillTable();
  }

  fillTable() {
    const [x, ...rows] = columns(this.store);
    const head = element(
      "tr",
      {},
      ["Step", ...this.names].map((name) =>
        element("th", { className: "num", scope: "col", text: name }),
      ),
    );
    const body = element("tbody");
    for (let at = x.length - 1; at >= Math.max(0, x.length - TABLE_ROWS); at -= 1) {
      const cells = this.keys.map((_, key) =>
        element("td", { className: "num", text: this.format(rows[key][at]) }),
      );
      body.append(
        element("tr", {}, [
          element("th", { className: "num", scope: "row", text: String(x[at]) }),
          ...cells,
        ]),
      );
    }
    this.table.replaceChildren(
      element("table", { className: "table" }, [element("thead", {}, [head]), body]),
    );
  }

  describe() {
    const sentences = this.keys.map((key, index) => {
      const s = this.store.summary(key);
      if (!s) return `${this.names[index]}: no values yet.`;
      return `${this.names[index]}: ${s.points} points, ${this.format(s.first.value)} at step ${s.first.x} to ${this.format(s.last.value)} at step ${s.last.x}, lowest ${this.format(s.lowest)}, highest ${this.format(s.highest)}.`;
    });
    for (const [key, value] of this.store.references) {
      sentences.push(`${key.replaceAll("_", " ")}: ${this.format(value)}.`);
    }
    this.summary.textContent = sentences.join(" ");
    const label = this.getAttribute("label") ?? this.names.join(", ");
    const told = this.names.map((name, index) => `${name} ${this.values[index].textContent}`);
    const where = this.marked === null ? "" : `, ${this.at.textContent}: ${told.join(", ")}`;
    this.host.setAttribute("aria-label", label + where);
  }
}

/* The value at an index, or the nearest before it where this key has no row there. */
function latest(values, index, skipGaps) {
  let at = index;
  while (at > 0 && (values[at] === undefined || (skipGaps && values[at] === null))) at -= 1;
  return values[at];
}

customElements.define("series-chart", SeriesChart);
