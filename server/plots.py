"""A run as a picture, and what all pictures have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.types import RoundRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind eyes tell apart, without the yellow that is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # solid, dashed, dotted, both
COLOURS = {"train": "#7a8794", "test": PALETTE[0], "validation": PALETTE[1]}

Column = Callable[[str], np.ndarray]  # name of a metric or field → one number per round


def plot_rounds(title: str, records: Sequence[RoundRecord], column: Column, path: str | None = None) -> Figure:
    """Draw accuracies in one panel and losses in another, per round, where there are any. Saved to path when given."""
    names = sorted({name for record in records for name in record.numbers})
    groups = [
        ("accuracy", [name for name in names if name.endswith("accuracy")]),
        ("loss", [n for n in names if n.endswith("_loss")]),
    ]
    panels = [(group, members) for group, members in groups if members] or [("loss", [])]
    picture = new_figure(5.2 * len(panels), 3.6)
    (row,) = add_panels(picture, 1, len(panels))
    for axes, (group, members) in zip(row, panels, strict=True):
        for name in members:
            alike = [other for other in members if other.split("_")[0] == name.split("_")[0]]
            _draw(axes, records, column, name, STYLES[alike.index(name) % len(STYLES)])
        axes.set(xlabel="round", ylabel=group)
        use_whole_numbers(axes)
        if members:
            axes.legend(frameon=False)
    picture.suptitle(title, fontsize=11)
    return save_figure(picture, path)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure. width, height: inches."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice: as the cell's value, and as a figure left open
    return figure


def add_panels(figure: Any, rows: int, columns: int) -> Any:
    """Fill a figure, or a part of one, with empty panels; they have the shape (rows, columns)."""
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=9)
    return panels


def use_whole_numbers(axes: Any) -> None:
    """Put ticks at whole numbers alone on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def save_figure(figure: Figure, path: str | None) -> Figure:
    """Save the figure when there is a path, and return it."""
    if path:
        figure.savefig(path, dpi=150)
    return figure


def _draw(axes: Any, records: Sequence[RoundRecord], column: Column, name: str, style: Any) -> None:
    """Draw one metric as a line, federated metrics with the band of their 10th to 90th percentile."""
    rounds, values = column("round"), column(name)
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
    if any(f"{name}_p10" in record.numbers for record in records):
        low, high = column(f"{name}_p10"), column(f"{name}_p90")
        axes.fill_between(rounds[measured], low[measured], high[measured], color=colour, alpha=0.15, linewidth=0)
