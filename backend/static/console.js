"use strict";
// A part of a page that is loaded again replaces itself, which would take the focus from whoever is in it, and
// close what they have opened. So it waits until they have left it. htmx's own filters need eval.
function isInUse(part) {
  return part.contains(document.activeElement) || part.querySelector("details[open]") !== null;
}
document.addEventListener("htmx:beforeRequest", (event) => {
  if (isInUse(event.detail.elt)) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (isInUse(event.detail.target)) event.detail.shouldSwap = false;
});
