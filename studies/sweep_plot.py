"""A sweep as a picture: a line per trial over its settings, and how much each setting mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..core.reading.directions import Mode
from ..server.plots import PALETTE, add_panels, new_figure, save_figure
from .ranges import Choices, Range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TICKS = 6
LIFTED = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
WIDTH = 1.7  # inches between two axes


class Drawn(Protocol):
    """A sweep, as it is drawn."""

    @property
    def metric(self) -> str: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def trials(self) -> Sequence[Any]: ...
    @property
    def ranges(self) -> Mapping[str, Range | Choices]: ...
    @property
    def importance(self) -> Mapping[str, float]: ...
    @property
    def best(self) -> Any: ...


def plot_sweep(sweep: Drawn, path: str | None) -> Figure:
    """Draw a line per trial across an axis for each setting and one for the metric; below, the settings' importance."""
    paths = list(sweep.ranges)
    has_bars = bool(sweep.importance)
    height = 3.6 + (0.6 + 0.28 * len(paths)) * has_bars
    figure = new_figure(max(5.6, 1.6 + WIDTH * len(paths)), height)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.6, height - 3.6]) if has_bars else [figure]
    _draw_lines(add_panels(parts[0], 1, 1)[0, 0], sweep, paths)
    if has_bars:
        _draw_bars(add_panels(parts[1], 1, 1)[0, 0], sweep.importance)
    return save_figure(figure, path)


def _draw_lines(axes: Any, sweep: Drawn, paths: Sequence[str]) -> None:
    measured = [trial for trial in sweep.trials if trial.value is not None]
    values = np.array([trial.value for trial in measured], float)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = (high - low) or 1.0
    for trial, value in zip(measured, values, strict=True):
        heights = [place(sweep.ranges[name], trial.settings[name]) for name in paths] + [(value - low) / room]
        is_best, is_pruned = sweep.best is not None and trial.number == sweep.best.number, trial.state == "pruned"
        colour = PALETTE[1] if is_best else "#9aa5b1" if is_pruned else PALETTE[0]
        width, style = (2.4 if is_best else 1.0), ((0, (3, 2)) if is_pruned else "-")
        axes.plot(
            range(len(heights)), heights, color=colour, linewidth=width, linestyle=style, alpha=1 if is_best else 0.55
        )
    for position, name in enumerate(paths):
        axes.axvline(position, color="black", linewidth=0.8)
        for height, text in ticks(sweep.ranges[name]):
            axes.annotate(
                text, (position, height), (3, 0), textcoords="offset points", size=8, va="center", bbox=LIFTED
            )
    axes.axvline(len(paths), color="black", linewidth=0.8)
    for height in (0.0, 0.5, 1.0) if len(values) else ():
        text = f"{low + height * room:.4g}"
        axes.annotate(text, (len(paths), height), (4, 0), textcoords="offset points", size=8, va="center", bbox=LIFTED)
    axes.set_xticks(
        range(len(paths) + 1), [*(name.replace(".", ".\n", 1) for name in paths), sweep.metric.replace("_", " ")]
    )
    axes.set(ylim=(-0.05, 1.05), xlim=(-0.1, len(paths) + 0.45))
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(_title(sweep, measured), fontsize=10)


def _title(sweep: Drawn, measured: Sequence[Any]) -> str:
    pruned = sum(trial.state == "pruned" for trial in sweep.trials)
    parts = [f"{len(sweep.trials)} trials", *([f"{pruned} ended early (dashed)"] if pruned else [])]
    if sweep.best is not None:
        parts.append(f"best {sweep.metric.replace('_', ' ')} {sweep.best.value:.4g}")
    return ", ".join(parts) if measured else f"{len(sweep.trials)} trials, none measured {sweep.metric}"


def _draw_bars(axes: Any, importance: Mapping[str, float]) -> None:
    names = sorted(importance, key=lambda name: importance[name])
    axes.barh(range(len(names)), [importance[name] for name in names], color=PALETTE[0], height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of the metric's variance", xlim=(0, 1))


def place(one: Range | Choices, text: str) -> float:
    """Return where a value lies on its axis, 0 to 1."""
    if isinstance(one, Choices):
        return one.values.index(text) / max(len(one.values) - 1, 1)
    low, high, value = (math.log(number) if one.is_log else number for number in (one.low, one.high, float(text)))
    return (value - low) / (high - low)


def ticks(one: Range | Choices) -> list[tuple[float, str]]:
    """Return the ticks of an axis: where each lies, 0 to 1, and its text."""
    if isinstance(one, Choices):
        step = -(-len(one.values) // MOST_TICKS)
        return [(place(one, text), text) for text in one.values[::step]]
    middle = math.sqrt(one.low * one.high) if one.is_log else (one.low + one.high) / 2
    between = round(middle) if one.is_whole else middle
    texts = dict.fromkeys(f"{number:.3g}" for number in (one.low, between, one.high))
    return [(place(one, text), text) for text in texts]
