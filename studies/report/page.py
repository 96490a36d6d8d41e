"""The report as one HTML file. Text is escaped; there is no script, and its policy allows nothing from elsewhere."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UmbelError
from ...privacy.statement import NOT_PROMISED, PARTIES, statement_of
from . import charts
from .contents import Contents, picture_of
from .elements import Html, card, duration, figure, figures, h, quiet, section, share, size, state, table

SEEDED = (
    "The noise follows from the seed, so that the run can be repeated: whoever knows the seed can subtract it. "
    "The model is for study, and not to be given away as private."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
FOLDER = Path(__file__).parent
STYLES = FOLDER.parents[1] / "server/ui/static/style.css", FOLDER / "report.css"  # a report looks like the page


def page(contents: Sequence[Contents]) -> str:
    """Write the whole file."""
    names = ", ".join(dict.fromkeys(str(one.details["run"]["experiment"]) for one in contents))
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    style = Html("".join(path.read_text("utf-8") for path in STYLES))
    head = h(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        h("title", f"{names} · report"),
        h("style", style),
    )
    made = f"Made {moment} by Umbel {importlib.metadata.version('umbel')}."
    several = comparison(contents) if len(contents) > 1 else None
    body = h("body", h("main", h("p", made, class_="crumbs"), several, [article(one) for one in contents]))
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def article(one: Contents) -> Html:
    """Write the part about one run."""
    details = one.details
    run = details["run"]
    reason = (
        h("p", h("b", f"{run['state']}: "), run["reason"], class_=f"reason {run['state']}") if run["reason"] else None
    )
    return h(
        "article",
        h("p", "Run ", h("code", run["run"]), class_="crumbs"),
        h("div", h("h1", run["experiment"]), state(run["state"]), class_="heading"),
        reason,
        facts(details),
        curves(details),
        section("Privacy", *privacy(one)),
        section("What attacks found", *audit(one)),
        section("Fairness between clients", *fairness(details)),
        section("Who has what data", *population(one)),
        section("Traffic", *traffic(details)),
        section("Settings", *settings(details)),
        section("Environment", environment(one)),
        section("The model", model(one)),
        section("Run it again", *repeat(details)),
    )


def comparison(contents: Sequence[Contents]) -> Html:
    """Write the part that shows several runs beside one another."""
    from ...server.ui import comparing

    runs = [one.details for one in contents]
    metrics = list(dict.fromkeys(name for one in runs for name in one["rounds"]["metrics"]))
    metric = next((name for name in ("test_accuracy", "validation_accuracy", *metrics) if name in metrics), None)
    rows = [
        (one["run"]["experiment"], one["run"]["run"], one["run"]["state"], share(one["run"]["accuracy"]),
         figure(one["run"]["loss"]), figure(one["run"]["epsilon"]),
         duration(one["run"]["seconds"]), size(one["run"]["bytes"]))
        for one in runs
    ]  # fmt: skip
    described = [dict(one.description) for one in contents]
    differing = comparing.differences(described)
    drawn = None
    if metric is not None:
        labels = [f"{one['run']['experiment']} {one['run']['run'].split('-')[-1]}" for one in runs]
        drawn = card(
            metric, charts.overlaid([(label, one["rounds"]) for label, one in zip(labels, runs, strict=True)], metric)
        )
    names = [one["run"]["run"] for one in runs]
    return h(
        "article",
        h("h1", f"{len(runs)} runs"),
        table(["experiment", "run", "state", "accuracy", "loss", "ε", "time", "sent"], rows),
        section("Beside one another", h("div", drawn, class_="charts one")) if drawn else None,
        section(
            "Settings that differ",
            table(["setting", *names], [(row["path"], *(value or "–" for value in row["values"])) for row in differing])
            if differing
            else quiet("All settings are the same."),
        ),
    )


def facts(details: Mapping[str, Any]) -> Html:
    """Write the run's figures at a glance."""
    run, budget = details["run"], details["budget"]
    rounds = max(1, run["rounds_done"])
    shown: list[tuple[str, str, str | None]] = []
    if run["accuracy_of"]:
        shown.append(("Accuracy", share(run["accuracy"]), run["accuracy_of"]))
    if run["loss_of"]:
        shown.append(("Loss", figure(run["loss"]), run["loss_of"]))
    shown.append(("Rounds", f"{run['rounds_done']} / {run['rounds_planned']}", None))
    left_out = f"{run['failures']:,} left out in all" if run["failures"] else "none left out"
    clients = charts.numbers(details["rounds"]["clients"])
    shown.append(("Clients per round", figure(float(clients.mean())) if len(clients) else "–", left_out))
    if charts.numbers(details["rounds"]["seconds"]).any():
        shown.append(("Duration", duration(run["seconds"]), f"{float(run['seconds'] or 0) / rounds:.2f} s per round"))
    if budget:
        said = f"of {figure(budget['epsilon'])} at δ {figure(budget['delta'])}"
        shown.append(("Privacy", f"ε {figure(run['epsilon'])}", said))
    shown.append(("Begun", str(run["created"])[:16].replace("T", " "), f"seed {run['seed']}"))
    cells = [
        h("div", h("dt", title), h("dd", value), h("dd", more, class_="more") if more else None)
        for title, value, more in shown
    ]
    return h("dl", cells, class_="facts")


def curves(details: Mapping[str, Any]) -> Html:
    """Write a chart for everything that was measured."""
    columns = details["rounds"]
    if not columns["round"]:
        return h("section", h("h2", "No round was finished"), class_="empty")
    drawn = [
        card(measure.replace("_", " "), charts.curves(columns, names), unmeasurable(columns, names))
        for measure, names in charts.measures(columns).items()
    ]
    drawn.append(card("clients per round", charts.stacked(columns, {"clients": "counted", "failures": "left out"})))
    if details["budget"]:
        drawn.append(card("privacy spent, ε", charts.spent(columns, float(details["budget"]["epsilon"] or "inf"))))
    drawn.append(
        card("seconds per round", charts.stacked(columns, {"seconds": "training", "eval_seconds": "evaluation"}))
    )
    if details["run"]["bytes"] is not None:
        drawn.append(card("bytes per round", charts.sent(columns)))
    return h("div", drawn, class_="charts")


def unmeasurable(columns: Mapping[str, Any], names: Sequence[str]) -> str:
    """Say what a chart cannot draw."""
    said = []
    for name in names:
        column = columns["metrics"][name]
        broken = [place for place, value in enumerate(column) if value is not None and not np.isfinite(float(value))]
        if broken:
            said.append(f"{name} is not a finite number from round {columns['round'][broken[0]]} on")
    if len(names) > charts.MOST:
        said.append(f"{charts.MOST} of {len(names)} components are drawn")
    return "; ".join(said)


def privacy(one: Contents) -> list[Html | None]:
    """Write what is promised of whom, against whom, and what is not."""
    if not one.description:
        return [quiet("The settings are not at hand, and what they promise is not known here.")]
    plan, aggregation = (_named(one.description, name) for name in ("plan", "secure_aggregation"))
    statement = statement_of(plan, aggregation)
    budget, run = one.details["budget"], one.details["run"]
    said: list[Html | None] = []
    if plan is None:
        said.append(
            h("p", "The run has no privacy plan: nothing bounds what its models tell of a client or an example.")
        )
    if budget:
        numbers = [("ε spent", figure(run["epsilon"])), ("ε at most, by the plan", figure(budget["epsilon"])),
                   ("δ", figure(budget["delta"])), ("noise", str(budget["noise"] or "–")),
                   ("of whom", statement.unit or "as the plan's own class says"),
                   ("neighbours", statement.neighbours or "as the plan's own class says")]  # fmt: skip
        said.append(table(["", f"{budget['kind']}"], numbers))
        if budget["noise"] == "seeded":
            said.append(h("p", SEEDED, class_="reason stopped"))
    for name in (plan, aggregation):
        if name is not None and not any(name in row.split() for row in statement.promises):
            said.append(
                quiet(f"{name} is not one of Umbel's own: what it promises has to be asked of whoever wrote it.")
            )
    if len(statement.promises) > 1:
        said.append(h("p", "Both hold: the plan's of what models tell, the aggregation's of single updates."))
    for name, row in statement.promises.items():
        said.append(h("h3", f"What holds: {name}"))
        said.append(
            table(
                ["against", "who that is", "what holds"],
                [(party, PARTIES[party], row[party].replace("`", "")) for party in row],
            )
        )
    said.append(h("p", "Not promised: ", "; ".join(NOT_PROMISED).replace("`", ""), "."))
    return said


def audit(one: Contents) -> list[Html]:
    """Write the results of attacks, where an audit was handed over."""
    if one.findings is None:
        return [quiet("No audit was handed over: umbel audit RUN --json > audit.jsonl, then --audit audit.jsonl.")]
    if not one.findings:
        return [quiet("The audit that was handed over is not of this run.")]
    rows = [
        (found["attack"], found.get("adversary", ""), figures(found.get("found") or {}),
         figures(found.get("control") or {}), found["verdict"] + (f": {found['why']}" if found.get("why") else ""))
        for found in one.findings
    ]  # fmt: skip
    return [table(["attack", "by", "found", "without protection", "verdict"], rows)]


def fairness(details: Mapping[str, Any]) -> list[Html]:
    """Write how the clients that fare worst fare, by the metrics measured on their own examples."""
    columns, directions = details["rounds"]["metrics"], details["directions"]
    rows = []
    for name in columns:
        if f"{name}_p10" not in columns or f"{name}_p90" not in columns:
            continue
        last = {part: _last(columns.get(f"{name}{part}", ())) for part in ("", "_p10", "_p50", "_p90")}
        direction = directions.get(name)
        worst = {"max": f"at most {figure(last['_p10'])}", "min": f"at least {figure(last['_p90'])}"}.get(
            direction or "", "–"
        )
        rows.append((name, figure(last[""]), figure(last["_p10"]), figure(last["_p50"]), figure(last["_p90"]), worst))
    if not rows:
        return [quiet("No metric was measured on clients' own examples: the experiment has no validation population.")]
    return [table(["metric", "mean", "p10", "median", "p90", "worst tenth of clients"], rows)]


def population(one: Contents) -> list[Html]:
    """Write who has what data."""
    if one.population is None:
        return [quiet(one.no_population)]
    try:
        figure_, text = picture_of(one.population)
    except UmbelError as error:
        return [quiet(f"The data cannot be read here: {error}")]
    return [h("pre", text), h("div", Html(charts.svg_of(figure_)), class_="card population")]


def traffic(details: Mapping[str, Any]) -> list[Html]:
    """Write how many bytes travelled."""
    columns, run = details["rounds"], details["run"]
    if run["bytes"] is None:
        return [quiet("No round measured it.")]
    up, down = (int(np.nansum(charts.numbers(columns[name]))) for name in ("bytes_up", "bytes_down"))
    rounds = max(1, len(columns["round"]))
    rows = [("clients to server", size(up), size(up // rounds)),
            ("server to clients", size(down), size(down // rounds)),
            ("both", size(up + down), size((up + down) // rounds))]  # fmt: skip
    return [table(["", "in all", "per round"], rows)]


def settings(details: Mapping[str, Any]) -> list[Html]:
    """Write every setting, beside what is shipped under the same name."""
    rows = details["settings"]
    if not rows:
        return [quiet("They are not at hand: the History was read back without its experiment.")]
    if not details["is_shipped"]:
        return [table(["setting", "this run"], [(row["path"], row["value"] or "–") for row in rows], "settings")]
    cells = [
        (row["path"], row["value"] or "–", "same" if row["value"] == row["shipped"] else row["shipped"] or "–")
        for row in rows
    ]
    return [table(["setting", "this run", "as shipped"], cells, "settings")]


def environment(one: Contents) -> Html:
    """Write what the run noted of where it ran, and the versions of packages that made this file."""
    packages = []
    for name in ("umbel", "tensorflow", "keras", "numpy", "flwr", "dp-accounting"):
        try:
            packages.append((f"{name}, when this was written", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return table(["", ""], [*map(tuple, one.details["choices"]), *packages], "settings")


def model(one: Contents) -> Html:
    """Write the hashes that the model is known by."""
    rows = [(name, digest) for name, digest in one.hashes.items()]
    return table(["hash", "value"], rows, "settings") if rows else quiet("The run has left no version of its model.")


def repeat(details: Mapping[str, Any]) -> list[Html]:
    """Write the command that repeats the run, where there is one."""
    if details["command"]:
        return [h("p", h("code", details["command"]), class_="command")]
    run = details["run"]
    said = f"Run the file that defines {run['experiment']}, with the settings above and {run['rounds_planned']} rounds."
    return [quiet(said)]


def _named(description: Mapping[str, str], path: str) -> str | None:
    value = description.get(path, "None")
    return None if value == "None" else value


def _last(column: Sequence[Any]) -> Any:
    return next((value for value in reversed(column) if value is not None), None)
