/* <live-run src="/ws/..." after="N" status="running">: a run's events, gapless and once.

   Opens a WebSocket at src?after=N and gets messages {"events": [...], "seq": last, "status": the run's}.
   It keeps the last seq, drops what it has seen, and reconnects after it with back-off. It dispatches,
   bubbling,
     run-events          detail {events}, for charts and progress
     run-event-<kind>    detail the last event of that kind in a message, once a message, for htmx
                         (hx-trigger="run-event-health from:body")
     run-status          detail {status}, when the run's status is another
   and shows the transport's state as a dot with a word. What events mean it does not know. */
import { element } from "./dom.js";

const FIRST_WAIT_SECONDS = 0.5;
const LONGEST_WAIT_SECONDS = 15;
const STALE_AFTER_SECONDS = 12;
/* A socket that was silent for longer while the page slept may be dead without having said so. */
const TRUSTED_SECONDS = 30;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const WORDS = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  stale: "Stale: no contact with the server",
  ended: "Complete",
};
const REFUSED = { 4401: "Logged out: log in again", 4404: "This run is gone or hidden from you" };

class LiveRun extends HTMLElement {
  connectedCallback() {
    this.after = Number(this.getAttribute("after") ?? 0);
    this.status = this.getAttribute("status");
    this.text = element("span", { role: "status" });
    this.replaceChildren(
      element("span", { className: "transport" }, [
        element("span", { className: "transport-dot", "aria-hidden": "true" }),
        this.text,
      ]),
    );
    this.wait = FIRST_WAIT_SECONDS;
    this.lastMet = 0;
    this.wake = () => this.retryNow();
    this.cut = () => this.lost();
    addEventListener("online", this.wake);
    addEventListener("offline", this.cut);
    document.addEventListener("visibilitychange", this.wake);
    this.show("connecting");
    this.connect();
  }

  disconnectedCallback() {
    removeEventListener("online", this.wake);
    removeEventListener("offline", this.cut);
    document.removeEventListener("visibilitychange", this.wake);
    clearTimeout(this.retry);
    clearTimeout(this.staleness);
    this.leave();
  }

  connect() {
    const url = new URL(this.getAttribute("src"), location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("after", this.after);
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.addEventListener("message", (message) => this.received(socket, message));
    socket.addEventListener("close", (event) => this.closed(socket, event.code));
  }

  get ended() {
    return ENDED.has(this.status);
  }

  received(socket, message) {
    if (socket !== this.socket) return;
    const { events, seq, status } = JSON.parse(message.data);
    this.met();
    const fresh = [];
    for (const event of events) {
      if (event.seq <= this.after) continue;
      this.after = event.seq;
      fresh.push(event);
    }
    this.after = Math.max(this.after, seq ?? 0);
    if (fresh.length) this.announce(fresh);
    if (status && status !== this.status) this.turn(status);
  }

  /* Only a message proves the way: a server in trouble may accept a socket and close it at once. */
  met() {
    this.wait = FIRST_WAIT_SECONDS;
    this.lastMet = Date.now();
    clearTimeout(this.staleness);
    this.staleness = null;
    this.show(this.ended ? "ended" : "live");
  }

  turn(status) {
    this.status = status;
    this.setAttribute("status", status);
    this.show(this.ended ? "ended" : "live");
    this.dispatchEvent(new CustomEvent("run-status", { bubbles: true, detail: { status } }));
  }

  announce(events) {
    this.setAttribute("after", this.after);
    this.dispatchEvent(new CustomEvent("run-events", { bubbles: true, detail: { events } }));
    for (const kind of new Set(events.map((event) => event.kind))) {
      const last = events.findLast((event) => event.kind === kind);
      this.dispatchEvent(new CustomEvent(`run-event-${kind}`, { bubbles: true, detail: last }));
    }
  }

  closed(socket, code) {
    if (socket !== this.socket) return;
    this.socket = null;
    if (code >= 4400 && code < 4500) return this.show("refused", REFUSED[code]);
    this.staleness ??= setTimeout(() => this.show("stale"), STALE_AFTER_SECONDS * 1000);
    if (this.dataset.transport !== "stale") this.show("reconnecting");
    // Half of the wait is random, so that a hundred pages do not come back in the same instant.
    this.retry = setTimeout(() => this.connect(), this.wait * (500 + 500 * Math.random()));
    this.wait = Math.min(LONGEST_WAIT_SECONDS, this.wait * 2);
  }

  retryNow() {
    const refused = this.dataset.transport === "refused";
    const trusted = this.socket && Date.now() - this.lastMet < TRUSTED_SECONDS * 1000;
    if (document.hidden || refused || trusted) return;
    clearTimeout(this.retry);
    this.leave();
    this.connect();
  }

  lost() {
    if (!this.socket) return;
    const socket = this.socket;
    this.closed(socket, 1006);
    socket.close();
  }

  leave() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  show(state, words = WORDS[state] ?? "Refused: reload the page") {
    this.dataset.transport = state;
    this.text.textContent = words;
  }
}

customElements.define("live-run", LiveRun);
