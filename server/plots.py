"""Runs as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison
    from .history import History

# Okabe and Ito's colours, which colour-blind eyes tell apart, without the yellow that is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # solid, dashed, dotted, both
COLOURS = {"train": "#7a8794", "test": PALETTE[0], "validation": PALETTE[1]}
AXES = {"round": "round", "seconds": "time", "virtual_seconds": "virtual time", "bytes": "sent"}
TIMES = ((7200.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))  # from where on, size, name
UNITS = {
    "seconds": TIMES,
    "virtual_seconds": TIMES,
    "bytes": ((1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0.0, 1.0, "bytes")),
}


class Curve(NamedTuple):
    """A metric over one experiment's seeds: arrays of shape (measurements,)."""

    far: np.ndarray  # rounds, seconds or bytes so far
    mean: np.ndarray
    low: np.ndarray  # of all seeds
    high: np.ndarray


def plot_history(history: History, path: str | None = None) -> Figure:
    """A panel for every accuracy and one for every loss, per round, where there are any. Saved to path when given."""
    names = sorted({name for record in history.rounds for name in record.metrics})
    groups = [
        ("accuracy", [name for name in names if name.endswith("accuracy")]),
        ("loss", [n for n in names if n.endswith("_loss")]),
    ]
    panels = [(title, members) for title, members in groups if members] or [("loss", [])]
    figure, (row,) = _panels(1, len(panels), each=(5.2, 3.6))
    for axes, (title, members) in zip(row, panels, strict=True):
        for name in members:
            alike = [other for other in members if other.split("_")[0] == name.split("_")[0]]
            _draw(axes, history, name, STYLES[alike.index(name) % len(STYLES)])
        axes.set(xlabel="round", ylabel=title)
        _whole_numbers(axes)
        if members:
            axes.legend(frameon=False)
    figure.suptitle(history.experiment, fontsize=11)
    return _saved(figure, path)


def plot_comparison(comparison: Comparison, path: str | None, metric: str, over: str) -> Figure:
    """The metric's mean over seeds, from the least to the largest: a line per experiment.

    Experiments called "group/variant" have a panel for each group. Where all were measured but once, dots take the
    place of lines.
    """
    curves = {
        name: curve
        for name, histories in comparison.histories.items()
        if histories and len((curve := _curve(histories, metric, over)).far)
    }
    groups = _grouped(curves)
    if curves and all(len(curve.far) == 1 for curve in curves.values()):
        return _saved(_dots(groups, metric), path)
    return _saved(_lines(groups, metric, over), path)


def _curve(histories: Sequence[History], metric: str, over: str) -> Curve:
    """Where all seeds measured the metric."""
    from .comparison import axis

    shortest = min(len(history.rounds) for history in histories)
    values = np.array([history.column(metric)[:shortest] for history in histories])
    far = np.array([axis(history, over)[:shortest] for history in histories]).mean(0)
    shown = np.isfinite(values).all(0) & np.isfinite(far)
    values = values[:, shown]
    return Curve(far[shown], values.mean(0), values.min(0), values.max(0))


def _grouped(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves by group and variant; one group without a name, unless all have one."""
    if not curves or not all("/" in name for name in curves):
        return {"": dict(curves)}
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        group, variant = name.split("/", 1)
        groups.setdefault(group, {})[variant] = curve
    return groups


def _variants(groups: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Of all groups, each once."""
    return list(dict.fromkeys(name for group in groups.values() for name in group))


def _lines(groups: Mapping[str, Mapping[str, Curve]], metric: str, over: str) -> Figure:
    """A panel of lines per group, and one legend for all."""
    looks = dict(zip(_variants(groups), _looks(), strict=False))
    columns = len(groups) if len(groups) <= 3 else 2
    figure, rows = _panels(-(-len(groups) // columns), columns, each=(7.2, 4.2) if columns == 1 else (4.4, 3.8))
    panels = list(rows.flat)
    unit, label = _unit(groups, over)
    known: dict[str, Any] = {}
    for axes, (group, curves) in zip(panels, groups.items(), strict=False):
        drawn: list[Curve] = []
        for name, curve in curves.items():
            colour, style = looks[name]
            if style == STYLES[0] and any(np.array_equal(curve.mean, other.mean) for other in drawn):
                style = STYLES[1]  # one line hides another otherwise
            far = curve.far / unit
            known[name] = axes.plot(far, curve.mean, linestyle=style, color=colour, linewidth=1.4)[0]
            axes.fill_between(far, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
            drawn.append(curve)
        axes.set_title(group, fontsize=10)
        axes.set_xlabel(label)
        if over == "round":
            _whole_numbers(axes)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    _share(rows, metric, _range(groups))
    figure.legend(
        known.values(), known, frameon=False, fontsize=9, loc="outside right center", ncols=-(-len(known) // 24)
    )
    return figure


def _dots(groups: Mapping[str, Mapping[str, Curve]], metric: str) -> Figure:
    """A panel of dots per group, in rows that all have in common."""
    from matplotlib.ticker import MaxNLocator

    names = _variants(groups)
    figure, (row,) = _panels(1, len(groups), each=(5.8 if len(groups) == 1 else 3.1, 1.0 + 0.3 * len(names)))
    for axes, (group, curves) in zip(row, groups.items(), strict=True):
        for name, curve in curves.items():
            place, value = names.index(name), curve.mean[0]
            axes.plot([curve.low[0], curve.high[0]], [place, place], color=PALETTE[0], linewidth=2, alpha=0.4)
            axes.plot([value], [place], "o", color=PALETTE[0], markersize=6)
            axes.annotate(
                f"{value:.3f}", (curve.high[0], place), (7, 0), textcoords="offset points", va="center", size=9
            )
        axes.set_title(group, fontsize=10)
        axes.set(xlabel=metric.replace("_", " "), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names))
    low = min(curve.low[0] for group in groups.values() for curve in group.values())
    high = max(curve.high[0] for group in groups.values() for curve in group.values())
    room = (high - low) or 1.0
    ticks = [tick for tick in MaxNLocator(nbins=5).tick_values(low, high) if tick <= high + 0.05 * room]
    for axes in row:
        axes.set_xticks(ticks)
        axes.set_xlim(low - 0.08 * room, high + (0.2 if len(groups) == 1 else 0.4) * room)  # to the right, figures
    return figure


def _looks() -> Iterator[tuple[str, Any]]:
    """Colours and line styles; no two of the first 28 are the same pair."""
    for turn in range(1_000):
        for place in range(len(PALETTE)):
            # Turned on by one: a dashed line that covers the solid one seven before it has another colour.
            yield PALETTE[(place + turn) % len(PALETTE)], STYLES[turn % len(STYLES)]


def _unit(groups: Mapping[str, Mapping[str, Curve]], over: str) -> tuple[float, str]:
    """What to divide the horizontal axis by, and its label."""
    if over not in UNITS:
        return 1.0, AXES[over]
    furthest = max((curve.far.max() for group in groups.values() for curve in group.values()), default=0.0)
    size, unit = next((size, unit) for start, size, unit in UNITS[over] if furthest >= start)
    return size, f"{AXES[over]} ({unit})"


def _panels(rows: int, columns: int, each: tuple[float, float]) -> tuple[Figure, Any]:
    """An empty figure, and its panels, each of a size in inches: shape (rows, columns)."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(each[0] * columns, each[1] * rows), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice: as the cell's value, and as a figure left open
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=9)
    return figure, panels


def _range(groups: Mapping[str, Mapping[str, Curve]]) -> tuple[float, float]:
    """Of the vertical scale. Where lines crowd, how they began lies outside: they differ in what comes later."""
    curves = [curve for group in groups.values() for curve in group.values()]
    crowded = max(map(len, groups.values())) > len(PALETTE)
    later = [slice(len(curve.far) // 10 if crowded else 0, None) for curve in curves]
    low = min((curve.low[part].min() for curve, part in zip(curves, later, strict=True)), default=0.0)
    high = max((curve.high[part].max() for curve, part in zip(curves, later, strict=True)), default=1.0)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _share(rows: Any, metric: str, limits: tuple[float, float]) -> None:
    """One vertical scale for all panels, named at the left."""
    for axes in rows.flat:
        axes.set_ylim(*limits)
        if axes.get_visible():
            axes.label_outer(remove_inner_ticks=False)
    for axes in rows[:, 0]:
        axes.set_ylabel(metric.replace("_", " "))


def _whole_numbers(axes: Any) -> None:
    """On the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _saved(figure: Figure, path: str | None) -> Figure:
    """The figure, in a file when there is a path."""
    if path:
        figure.savefig(path, dpi=150)
    return figure


def _draw(axes: Any, history: History, name: str, style: Any) -> None:
    """One metric as a line; federated metrics with the band of their 10th to 90th percentile."""
    rounds, values = history.column("round"), history.column(name)
    measured = np.isfinite(values)
    group = name.split("_")[0]
    colour = COLOURS.get(group)
    axes.plot(
        rounds[measured],
        values[measured],
        label=name.replace("_", " "),
        color=colour,
        linestyle=style,
        marker="." if measured.sum() < 20 else None,
    )
    if any(f"{name}_p10" in record.metrics for record in history.rounds):
        low, high = history.column(f"{name}_p10"), history.column(f"{name}_p90")
        axes.fill_between(rounds[measured], low[measured], high[measured], color=colour, alpha=0.15, linewidth=0)
