"""Runs as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison, Grid
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


Groups = Mapping[str, Mapping[str, Curve]]  # by group and variant


class Picture(NamedTuple):
    """How a metric is drawn: panels, the size of each in inches, and what draws on a figure and its panels."""

    rows: int
    columns: int
    each: tuple[float, float]
    draw: Callable[[Any, Any], None]


def plot_history(history: History, path: str | None = None) -> Figure:
    """A panel for every accuracy and one for every loss, per round, where there are any. Saved to path when given."""
    names = sorted({name for record in history.rounds for name in record.metrics})
    groups = [
        ("accuracy", [name for name in names if name.endswith("accuracy")]),
        ("loss", [n for n in names if n.endswith("_loss")]),
    ]
    panels = [(title, members) for title, members in groups if members] or [("loss", [])]
    figure = _figure(5.2 * len(panels), 3.6)
    (row,) = _panels(figure, 1, len(panels))
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


def plot_comparison(comparison: Comparison, path: str | None, metrics: Sequence[str], over: str) -> Figure:
    """Each metric's mean over seeds, from the least to the largest: a line per experiment, one metric below the other.

    Experiments called "group/variant" have a panel for each group. Where all were measured but once, dots take the
    place of lines, and where they form a grid, a map of its cells. Errors: ConfigError for a metric that no run has.
    """
    pictures = [_pictured(comparison, metric, over) for metric in metrics]
    heights = [one.rows * one.each[1] for one in pictures]
    figure = _figure(max(one.columns * one.each[0] for one in pictures), sum(heights))
    parts: Sequence[Any] = [figure]
    if len(pictures) > 1:
        parts = [*figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights).flat]
    for part, picture in zip(parts, pictures, strict=True):
        picture.draw(part, _panels(part, picture.rows, picture.columns))
    return _saved(figure, path)


def _pictured(comparison: Comparison, metric: str, over: str) -> Picture:
    """How a metric looks best."""
    measuring = comparison.measuring(metric)
    curves = {
        name: curve
        for name, histories in measuring.items()
        if histories and len((curve := _curve(histories, metric, over)).far)
    }
    if not curves and any(measuring.values()):
        raise ConfigError(f"no run measured {over!r} where it measured {metric!r}; choose another axis")
    groups = _grouped(curves)
    if not curves or any(len(curve.far) > 1 for curve in curves.values()):
        columns = len(groups) if len(groups) <= 3 else 2
        each = (7.2, 4.2) if columns == 1 else (4.4, 3.8)
        draw = partial(_draw_lines, groups=groups, metric=metric, over=over)
        return Picture(-(-len(groups) // columns), columns, each, draw)
    if (grid := comparison.grid) is not None:
        column = max(0.8, 0.1 * max(map(len, grid.groups)))
        size = 1.6 + column * len(grid.groups), 0.9 + 0.3 * len(grid.variants)
        return Picture(1, 1, size, partial(_draw_map, grid=grid, curves=curves, metric=metric))
    size = 5.8 if len(groups) == 1 else 3.1, 1.0 + 0.3 * len(_variants(groups))
    return Picture(1, len(groups), size, partial(_draw_dots, groups=groups, metric=metric))


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


def _variants(groups: Groups) -> list[str]:
    """Of all groups, each once."""
    return list(dict.fromkeys(name for group in groups.values() for name in group))


def _draw_lines(figure: Any, rows: Any, groups: Groups, metric: str, over: str) -> None:
    """A panel of lines per group, and one legend for all."""
    looks = dict(zip(_variants(groups), _looks(), strict=False))
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


def _draw_map(figure: Any, rows: Any, grid: Grid, curves: Mapping[str, Curve], metric: str) -> None:
    """The grid as a table whose cells are the darker the larger their mean, in one panel."""
    means = {name: curve.mean[0] for name, curve in curves.items()}
    cells = np.array([[means.get(grid.name(group, one), np.nan) for group in grid.groups] for one in grid.variants])
    axes = rows[0, 0]
    axes.imshow(cells, cmap="Blues", aspect="auto")
    dark = np.nanmin(cells) + 0.6 * (np.nanmax(cells) - np.nanmin(cells))
    for (row, column), value in np.ndenumerate(cells):
        shown, colour = ("–", "black") if np.isnan(value) else (f"{value:.3f}", "white" if value > dark else "black")
        axes.text(column, row, shown, ha="center", va="center", color=colour, size=9)
    axes.set_xticks(range(len(grid.groups)), grid.groups)
    axes.set_yticks(range(len(grid.variants)), grid.variants)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(metric.replace("_", " "), fontsize=10)


def _draw_dots(figure: Any, rows: Any, groups: Groups, metric: str) -> None:
    """A panel of dots per group, in rows that all have in common."""
    from matplotlib.ticker import MaxNLocator

    names, row = _variants(groups), rows[0]
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


def _looks() -> Iterator[tuple[str, Any]]:
    """Colours and line styles; no two of the first 28 are the same pair."""
    for turn in range(1_000):
        for place in range(len(PALETTE)):
            # Turned on by one: a dashed line that covers the solid one seven before it has another colour.
            yield PALETTE[(place + turn) % len(PALETTE)], STYLES[turn % len(STYLES)]


def _unit(groups: Groups, over: str) -> tuple[float, str]:
    """What to divide the horizontal axis by, and its label."""
    if over not in UNITS:
        return 1.0, AXES[over]
    furthest = max((curve.far.max() for group in groups.values() for curve in group.values()), default=0.0)
    size, unit = next((size, unit) for start, size, unit in UNITS[over] if furthest >= start)
    return size, f"{AXES[over]} ({unit})"


def _figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice: as the cell's value, and as a figure left open
    return figure


def _panels(figure: Any, rows: int, columns: int) -> Any:
    """Empty panels that fill a figure, or a part of one: shape (rows, columns)."""
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=9)
    return panels


def _range(groups: Groups) -> tuple[float, float]:
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
