/* <live-run src="/ws/..." after="N" status="running">: a run's events, gapless and once.

   Opens a WebSocket at src?after=N and gets messages {"events": [...], "seq": last}. It keeps the last
   seq, drops what it has seen, and reconnects after it with back-off. It dispatches, bubbling,
     run-events          detail {events}, for charts and progress
     run-event-<kind>    once a message and kind, for htmx (hx-trigger="run-event-health from:body")
   and shows the transport's state as a dot with a word. Of what events mean it knows only that job_started
   and job_finished begin and end an attempt. */
import { element } from "./dom.js";

const FIRST_WAIT_SECONDS = 0.5;
const LONGEST_WAIT_SECONDS = 15;
const STALE_AFTER_SECONDS = 12;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const WORDS = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  stale: "Stale: no contact with the server",
  ended: "Complete",
  refused: "No access: sign in again",
};

class LiveRun extends HTMLElement {
  connectedCallback() {
    this.after = Number(this.getAttribute("after") ?? 0);
    this.ended = ENDED.has(this.getAttribute("status"));
    this.text = element("span", { role: "status" });
    this.replaceChildren(
      element("span", { className: "transport" }, [
        element("span", { className: "transport-dot", "aria-hidden": "true" }),
        this.text,
      ]),
    );
    this.wait = FIRST_WAIT_SECONDS;
    this.wake = () => this.retryNow();
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
    this.show("connecting");
    this.connect();
  }

  disconnectedCallback() {
    removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    clearTimeout(this.retry);
    clearTimeout(this.staleness);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  connect() {
    const url = new URL(this.getAttribute("src"), location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("after", this.after);
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.addEventListener("open", () => this.opened(socket));
    socket.addEventListener("message", (message) => this.received(socket, message));
    socket.addEventListener("close", (event) => this.closed(socket, event.code));
  }

  opened(socket) {
    if (socket !== this.socket) return;
    this.wait = FIRST_WAIT_SECONDS;
    clearTimeout(this.staleness);
    this.staleness = null;
    this.show(this.ended ? "ended" : "live");
  }

  received(socket, message) {
    if (socket !== this.socket) return;
    const { events, seq } = JSON.parse(message.data);
    const fresh = [];
    for (const event of events) {
      if (event.seq <= this.after) continue;
      this.after = event.seq;
      fresh.push(event);
    }
    this.after = Math.max(this.after, seq ?? 0);
    if (fresh.length) this.announce(fresh);
  }

  announce(events) {
    this.setAttribute("after", this.after);
    this.dispatchEvent(new CustomEvent("run-events", { bubbles: true, detail: { events } }));
    for (const kind of new Set(events.map((event) => event.kind))) {
      const last = events.findLast((event) => event.kind === kind);
      this.dispatchEvent(new CustomEvent(`run-event-${kind}`, { bubbles: true, detail: last }));
    }
    const turn = events.findLast(({ kind }) => kind === "job_finished" || kind === "job_started");
    if (!turn) return;
    this.ended = turn.kind === "job_finished";
    this.show(this.ended ? "ended" : "live");
  }

  closed(socket, code) {
    if (socket !== this.socket) return;
    this.socket = null;
    if (code >= 4400 && code < 4500) return this.show("refused");
    if (this.ended && code === 1000) return this.show("ended");
    this.staleness ??= setTimeout(() => this.show("stale"), STALE_AFTER_SECONDS * 1000);
    if (this.dataset.transport !== "stale") this.show("reconnecting");
    // Half of the wait is random, so that a hundred pages do not come back in the same instant.
    this.retry = setTimeout(() => this.connect(), this.wait * (500 + 500 * Math.random()));
    this.wait = Math.min(LONGEST_WAIT_SECONDS, this.wait * 2);
  }

  retryNow() {
    if (this.socket || document.hidden || this.dataset.transport === "refused") return;
    if (this.ended && this.dataset.transport === "ended") return;
    clearTimeout(this.retry);
    this.connect();
  }

  show(state) {
    this.dataset.transport = state;
    this.text.textContent = WORDS[state];
  }
}

customElements.define("live-run", LiveRun);
