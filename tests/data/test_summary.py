"""Summaries and pictures of populations: figures that can be computed by hand."""

import numpy as np
import pytest

from umbel.core.errors import ConfigError
from umbel.data import Arrays, ByKey, Digits, Dirichlet, Generated, Partitioned, plot_population, summarize

HALVES = Partitioned(Arrays(np.zeros(12), np.repeat([3, 8], 6)), ByKey(np.repeat(np.arange(3), [3, 3, 6])))


def test_summary_of_disjoint_clients():
    summary = summarize(HALVES)
    assert (summary.clients, summary.examples, summary.labels) == (3, 12, 2)
    assert (summary.min_examples, summary.median_examples, summary.max_examples) == (3, 3.0, 6)
    assert summary.labels_per_client == 1.0
    assert summary.label_skew == pytest.approx(0.5)  # all on one label, where the whole has a half on each


def test_summary_of_alike_clients():
    alike = Partitioned(Arrays(np.zeros(12), np.arange(12) % 2), ByKey(np.repeat(np.arange(3), 4)))
    assert summarize(alike).label_skew == pytest.approx(0.0)
    assert summarize(alike).labels_per_client == 2.0


def test_summary_prints_as_a_table():
    assert str(summarize(HALVES)).splitlines() == [
        "clients            3",
        "examples           12",
        "per client         3 to 6, median 3",
        "labels             2",
        "labels per client  1.00",
        "label skew         0.500  (total variation: 0 alike, 1 disjoint)",
    ]


def test_summary_without_class_labels():
    summary = summarize(Partitioned(Arrays(np.zeros((30, 4)), np.zeros((30, 80), np.int32)), clients=3))
    assert (summary.labels, summary.labels_per_client, summary.label_skew) == (None, None, None)
    assert "label" not in str(summary)


def test_summary_of_streamed_clients_is_that_of_resident_ones():
    population = Partitioned(Digits(), Dirichlet(0.5), clients=30)
    streamed = Partitioned(Digits(), Dirichlet(0.5), clients=30, stream=True)
    assert summarize(population) == summarize(streamed)


def test_labels_are_counted_for_a_bounded_number_of_clients():
    made = []

    def make(client):
        made.append(client)
        return np.zeros(1), np.zeros(1, np.int32)

    summary = summarize(Generated(50_000, make, 1))
    assert len(made) == summary.counted_clients == 10_000
    assert "(labels of 10,000 clients)" in str(summary)


def test_plot_stacks_every_clients_labels(tmp_path):
    from matplotlib import pyplot

    figure = plot_population(HALVES)
    (axes,) = figure.axes
    bars = [(round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in axes.patches]
    assert sorted(bars) == [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0), (2, 6)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["8", "3"]
    figure.savefig(tmp_path / "population.png")
    assert (tmp_path / "population.png").stat().st_size > 5000
    assert pyplot.get_fignums() == []  # nothing is left open


def test_plot_shows_the_first_clients_and_says_so():
    figure = plot_population(Partitioned(Digits(), clients=80), clients=10)
    assert len(figure.axes[0].containers[0]) == 10
    assert figure.axes[0].get_title(loc="left") == "1,437 examples, 80 clients (the first 10 shown)"
    plain = plot_population(Partitioned(Arrays(np.zeros(100), np.arange(100)), clients=4))
    assert len(plain.axes[0].patches) == 4
    with pytest.raises(ConfigError, match="clients=0"):
        plot_population(HALVES, clients=0)
