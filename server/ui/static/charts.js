// Charts by the Plotly that its Python package carries, in the colours of the page.

import { h } from "/static/dom.js";

const COLOURS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#b8559a", "#b07800", "#2d8fc4", "#5a4fcf", "#7a5c3e", "#c2304a", "#3f7d20", "#4a6274", "#000000"],
  dark: ["#56a9e0", "#f08a4b", "#3fc79a", "#dd8fc0", "#e6b450", "#8fd0f5", "#a9a1ff", "#c9a27e", "#f07a8c", "#93c76b", "#a5b8c6", "#ffffff"],
};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map(); // by element: what draws it anew
let loading = null;

dark.addEventListener("change", () => drawn.forEach((draw) => draw()));

export function colours() {
  return COLOURS[dark.matches ? "dark" : "light"];
}

export function colour(name) {
  const [test, validation, other] = colours();
  return { test, validation, train: style("--muted") }[name] ?? other;
}

export function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/plotly.js" });
    script.addEventListener("load", () => resolve(window.Plotly ?? window.moduleName));
    script.addEventListener("error", () => reject(new Error("the charts could not be loaded")));
    document.head.append(script);
  });
  return loading;
}

// A card with a title and a chart in it. `draw(card, …)` fills it; what it says stands below the chart.
export function card(name, title) {
  return h("figure", { class: "card chart", "data-chart": name },
    h("figcaption", {}, title), h("div", { class: "plot", role: "img", "aria-label": title }), h("p", { class: "note" }));
}

// describe: returns { traces, layout, note } in the colours of the moment.
export function draw(figure, describe) {
  const element = figure.querySelector(".plot");
  const again = async () => {
    const { traces, layout = {}, note = "" } = describe();
    figure.querySelector(".note").textContent = note;
    const shown = traces.filter((trace) => trace.showlegend !== false).length;
    // A legend takes a line for each name where the page is narrow, and may not take them from the curves.
    if (!layout.height && element.clientWidth < 420 && shown > 3) element.style.height = `${270 + 18 * (shown - 2)}px`;
    const library = await plotly();
    await library.react(element, traces, themed(layout), { displayModeBar: false, responsive: true });
  };
  drawn.set(element, again);
  return again();
}

function themed(layout) {
  const ink = style("--ink"), muted = style("--muted"), line = style("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, tickfont: { color: muted, size: 11 },
    title: { font: { color: muted, size: 11 } }, automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = layout;
  return {
    margin: { l: 46, r: 10, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", color: ink, size: 12 }, hovermode: "x unified",
    hoverlabel: { bgcolor: style("--card"), bordercolor: line, font: { color: ink, size: 12 } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11, color: muted } },
    showlegend: true, dragmode: false, ...rest,
    xaxis: { ...axis, showgrid: false, zeroline: false, fixedrange: true, ...xaxis, title: { ...axis.title, ...title(xaxis) } },
    yaxis: { ...axis, fixedrange: true, ...yaxis, title: { ...axis.title, ...title(yaxis) } },
  };
}

function title(axis) {
  return typeof axis.title === "string" ? { text: axis.title } : axis.title ?? {};
}

// Plotly reads some tags in what it writes: a name is to stay a name.
export function literal(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

// A line of numbers over rounds: dots where there are few, gaps where nothing was measured are bridged.
export function line(x, y, name, more = {}) {
  const measured = y.filter((value) => value !== null).length;
  return { x, y: y.map((value) => (Number.isFinite(value) ? value : null)), name: literal(name), type: "scatter",
    mode: measured <= 30 ? "lines+markers" : "lines", connectgaps: true, ...more,
    line: { width: 2, ...more.line }, marker: { size: measured === 1 ? 8 : 5, ...more.marker } };
}

export function rounds(columns) {
  const few = columns.round.length <= 10;
  return { title: "round", ...(few ? { dtick: 1 } : {}), tickformat: "d",
    ...(columns.round.length === 1 ? { range: [columns.round[0] - 1, columns.round[0] + 1] } : {}) };
}

// What a chart cannot draw is said.
export function unmeasurable(columns, names) {
  const found = names.flatMap((name) => {
    const first = (columns.metrics[name] ?? []).findIndex((value) => value !== null && !Number.isFinite(value));
    return first < 0 ? [] : [`${name} is not a finite number from round ${columns.round[first]} on`];
  });
  return found.join("; ");
}
