/* <position-view src="/.../positions.json" curves="token_reward,overlap_ratio,student_entropy,teacher_entropy">
   with its metrics, [{key, label, unit}], as JSON in a script of its own: metrics by position.

   A heat map of a metric over all steps, and curves by position for one step or two, averaged over as many
   steps as is chosen. It loads once it is near the view, follows the document's `run-events`, and answers
   `show-metric` for by_position, whose step it chooses. A table says the curves in numbers. */
import { element, icon } from "./dom.js";
import { formatOf } from "./number-format.js";
import { colourOf, curves } from "./position-curves.js";
import { PositionStore } from "./position-store.js";
import { rangeOf } from "./heat-scale.js";
import "./heat-map.js";

const ROWS = 1000;
const AHEAD = "200px";
const WIDTHS = [1, 5, 10, 20, 50];
const USUAL_WIDTH = 5;
const SVG = "http://www.w3.org/2000/svg";
/* What is drawn together: the two entropies, one colour each. */
const PANELS = [
  { label: "Token reward", keys: ["token_reward"], names: ["mean"], colours: [0] },
  { label: "Overlap ratio", keys: ["overlap_ratio"], names: ["mean"], colours: [2] },
  {
    label: "Entropy",
    keys: ["student_entropy", "teacher_entropy"],
    names: ["student", "teacher"],
    colours: [0, 1],
  },
];

class PositionView extends HTMLElement {
  connectedCallback() {
    if (this.store) return;
    this.metrics = JSON.parse(this.querySelector("script").textContent);
    this.unit = new Map(this.metrics.map(({ key, unit }) => [key, unit ?? ""]));
    this.store = new PositionStore();
    this.offsets = new Map();
    this.waiting = [];
    this.heard = (event) => this.receive(event.detail.events);
    this.pointed = ({ detail }) => detail?.metric === "by_position" && this.point(detail.x);
    this.rethemed = () => this.drawCurves();
    document.addEventListener("run-events", this.heard);
    document.addEventListener("show-metric", this.pointed);
    document.documentElement.addEventListener("theme-change", this.rethemed);
    this.build();
    this.sizes = new ResizeObserver(() => this.schedule());
    this.sizes.observe(this);
    this.sight = new IntersectionObserver((entries) => this.look(entries.at(-1)), {
      rootMargin: AHEAD,
    });
    this.sight.observe(this);
  }

  disconnectedCallback() {
    document.removeEventListener("run-events", this.heard);
    document.removeEventListener("show-metric", this.pointed);
    document.documentElement.removeEventListener("theme-change", this.rethemed);
    this.sizes.disconnect();
    this.sight.disconnect();
    cancelAnimationFrame(this.frame);
    for (const plot of this.plots ?? []) plot.destroy();
  }

  build() {
    this.blank = element("div", { className: "chart-blank", text: "No step has been reported by position yet." });
    this.body = element("div", { className: "position-body" }, [this.heatCard(), this.curveCard()]);
    this.body.hidden = true;
    this.replaceChildren(this.blank, this.body);
  }

  heatCard() {
    this.metric = select(
      "Metric of the heat map",
      this.metrics.map(({ key, label }) => [key, label]),
    );
    this.metric.addEventListener("change", () => this.want());
    this.stage = select("Stage", []);
    this.stage.addEventListener("change", () => this.restage());
    this.stage.hidden = true;
    this.whole = element("input", { type: "checkbox", className: "form-check-input", id: "heat-whole" });
    this.whole.addEventListener("change", () => this.schedule());
    this.wholeLabel = element("label", { className: "heat-whole", for: "heat-whole" }, [this.whole, "from 0 to 1"]);
    this.heat = element("heat-map", {});
    this.heat.addEventListener("step-chosen", ({ detail }) => this.choose(detail.x));
    this.low = element("span", { className: "number" });
    this.high = element("span", { className: "number" });
    this.thinned = element("span", { className: "faint" });
    return element("section", { className: "card position-heat" }, [
      element("div", { className: "card-header" }, [
        element("h3", { text: "Over the steps" }),
        element("div", { className: "row-wrap" }, [this.stage, this.metric]),
      ]),
      this.heat,
      element("div", { className: "heat-legend" }, [
        element("span", { className: "heat-scale-legend" }, [
          this.low,
          element("span", { className: "heat-ramp", "aria-hidden": "true" }),
          this.high,
        ]),
        element("span", { className: "heat-none" }, [
          element("span", { className: "heat-hatch", "aria-hidden": "true" }),
          "no value",
        ]),
        this.wholeLabel,
        this.thinned,
      ]),
    ]);
  }

  curveCard() {
    this.first = stepSlider("A", "Step A", () => this.schedule());
    this.second = stepSlider("B", "Step B", () => this.schedule());
    this.first.input.addEventListener("input", () => (this.follows = false));
    this.compares = element("input", { type: "checkbox", className: "form-check-input", id: "compare-steps" });
    this.compares.addEventListener("change", () => this.schedule());
    this.width = select(
      "Averaged over",
      WIDTHS.map((width) => [width, width === 1 ? "that step alone" : `the last ${width} steps`]),
    );
    this.width.value = USUAL_WIDTH;
    this.width.addEventListener("change", () => this.schedule());
    this.switch = element(
      "button",
      { type: "button", className: "btn btn-quiet btn-icon btn-sm", "aria-pressed": "false", "aria-label": "Show the curves as a table", title: "Table" },
      [icon("table")],
    );
    this.switch.addEventListener("click", () => this.toggleTable());
    this.panels = PANELS.map((panel) => this.panel(panel));
    this.grid = element("div", { className: "position-panels" }, this.panels.map(({ node }) => node));
    this.table = element("div", { className: "table-scroll position-numbers", tabindex: "0", role: "region", "aria-label": "Metrics by position" });
    this.table.hidden = true;
    this.follows = true;
    return element("section", { className: "card position-curves" }, [
      element("div", { className: "card-header" }, [
        element("h3", { text: "By position, at a step" }),
        element("div", { className: "row-wrap" }, [
          element("label", { className: "heat-whole", for: "compare-steps" }, [this.compares, "compare two steps"]),
          this.width,
          this.switch,
        ]),
      ]),
      element("div", { className: "position-sliders" }, [this.first.node, this.second.node]),
      this.grid,
      this.table,
      element("p", { className: "position-axis", text: "Across: tokens of the response. Lines: the mean of the steps; bands: their lowest to highest." }),
    ]);
  }

  panel({ label, keys, names, colours }) {
    const unit = this.unit.get(keys[0]);
    const title = element("h4", { className: "chart-title", text: label });
    if (unit) title.append(" ", element("span", { className: "unit", text: unit }));
    const legend = element("div", { className: "chart-legend" });
    const host = element("div", { className: "chart-plot", role: "img", "aria-label": label });
    const node = element("div", { className: "position-panel" }, [title, legend, host]);
    return { node, legend, host, keys, names, colours, label, format: formatOf(unit) };
  }

  look({ isIntersecting }) {
    this.near = isIntersecting;
    if (this.near) this.start();
    if (this.near && this.undrawn) this.schedule();
  }

  start() {
    if (this.started) return;
    this.started = true;
    this.want();
  }

  get curveKeys() {
    return this.getAttribute("curves").split(",");
  }

  /* The heat map's metric first, since it is what is seen first; then what the curves lack. */
  async want() {
    const missing = (keys) => keys.filter((key) => !this.store.loaded.has(key));
    try {
      for (const keys of [[this.metric.value], this.curveKeys]) {
        if (missing(keys).length && !(await this.load(missing(keys)))) await this.loadAnew();
        this.ready();
      }
    } catch (error) {
      this.failed(error);
    }
  }

  async load(keys) {
    const url = new URL(this.getAttribute("src"), location.href);
    url.searchParams.set("keys", keys.join(","));
    url.searchParams.set("rows", ROWS);
    const answer = await fetch(url, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const { grids } = await answer.json();
    this.steps = grids.reduce((sum, grid) => sum + grid.steps, 0);
    this.shown = grids.reduce((sum, grid) => sum + grid.x.length, 0);
    for (const { stage_index: stage, offset } of grids) this.offsets.set(stage, offset);
    return this.store.load(keys, grids);
  }

  async loadAnew() {
    const keys = [...new Set([this.metric.value, ...this.curveKeys, ...this.store.loaded])];
    this.store.clear();
    await this.load(keys);
  }

  ready() {
    for (const event of this.waiting.splice(0)) this.take(event);
    this.loaded = true;
    this.schedule();
  }

  failed(error) {
    const retry = element("button", { type: "button", className: "btn btn-sm", text: "Try again" });
    retry.addEventListener("click", () => this.want());
    this.blank.replaceChildren(element("span", { text: `Could not load: ${error.message}. ` }, [retry]));
    this.blank.hidden = false;
  }

  receive(events) {
    const mine = events.filter(({ kind }) => ["positions", "job_started", "stage_started"].includes(kind));
    if (!mine.length) return;
    if (!this.loaded) return void this.waiting.push(...mine);
    for (const event of mine) this.take(event);
    this.schedule();
  }

  take(event) {
    if (event.kind === "job_started") return this.plan(event.payload.steps_by_stage);
    if (event.kind === "stage_started") return event.attempt > 1 && this.again();
    this.store.add(event, this.offsets.get(event.stage_index ?? 0) ?? 0);
  }

  plan(stepsByStage) {
    let offset = 0;
    stepsByStage.forEach((steps, index) => {
      this.offsets.set(index, offset);
      offset += steps;
    });
  }

  /* A later attempt writes steps anew: what is here after its start is stale. */
  again() {
    this.store.clear();
    this.loaded = false;
    this.want();
  }

  schedule() {
    this.undrawn = !this.near;
    if (this.frame || !this.near) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const indexes = this.store.indexes;
    this.blank.hidden = indexes.length > 0;
    this.body.hidden = !indexes.length;
    if (!indexes.length) return;
    this.restage();
    this.drawHeat();
    this.drawCurves();
  }

  /* The newest stage is shown until the reader chooses another. */
  restage() {
    const indexes = this.store.indexes;
    if (this.stage.options.length !== indexes.length) {
      this.stage.replaceChildren(...indexes.map((index) => new Option(`Stage ${index + 1}`, index)));
      this.stage.value = indexes.at(-1);
    }
    this.stage.hidden = indexes.length < 2;
    const { x } = this.store.stages.get(this.index);
    for (const slider of [this.first, this.second]) slider.steps(x);
    if (this.follows) this.first.set(x.at(-1));
    if (!this.second.touched) this.second.set(x[0]);
    this.second.node.hidden = !this.compares.checked;
  }

  get index() {
    return Number(this.stage.value);
  }

  get places() {
    const places = [{ name: "A", x: this.first.x, dashed: false }];
    if (this.compares.checked) places.push({ name: "B", x: this.second.x, dashed: true });
    return places;
  }

  drawHeat() {
    const key = this.metric.value;
    const grid = this.store.grid(this.index, key);
    const unit = this.unit.get(key);
    const share = !unit;
    this.wholeLabel.hidden = !share;
    const [low, high] = rangeOf(grid.values, share && this.whole.checked);
    const { label } = this.metrics.find((metric) => metric.key === key);
    this.heat.setAttribute("label", label);
    this.heat.setAttribute("unit", unit);
    this.heat.grid = { ...grid, low, high, marks: this.places };
    const format = formatOf(unit);
    this.low.textContent = format(low);
    this.high.textContent = `${format(high)}${unit ? ` ${unit}` : ""}`;
    this.thinned.textContent = this.steps > this.shown ? `${this.shown} of ${this.steps} steps` : "";
  }

  drawCurves() {
    if (!this.near || this.body.hidden) return;
    const curved = this.curveKeys.every((key) => this.store.loaded.has(key));
    if (!curved) return;
    for (const plot of this.plots ?? []) plot.destroy();
    this.found = new Map(
      this.curveKeys.map((key) => [
        key,
        this.places.map(({ x }) => this.store.window(this.index, key, x, Number(this.width.value))),
      ]),
    );
    this.plots = this.grid.hidden ? [] : this.panels.map((panel) => this.drawPanel(panel));
    if (!this.table.hidden) this.fillTable();
  }

  drawPanel({ legend, host, keys, names, colours, label, format }) {
    const { edges } = this.store.stages.get(this.index);
    const lines = keys.flatMap((key, row) =>
      this.places.map(({ name, dashed, x }, at) => ({
        ...this.found.get(key)[at],
        name: this.compares.checked ? `${names[row]}, ${name}` : names[row],
        x,
        colour: dashed && keys.length === 1 ? 3 : colours[row],
        dashed,
      })),
    );
    legend.replaceChildren(...lines.map(({ name, colour, dashed }) => legendKey(name, colour, dashed)));
    const told = lines.map(({ name, x, mean }) => `${name} at step ${x}: ${mean.map(format).join(", ")}`);
    host.setAttribute("aria-label", `${label} by position, from ${edges[0]} to ${edges.at(-1)}. ${told.join(". ")}.`);
    host.replaceChildren();
    return curves(host, { edges, lines, format });
  }

  toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.grid.hidden = !this.table.hidden;
    this.switch.setAttribute("aria-pressed", String(!this.table.hidden));
    this.drawCurves();
  }

  fillTable() {
    const { edges } = this.store.stages.get(this.index);
    const columns = PANELS.flatMap(({ label, keys, names }) =>
      keys.flatMap((key, row) =>
        this.places.map(({ name }, at) => ({
          head: `${label}${keys.length > 1 ? `, ${names[row]}` : ""}${this.places.length > 1 ? ` ${name}` : ""}`,
          found: this.found.get(key)[at],
          format: formatOf(this.unit.get(key)),
        })),
      ),
    );
    const head = ["Positions", "Scored", ...columns.map((column) => column.head)];
    const rows = edges.slice(1).map((edge, chunk) => [
      `${edges[chunk].toLocaleString("en")}\u2013${(edge - 1).toLocaleString("en")}`,
      columns[0].found.count[chunk].toLocaleString("en"),
      ...columns.map(({ found, format }) => format(found.mean[chunk])),
    ]);
    this.table.replaceChildren(
      element("table", { className: "table position-table" }, [
        element("caption", { className: "visually-hidden", text: `Means by position: ${this.places.map(({ name, x }) => `${name} at step ${x}`).join(", ")}` }),
        element("thead", {}, [element("tr", {}, head.map((text, at) => element("th", { scope: "col", className: at ? "num" : "", text })))]),
        element("tbody", {}, rows.map(([first, ...rest]) =>
          element("tr", {}, [
            element("th", { scope: "row", text: first }),
            ...rest.map((text) => element("td", { className: "num", text })),
          ]),
        )),
      ]),
    );
  }

  /* The step that was chosen last is A; it stays while steps come. */
  choose(x) {
    this.follows = false;
    this.first.set(x);
    this.schedule();
  }

  async point(x) {
    this.dispatchEvent(new CustomEvent("reveal", { bubbles: true }));
    this.scrollIntoView({ block: "center" });
    this.near = true;
    this.start();
    while (!this.loaded) await new Promise((resolve) => setTimeout(resolve, 50));
    if (x !== null) this.choose(x);
    this.draw();
    this.heat.querySelector("canvas").focus({ preventScroll: true });
  }
}

function select(label, choices) {
  const options = choices.map(([value, text]) => new Option(text, value));
  return element("select", { className: "form-select form-select-sm position-select", "aria-label": label }, options);
}

/* A slider over the steps that there are: its own value is the step's place among them. */
function stepSlider(name, label, changed) {
  const id = `step-${name.toLowerCase()}`;
  const input = element("input", { type: "range", className: "form-range", id, min: "0", max: "0", step: "1" });
  const told = element("output", { className: "number", for: id });
  const node = element("div", { className: "step-slider" }, [
    element("label", { for: id, text: label }),
    input,
    told,
  ]);
  const slider = {
    node, input, touched: false, list: [],
    get x() {
      return slider.list[Number(input.value)];
    },
    steps(list) {
      const x = slider.x;
      slider.list = list;
      input.max = String(list.length - 1);
      if (x !== undefined) slider.set(x);
    },
    set(x) {
      const at = slider.list.findIndex((step) => step >= x);
      input.value = String(at < 0 ? slider.list.length - 1 : at);
      slider.tell();
    },
    tell() {
      told.textContent = `${slider.x}`;
      input.setAttribute("aria-valuetext", `step ${slider.x}`);
    },
  };
  input.addEventListener("input", () => {
    slider.touched = true;
    slider.tell();
    changed();
  });
  return slider;
}

function legendKey(name, colour, dashed) {
  const line = document.createElementNS(SVG, "svg");
  line.setAttribute("viewBox", "0 0 22 8");
  line.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M0 4h22");
  path.setAttribute("stroke", "currentColor");
  path.setAttribute("stroke-width", "2");
  if (dashed) path.setAttribute("stroke-dasharray", "5 4");
  line.append(path);
  line.style.color = colourOf(colour);
  return element("span", { className: "chart-key" }, [line, name]);
}

customElements.define("position-view", PositionView);
