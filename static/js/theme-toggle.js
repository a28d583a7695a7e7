/* <theme-toggle>: a button that goes through system, light and dark; theme.js applies and keeps it. */
import { element, icon } from "./dom.js";

const NEXT = { system: "light", light: "dark", dark: "system" };
const ICON = { system: "system", light: "sun", dark: "moon" };
const root = document.documentElement;

class ThemeToggle extends HTMLElement {
  connectedCallback() {
    this.button = element("button", { type: "button", className: "btn btn-quiet btn-icon" });
    this.button.addEventListener("click", () => {
      root.dispatchEvent(
        new CustomEvent("theme-choice", { detail: NEXT[root.dataset.themeChoice] }),
      );
    });
    this.replaceChildren(this.button);
    this.changed = () => this.show();
    root.addEventListener("theme-change", this.changed);
    this.show();
  }

  disconnectedCallback() {
    root.removeEventListener("theme-change", this.changed);
  }

  show() {
    const choice = root.dataset.themeChoice;
    this.button.replaceChildren(icon(ICON[choice]));
    this.button.title = `Theme: ${choice}`;
    this.button.setAttribute("aria-label", `Theme: ${choice}. Change to ${NEXT[choice]}`);
  }
}

customElements.define("theme-toggle", ThemeToggle);
