/* The steps that were traced, on a slider: filled marks are those that kept the prompt which is being
   watched. Steps are told by the files that stand for them. */
import { element, icon } from "./dom.js";

const MOST_MARKS = 80;

export class TokenSteps {
  constructor({ choose }) {
    this.choose = choose;
    this.slider = element("input", { className: "step-slider", type: "range", min: "0", step: "1", "aria-label": "Step" });
    this.slider.addEventListener("input", () => this.moved());
    this.marks = element("div", { className: "step-marks", "aria-hidden": "true" });
    this.place = element("output", { className: "step-place" });
    this.said = element("span", { className: "step-said" });
    this.before = this.button("right", "Earlier step with this prompt", -1);
    this.before.classList.add("step-back");
    this.after = this.button("right", "Later step with this prompt", 1);
    this.newest = element("button", { className: "btn btn-sm step-newest", type: "button" });
    this.newest.addEventListener("click", () => this.choose(this.files.at(-1)));
    this.node = element("div", { className: "token-steps" }, [
      this.place,
      this.before,
      element("div", { className: "step-track" }, [this.slider, this.marks]),
      this.after,
      this.said,
      this.newest,
    ]);
  }

  button(name, label, by) {
    const node = element("button", { className: "btn btn-sm btn-icon", type: "button", "aria-label": label, title: label }, [icon(name)]);
    node.addEventListener("click", () => this.choose(this.next(by)));
    return node;
  }

  moved() {
    this.choose(this.files[Number(this.slider.value)]);
  }

  show(files, file, watched) {
    this.files = files;
    this.file = file;
    this.prompt = watched?.prompt ?? null;
    const at = files.indexOf(file);
    const staged = files.some(({ stage_index: stage }) => stage !== files[0].stage_index);
    const name = ({ step, stage_index: stage }) => (staged ? `stage ${stage + 1}, step ${step}` : `step ${step}`);
    this.slider.max = files.length - 1;
    this.slider.value = at;
    this.slider.disabled = files.length < 2;
    this.slider.setAttribute("aria-valuetext", `${name(file)}${this.here(file) === false ? ", this prompt was not traced" : ""}`);
    this.place.textContent = name(file).replace(/^s/, "S");
    this.said.textContent = this.summary();
    this.marks.replaceChildren(...(files.length > MOST_MARKS ? [] : files.map((one) => this.mark(one))));
    this.before.disabled = !this.next(-1);
    this.after.disabled = !this.next(1);
    this.newest.hidden = at === files.length - 1;
    this.newest.textContent = `Newest: ${name(files.at(-1))}`;
  }

  mark(file) {
    const node = element("span", { className: "step-tick", title: `Step ${file.step}` });
    node.toggleAttribute("data-kept", this.here(file) === true);
    node.toggleAttribute("data-current", file === this.file);
    return node;
  }

  /* Whether the file keeps the prompt; null where that is not known. */
  here({ prompts }) {
    return this.prompt === null || !prompts ? null : prompts.includes(this.prompt);
  }

  summary() {
    if (this.prompt === null) return "";
    const kept = this.files.filter((file) => this.here(file));
    return `Prompt ${this.prompt} is in ${kept.length} of ${this.files.length} traces`;
  }

  /* The next file in a direction that keeps the prompt, or may. */
  next(by) {
    const at = this.files.indexOf(this.file);
    const ahead = by > 0 ? this.files.slice(at + 1) : this.files.slice(0, at).reverse();
    return ahead.find((file) => this.here(file) !== false);
  }

  /* The nearest files on both sides that keep the prompt. */
  nearest() {
    return [this.next(-1), this.next(1)].filter((file) => file && this.here(file));
  }
}
