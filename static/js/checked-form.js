/* <checked-form src="/recipes/check/"><form>...</form></checked-form>: while somebody types, sends the
   form and shows each fault at its field, whose name is its key in the answer {faults: {name: text}}. */
import { element, icon } from "./dom.js";

const PAUSE_MILLISECONDS = 350;

class CheckedForm extends HTMLElement {
  connectedCallback() {
    this.addEventListener("input", () => this.typed());
  }

  typed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), PAUSE_MILLISECONDS);
  }

  async check() {
    this.asked?.abort();
    this.asked = new AbortController();
    const body = new FormData(this.querySelector("form"));
    try {
      const answer = await fetch(this.getAttribute("src"), {
        method: "POST",
        body,
        signal: this.asked.signal,
      });
      if (answer.ok) this.show((await answer.json()).faults);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  }

  show(faults) {
    for (const field of this.querySelectorAll(".field")) {
      const input = field.querySelector("input, select, textarea");
      if (input) this.mark(field, input, faults[input.name]);
    }
  }

  mark(field, input, text) {
    field.querySelector(":scope > .field-error")?.remove();
    field.toggleAttribute("data-invalid", Boolean(text));
    if (!text) return input.removeAttribute("aria-invalid");
    input.setAttribute("aria-invalid", "true");
    const list = element("ul", {}, [element("li", { text })]);
    field.append(
      element("div", { className: "field-error", role: "alert" }, [icon("warning"), list]),
    );
    field.closest("details")?.setAttribute("open", "");
  }
}

customElements.define("checked-form", CheckedForm);
