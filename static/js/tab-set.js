/* <tab-set>: buttons with role="tab" and aria-controls show their panels; arrow keys move; the chosen
   tab stands in the address, so that a reload and a shared link keep it. A panel opens for whatever in it
   dispatches `reveal`. */
class TabSet extends HTMLElement {
  connectedCallback() {
    this.tabs = [...this.querySelectorAll('[role="tab"]')];
    for (const tab of this.tabs) tab.addEventListener("click", () => this.choose(tab, true));
    this.addEventListener("keydown", (event) => this.move(event));
    this.addEventListener("reveal", (event) => this.open(event.target));
    const wanted = location.hash.slice(1);
    const named = this.tabs.find((tab) => tab.getAttribute("aria-controls") === wanted);
    const marked = this.tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
    this.choose(named ?? marked ?? this.tabs[0], false);
  }

  open(part) {
    const panel = part.closest('[role="tabpanel"]');
    const tab = this.tabs.find((one) => one.getAttribute("aria-controls") === panel?.id);
    if (tab) this.choose(tab, false);
  }

  choose(chosen, remember) {
    for (const tab of this.tabs) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
    }
    if (remember) history.replaceState(null, "", `#${chosen.getAttribute("aria-controls")}`);
  }

  move(event) {
    const at = this.tabs.indexOf(event.target);
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (at < 0 || !by) return;
    const next = this.tabs.at((at + by) % this.tabs.length);
    this.choose(next, true);
    next.focus();
  }
}

customElements.define("tab-set", TabSet);
