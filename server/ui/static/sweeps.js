// Runs of one experiment as lines over the settings in which they differ, and how much each setting mattered.

import { ask, figure, fill, h, share, state, table } from "/static/dom.js";
import { card, colours, draw, literal, style } from "/static/charts.js";

const asked = new URLSearchParams(window.location.search);
const BEST = 10; // rows of the table

export async function show(page, named) {
  document.title = "Sweeps · Umbel";
  const { experiments, store } = await ask("/api/sweeps");
  named(store);
  if (!experiments.length) {
    fill(page, h("h1", {}, "Sweeps"), h("section", { class: "empty" }, h("h2", {}, "Nothing was tried yet"),
      h("p", {}, "Three runs of an experiment with different settings are drawn here. A search for good ones:"), h("p", { class: "command" }, h("code", {}, "umbel sweep digits_fedavg --param local.learning_rate=0.01:0.5:log --param local.epochs=1:10"))));
    return;
  }
  const view = { experiment: asked.get("experiment") ?? experiments[0].name, metric: asked.get("metric") ?? "" };
  const parts = { controls: h("div", { class: "filters" }), lines: h("div", { class: "charts one" }), bars: h("div", { class: "charts one" }), best: h("section", { class: "section" }) };
  fill(page, h("h1", {}, "Sweeps"), parts.controls, parts.lines, parts.bars, parts.best);
  const look = async () => {
    const found = await ask(`/api/sweep?${new URLSearchParams(Object.entries(view).filter(([, value]) => value))}`);
    history.replaceState(null, "", `/sweeps?${new URLSearchParams({ experiment: found.experiment, metric: found.metric })}`);
    view.metric = found.metric;
    render(found, parts, experiments, view, look);
    await importance(found, parts);
  };
  await look();
}

function render(found, parts, experiments, view, look) {
  const choose = (label, name, values) => {
    const select = h("select", { id: `choose-${name}` }, values.map(([value, shown]) => h("option", { value, selected: view[name] === value }, shown)));
    select.addEventListener("change", () => { view[name] = select.value; if (name === "experiment") view.metric = ""; look(); });
    return h("label", {}, `${label} `, select);
  };
  fill(parts.controls, choose("Experiment", "experiment", experiments.map((one) => [one.name, `${short(one.name, 40)} (${one.runs})`])),
    choose("Metric", "metric", found.metrics.map((name) => [name, name])));
  const ranked = order(found);
  const lines = card("sweep", `${found.runs.length} runs, and the ${found.metric} that each came to`);
  fill(parts.lines, lines);
  draw(lines, () => parallel(found, ranked));
  fill(parts.best, h("h2", {}, found.mode ? "The best" : "The runs"), table("Runs", ["run", "state", found.metric, ...found.axes.map((axis) => axis.path)], ranked.slice(0, BEST).map((run) => h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `/runs/${encodeURIComponent(run.run)}` }, run.run)), h("td", {}, state(run)),
    h("td", {}, (found.metric.includes("accuracy") ? share : figure)(run.value)), run.settings.map((text) => h("td", {}, h("span", { class: "named", title: text }, neat(text))))))));
}

// Optuna is asked for it, which takes a moment the first time.
async function importance(found, parts) {
  const { importance: known } = await ask(`/api/importance?${new URLSearchParams({ experiment: found.experiment, metric: found.metric })}`);
  const shares = Object.entries(known).sort(([, one], [, other]) => one - other);
  if (shares.length) {
    const bars = card("importance", `What mattered: share of the variance of ${found.metric}`);
    fill(parts.bars, bars);
    bars.querySelector(".plot").style.height = `${70 + 32 * shares.length}px`;
    draw(bars, () => ({ layout: { height: 70 + 32 * shares.length, margin: { l: 170, r: 20, t: 6, b: 36 }, xaxis: { range: [0, 1], tickformat: ".0%" }, yaxis: { automargin: true } },
      traces: [{ type: "bar", orientation: "h", x: shares.map(([, value]) => value), y: shares.map(([path]) => path), marker: { color: colours()[0] }, showlegend: false, hovertemplate: "%{y}: %{x:.0%}<extra></extra>" }] }));
  } else fill(parts.bars);
}

// Runs with a number first, the best of them first where it is known which way is better.
function order(found) {
  const sign = found.mode === "min" ? 1 : -1;
  const isNumber = (run) => typeof run.value === "number";
  return [...found.runs].sort((one, other) => isNumber(other) - isNumber(one) || (isNumber(one) ? sign * (one.value - other.value) : 0));
}

function parallel(found, ranked) {
  const drawn = ranked.filter((run) => typeof run.value === "number");
  const values = drawn.map((run) => run.value), low = Math.min(...values), high = Math.max(...values);
  const last = found.axes.length, height = (run) => [...found.axes.map((axis, at) => place(axis, run.settings[at])), high > low ? (run.value - low) / (high - low) : 0.5];
  const traces = drawn.map((run, rank) => ({ type: "scatter", mode: "lines", x: [...Array(last + 1).keys()], y: height(run), showlegend: false, hoverinfo: "text",
    text: found.axes.map((axis, at) => `${run.run}<br>${literal(axis.path)} ${literal(neat(run.settings[at]))}<br>${found.metric} ${figure(run.value)}`).concat(`${run.run}<br>${found.metric} ${figure(run.value)}`),
    opacity: rank === 0 && found.mode ? 1 : 0.45, line: { color: rank === 0 && found.mode ? colours()[1] : colours()[0], width: rank === 0 && found.mode ? 3 : 1.2, dash: run.state === "finished" ? "solid" : "dot" } })).reverse();
  const ticks = [...found.axes.map(marks), values.length ? [[0, figure(low)], [1, figure(high)]] : []];
  const labels = ticks.flatMap((ones, at) => ones.map(([y, text]) => ({ x: at, y, text: literal(short(text, 16)), showarrow: false, xanchor: "left", xshift: 4, font: { size: 11, color: style("--muted") }, bgcolor: style("--card") })));
  const unmeasured = found.runs.length - drawn.length;
  return { traces, note: unmeasured ? `${unmeasured} without a number are not drawn` : "", layout: { height: 380, hovermode: "closest", margin: { l: 30, r: 90, t: 10, b: 70 }, annotations: labels,
    yaxis: { visible: false, range: [-0.05, 1.05] }, xaxis: { tickvals: [...Array(last + 1).keys()], ticktext: [...found.axes.map((axis) => literal(axis.path.replace(".", ".\u200b"))), found.metric].map(wrapped), range: [-0.15, last + 0.15], showgrid: true, gridcolor: style("--muted"), zeroline: false } } };
}

function place(axis, text) {
  if (axis.values) return axis.values.length > 1 ? axis.values.indexOf(text) / (axis.values.length - 1) : 0.5;
  if (axis.low === axis.high) return 0.5;
  const at = axis.log ? Math.log : (value) => value;
  return (at(Number(text)) - at(axis.low)) / (at(axis.high) - at(axis.low));
}

function marks(axis) {
  if (axis.values) return axis.values.slice(0, 12).map((text) => [place(axis, text), text]);
  const between = axis.log ? Math.sqrt(axis.low * axis.high) : (axis.low + axis.high) / 2;
  const middle = [axis.low, axis.high].every(Number.isInteger) ? Math.round(between) : between;
  return [axis.low, middle, axis.high].map((value) => [place(axis, value), figure(value, 3)]);
}

function wrapped(text) {
  return text.length > 14 ? text.replace(/[.\u200b]+/, ".<br>") : text;
}

function neat(text) {
  const value = Number(text);
  return text.trim() !== "" && Number.isFinite(value) && text.length > 8 ? figure(value) : text;
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
