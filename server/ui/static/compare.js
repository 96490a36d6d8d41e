// Runs over one another, what they took to get somewhere, and in which settings they differ.

import { ask, bytes, duration, figure, fill, h, share, state, table } from "/static/dom.js";
import { card, colours, draw, line, unmeasurable } from "/static/charts.js";
import { append, bestOf, numbered } from "/static/run.js";
import { listen } from "/static/live.js";

const AXES = { round: "round", seconds: "time", bytes: "sent" };
const names = new URLSearchParams(window.location.search).getAll("run");

export async function show(page, named) {
  document.title = "Compare · Umbel";
  if (!names.length) {
    named((await ask("/api/runs")).store);
    fill(page, h("h1", {}, "Compare"), h("section", { class: "empty" }, h("h2", {}, "Nothing is chosen"),
      h("p", {}, "Mark runs on the page of runs, and press ", h("b", {}, "Compare"), "."), h("p", {}, h("a", { class: "button", href: "/" }, "Choose runs"))));
    return;
  }
  const found = await ask(`/api/compare?${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`);
  named(found.store);
  for (const one of found.runs) one.rounds = numbered(one.rounds);
  const metrics = [...new Set(found.runs.flatMap((one) => Object.keys(one.rounds.metrics)))];
  const view = { metric: ["test_accuracy", "validation_accuracy"].find((name) => metrics.includes(name)) ?? metrics[0], over: "round", target: "", mode: "" };
  const parts = controls(metrics, view, () => render(found, parts, view));
  fill(page, h("div", { class: "heading" }, h("h1", {}, "Compare"), h("a", { class: "button quiet", href: "/" }, "Choose runs")),
    h("div", { class: "filters" }, parts.controls), h("div", { class: "charts one" }, parts.chart), parts.reached, differences(found));
  if (metrics.length) render(found, parts, view); else parts.chart.replaceWith(h("section", { class: "empty" }, h("h2", {}, "No round is finished yet")));
  for (const one of found.runs.filter(({ run }) => run.state === "running").slice(0, 4)) {
    listen(() => `/events/${encodeURIComponent(one.run.run)}?after=${one.rounds.round.at(-1) ?? 0}`, (news) => {
      one.run = news.run;
      append(one.rounds, numbered(news.rounds));
      render(found, parts, view);
    });
  }
}

function controls(metrics, view, changed) {
  const choose = (label, values, name) => {
    const select = h("select", { id: `choose-${name}` }, Object.entries(values).map(([value, shown]) => h("option", { value, selected: view[name] === value }, shown)));
    select.addEventListener("change", () => { view[name] = select.value; if (name === "metric") view.target = view.mode = ""; changed(); });
    return h("label", {}, `${label} `, select);
  };
  const target = h("input", { type: "number", step: "any", id: "target" });
  target.addEventListener("change", () => { view.target = target.value; changed(); });
  const mode = h("select", { "aria-label": "Which way the metric is to go" },
    Object.entries({ "": "which way?", max: "at least", min: "at most" }).map(([value, shown]) => h("option", { value }, shown)));
  mode.addEventListener("change", () => { view.mode = mode.value; changed(); });
  return { target, mode, chart: card("compare", "metric"), reached: h("section", { class: "section" }),
    controls: [choose("Metric", Object.fromEntries(metrics.map((name) => [name, name])), "metric"), choose("over", AXES, "over"), h("span", { class: "together" }, "Target ", mode, " ", target)] };
}

async function render(found, parts, view) {
  const { metric, over } = view, shades = () => colours();
  parts.chart.querySelector("figcaption").textContent = metric;
  const title = { round: "round", seconds: "time, s", bytes: "sent, bytes" }[over];
  draw(parts.chart, () => ({ note: found.runs.map((one) => unmeasurable(one.rounds, [metric])).filter(Boolean).join("; "), layout: { height: 380, hovermode: "closest", xaxis: { title, ...(over === "bytes" ? { tickformat: ".3~s" } : {}) }, legend: { y: -0.18, yanchor: "top", orientation: "h" } },
    traces: found.runs.filter((one) => one.rounds.metrics[metric]).map((one) => line(far(one.rounds, over), one.rounds.metrics[metric], label(one.run),
      { line: { color: shades()[found.runs.indexOf(one)] } })) }));
  view.mode ||= found.runs.map((one) => one.directions[metric]).find(Boolean) ?? "";
  parts.mode.value = view.mode;
  const direction = view.mode;
  if (view.target === "" && direction) view.target = weakest(found, metric, direction);
  parts.target.value = view.target;
  const reached = view.target === "" || !direction ? [] : await reach(found, metric, view.target, direction);
  fill(parts.reached, h("h2", {}, direction ? "What it took" : "How they ended"),
    direction && view.target !== "" ? h("p", { class: "quiet" }, `Until ${metric} was ${direction === "min" ? "at most" : "at least"} ${figure(Number(view.target))}.`) : null,
    table("What it took", ["run", "state", "last", "best", "rounds to target", "time", "sent"], found.runs.map((one, place) => tookRow(one, metric, direction, reached[place], shades()[place]))));
}

function tookRow(one, metric, direction, reached, shade) {
  const best = bestOf(one.rounds, metric, direction);
  const values = (one.rounds.metrics[metric] ?? []).filter((value) => value !== null);
  const shown = metric.includes("accuracy") ? share : figure;
  return h("tr", {}, h("th", { scope: "row" }, h("i", { class: "swatch", colour: shade, "aria-hidden": "true" }), h("a", { class: "named", title: one.run.experiment, href: `/runs/${encodeURIComponent(one.run.run)}` }, one.run.experiment), h("small", {}, one.run.run)),
    h("td", {}, state(one.run)), h("td", {}, shown(values.at(-1) ?? null)), h("td", {}, best ? `${shown(best.value)} (round ${best.round})` : "–"),
    h("td", {}, reached ? reached.round : "not reached"), h("td", {}, reached ? duration(reached.seconds) : "–"), h("td", {}, reached ? bytes(reached.bytes) : "–"));
}

async function reach(found, metric, target, mode) {
  const asked = new URLSearchParams([...found.runs.map((one) => ["run", one.run.run]), ["metric", metric], ["target", target], ["mode", mode]]);
  return (await ask(`/api/target?${asked}`)).reached;
}

// The best that every run has reached.
function weakest(found, metric, direction) {
  const bests = found.runs.map((one) => bestOf(one.rounds, metric, direction)).filter(Boolean).map((best) => best.value);
  if (!bests.length) return "";
  const value = direction === "min" ? Math.max(...bests) : Math.min(...bests);
  const step = 1e4; // rounded so that the weakest still reaches it
  return String((direction === "min" ? Math.ceil(value * step) : Math.floor(value * step)) / step);
}

function far(columns, over) {
  if (over === "round") return columns.round;
  const each = columns.round.map((_, place) => over === "seconds" ? columns.seconds[place] + (columns.eval_seconds[place] ?? 0)
    : columns.bytes_up[place] === null ? null : columns.bytes_up[place] + (columns.bytes_down[place] ?? 0));
  let sum = 0;
  return each.map((value) => (value === null || sum === null ? (sum = null) : (sum += value)));
}

function label(run) {
  return `${run.experiment.length > 40 ? `${run.experiment.slice(0, 39)}…` : run.experiment} ${run.run.split("-").at(-1)}`;
}

function differences({ runs, differences: rows }) {
  const content = runs.length < 2 ? h("p", { class: "quiet" }, "Choose another run to see in which settings they differ.")
    : !rows.length ? h("p", { class: "quiet" }, "All settings are the same.")
      : table("Settings that differ", ["setting", ...runs.map(({ run }) => run.run)], rows.map((one) => h("tr", {}, h("th", { scope: "row" }, one.path),
        one.values.map((value) => h("td", {}, value ?? "–")))), { class: "settings" });
  return h("section", { class: "section" }, h("h2", {}, "Settings that differ"), content);
}
