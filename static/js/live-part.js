/* <live-part src="/runs/.../log/" kinds="log,evaluation" pause="2" delay="1" filled>: a part of a run's page
   that the server renders.

   It is fetched when it comes into view (unless it came `filled` with the page). With `kinds`, events of
   these and a new status of the run make it stale; then it is fetched anew `delay` seconds later, at most
   once in `pause` seconds, after the charts are painted, and not before it is in view. */
const AHEAD = "200px";

class LivePart extends HTMLElement {
  connectedCallback() {
    this.kinds = new Set(this.getAttribute("kinds")?.split(","));
    this.pause = this.milliseconds("pause", 1);
    this.delay = this.milliseconds("delay", 0);
    this.stale = !this.hasAttribute("filled");
    this.heard = ({ detail }) => detail.events.some(({ kind }) => this.kinds.has(kind)) && this.age();
    this.turned = () => this.kinds.size && this.age();
    document.addEventListener("run-events", this.heard);
    document.addEventListener("run-status", this.turned);
    this.sight = new IntersectionObserver((entries) => this.look(entries.at(-1)), {
      rootMargin: AHEAD,
    });
    this.sight.observe(this);
  }

  disconnectedCallback() {
    document.removeEventListener("run-events", this.heard);
    document.removeEventListener("run-status", this.turned);
    this.sight.disconnect();
    clearTimeout(this.resting);
    this.resting = null;
  }

  milliseconds(name, usual) {
    return 1000 * Number(this.getAttribute(name) ?? usual);
  }

  look({ isIntersecting }) {
    this.seen = isIntersecting;
    this.refresh();
  }

  /* The frame comes first: charts that the same events changed are painted in it. */
  age() {
    const stale = () => {
      this.stale = true;
      this.refresh();
    };
    requestAnimationFrame(() => setTimeout(stale, this.delay));
  }

  refresh() {
    if (!this.stale || !this.seen || this.resting) return;
    this.stale = false;
    this.resting = setTimeout(() => this.rested(), this.pause);
    htmx.ajax("GET", this.getAttribute("src"), { source: this, target: this, swap: "innerHTML" });
  }

  rested() {
    this.resting = null;
    this.refresh();
  }
}

customElements.define("live-part", LivePart);
