/* <heat-map label="Overlap ratio" unit="nat">: values by step (across) and by position (down) on a canvas.

   Takes its data as the property `grid`: {x, edges, counts, values, low, high, marks: [{x, name}]}, rows by
   step, null where nothing defines a value, which is hatched. Pointing at a cell, or moving to it with the
   arrow keys, tells step, positions, value and count. A click or Enter dispatches, bubbling,

     step-chosen         detail {x}

   Page keys go ten steps, Home and End to the first and the last one, Escape lets go. */
import { element } from "./dom.js";
import { heatColours } from "./heat-scale.js";
import { format } from "./number-format.js";

const LEFT = 54;
const BOTTOM = 30;
const TOP = 14;
const RIGHT = 8;
const FAST = 10;
const KEYS = {
  ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1],
  PageUp: [-FAST, 0], PageDown: [FAST, 0], Home: [-Infinity, 0], End: [Infinity, 0],
};

class HeatMap extends HTMLElement {
  connectedCallback() {
    this.build();
    this.sizes = new ResizeObserver(() => this.schedule());
    this.sizes.observe(this.canvas);
    this.rethemed = () => {
      this.colours = null;
      this.schedule();
    };
    document.documentElement.addEventListener("theme-change", this.rethemed);
  }

  disconnectedCallback() {
    this.sizes.disconnect();
    document.documentElement.removeEventListener("theme-change", this.rethemed);
    cancelAnimationFrame(this.frame);
  }

  build() {
    this.canvas = element("canvas", {
      className: "heat-canvas",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "heat map",
    });
    this.cell = element("div", { className: "heat-cell", "aria-hidden": "true" });
    this.tip = element("div", { className: "heat-tip", "aria-hidden": "true" });
    this.said = element("p", { className: "visually-hidden", role: "status" });
    this.replaceChildren(this.canvas, this.cell, this.tip, this.said);
    this.release();
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.release());
    this.canvas.addEventListener("click", (event) => this.hover(event) && this.choose());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.release());
  }

  set grid(grid) {
    this.data = grid;
    const label = this.getAttribute("label");
    const { x, edges } = grid;
    this.canvas.setAttribute(
      "aria-label",
      `${label} by step and position: steps ${x[0]} to ${x.at(-1)}, ${edges.length - 1} position chunks. Arrow keys move, Enter chooses the step.`,
    );
    this.schedule();
  }

  /* However many events come, it is painted at most once a frame. */
  schedule() {
    if (this.frame || !this.data) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.colours ??= heatColours(this);
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    this.area = { left: LEFT, top: TOP, width: width - LEFT - RIGHT, height: height - TOP - BOTTOM };
    const style = getComputedStyle(this);
    this.hatch(ctx, style.color);
    this.fill(ctx);
    this.axes(ctx, style);
    if (this.at) this.point(this.at.column, this.at.chunk, false);
  }

  /* What has no value shows the ground, which is hatched so that it looks like no value at all. */
  hatch(ctx, colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const brush = tile.getContext("2d");
    brush.strokeStyle = colour;
    brush.globalAlpha = 0.45;
    brush.lineWidth = 1;
    brush.beginPath();
    for (const from of [-6, 0, 6]) {
      brush.moveTo(from, 6);
      brush.lineTo(from + 6, 0);
    }
    brush.stroke();
    const { left, top, width, height } = this.area;
    ctx.fillStyle = ctx.createPattern(tile, "repeat");
    ctx.fillRect(left, top, width, height);
  }

  fill(ctx) {
    const { values, edges, low, high } = this.data;
    const [columns, chunks] = [values.length, edges.length - 1];
    const image = new ImageData(columns, chunks);
    const pixels = new Uint32Array(image.data.buffer);
    const scale = 255 / (high - low);
    for (let column = 0; column < columns; column += 1) {
      const row = values[column];
      for (let chunk = 0; chunk < chunks; chunk += 1) {
        const value = row[chunk];
        if (value === null || value === undefined) continue;
        const level = Math.max(0, Math.min(255, (value - low) * scale));
        pixels[chunk * columns + column] = this.colours[Math.round(level)];
      }
    }
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = chunks;
    small.getContext("2d").putImageData(image, 0, 0);
    const { left, top, width, height } = this.area;
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(small, left, top, width, height);
  }

  axes(ctx, style) {
    const { left, top, width, height } = this.area;
    const { x, edges, marks = [] } = this.data;
    const text = getComputedStyle(this.canvas).color;
    ctx.font = `11px ${style.fontFamily}`;
    ctx.fillStyle = text;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    const chunks = edges.length - 1;
    const every = Math.ceil(chunks / Math.max(1, Math.floor(height / 18)));
    for (let edge = 0; edge <= chunks; edge += every) {
      const y = top + (height * edge) / chunks;
      ctx.fillText(edges[edge].toLocaleString("en"), left - 6, Math.min(y, top + height - 2));
    }
    ctx.textBaseline = "top";
    ctx.textAlign = "center";
    const between = roundStep((x.at(-1) - x[0]) / Math.max(1, Math.floor(width / 56)));
    let next = Math.ceil(x[0] / between) * between;
    x.forEach((step, column) => {
      if (step < next) return;
      ctx.fillText(String(step), left + (width * (column + 0.5)) / x.length, top + height + 5);
      next = (Math.floor(step / between) + 1) * between;
    });
    ctx.textAlign = "right";
    ctx.fillText("step", left - 6, top + height + 5);
    for (const mark of marks) this.drawMark(ctx, mark, text);
  }

  drawMark(ctx, { x, name }, colour) {
    const column = this.data.x.findIndex((step) => step >= x);
    if (column < 0) return;
    const { left, top, width, height } = this.area;
    const at = left + (width * (column + 0.5)) / this.data.x.length;
    const late = column > this.data.x.length / 2;
    ctx.fillStyle = colour;
    ctx.beginPath();
    ctx.moveTo(at - 5, top - 7);
    ctx.lineTo(at + 5, top - 7);
    ctx.lineTo(at, top - 1);
    ctx.fill();
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = late ? "right" : "left";
    ctx.fillText(name, at + (late ? -8 : 8), top - 2);
    ctx.strokeStyle = colour;
    ctx.setLineDash([2, 3]);
    ctx.strokeRect(at - Math.max(1.5, width / this.data.x.length / 2), top, Math.max(3, width / this.data.x.length), height);
    ctx.setLineDash([]);
  }

  hover(event) {
    if (!this.area) return false;
    const box = this.canvas.getBoundingClientRect();
    const across = (event.clientX - box.left - this.area.left) / this.area.width;
    const down = (event.clientY - box.top - this.area.top) / this.area.height;
    if (across < 0 || across >= 1 || down < 0 || down >= 1) {
      this.release();
      return false;
    }
    const { x, edges } = this.data;
    this.point(Math.floor(across * x.length), Math.floor(down * (edges.length - 1)), false);
    return true;
  }

  key(event) {
    if (!this.data) return;
    if (event.key === "Escape") return this.release();
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return this.choose();
    }
    const move = KEYS[event.key];
    if (!move) return;
    event.preventDefault();
    const [columns, chunks] = [this.data.x.length, this.data.edges.length - 1];
    const from = this.at ?? { column: columns - 1, chunk: 0 };
    const by = this.at ? move : [0, 0];
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.point(clamp(from.column + by[0], columns), clamp(from.chunk + by[1], chunks), true);
  }

  point(column, chunk, aloud) {
    this.at = { column, chunk };
    const { x, edges, counts, values } = this.data;
    const unit = this.getAttribute("unit");
    const value = values[column]?.[chunk] ?? null;
    const count = counts[column]?.[chunk] ?? 0;
    const what = value === null ? "no value" : `${format(value)}${unit ? ` ${unit}` : ""}`;
    const where = `positions ${edges[chunk].toLocaleString("en")}\u2013${(edges[chunk + 1] - 1).toLocaleString("en")}`;
    this.tip.replaceChildren(
      element("strong", { text: what }),
      element("span", { text: `step ${x[column]}, ${where}` }),
      element("span", { text: `${count.toLocaleString("en")} positions scored` }),
    );
    this.place(column, chunk);
    if (aloud) this.said.textContent = `Step ${x[column]}, ${where}: ${what}, ${count} scored.`;
  }

  place(column, chunk) {
    const { left, top, width, height } = this.area;
    const [w, h] = [width / this.data.x.length, height / (this.data.edges.length - 1)];
    const [x, y] = [left + column * w, top + chunk * h];
    Object.assign(this.cell.style, {
      left: `${x - (Math.max(w, 5) - w) / 2}px`, top: `${y - (Math.max(h, 5) - h) / 2}px`,
      width: `${Math.max(w, 5)}px`, height: `${Math.max(h, 5)}px`,
    });
    this.cell.hidden = this.tip.hidden = false;
    const room = this.clientWidth - this.tip.offsetWidth - 4;
    const beside = x + w + 10 > room ? x - this.tip.offsetWidth - 10 : x + w + 10;
    this.tip.style.left = `${Math.max(4, Math.min(room, beside))}px`;
    this.tip.style.top = `${Math.min(y, this.clientHeight - this.tip.offsetHeight - 4)}px`;
  }

  release() {
    this.at = null;
    this.cell.hidden = this.tip.hidden = true;
  }

  choose() {
    if (!this.at) return;
    const detail = { x: this.data.x[this.at.column] };
    this.dispatchEvent(new CustomEvent("step-chosen", { bubbles: true, detail }));
  }
}

/* 1, 2 or 5 times a power of ten, and at least 1, since steps are counted. */
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least);
}

customElements.define("heat-map", HeatMap);
