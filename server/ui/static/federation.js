// A federation: who is connected, its last round, and how long its certificates last.

import { ask, bytes, duration, figure, fill, h, moment, share, state, table } from "/static/dom.js";

const EVERY = 5000; // milliseconds between two looks
const SOON = 14; // days from which on a certificate is to be replaced
const STATES = { online: "finished", offline: "failed" };
const WORDS = { registered: "never came", unregistered: "not registered", unknown: "not known" };

export async function show(page, named) {
  document.title = "Federation · Umbel";
  const parts = { facts: h("dl", { class: "facts" }), said: h("div"), clients: section("Clients"), last: section("Last round"), runs: section("Runs under way"), certificates: section("Certificates") };
  fill(page, h("div", { class: "heading" }, h("h1", {}, "Federation")), parts.said, parts.facts, parts.clients, parts.last, parts.runs, parts.certificates);
  async function look() {
    if (document.hidden) return;
    const found = await ask("/api/federation");
    named(found.store);
    render(found, parts);
  }
  await look();
  setInterval(() => look().catch((error) => fill(parts.said, h("p", { class: "reason failed", role: "alert" }, error.message))), EVERY);
}

function section(title) {
  return h("section", { class: "section", "data-part": title });
}

function render(found, parts) {
  const { server, clients, certificates, authority } = found;
  const online = clients.filter((one) => one.state === "online").length;
  const first = certificates.reduce((least, one) => (least && least.days <= one.days ? least : one), null);
  const facts = [["Server", server.connected ? "answers" : "does not answer", server.address],
    ["Clients", `${online} of ${clients.length}`, server.connected ? "connected" : "not known while the server is silent"],
    ["Runs under way", String(found.runs.length), null], ["Certificates", first ? left(first.days) : "–", first ? `left of ${first.file}` : null]];
  fill(parts.facts, facts.map(([title, value, more]) => h("div", {}, h("dt", {}, title), h("dd", {}, value), more ? h("dd", { class: "more" }, more) : null)));
  fill(parts.said, server.connected ? null : h("p", { class: "reason failed", role: "alert" }, `Nobody answers at ${server.address}. Is the server up, or the tunnel to it?`),
    authority.next ? h("p", { class: "reason stopped" }, `The authority is being replaced; next, ${authority.next}`) : null);
  fill(parts.clients, h("h2", {}, "Clients"), table("Clients", ["client", "state", "since", "trusts the authority"], clients.map((one) => h("tr", {},
    h("th", { scope: "row" }, h("span", { class: "named", title: one.name }, one.name)), h("td", {}, badge(one.state)), h("td", {}, one.since ? moment(one.since) : "–"),
    h("td", {}, one.trusts === null ? "–" : one.trusts ? "yes" : "not yet")))));
  fill(parts.last, h("h2", {}, "Last round"), lastRound(found.last));
  fill(parts.runs, found.runs.length ? [h("h2", {}, "Runs under way"), table("Runs under way", ["run of the server", "state", "begun"], found.runs.map((one) => h("tr", {},
    h("th", { scope: "row" }, one.run), h("td", {}, one.status), h("td", {}, one.started ? moment(one.started) : "–"))))] : null);
  fill(parts.certificates, h("h2", {}, "Certificates"), table("Certificates", ["file", "fingerprint", "expires", "left"], certificates.map((one) => h("tr", {},
    h("th", { scope: "row" }, h("code", {}, one.file)), h("td", {}, h("code", { title: one.sha256 }, one.sha256.slice(0, 8))), h("td", {}, moment(one.expires)),
    h("td", {}, h("span", { class: one.days < 1 ? "badge bad" : one.days < SOON ? "badge warn" : "badge good" }, left(one.days)),
      one.days < SOON ? h("small", {}, `soon: umbel deploy ${one.file === "ca.crt" ? "authority trust" : "renew"}`) : null)))));
}

function left(days) {
  return days <= 0 ? "expired" : days < 2 ? `${Math.floor(days * 24)} hours` : `${Math.floor(days)} days`;
}

function badge(word) {
  return h("span", { class: `state ${STATES[word] ?? "paused"}` }, h("i", { "aria-hidden": "true" }), WORDS[word] ?? word);
}

function lastRound(last) {
  if (last === null) return h("div", { class: "empty" }, h("h2", {}, "No run yet"), h("p", {}, "The first round of a run appears here by itself."));
  const { run, rounds } = last, at = rounds.round.length - 1;
  const head = h("p", {}, h("a", { href: `/runs/${encodeURIComponent(run.run)}` }, run.experiment), " ", state(run), " ", h("span", { class: "quiet" }, "last heard of ", moment(run.updated)));
  if (at < 0) return [head, h("p", { class: "quiet" }, "No round is finished yet.")];
  const of = (name) => rounds[name][at];
  const facts = [["Round", `${of("round")} of ${run.rounds_planned}`, null], ["Training", duration(of("seconds")), "cohort to new model"], ["Evaluation", duration(of("eval_seconds")), null],
    ["Clients", figure(of("clients")), of("failures") ? `${figure(of("failures"))} left out` : "none left out"], ["Up", bytes(of("bytes_up")), `${bytes(of("bytes_down"))} down`],
    ["Accuracy", share(run.accuracy), run.accuracy_of]];
  return [head, h("dl", { class: "facts" }, facts.map(([title, value, more]) => h("div", {}, h("dt", {}, title), h("dd", {}, value), more ? h("dd", { class: "more" }, more) : null)))];
}
