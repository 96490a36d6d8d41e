// One run: its curves, what it cost, and what it was made of.

import { ask, bytes, copyable, duration, figure, fill, h, moment, number, share, state, table } from "/static/dom.js";
import { card, colour, colours, draw, line, rounds, style, unmeasurable } from "/static/charts.js";
import { listen } from "/static/live.js";

const GROUPS = ["test", "validation", "train"];
const PERCENTILE = /_p(\d+)$/;
const COMPONENT = /(?:_\d+)+$/; // of a metric whose value is a vector
const MOST = 12; // lines of one chart

export async function show(page, named) {
  const found = await ask(`/api/runs/${encodeURIComponent(decodeURIComponent(window.location.pathname.split("/")[2]))}`);
  found.rounds = numbered(found.rounds);
  named(found.store);
  document.title = `${found.run.experiment} · Umbel`;
  const parts = { head: h("div"), facts: h("dl", { class: "facts" }), charts: h("div", { class: "charts" }), table: h("div") };
  fill(page, parts.head, parts.facts, parts.charts, privacy(found), settings(found), environment(found), repeat(found), everyRound(found, parts));
  const cards = new Map();
  render(found, parts, cards);
  listen(() => `/events/${encodeURIComponent(found.run.run)}?after=${found.rounds.round.at(-1) ?? 0}`, (news) => {
    found.run = news.run;
    found.cluster = news.cluster;
    append(found.rounds, numbered(news.rounds));
    render(found, parts, cards);
  });
}

export function numbered(columns) {
  const values = ({ metrics, ...fields }) => Object.fromEntries(Object.entries(fields).map(([name, column]) => [name, column.map(number)]));
  return { ...values(columns), metrics: values({ ...columns.metrics }) };
}

// Rounds that came twice, as after a connection was lost, are taken once.
export function append(columns, fresh) {
  const last = columns.round.at(-1) ?? 0;
  const from = fresh.round.findIndex((round) => round > last);
  if (from < 0) return;
  const before = columns.round.length, count = fresh.round.length - from;
  for (const name of Object.keys(fresh)) if (name !== "metrics") columns[name].push(...fresh[name].slice(from));
  for (const name of Object.keys(fresh.metrics)) columns.metrics[name] ??= Array(before).fill(null);
  for (const [name, column] of Object.entries(columns.metrics)) {
    column.push(...(fresh.metrics[name]?.slice(from) ?? Array(count).fill(null)));
  }
}

function render(found, parts, cards) {
  fill(parts.head, heading(found));
  fill(parts.facts, facts(found).map(([title, value, more]) => h("div", {}, h("dt", {}, title), h("dd", {}, value), more ? h("dd", { class: "more" }, more) : null)));
  const wanted = charts(found);
  if (!found.rounds.round.length) {
    fill(parts.charts, h("section", { class: "empty" }, h("h2", {}, found.run.state === "running" ? "No round is finished yet" : "No round was finished"),
      h("p", {}, found.run.state === "running" ? "The first one appears here by itself." : "The run ended before its first round was.")));
    return;
  }
  parts.charts.querySelector(".empty")?.remove();
  for (const [name, title, describe] of wanted) {
    if (!cards.has(name)) {
      cards.set(name, card(name, title));
      parts.charts.append(cards.get(name));
    }
    draw(cards.get(name), describe);
  }
  parts.table.dispatchEvent(new Event("rounds"));
}

function heading({ run }) {
  return [h("p", { class: "crumbs" }, h("a", { href: "/" }, "Runs"), " / ", h("code", {}, run.run)),
    h("div", { class: "heading" }, h("h1", {}, run.experiment), state(run),
      h("a", { class: "button", href: `/compare?run=${encodeURIComponent(run.run)}` }, "Compare")),
    run.reason ? h("p", { class: `reason ${run.state}` }, h("b", {}, `${run.state}: `), run.reason) : null];
}

function facts({ run, rounds: columns, budget, directions, models, cluster }) {
  const best = (name) => bestOf(columns, name, directions[name]);
  const found = [];
  for (const [title, name, value, shown] of [["Accuracy", run.accuracy_of, run.accuracy, share], ["Loss", run.loss_of, run.loss, figure]]) {
    if (name === null) continue;
    const top = best(name);
    found.push([title, shown(value), top ? `${name}; best ${shown(top.value)}, round ${top.round}` : name]);
  }
  found.push(["Rounds", `${run.rounds_done} / ${run.rounds_planned}`, remaining(run, columns)]);
  const clients = columns.clients.length ? columns.clients.reduce((sum, count) => sum + count, 0) / columns.clients.length : null;
  found.push(["Clients per round", figure(clients, 3), run.failures ? `${run.failures.toLocaleString("en")} left out in all` : "none left out"]);
  found.push(["Duration", duration(run.seconds), run.rounds_done ? `${figure(run.seconds / run.rounds_done, 2)} s per round` : null]);
  found.push(["Sent", bytes(run.bytes), run.bytes !== null && run.rounds_done ? `${bytes(Math.round(run.bytes / run.rounds_done))} per round` : null]);
  if (cluster?.processes !== undefined) found.push(["Cluster", `${count(cluster.processes, "process", "es")}`, troubles(cluster)]);
  if (budget) found.push(["Privacy", run.epsilon === null ? "ε –" : `ε ${figure(run.epsilon, 3)}`, `of ${figure(budget.epsilon)} at δ ${figure(budget.delta)}`]);
  found.push(["Begun", moment(run.created), h("span", {}, `seed ${run.seed}`, models.length ? ` · model version ${models.join(", ")}` : "")]);
  return found;
}

function count(number, word, ending = "s") {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : ending}`;
}

function troubles({ nodes, lost, again, twice, bytes: fetched }) {
  return [`on ${count(nodes, "node")}`, lost ? `${lost} lost` : null, again ? `${count(again, "call")} made again` : null, twice ? `${twice} made twice` : null,
    `${bytes(fetched)} sent to the driver`].filter(Boolean).join(", ");
}

function remaining(run, columns) {
  if (run.state !== "running" || !columns.seconds.length) return null;
  const recent = columns.seconds.slice(-10).map((value, place) => value + (columns.eval_seconds.slice(-10)[place] ?? 0));
  const each = recent.reduce((sum, value) => sum + value, 0) / recent.length;
  return `about ${duration(each * (run.rounds_planned - run.rounds_done))} left`;
}

export function bestOf(columns, name, direction) {
  if (!direction || !columns.metrics[name]) return null;
  const sign = direction === "min" ? -1 : 1;
  let place = -1;
  columns.metrics[name].forEach((value, at) => {
    if (Number.isFinite(value) && (place < 0 || sign * value > sign * columns.metrics[name][place])) place = at;
  });
  return place < 0 ? null : { value: columns.metrics[name][place], round: columns.round[place], place };
}

function charts(found) {
  const columns = found.rounds, x = columns.round;
  const measures = new Map(); // by what is measured: the metrics that measure it, one for each group of examples
  for (const name of Object.keys(columns.metrics)) {
    if (PERCENTILE.test(name)) continue;
    const group = GROUPS.find((one) => name.startsWith(`${one}_`)) ?? "";
    const measure = (group ? name.slice(group.length + 1) : name).replace(COMPONENT, "");
    measures.set(measure, [...(measures.get(measure) ?? []), name]);
  }
  const first = ["accuracy", "loss"];
  const order = [...measures.keys()].sort((one, other) => rank(first, one) - rank(first, other));
  const drawn = order.map((measure) => [measure, measure.replaceAll("_", " "), () => curves(columns, measures.get(measure))]);
  drawn.push(["clients", "Clients per round", () => ({ layout: { barmode: "stack", bargap: x.length > 60 ? 0 : 0.2, xaxis: rounds(columns), yaxis: { rangemode: "tozero" } },
    traces: [bars(x, columns.clients, "counted", colour("test")), bars(x, columns.failures, "left out", colour("validation"))] })]);
  if (columns.epsilon.some((value) => value !== null)) drawn.push(["epsilon", "Privacy spent, ε", () => epsilon(found)]);
  drawn.push(["seconds", "Seconds per round", () => ({ layout: { barmode: "stack", bargap: x.length > 60 ? 0 : 0.2, xaxis: rounds(columns), yaxis: { rangemode: "tozero" } },
    traces: [bars(x, columns.seconds, "training", colour("test")), bars(x, columns.eval_seconds, "evaluation", colour("train"))] })]);
  if (columns.bytes_up.some((value) => value !== null)) {
    drawn.push(["bytes", "Bytes per round", () => ({ layout: { xaxis: rounds(columns), yaxis: { rangemode: "tozero", tickformat: ".3~s", ticksuffix: "B" } },
      traces: [line(x, columns.bytes_up, "clients to server", { line: { color: colour("test") } }),
        line(x, columns.bytes_down, "server to clients", { line: { color: colour("validation"), dash: "dot" } })] })]);
  }
  return drawn;
}

function rank(first, name) {
  const place = first.indexOf(name);
  return place < 0 ? first.length : place;
}

function bars(x, y, name, shade) {
  return { x, y, name, type: "bar", marker: { color: shade, line: { width: 0 } } };
}

// A line for each group of examples; clients' percentiles as bands around what they are percentiles of.
function curves(columns, all) {
  const names = all.slice(0, MOST);
  const x = columns.round, traces = [];
  for (const name of [...names].sort((one, other) => GROUPS.indexOf(other.split("_")[0]) - GROUPS.indexOf(one.split("_")[0]))) {
    const group = GROUPS.find((one) => name.startsWith(`${one}_`)) ?? name;
    const component = COMPONENT.exec(name)?.[0].replaceAll("_", " ") ?? "";
    const shade = component ? colours()[names.indexOf(name) % MOST] : colour(group);
    const percentiles = Object.keys(columns.metrics).filter((one) => one.startsWith(`${name}_p`) && PERCENTILE.test(one))
      .map((one) => [Number(PERCENTILE.exec(one)[1]), one]).sort(([one], [other]) => one - other);
    if (percentiles.length > 1) traces.push(...band(columns, percentiles, shade, group));
    traces.push(line(x, columns.metrics[name], group + component, { line: { color: shade, dash: group === "train" ? "dot" : "solid" } }));
  }
  return { traces, layout: { xaxis: rounds(columns) }, note: [unmeasurable(columns, names), all.length > MOST ? `${MOST} of ${all.length} components are drawn; the table below has all` : ""].filter(Boolean).join("; ") };
}

function band(columns, percentiles, shade, group) {
  const [[low, lowest], [high, highest]] = [percentiles[0], percentiles.at(-1)];
  const bare = { mode: "lines", line: { width: 0 }, marker: { size: 0 } };
  const middle = percentiles.find(([percent]) => percent === 50);
  return [line(columns.round, columns.metrics[lowest], `p${low}`, { ...bare, showlegend: false }),
    line(columns.round, columns.metrics[highest], `${group}, p${low}–p${high}`, { ...bare, fill: "tonexty", fillcolor: `${shade}2e` }),
    ...(middle ? [line(columns.round, columns.metrics[middle[1]], `${group}, median`, { mode: "lines", line: { color: shade, width: 1, dash: "dash" } })] : [])];
}

// A plan's rounds cost its epsilon: where the run ends, if more are planned.
function epsilon({ run, rounds: columns, budget }) {
  const traces = [line(columns.round, columns.epsilon, "spent", { line: { color: colour("test") } })];
  const far = Math.max(run.rounds_planned, budget?.rounds ?? 0);
  const shapes = [], annotations = [];
  if (budget?.epsilon) {
    traces.push({ x: [1, far], y: [budget.epsilon, budget.epsilon], name: "budget", mode: "lines", type: "scatter", hoverinfo: "skip",
      line: { color: colour("validation"), dash: "dash", width: 1.5 } });
  }
  if (budget?.rounds) {
    shapes.push({ type: "line", x0: budget.rounds, x1: budget.rounds, y0: 0, y1: 1, yref: "paper", line: { color: style("--muted"), dash: "dot", width: 1 } });
    annotations.push({ x: budget.rounds, y: 0.04, yref: "paper", text: `calibrated for ${budget.rounds} rounds`, showarrow: false, xanchor: "right", xshift: -4, font: { size: 11, color: style("--muted") } });
  }
  return { traces, layout: { shapes, annotations, xaxis: { title: "round", range: [0, far * 1.02], tickformat: "d" }, yaxis: { rangemode: "tozero" } } };
}

function privacy({ run, budget }) {
  if (!budget) return null;
  const spent = number(run.epsilon) ?? 0, part = budget.epsilon ? Math.min(100, (100 * spent) / budget.epsilon) : 0;
  const ends = budget.rounds === null ? "" : run.rounds_planned > budget.rounds
    ? `Its noise is such that ${budget.rounds} rounds cost that. ${run.rounds_planned} are planned: the run ends at about round ${budget.rounds}.`
    : `Its noise is such that ${budget.rounds} rounds cost that; ${run.rounds_planned} are planned.`;
  return section("Privacy", h("p", {}, `${budget.kind}: ε ${figure(budget.epsilon)} at δ ${figure(budget.delta)}. ${ends}`,
    budget.noise ? ` Noise: ${budget.noise}.` : ""),
  h("div", { class: "meter", role: "meter", "aria-label": "Share of the privacy budget that is spent", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": Math.round(part) },
    h("span", { "width%": part })));
}

function settings(found) {
  const differing = found.settings.filter((one) => found.is_shipped && one.value !== one.shipped);
  const body = h("div");
  const box = h("input", { type: "checkbox", checked: found.is_shipped });
  const search = h("input", { type: "search", placeholder: "Filter settings", "aria-label": "Filter settings" });
  const render = () => {
    const rows = (box.checked ? differing : found.settings).filter((one) => `${one.path} ${one.value}`.toLowerCase().includes(search.value.toLowerCase()));
    fill(body, rows.length ? table("Settings", found.is_shipped ? ["setting", "this run", "as shipped"] : ["setting", "this run"],
      rows.map((one) => h("tr", { class: differing.includes(one) ? "differs" : null }, h("th", { scope: "row" }, one.path), h("td", {}, one.value ?? "–"),
        found.is_shipped ? h("td", { class: "quiet" }, one.value === one.shipped ? "same" : one.shipped ?? "–") : null)), { class: "settings" })
      : h("p", { class: "quiet" }, box.checked && !differing.length ? "All settings are as shipped." : "No setting is like that."));
  };
  box.addEventListener("change", render);
  search.addEventListener("input", render);
  render();
  return section("Settings", h("div", { class: "filters" }, search,
    found.is_shipped ? h("label", {}, box, ` only what differs from the shipped ${found.run.experiment} (${differing.length})`) : null), body);
}

function environment({ choices }) {
  if (!choices.length) return null;
  return section("Environment", table("Environment", ["choice", "value"],
    choices.map(([name, text]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, text))), { class: "settings" }));
}

function repeat({ command, run }) {
  return section("Run it again", command ? copyable(command)
    : h("p", { class: "quiet" }, `Settings of an experiment that comes with Umbel do not lead to this run: run the file that defines ${run.experiment}, with the settings above and ${run.rounds_planned} rounds.`));
}

function everyRound({ rounds: columns }, parts) {
  const details = h("details", { class: "section" }, h("summary", {}, h("h2", {}, "Every round as a table")), parts.table);
  const render = () => {
    if (!details.open) return;
    const names = Object.keys(columns.metrics);
    fill(parts.table, table("Rounds", ["round", "clients", "left out", ...names, "s", "ε"], columns.round.map((round, place) => h("tr", {},
      h("th", { scope: "row" }, round), h("td", {}, columns.clients[place]), h("td", {}, columns.failures[place]),
      names.map((name) => h("td", {}, figure(columns.metrics[name][place]))), h("td", {}, figure(columns.seconds[place], 3)), h("td", {}, figure(columns.epsilon[place], 3)))), { class: "numbers" }));
  };
  details.addEventListener("toggle", render);
  parts.table.addEventListener("rounds", render);
  return details;
}

function section(title, ...content) {
  return h("section", { class: "section" }, h("h2", {}, title), content);
}
