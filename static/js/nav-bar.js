/* <nav-bar>: the sidebar; on a narrow screen its button folds the menu. */
class NavBar extends HTMLElement {
  connectedCallback() {
    this.button = this.querySelector(".nav-toggle");
    this.button.addEventListener("click", () => this.fold(!this.hasAttribute("data-open")));
    this.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.fold(false);
    });
  }

  fold(open) {
    this.toggleAttribute("data-open", open);
    this.button.setAttribute("aria-expanded", String(open));
  }
}

customElements.define("nav-bar", NavBar);
