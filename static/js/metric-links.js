/* Links such as <a href="#loss@40"> point at the chart of a metric and at a step in it, #loss@ at the
   chart alone. Following one, coming back to one, or opening an address with one dispatches

     show-metric         on the document, detail {metric, x}; null where the address names none

   Whatever shows the metric answers. The address keeps the place, so it can be shared and left by going back. */
const NAMED = /^#([a-z][a-z0-9_]*)@(\d*)$/;

function tell() {
  const found = NAMED.exec(location.hash);
  const detail = found && { metric: found[1], x: found[2] ? Number(found[2]) : null };
  document.dispatchEvent(new CustomEvent("show-metric", { detail }));
}

/* A link to where the address is already changes nothing that the browser would tell. */
function again(event) {
  const link = event.target.closest?.("a[href^='#']");
  if (link && link.hash === location.hash && NAMED.test(link.hash)) tell();
}

addEventListener("hashchange", tell);
document.addEventListener("click", again);
if (NAMED.test(location.hash)) tell();
