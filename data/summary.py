"""Summary of who has what: a population in numbers, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.validation import require_count
from .allocation import labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTED_CLIENTS = 10_000  # the most clients, evenly spaced, whose labels are counted
MAX_COLOURS = 20


@dataclass(frozen=True)
class Summary:
    """A population in numbers; `str()` is a table.

    Label figures are None where examples have no single class label, and are over `counted_clients` of the clients.
    """

    clients: int
    examples: int
    min_examples: int
    median_examples: float
    max_examples: int
    labels: int | None  # number of distinct labels among the counted clients
    labels_per_client: float | None  # mean number of labels that a client has
    label_skew: float | None  # mean total-variation distance of a client's labels from all labels: 0 equal, <1 disjoint
    counted_clients: int

    def __str__(self) -> str:
        rows = [
            ("clients", f"{self.clients:,}"),
            ("examples", f"{self.examples:,}"),
            ("per client", f"{self.min_examples:,} to {self.max_examples:,}, median {self.median_examples:,g}"),
        ]
        if self.labels is not None:
            rows += [
                ("labels", f"{self.labels:,}"),
                ("labels per client", f"{self.labels_per_client:.2f}"),
                ("label skew", f"{self.label_skew:.3f}  (total variation: 0 alike, 1 disjoint)"),
            ]
            if self.counted_clients < self.clients:
                rows.append(("", f"(labels of {self.counted_clients:,} clients)"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def summarize(population: Population) -> Summary:
    """Count a population's clients, examples and labels.

    Reads at most 10,000 clients' labels, which loads a resident data set and generates streamed clients.
    """
    sizes = population.sizes()
    clients = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), COUNTED_CLIENTS)).astype(np.int64))
    counted = _count_labels(population, clients)
    labels = labels_per_client = label_skew = None
    if counted is not None:
        counts = counted[1][counted[1].sum(axis=1) > 0]
        overall = counts.sum(axis=0) / counts.sum()
        distances = np.abs(counts / counts.sum(axis=1, keepdims=True) - overall).sum(axis=1) / 2
        labels = len(counted[0])
        labels_per_client = float((counts > 0).sum(axis=1).mean())
        label_skew = float(distances.mean())
    return Summary(
        clients=len(sizes),
        examples=int(sizes.sum()),
        min_examples=int(sizes.min()),
        median_examples=float(np.median(sizes)),
        max_examples=int(sizes.max()),
        labels=labels,
        labels_per_client=labels_per_client,
        label_skew=label_skew,
        counted_clients=len(clients),
    )


def _count_labels(population: Population, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (distinct labels, counts of shape (clients, labels)), or None if examples have no single class label."""
    try:
        owned = list(_labels(population, clients))
    except ConfigError:
        return None
    distinct, codes = np.unique(np.concatenate(owned), return_inverse=True)
    owners = np.repeat(np.arange(len(owned)), [len(labels) for labels in owned])
    counts = np.bincount(owners * len(distinct) + codes, minlength=len(owned) * len(distinct))
    return distinct, counts.reshape(len(owned), len(distinct))


def _labels(population: Population, clients: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each client's labels. Errors: ConfigError where there are none."""
    resident = population.resident()
    if resident is None:
        yield from (labels_of(population.examples(int(client))) for client in clients)
        return
    labels = labels_of(resident)
    yield from (labels[population.indices(int(client))] for client in clients)


def plot_population(population: Population, clients: int = 50, *, title: str | None = None) -> Figure:
    """Draw a bar per client, as high as its number of examples, in the colours of its labels.

    Shows the first `clients` clients; in one colour where there are no class labels or more than 20. Returns a
    matplotlib Figure: a notebook shows it, `savefig` writes it.
    """
    require_count("clients", clients)
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    sizes = population.sizes()
    shown = np.arange(min(clients, len(sizes)))
    counted = _count_labels(population, shown)
    figure, axes = pyplot.subplots(figsize=(9, 4), dpi=120, layout="constrained")
    pyplot.close(figure)  # else a notebook shows it twice: as the cell's value, and as a figure left open
    if counted is not None and len(counted[0]) <= MAX_COLOURS:
        _stack(axes, shown, *counted)
    else:
        axes.bar(shown, sizes[shown], width=0.85, color="#4c72b0")
    part = "" if len(shown) == len(sizes) else f" (the first {len(shown)} shown)"
    axes.set_title(title or f"{sizes.sum():,} examples, {len(sizes):,} clients{part}", loc="left", fontsize=11)
    axes.set(xlabel="client", ylabel="examples", xlim=(-0.7, len(shown) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, 1.05 * sizes[shown].max())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _stack(axes: Any, clients: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    """Draw bars in a colour per label, with a legend beside them in the order of the stack."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"]
    bottom = np.zeros(len(clients), np.int64)
    for place, label in enumerate(labels):
        axes.bar(clients, counts[:, place], width=0.85, bottom=bottom, color=palette(place), label=str(label))
        bottom += counts[:, place]
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        title="label",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
    )
