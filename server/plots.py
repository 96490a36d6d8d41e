"""A run as a picture."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .comparison import Comparison
    from .history import History

COLOURS = {"train": "#7a8794", "test": "#1b6ca8", "validation": "#2e8b57"}


def plot_history(history: History, path: str | None = None) -> Figure:
    """A panel for every accuracy and one for every loss, per round, where there are any. Saved to path when given."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    names = sorted({name for record in history.rounds for name in record.metrics})
    groups = [
        ("accuracy", [name for name in names if name.endswith("accuracy")]),
        ("loss", [n for n in names if n.endswith("_loss")]),
    ]
    panels = [(title, members) for title, members in groups if members] or [("loss", [])]
    figure = pyplot.figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice: as the cell's value, and as a figure left open
    for position, (title, members) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), position + 1)
        for name in members:
            _draw(axes, history, name)
        axes.set(xlabel="round", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if members:
            axes.legend(frameon=False)
    figure.suptitle(history.experiment, fontsize=11)
    if path:
        figure.savefig(path, dpi=150)
    return figure


def plot_comparison(comparison: Comparison, path: str | None, metric: str, over: str) -> Figure:
    """A line per experiment: the mean over its seeds, in the band from the least to the largest."""
    from matplotlib import pyplot

    from .comparison import axis

    names = {"round": "round", "seconds": "seconds", "virtual_seconds": "virtual seconds", "bytes": "bytes sent"}
    figure = pyplot.figure(figsize=(7.2, 4.2), layout="constrained")
    pyplot.close(figure)
    axes = figure.add_subplot()
    # More lines than colours: the next ten are dashed.
    styles = [("-", colour) for colour in range(10)] + [("--", colour) for colour in range(10)]
    for (style, colour), (name, histories) in zip(itertools.cycle(styles), comparison.histories.items(), strict=False):
        if not histories:
            continue
        shortest = min(len(history.rounds) for history in histories)
        values = np.array([history.column(metric)[:shortest] for history in histories])
        far = np.array([axis(history, over)[:shortest] for history in histories]).mean(0)
        shown = np.isfinite(values).all(0) & np.isfinite(far)
        axes.plot(far[shown], values.mean(0)[shown], style, color=f"C{colour}", label=name, linewidth=1.4)
        if len(histories) > 1:
            low, high = values.min(0)[shown], values.max(0)[shown]
            axes.fill_between(far[shown], low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
    axes.set(xlabel=names[over], ylabel=metric.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    if path:
        figure.savefig(path, dpi=150)
    return figure


def _draw(axes, history: History, name: str) -> None:
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
        marker="." if measured.sum() < 20 else None,
    )
    if any(f"{name}_p10" in record.metrics for record in history.rounds):
        low, high = history.column(f"{name}_p10"), history.column(f"{name}_p90")
        axes.fill_between(rounds[measured], low[measured], high[measured], color=colour, alpha=0.15, linewidth=0)
