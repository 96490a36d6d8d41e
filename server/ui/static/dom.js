// Elements from values. Text is always a text node: nothing that a store holds is read as HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width%") element.style.width = `${value}%`;
    else if (name === "colour") element.style.background = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export async function ask(path) {
  const reply = await fetch(path, { headers: { Accept: "application/json" } });
  if (reply.ok) return reply.json();
  const said = await reply.text();
  let message = said;
  try { message = JSON.parse(said).error; } catch { /* not from a view: the text itself */ }
  throw new Error(message || `the server answered ${reply.status}`);
}

export function trouble(error) {
  return h("section", { class: "empty", role: "alert" }, h("h1", {}, "This cannot be shown"), h("p", {}, error.message),
    h("p", {}, h("a", { href: "/" }, "All runs")));
}

export function state(run) {
  const quiet = run.state === "running" ? (Date.now() - Date.parse(run.updated)) / 1000 : 0;
  const silent = quiet > 600 ? `, silent for ${duration(quiet)}` : "";
  return h("span", { class: `state ${run.state}${silent ? " silent" : ""}`, title: run.reason || null },
    h("i", { "aria-hidden": "true" }), run.state + silent);
}

export function copyable(text) {
  const button = h("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return h("div", { class: "command" }, h("code", { tabindex: "0" }, text), button);
}

export function table(caption, titles, rows, attributes = {}) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", attributes, h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, rows)));
}

// Numbers. JSON has no NaN and no infinity: they come as text.
export function number(value) {
  if (value === null || value === undefined) return null;
  return typeof value === "number" ? value : Number(value);
}

export function figure(value, digits = 4) {
  const found = number(value);
  if (found === null) return "–";
  if (Number.isNaN(found)) return "NaN";
  if (!Number.isFinite(found)) return found > 0 ? "∞" : "−∞";
  if (Number.isInteger(found) && Math.abs(found) < 1e9) return found.toLocaleString("en");
  const size = Math.abs(found);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? Number(found.toPrecision(3)).toExponential() : found.toPrecision(digits);
  return text.replace("-", "−");
}

export function share(value) {
  const found = number(value);
  return found === null || !Number.isFinite(found) ? figure(value) : found.toFixed(4);
}

export function duration(value) {
  const seconds = number(value);
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`;
  if (seconds < 48 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function bytes(value) {
  const found = number(value);
  if (found === null) return "–";
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (found >= size) return `${(found / size).toPrecision(3)} ${unit}`;
  }
  return `${found} B`;
}

export function moment(text) {
  const at = new Date(text);
  const shown = at.toLocaleString("sv").slice(0, 16);
  return h("time", { datetime: text, title: `${text.slice(0, 19).replace("T", " ")} UTC` }, shown);
}
