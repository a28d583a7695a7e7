/* <confirm-button question="Cancel this run?"><button ...></confirm-button>: the first click asks,
   a second within five seconds acts. Works for forms and for htmx, since it stops the first click. */
class ConfirmButton extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => this.clicked(event), { capture: true });
    this.addEventListener("focusout", () => this.reset());
  }

  clicked(event) {
    if (this.asking) return this.reset();
    event.preventDefault();
    event.stopImmediatePropagation();
    this.ask(this.querySelector("button"));
  }

  ask(button) {
    this.asking = { button, content: [...button.childNodes] };
    button.replaceChildren(this.getAttribute("question") ?? "Sure? Click again");
    this.timer = setTimeout(() => this.reset(), 5000);
  }

  reset() {
    clearTimeout(this.timer);
    this.asking?.button.replaceChildren(...this.asking.content);
    this.asking = null;
  }
}

customElements.define("confirm-button", ConfirmButton);
