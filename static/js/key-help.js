/* <key-help>: the list of keyboard shortcuts, and the shortcuts themselves. A link or button is reached
   by the keys in its data-key ("n", "g r"); j and k walk the rows of the page's first table. */
const SEQUENCE_MILLISECONDS = 1200;

class KeyHelp extends HTMLElement {
  connectedCallback() {
    this.first = null;
    this.heard = (event) => this.pressed(event);
    this.clicked = (event) => this.opened(event);
    document.addEventListener("keydown", this.heard);
    document.addEventListener("click", this.clicked);
  }

  disconnectedCallback() {
    document.removeEventListener("keydown", this.heard);
    document.removeEventListener("click", this.clicked);
  }

  opened(event) {
    const opener = event.target.closest("[data-open-dialog]");
    if (opener) document.getElementById(opener.dataset.openDialog).showModal();
  }

  pressed(event) {
    const typing = event.target.closest("input, select, textarea, dialog, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const keys = this.first ? `${this.first} ${event.key}` : event.key;
    this.remember(event.key === "g" && !this.first ? "g" : null);
    if (this.act(keys)) event.preventDefault();
  }

  remember(key) {
    clearTimeout(this.timer);
    this.first = key;
    if (key) this.timer = setTimeout(() => (this.first = null), SEQUENCE_MILLISECONDS);
  }

  act(keys) {
    if (keys === "?") return this.querySelector("dialog").showModal() ?? true;
    if (keys === "/") return this.search();
    if (keys === "j" || keys === "k") return this.walk(keys === "j" ? 1 : -1);
    const target = document.querySelector(`[data-key="${CSS.escape(keys)}"]`);
    target?.click();
    return Boolean(target);
  }

  search() {
    const field = document.querySelector('main input[type="search"]');
    field?.focus();
    return Boolean(field);
  }

  walk(by) {
    const links = [...document.querySelectorAll("main a.row-title")];
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))];
    next?.focus();
    return Boolean(next);
  }
}

customElements.define("key-help", KeyHelp);
