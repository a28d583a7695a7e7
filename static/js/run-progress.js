/* <run-progress steps-by-stage="40,20" done="12" status="running">: steps done of all, and the time left.

   Follows the document's `run-events` and `run-status`. Before the first step it shows what the job says of its long
   work (loading, building); the time left comes from the latest steps' own times. */
import { element } from "./dom.js";

const WINDOW = 20;
const WORDS = {
  queued: "Waiting for a worker",
  running: "Starting",
  paused: "Paused",
  succeeded: "Complete",
  failed: "Failed",
  cancelled: "Cancelled",
};

class RunProgress extends HTMLElement {
  connectedCallback() {
    this.plan((this.getAttribute("steps-by-stage") ?? "").split(",").filter(Boolean).map(Number));
    this.done = Number(this.getAttribute("done") ?? 0);
    this.status = this.getAttribute("status") ?? "running";
    this.what = null;
    this.times = [];
    this.count = element("span", { className: "progress-count" });
    this.note = element("span");
    this.bar = element("progress", { "aria-label": "Progress of the run" });
    this.replaceChildren(
      element("div", { className: "progress-line" }, [this.count, this.note]),
      this.bar,
    );
    this.heard = (event) => this.receive(event.detail.events);
    this.turned = (event) => this.turn(event.detail.status);
    document.addEventListener("run-events", this.heard);
    document.addEventListener("run-status", this.turned);
    this.show();
  }

  disconnectedCallback() {
    document.removeEventListener("run-events", this.heard);
    document.removeEventListener("run-status", this.turned);
  }

  turn(status) {
    this.status = status;
    this.show();
  }

  plan(stepsByStage) {
    this.offsets = [];
    this.total = 0;
    for (const steps of stepsByStage) {
      this.offsets.push(this.total);
      this.total += steps;
    }
  }

  receive(events) {
    for (const event of events) this.take(event);
    this.show();
  }

  take(event) {
    const { kind, payload } = event;
    if (kind === "job_started") this.begin(payload.steps_by_stage);
    else if (kind === "stage_started") this.resume(event);
    else if (kind === "progress") this.what = payload;
    else if (kind === "metrics" && event.step !== null) this.step(event);
    else if (kind === "job_finished") this.status = payload.status;
  }

  begin(stepsByStage) {
    this.plan(stepsByStage);
    this.status = "running";
    this.times = [];
  }

  resume({ stage_index: index, payload }) {
    this.what = null;
    this.times = [];
    this.done = (this.offsets[index] ?? 0) + (payload.resumed_from_step ?? 0);
  }

  step(event) {
    this.what = null;
    this.done = (this.offsets[event.stage_index] ?? 0) + event.step;
    this.times.push({ done: this.done, at: Date.parse(event.at) });
    if (this.times.length > WINDOW) this.times.shift();
  }

  secondsLeft() {
    const first = this.times[0];
    const last = this.times.at(-1);
    if (!first || last.done <= first.done) return null;
    const perStep = (last.at - first.at) / 1000 / (last.done - first.done);
    return perStep * (this.total - this.done);
  }

  show() {
    const working = this.status === "running" && this.what;
    const { done, total, unit } = working ? this.what : { ...this, unit: "steps" };
    const known = total ? `${number(done)} of ${number(total)} ${unit}` : `${number(done)} ${unit}`;
    const none = this.offsets.length ? "Nothing is trained" : "No steps yet";
    const counted = working || total || done ? known : none;
    this.count.textContent = working ? `${this.what.what}: ${known}` : counted;
    this.note.textContent = this.said();
    this.fill(done, total, working || this.status === "running");
  }

  said() {
    if (this.status !== "running") return WORDS[this.status];
    const seconds = this.what ? null : this.secondsLeft();
    if (seconds === null) return this.done ? "" : WORDS.running;
    return seconds < 1 ? "Finishing" : `about ${duration(seconds)} left`;
  }

  fill(done, total, moving) {
    if (total) {
      this.bar.max = total;
      this.bar.value = done;
    } else if (moving) this.bar.removeAttribute("value");
    else this.bar.value = this.status === "succeeded" ? this.bar.max : 0;
    this.bar.dataset.tone =
      { failed: "bad", cancelled: "quiet", paused: "quiet" }[this.status] ?? "";
  }
}

const number = (value) => value.toLocaleString("en");

export function duration(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} days`;
}

customElements.define("run-progress", RunProgress);
