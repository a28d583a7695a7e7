/* <theme-toggle>: a button that goes through system, light and dark, and remembers the choice. */
import { icon } from "./dom.js";

const NEXT = { system: "light", light: "dark", dark: "system" };
const ICON = { system: "system", light: "sun", dark: "moon" };

class ThemeToggle extends HTMLElement {
  connectedCallback() {
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.className = "btn btn-quiet btn-icon";
    this.button.addEventListener("click", () => this.choose());
    this.replaceChildren(this.button);
    this.show();
  }

  choose() {
    const choice = NEXT[document.documentElement.dataset.themeChoice ?? "system"];
    try {
      if (choice === "system") localStorage.removeItem("stillroom.theme");
      else localStorage.setItem("stillroom.theme", choice);
    } catch {
      document.documentElement.dataset.bsTheme = choice;
    }
    document.documentElement.dispatchEvent(new CustomEvent("theme-choice"));
    this.show();
  }

  show() {
    const choice = document.documentElement.dataset.themeChoice ?? "system";
    this.button.replaceChildren(icon(ICON[choice]));
    this.button.title = `Theme: ${choice}`;
    this.button.setAttribute("aria-label", `Theme: ${choice}. Change to ${NEXT[choice]}`);
  }
}

customElements.define("theme-toggle", ThemeToggle);
