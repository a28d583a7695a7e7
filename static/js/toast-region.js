/* <toast-region>: shows notes on the document's `toast` events, whose detail is
   {text, tone: "info"|"good"|"bad", undo_url}; htmx fires one for a response header HX-Trigger. A click
   on an element with data-toast shows that text. Something sent by htmx that did not arrive, or was
   refused, is told too; what a page only asks for again and again is not. */
import { element, icon } from "./dom.js";

const ICON = { good: "succeeded", bad: "warning", info: "info" };
const FAILURES = ["htmx:responseError", "htmx:sendError"];
const SHOWN_MILLISECONDS = 8000;

class ToastRegion extends HTMLElement {
  connectedCallback() {
    this.setAttribute("aria-live", "polite");
    this.heard = (event) => this.add(event.detail);
    this.clicked = (event) => this.asked(event.target.closest("[data-toast]"));
    this.failed = (event) => this.refused(event.detail);
    document.addEventListener("toast", this.heard);
    document.addEventListener("click", this.clicked);
    for (const type of FAILURES) document.addEventListener(type, this.failed);
  }

  disconnectedCallback() {
    document.removeEventListener("toast", this.heard);
    document.removeEventListener("click", this.clicked);
    for (const type of FAILURES) document.removeEventListener(type, this.failed);
  }

  asked(opener) {
    if (opener) this.add({ text: opener.dataset.toast, undo_url: opener.dataset.undoUrl });
  }

  refused({ xhr, requestConfig }) {
    if (requestConfig.verb === "get") return;
    const reason = xhr.status ? `the server answered ${xhr.status}` : "the server is away";
    this.add({ text: `That did not work: ${reason}. Reload the page and try again.`, tone: "bad" });
  }

  add({ text, tone = "info", undo_url: undoUrl = null }) {
    const note = element("div", { className: "toast-note", "data-tone": tone }, [
      icon(ICON[tone] ?? "info"),
      element("span", { className: "toast-text", text }),
    ]);
    if (undoUrl) note.append(this.button("Undo", "btn btn-sm", () => this.undo(undoUrl, note)));
    const close = this.button("", "btn btn-quiet btn-icon btn-sm", () => note.remove());
    close.setAttribute("aria-label", "Dismiss");
    close.append(icon("close"));
    note.append(close);
    this.append(note);
    this.expire(note);
  }

  expire(note) {
    setTimeout(() => {
      if (note.matches(":hover, :focus-within")) this.expire(note);
      else note.remove();
    }, SHOWN_MILLISECONDS);
  }

  button(text, className, act) {
    const button = element("button", { type: "button", className, text });
    button.addEventListener("click", act);
    return button;
  }

  async undo(url, note) {
    const headers = JSON.parse(document.body.getAttribute("hx-headers") ?? "{}");
    const answer = await fetch(url, { method: "POST", headers });
    note.remove();
    if (answer.ok) location.reload();
    else this.add({ text: `Could not undo: the server answered ${answer.status}.`, tone: "bad" });
  }
}

customElements.define("toast-region", ToastRegion);
