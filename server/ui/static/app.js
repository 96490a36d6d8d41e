// Which page this is.

import { fill, h, trouble } from "/static/dom.js";

const page = document.getElementById("page");
const path = window.location.pathname;
const module = ["/compare", "/sweeps", "/models", "/federation"].includes(path) ? path.slice(1) : path.startsWith("/runs/") ? "run" : "runs";

for (const link of document.querySelectorAll("nav a")) {
  const isHere = link.pathname === path || (link.pathname === "/" && module === "run");
  if (isHere) link.setAttribute("aria-current", "page");
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea");
  const search = document.querySelector("input[type=search]");
  if (event.key !== "/" || typing || !search) return;
  event.preventDefault();
  search.focus();
});

try {
  const { show } = await import(`/static/${module}.js`);
  await show(page, (store) => fill(document.getElementById("store"), h("bdi", { title: store }, store)));
} catch (error) {
  fill(page, trouble(error));
} finally {
  page.removeAttribute("aria-busy");
}
