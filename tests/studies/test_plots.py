"""Pictures of runs: what is drawn is what was measured, and can be told apart."""

import numpy as np
import pytest

from umbel.core.types import RoundRecord
from umbel.server.history import History
from umbel.server.plots import PALETTE, STYLES
from umbel.studies.comparison import Comparison


def history(values, every=1, nbytes=1000, **metrics):
    """A run with these test accuracies, one measured every so many rounds."""
    records = []
    for number in range(1, every * len(values) + 1):
        found = {"virtual_seconds": 1800.0 * number} | metrics
        if number % every == 0:
            found["test_accuracy"] = values[number // every - 1]
        records.append(RoundRecord(number, 10, 0, found, 0.5, 0.1, nbytes, nbytes, None))
    return History("drawn", records, np.zeros(1, np.float32), None)


def compared(**histories):
    """As a figure of their comparison takes them: {"group/variant": one history per seed}."""
    return Comparison({name.replace("__", "/"): found for name, found in histories.items()}, {})


def curves(axes):
    """What is drawn in a panel: (x, y, colour, style)."""
    return [(*line.get_data(), line.get_color(), line.get_linestyle()) for line in axes.lines]


def test_a_line_is_the_mean_over_seeds_and_its_band_their_range():
    two = [history([0.2, 0.4, 0.9]), history([0.4, 0.8])]
    figure = compared(a=two).plot()
    ((x, y, *_),) = curves(figure.axes[0])
    assert (list(x), list(y)) == ([1, 2], pytest.approx([0.3, 0.6]))
    band = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData)
    assert (band.y0, band.y1) == pytest.approx((0.2, 0.8))


@pytest.mark.parametrize(
    ("over", "label", "end"),
    [
        ("round", "round", 6),
        ("seconds", "time (s)", 3),
        ("virtual_seconds", "virtual time (h)", 3),
        ("bytes", "sent (kB)", 12),
    ],
)
def test_axes_count_in_units_that_can_be_read(over, label, end):
    (axes,) = compared(a=[history([0.1, 0.2, 0.3], every=2)]).plot(over=over).axes
    assert axes.get_xlabel() == label
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(end)


def test_groups_have_panels_of_one_scale_and_a_variant_looks_the_same_in_each():
    one, two = [history([0.1, 0.5])], [history([0.3, 0.9])]
    figure = compared(iid__A=one, iid__B=two, shards__B=one, shards__C=two).plot()
    assert [axes.get_title() for axes in figure.axes] == ["iid", "shards"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B", "C"]
    assert curves(figure.axes[0])[1][2:] == curves(figure.axes[1])[0][2:]


def test_a_line_that_covers_another_is_dashed():
    same = [history([0.1, 0.5])]
    (axes,) = compared(A=same, B=same, C=[history([0.2, 0.5])]).plot().axes
    colours, styles = zip(*(curve[2:] for curve in curves(axes)), strict=True)
    assert len(set(colours)) == 3
    assert styles == ("-", "--", "-")


def test_28_lines_are_of_28_looks():
    many = {f"run{number}": [history([0.01 * number, 0.02 * number])] for number in range(28)}
    figure = compared(**many).plot()
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in figure.axes[0].lines}
    assert len(looks) == len(PALETTE) * len(STYLES) == 28


def test_what_was_measured_once_is_drawn_as_dots_with_figures():
    two = [history([0.125], every=20), history([0.375], every=20)]
    figure = compared(none__Krum=two, flip__Krum=two[:1], flip__Median=two[1:]).plot()
    shown = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in figure.axes}
    assert shown == {"none": ["0.250"], "flip": ["0.125", "0.375"]}
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Krum", "Median"]


def test_a_grid_is_drawn_as_a_map_whose_cells_are_the_means():
    finals = {"flip__Krum": [0.125, 0.375], "flip__Median": [0.5], "none__Krum": [0.75], "none__Median": [1.0]}
    (axes,) = (
        compared(**{name: [history([one], every=20) for one in seeds] for name, seeds in finals.items()}).plot().axes
    )
    assert [text.get_text() for text in axes.texts] == ["0.250", "0.750", "0.500", "1.000"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.25, 0.75], [0.5, 1.0]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["flip", "none"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Krum", "Median"]


def test_metrics_are_drawn_one_below_the_other():
    comparison = compared(A=[history([0.1, 0.2], test_loss=2.0)], B=[history([0.2, 0.3])])
    both = comparison.plot(metric=("test_accuracy", "test_loss"))
    assert [axes.get_ylabel() for axes in both.axes] == ["test accuracy", "test loss"]
    assert [len(axes.lines) for axes in both.axes] == [2, 1]
    one = comparison.plot()
    assert [curve[2:] for curve in curves(one.axes[0])] == [curve[2:] for curve in curves(both.axes[0])]
    assert both.get_size_inches()[1] == 2 * one.get_size_inches()[1]


def test_text_is_large_enough_and_experiments_without_a_run_are_left_out(tmp_path):
    from matplotlib.text import Text

    some = {"lines__A": [history([0.1, 0.2])], "lines__B": []}
    dots = {"A": [history([0.1])], "B": []}
    grid = {f"{group}__{one}": [history([0.1])] for group in "AC" for one in "DE"}
    figures = [compared(**named).plot() for named in (some, dots, grid, {"A": []})]
    for number, figure in enumerate([*figures, history([0.1]).plot()]):
        figure.savefig(tmp_path / f"{number}.png")
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
        assert not any(text.get_text() == "B" for text in figure.findobj(Text))


def test_metrics_of_one_kind_differ_in_style():
    own = {"validation_accuracy": 0.5, "validation_personal_accuracy": 0.6, "train_loss": 1.0}
    accuracies, losses = history([0.1, 0.2], **own).plot().axes
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in accuracies.lines}
    assert set(styles) == {"test accuracy", "validation accuracy", "validation personal accuracy"}
    assert len(set(styles.values())) == 3
    assert [line.get_label() for line in losses.lines] == ["train loss"]
