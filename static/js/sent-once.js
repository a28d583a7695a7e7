/* A form that is being sent says so on its button, and is not sent a second time by a second press.
   Forms that htmx sends are its own to mark. */
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  if (form.hasAttribute("data-sent")) return event.preventDefault();
  form.setAttribute("data-sent", "");
  event.submitter?.setAttribute("aria-busy", "true");
});

/* A page that the browser kept and brings back has sent nothing yet. */
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    form.removeAttribute("data-sent");
    for (const button of form.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  }
});
