// The registry: versions, whether they are what was registered, and what points at them.

import { ask, bytes, figure, fill, h, moment, share, table } from "/static/dom.js";

export async function show(page, named) {
  document.title = "Models · Umbel";
  const { models, store } = await ask("/api/models");
  named(store);
  fill(page, h("div", { class: "heading" }, h("h1", {}, "Models")), models.length ? models.map(model) : h("section", { class: "empty" },
    h("h2", {}, "No models yet"), h("p", {}, "Every run that ends leaves a version of its model here.")));
}

function model(found) {
  const path = `/api/models/${found.name.split("/").map(encodeURIComponent).join("/")}`;
  const said = h("span", { class: "quiet", role: "status" });
  const verify = h("button", { type: "button", class: "small" }, "Verify weights");
  verify.addEventListener("click", async () => {
    said.textContent = "reading every version…";
    try {
      const { verified, problem } = await ask(`${path}/verify`);
      said.textContent = problem ?? `weights of ${verified} ${verified === 1 ? "version" : "versions"} verified`;
    } catch (error) { said.textContent = error.message; }
  });
  return h("section", { class: "section" },
    h("div", { class: "heading" }, h("h2", {}, found.name),
      h("span", { class: found.problem ? "badge bad" : "badge good" }, found.problem ? "chain broken" : "chain verified"),
      Object.entries(found.aliases).map(([alias, version]) => h("span", { class: "badge" }, `${alias} → ${version}`))),
    found.problem ? h("p", { class: "reason failed" }, found.problem) : [
      table(`Versions of ${found.name}`, ["version", "run", "accuracy", "loss", "ε", "aliases", "labels", "made", "size", "hash", ""], found.versions.map((version) => row(version, path)), { class: "versions" }),
      h("p", { class: "actions" }, verify, " ", said)],
    history(found.moves));
}

function row(version, path) {
  const metric = (name) => ["test", "validation", "train"].map((group) => version.metrics[`${group}_${name}`]).find((value) => value !== undefined) ?? null;
  const size = bytes(4 * version.size);
  return h("tr", {}, h("th", { scope: "row" }, version.version), h("td", {}, h("a", { href: `/runs/${encodeURIComponent(version.run)}` }, version.run)),
    h("td", {}, share(metric("accuracy"))), h("td", {}, figure(metric("loss"))), h("td", {}, figure(version.epsilon, 3)),
    h("td", {}, version.aliases.map((alias) => h("span", { class: "badge" }, alias))), h("td", {}, version.labels.map((label) => h("span", { class: "badge" }, label))),
    h("td", {}, moment(version.created)), h("td", {}, size), h("td", {}, h("code", { title: version.hash }, version.hash.slice(0, 10))),
    h("td", {}, h("a", { href: `${path}/${version.version}.npz`, download: "", "aria-label": `Download version ${version.version}` }, ".npz")));
}

function history(moves) {
  if (!moves.length) return null;
  return h("details", {}, h("summary", {}, `Where aliases pointed (${moves.length})`), table("Where aliases pointed", ["moved", "alias", "version"],
    moves.map((move) => h("tr", {}, h("td", {}, moment(move.moved)), h("td", {}, move.alias), h("td", {}, move.version ?? "none")))));
}
