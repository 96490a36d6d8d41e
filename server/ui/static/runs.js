// All runs: filtered, sorted, chosen to be compared; what changes in the store changes here.

import { ask, bytes, duration, figure, fill, h, moment, number, share, state } from "/static/dom.js";
import { listen } from "/static/live.js";

const STEP = 100; // rows at first, and with each press of the button
const STATES = ["running", "finished", "stopped", "failed", "paused"];
const COLUMNS = [
  ["experiment", "Run", (run) => run.experiment],
  ["state", "State", (run) => run.state],
  ["rounds", "Rounds", (run) => run.rounds_done],
  ["accuracy", "Accuracy", (run) => number(run.accuracy)],
  ["loss", "Loss", (run) => number(run.loss)],
  ["epsilon", "ε", (run) => number(run.epsilon)],
  ["seconds", "Duration", (run) => number(run.seconds)],
  ["bytes", "Sent", (run) => number(run.bytes)],
  ["created", "Begun", (run) => run.created],
];
const NUMBERS = new Set(["rounds", "accuracy", "loss", "epsilon", "seconds", "bytes"]);

const runs = new Map();
const chosen = new Set();
const query = new URLSearchParams(window.location.search);
const view = { text: query.get("q") ?? "", state: query.get("state") ?? "", sort: query.get("sort") ?? "created",
  down: query.get("down") !== "0", count: STEP };

export async function show(page, named) {
  const { runs: found, store } = await ask("/api/runs");
  named(store);
  for (const run of found) runs.set(run.run, run);
  const parts = layout(page);
  const render = () => renderAll(parts);
  parts.search.addEventListener("input", () => change({ text: parts.search.value, count: STEP }, render));
  parts.more.addEventListener("click", () => change({ count: view.count + STEP * 5 }, render));
  parts.render = render;
  render();
  listen(() => `/events?mark=${encodeURIComponent(last())}`, (news) => {
    for (const run of news.runs) runs.set(run.run, run);
    for (const run of news.gone) runs.delete(run);
    render();
  });
  const { totals } = await ask("/api/totals");
  for (const [run, sums] of Object.entries(totals)) if (runs.has(run)) Object.assign(runs.get(run), sums);
  render();
}

function last() {
  return [...runs.values()].reduce((latest, run) => (run.updated > latest ? run.updated : latest), "");
}

function change(values, render) {
  Object.assign(view, values);
  const said = new URLSearchParams();
  if (view.text) said.set("q", view.text);
  if (view.state) said.set("state", view.state);
  if (view.sort !== "created") said.set("sort", view.sort);
  if (!view.down) said.set("down", "0");
  window.history.replaceState(null, "", `/${said.size ? `?${said}` : ""}`);
  render();
}

function layout(page) {
  const parts = {
    search: h("input", { type: "search", placeholder: "Filter by name, run or state", "aria-label": "Filter runs", value: view.text }),
    chips: h("div", { class: "chips", role: "group", "aria-label": "State" }),
    compare: h("a", { class: "button", href: "/compare" }),
    head: h("tr"), body: h("tbody"),
    more: h("button", { type: "button", class: "more" }),
    empty: h("div"), sorts: h("select", { "aria-label": "Sort by" }),
  };
  const tableOf = h("table", { class: "runs" }, h("caption", { class: "hidden" }, "Runs"), h("thead", {}, parts.head), parts.body);
  fill(page, h("div", { class: "heading" }, h("h1", {}, "Runs"), parts.compare),
    h("div", { class: "filters" }, parts.search, parts.chips, h("label", { class: "sorts" }, "Sort by ", parts.sorts)),
    tableOf, parts.empty, parts.more);
  parts.table = tableOf;
  return parts;
}

function renderAll(parts) {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = [...runs.values()].filter((run) => {
    const text = `${run.experiment} ${run.run} ${run.state} ${run.epsilon === null ? "" : "private"}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const wanted = matching.filter((run) => !view.state || run.state === view.state).sort(order());
  renderChips(parts, matching);
  renderHead(parts);
  const focused = document.activeElement?.closest?.("tr")?.dataset.run;
  const place = focused ? [...document.activeElement.closest("tr").querySelectorAll("a, input")].indexOf(document.activeElement) : -1;
  arrange(parts.body, wanted.slice(0, view.count).map((run) => row(run, parts)));
  if (place >= 0) parts.body.querySelector(`tr[data-run="${CSS.escape(focused)}"]`)?.querySelectorAll("a, input")[place]?.focus();
  const hidden = wanted.length - view.count;
  parts.more.hidden = hidden <= 0;
  parts.more.textContent = `Show more: ${hidden} of ${wanted.length} are not shown`;
  parts.table.hidden = !wanted.length;
  fill(parts.empty, wanted.length ? null : nothing());
  renderCompare(parts);
}

function nothing() {
  if (runs.size) {
    return h("section", { class: "empty" }, h("h2", {}, "No run is like that"), h("p", {}, "Change the words or the state above."));
  }
  return h("section", { class: "empty" }, h("img", { src: "/static/umbel.svg", alt: "", width: 64, height: 64 }),
    h("h2", {}, "No runs yet"), h("p", {}, "Begin one in a terminal; it appears here by itself."),
    h("div", { class: "command" }, h("code", {}, "umbel run")));
}

function order() {
  const value = COLUMNS.find(([name]) => name === view.sort)?.[2] ?? ((run) => run.created);
  const sign = view.down ? -1 : 1;
  const absent = (found) => found === null || found === undefined || Number.isNaN(found);
  return (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (absent(a) || absent(b)) return absent(a) - absent(b) || (one.created < other.created ? 1 : -1);
    return a < b ? -sign : a > b ? sign : one.created < other.created ? 1 : -1;
  };
}

function renderChips(parts, matching) {
  const chip = (name, label, count) => h("button", { type: "button", class: "chip", "aria-pressed": String(view.state === name),
    onclick: () => { change({ state: name, count: STEP }, parts.render); parts.chips.querySelector("[aria-pressed=true]").focus(); } },
  label, h("span", { class: "count" }, count));
  const counts = STATES.map((name) => [name, matching.filter((run) => run.state === name).length]);
  const shown = counts.filter(([name, count]) => count || name === view.state);
  fill(parts.chips, chip("", "all", matching.length), shown.map(([name, count]) => chip(name, name, count)));
}

function renderHead(parts) {
  const sorted = (name) => (view.sort === name ? (view.down ? "descending" : "ascending") : null);
  const by = (name) => change(view.sort === name ? { down: !view.down } : { sort: name, down: NUMBERS.has(name) || name === "created" }, parts.render);
  fill(parts.head, h("th", { scope: "col", class: "choose" }, h("span", { class: "hidden" }, "Compare")),
    COLUMNS.map(([name, title]) => h("th", { scope: "col", class: NUMBERS.has(name) ? "number" : null, "aria-sort": sorted(name) },
      h("button", { type: "button", onclick: () => { by(name); parts.head.querySelector(`[data-sort=${name}]`).focus(); }, "data-sort": name }, title))));
  fill(parts.sorts, COLUMNS.map(([name, title]) => h("option", { value: name, selected: view.sort === name }, title)));
  parts.sorts.onchange = () => by(parts.sorts.value);
}

// Rows that are where they belong are not touched: whoever is at one of them stays there.
function arrange(body, elements) {
  elements.forEach((element, place) => {
    if (body.children[place] !== element) body.insertBefore(element, body.children[place] ?? null);
  });
  while (body.children.length > elements.length) body.lastElementChild.remove();
}

// Rows by run, each with what it shows: one that would look the same stays the same element.
const rows = new Map();

function row(run, parts) {
  const key = JSON.stringify(run);
  if (rows.get(run.run)?.key !== key) rows.set(run.run, { key, element: newRow(run, parts) });
  return rows.get(run.run).element;
}

function newRow(run, parts) {
  const choose = h("input", { type: "checkbox", "aria-label": `Compare ${run.run}`, checked: chosen.has(run.run) });
  choose.addEventListener("change", () => {
    if (choose.checked) chosen.add(run.run); else chosen.delete(run.run);
    renderCompare(parts);
  });
  const cell = (title, content, name = "number") => h("td", { class: name, "data-title": title }, content);
  const done = run.rounds_planned ? (100 * run.rounds_done) / run.rounds_planned : 0;
  return h("tr", { "data-run": run.run },
    h("td", { class: "choose" }, choose),
    h("td", { class: "name" }, h("a", { href: `/runs/${encodeURIComponent(run.run)}`, title: run.experiment }, run.experiment), h("small", {}, run.run)),
    cell("State", state(run), "status"),
    cell("Rounds", [`${run.rounds_done} / ${run.rounds_planned}`, run.state === "running"
      ? h("span", { class: "bar", "aria-hidden": "true" }, h("span", { "width%": done })) : null], "number rounds"),
    cell("Accuracy", share(run.accuracy)), cell("Loss", figure(run.loss)),
    cell("ε", run.epsilon === null ? "–" : figure(run.epsilon, 3)),
    cell("Duration", "seconds" in run ? duration(run.seconds) : "…"), cell("Sent", "bytes" in run ? bytes(run.bytes) : "…"),
    cell("Begun", moment(run.created), "begun"));
}

function renderCompare(parts) {
  const count = chosen.size;
  parts.compare.hidden = count < 1;
  parts.compare.textContent = count === 1 ? "Choose another run to compare" : `Compare ${count} runs`;
  parts.compare.href = `/compare?${[...chosen].map((run) => `run=${encodeURIComponent(run)}`).join("&")}`;
}
