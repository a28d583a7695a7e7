/* <copy-code><pre>...</pre></copy-code>: adds a button that copies the text. */
import { element, icon } from "./dom.js";

class CopyCode extends HTMLElement {
  connectedCallback() {
    if (this.querySelector(":scope > .btn")) return;
    this.label = element("span", { text: "Copy" });
    const button = element("button", { type: "button", className: "btn btn-sm" }, [
      icon("copy"),
      this.label,
    ]);
    button.addEventListener("click", () => this.copy());
    this.querySelector("pre").tabIndex = 0;
    this.append(button);
  }

  async copy() {
    const pre = this.querySelector("pre");
    try {
      await navigator.clipboard.writeText(pre.textContent);
      this.say("Copied");
    } catch {
      getSelection().selectAllChildren(pre);
      this.say("Selected");
    }
  }

  say(text) {
    this.label.textContent = text;
    setTimeout(() => (this.label.textContent = "Copy"), 2000);
  }
}

customElements.define("copy-code", CopyCode);
