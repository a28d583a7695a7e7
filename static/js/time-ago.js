/* <time-ago datetime="ISO">: the time relative to now, kept current; the absolute time on hover.
   Its content is the fallback without script. */
const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];
const FORMAT = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const shown = new Set();

export function relative(date, now = Date.now()) {
  const seconds = (date - now) / 1000;
  if (Math.abs(seconds) < 45) return seconds > 5 ? "in a moment" : "just now";
  if (Math.abs(seconds) > 30 * 86400) return date.toISOString().slice(0, 10);
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return FORMAT.format(Math.round(seconds / size), unit);
}

class TimeAgo extends HTMLElement {
  static observedAttributes = ["datetime"];

  connectedCallback() {
    shown.add(this);
    this.show();
  }

  disconnectedCallback() {
    shown.delete(this);
  }

  attributeChangedCallback() {
    if (this.isConnected) this.show();
  }

  show() {
    const date = new Date(this.getAttribute("datetime"));
    if (Number.isNaN(date.getTime())) return;
    this.textContent = relative(date);
    this.title = `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  }
}

customElements.define("time-ago", TimeAgo);
setInterval(() => shown.forEach((node) => node.show()), 15_000);
