"""A run's curves as SVG: text stays text, and colours are those of the page, dark or light."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...server.plots import COLOURS, PALETTE
from ...server.progress import GROUPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILE = re.compile(r"_p\d+$")
COMPONENT = re.compile(r"(?:_\d+)+$")  # places of a component in a metric whose value is a vector
MOST = 12  # largest number of lines in one chart
INK, MUTED, LINE = "#1b2430", "#5c6875", "#e1e6eb"
# Only whole declarations are replaced: a name in the picture may be a colour's, too.
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", COLOURS["train"]: "var(--muted)"}
VARIABLES |= {colour: f"var(--c{place})" for place, colour in enumerate(PALETTE)}
SIZE = (4.8, 2.7)  # width and height of a chart, in inches
FEW = 10  # largest number of rounds that are all named below a chart
Columns = Mapping[str, Any]


def numbers(column: Sequence[Any]) -> np.ndarray:
    """Return a column of the page as numbers: NaN for what was not measured."""
    return np.array([np.nan if value is None else float(value) for value in column], float)


def measures(columns: Columns) -> dict[str, list[str]]:
    """Return the measures, the accuracy and the loss first, each with the metrics that measure it on some examples."""
    found: dict[str, list[str]] = {}
    for name in columns["metrics"]:
        if PERCENTILE.search(name):
            continue
        group = next((one for one in GROUPS if name.startswith(f"{one}_")), "")
        measure = COMPONENT.sub("", name.removeprefix(f"{group}_") if group else name)
        found.setdefault(measure, []).append(name)
    first = ("accuracy", "loss")
    return dict(sorted(found.items(), key=lambda item: first.index(item[0]) if item[0] in first else len(first)))


def curves(columns: Columns, names: Sequence[str]) -> str:
    """Draw a line for each metric, and a band for what clients' percentiles are known of."""
    figure, axes = _figure()
    rounds = np.array(columns["round"])
    for place, name in enumerate(names[:MOST]):
        group = next((one for one in GROUPS if name.startswith(f"{one}_")), "")
        alike = [other for other in names if other.startswith(f"{group}_")]
        colour = COLOURS.get(group, PALETTE[2]) if len(alike) == 1 else PALETTE[place % len(PALETTE)]
        label = (group or name) if len(alike) == 1 else name
        _line(axes, rounds, numbers(columns["metrics"][name]), label, colour)
        low, high = (columns["metrics"].get(f"{name}_p{percent}") for percent in (10, 90))
        if low is not None and high is not None:
            bounds = numbers(low), numbers(high)
            shown = np.isfinite(bounds[0]) & np.isfinite(bounds[1])
            band = f"{label}, p10–p90"
            axes.fill_between(
                rounds[shown], bounds[0][shown], bounds[1][shown], color=colour, alpha=0.16, lw=0, label=band
            )
    return _svg(figure, axes)


def overlaid(runs: Sequence[tuple[str, Columns]], metric: str) -> str:
    """Draw one metric of several runs."""
    figure, axes = _figure()
    for place, (label, columns) in enumerate(runs):
        if metric in columns["metrics"]:
            values = numbers(columns["metrics"][metric])
            _line(axes, np.array(columns["round"]), values, label, PALETTE[place % len(PALETTE)])
    return _svg(figure, axes)


def stacked(columns: Columns, parts: Mapping[str, str]) -> str:
    """Draw bars of several fields upon one another. parts: names by field."""
    figure, axes = _figure()
    rounds, bottom = np.array(columns["round"]), np.zeros(len(columns["round"]))
    for colour, (field, label) in zip((PALETTE[0], PALETTE[1]), parts.items(), strict=True):
        heights = np.nan_to_num(numbers(columns[field]))
        axes.bar(rounds, heights, bottom=bottom, width=0.85 if len(rounds) <= 60 else 1.0, color=colour, label=label)
        bottom += heights
    return _svg(figure, axes)


def sent(columns: Columns) -> str:
    """Draw the bytes that travelled in both directions."""
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure()
    directions = (("bytes_up", "clients to server"), ("bytes_down", "server to clients"))
    for colour, (field, label) in zip(PALETTE, directions, strict=False):
        _line(axes, np.array(columns["round"]), numbers(columns[field]), label, colour)
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_ylim(bottom=0)
    return _svg(figure, axes)


def spent(columns: Columns, budget: float | None) -> str:
    """Draw ε after each round, against the budget."""
    figure, axes = _figure()
    _line(axes, np.array(columns["round"]), numbers(columns["epsilon"]), "spent", PALETTE[0])
    if budget is not None and np.isfinite(budget):
        axes.axhline(budget, color=PALETTE[1], linestyle=(0, (4, 2)), linewidth=1.4, label="budget")
    axes.set_ylim(bottom=0)
    return _svg(figure, axes)


def svg_of(figure: Figure) -> str:
    """Write any figure as SVG that can stand in a page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "umbel", "text.parse_math": False}):
        # Without a date, the same run makes the same file.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1))


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("round", color=MUTED, fontsize=8.5)
    return figure, axes


def _line(axes: Any, rounds: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    """Draw a metric over rounds. A number that is not finite leaves a gap where it follows one that is."""
    shown = np.isfinite(values)
    marker = "o" if shown.sum() <= 30 else None
    axes.plot(rounds[shown], values[shown], label=label, color=colour, linewidth=1.6, marker=marker, markersize=3.2)


def _svg(figure: Figure, axes: Any) -> str:
    from matplotlib import rc_context

    first, last = axes.dataLim.intervalx  # infinite where nothing was drawn
    if np.isfinite(first) and last - first < FEW:
        axes.set_xticks(range(round(first), round(last) + 1))
        axes.set_xlim(first - 0.6, last + 0.6)
    handles, labels = axes.get_legend_handles_labels()
    with rc_context({"text.parse_math": False}):
        # A name that begins with "_" would be left out of the legend: names are shortened, not left out.
        short = [label if len(label) <= 40 else f"{label[:39]}…" for label in labels]
        columns = min(4, max(1, len(short)))
        legend = figure.legend(handles, short, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)
    for text in legend.get_texts():
        text.set_color(INK)
        text.set_parse_math(False)
    found = svg_of(figure)
    for colour, variable in VARIABLES.items():
        found = found.replace(f": {colour.lower()}", f": {variable}")
    return found
