/* <pick-rows>: rows with a checkbox. One box chooses them all; the bar below shows how many are chosen
   and stays away while none is. */
class PickRows extends HTMLElement {
  connectedCallback() {
    this.addEventListener("change", (event) => this.changed(event.target));
    this.show();
  }

  boxes() {
    return [...this.querySelectorAll('tbody input[type="checkbox"]')];
  }

  changed(box) {
    if (box.matches("[data-pick-all]")) for (const one of this.boxes()) one.checked = box.checked;
    this.show();
  }

  show() {
    const boxes = this.boxes();
    const chosen = boxes.filter((box) => box.checked).length;
    const all = this.querySelector("[data-pick-all]");
    if (!all) return;
    all.checked = chosen > 0 && chosen === boxes.length;
    all.indeterminate = chosen > 0 && chosen < boxes.length;
    this.querySelector(".bulk").hidden = chosen === 0;
    this.querySelector("[data-pick-count]").textContent = chosen === 1 ? "1 run chosen" : `${chosen} runs chosen`;
  }
}

customElements.define("pick-rows", PickRows);
