"""Experiments side by side, as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.bases import Population
from ..data.summary import plot_population
from ..server.plots import PALETTE, STYLES, add_panels, new_figure, save_figure, use_whole_numbers
from .curves import Curve, Grid, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"round": "round", "seconds": "time", "virtual_seconds": "virtual time", "bytes": "sent"}
TIMES = ((7200.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))  # units: least value, size, name
UNITS = {
    "seconds": TIMES,
    "virtual_seconds": TIMES,
    "bytes": ((1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0.0, 1.0, "bytes")),
}


Groups = Mapping[str, Mapping[str, Curve]]  # curves by group and variant


class Picture(NamedTuple):
    """Drawing of a metric: panels, the size of each in inches, and what draws on a figure and its panels."""

    rows: int
    columns: int
    each: tuple[float, float]
    draw: Callable[[Any, Any], None]


def plot_metrics(metrics: Sequence[Metric], over: str, path: str | None) -> Figure:
    """Draw each metric's mean over seeds, from the least to the largest: a line per experiment, metric below metric.

    Experiments called "group/variant" have a panel for each group. Where all were measured but once, dots take the
    place of lines, and where they form a grid, a map of its cells.
    """
    pictures = [_pictured(metric, over) for metric in metrics]
    heights = [one.rows * one.each[1] for one in pictures]
    figure = new_figure(max(one.columns * one.each[0] for one in pictures), sum(heights))
    parts: Sequence[Any] = [figure]
    if len(pictures) > 1:
        parts = [*figure.subfigures(len(pictures), 1, squeeze=False, height_ratios=heights).flat]
    for part, picture in zip(parts, pictures, strict=True):
        picture.draw(part, add_panels(part, picture.rows, picture.columns))
    return save_figure(figure, path)


def save_population(population: Population, clients: int, path: str) -> None:
    """Draw who has what data, a bar for each of the first clients, and save it to path (.png, .svg, .pdf)."""
    plot_population(population, clients).savefig(path)


def _pictured(metric: Metric, over: str) -> Picture:
    """Choose how a metric looks best."""
    name, curves, grid = metric.name, metric.curves, metric.grid
    groups = _grouped(curves)
    if not curves or any(len(curve.far) > 1 for curve in curves.values()):
        columns = len(groups) if len(groups) <= 3 else 2
        each = (7.2, 4.2) if columns == 1 else (4.4, 3.8)
        draw = partial(_draw_lines, groups=groups, metric=name, over=over)
        return Picture(-(-len(groups) // columns), columns, each, draw)
    if grid is not None:
        column = max(0.8, 0.1 * max(map(len, grid.groups)))
        size = 1.6 + column * len(grid.groups), 0.9 + 0.3 * len(grid.variants)
        draw = partial(_draw_map, grid=grid, curves=curves, metric=name, falls=metric.mode == "min")
        return Picture(1, 1, size, draw)
    size = 5.8 if len(groups) == 1 else 3.1, 1.0 + 0.3 * len(_variants(groups))
    return Picture(1, len(groups), size, partial(_draw_dots, groups=groups, metric=name))


def _grouped(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Return curves by group and variant; one group without a name, unless all have one."""
    if not curves or not all("/" in name for name in curves):
        return {"": dict(curves)}
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        group, variant = name.split("/", 1)
        groups.setdefault(group, {})[variant] = curve
    return groups


def _variants(groups: Groups) -> list[str]:
    """List the variants of all groups, each once."""
    return list(dict.fromkeys(name for group in groups.values() for name in group))


def _draw_lines(figure: Any, rows: Any, groups: Groups, metric: str, over: str) -> None:
    """Draw a panel of lines per group, and one legend for all."""
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
            use_whole_numbers(axes)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    _share(rows, metric, _range(groups))
    figure.legend(
        known.values(), known, frameon=False, fontsize=9, loc="outside right center", ncols=-(-len(known) // 24)
    )


def _draw_map(figure: Any, rows: Any, grid: Grid, curves: Mapping[str, Curve], metric: str, falls: bool) -> None:
    """Draw the grid as a table whose cells are the darker the better their mean, in one panel.

    falls: whether a small mean is a good one.
    """
    means = {name: curve.mean[0] for name, curve in curves.items()}
    cells = np.array([[means.get(grid.name(group, one), np.nan) for group in grid.groups] for one in grid.variants])
    axes = rows[0, 0]
    shades = -cells if falls else cells
    axes.imshow(shades, cmap="Blues", aspect="auto")
    dark = np.nanmin(shades) + 0.6 * (np.nanmax(shades) - np.nanmin(shades))
    for (row, column), value in np.ndenumerate(cells):
        shown = "–" if np.isnan(value) else f"{value:.3f}"
        colour = "white" if shades[row, column] > dark else "black"  # NaN is not above
        axes.text(column, row, shown, ha="center", va="center", color=colour, size=9)
    axes.set_xticks(range(len(grid.groups)), grid.groups)
    axes.set_yticks(range(len(grid.variants)), grid.variants)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(metric.replace("_", " "), fontsize=10)


def _draw_dots(figure: Any, rows: Any, groups: Groups, metric: str) -> None:
    """Draw a panel of dots per group, in rows that all have in common."""
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
    """Yield colours and line styles; no two of the first 28 are the same pair."""
    for turn in range(1_000):
        for place in range(len(PALETTE)):
            # Turned on by one: a dashed line that covers the solid one seven before it has another colour.
            yield PALETTE[(place + turn) % len(PALETTE)], STYLES[turn % len(STYLES)]


def _unit(groups: Groups, over: str) -> tuple[float, str]:
    """Return the unit to divide the horizontal axis by, and its label."""
    if over not in UNITS:
        return 1.0, AXES[over]
    furthest = max((curve.far.max() for group in groups.values() for curve in group.values()), default=0.0)
    size, unit = next((size, unit) for start, size, unit in UNITS[over] if furthest >= start)
    return size, f"{AXES[over]} ({unit})"


def _range(groups: Groups) -> tuple[float, float]:
    """Return the range of the vertical scale.

    Where lines crowd, how they began lies outside: they differ in what comes later.
    """
    curves = [curve for group in groups.values() for curve in group.values()]
    crowded = max(map(len, groups.values())) > len(PALETTE)
    later = [slice(len(curve.far) // 10 if crowded else 0, None) for curve in curves]
    low = min((curve.low[part].min() for curve, part in zip(curves, later, strict=True)), default=0.0)
    high = max((curve.high[part].max() for curve, part in zip(curves, later, strict=True)), default=1.0)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _share(rows: Any, metric: str, limits: tuple[float, float]) -> None:
    """Set one vertical scale for all panels, named at the left."""
    for axes in rows.flat:
        axes.set_ylim(*limits)
        if axes.get_visible():
            axes.label_outer(remove_inner_ticks=False)
    for axes in rows[:, 0]:
        axes.set_ylabel(metric.replace("_", " "))
