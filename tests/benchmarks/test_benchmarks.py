"""The benchmark's own arithmetic and plumbing; the contenders themselves run under `make bench`."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from umbel.benchmarks import algorithms, measure, report, scale
from umbel.benchmarks.contenders import workload
from umbel.benchmarks.measure import Contender, Result, Run, RunFailed

UMBEL, PEER = Contender("Umbel", "umbel_simulation"), Contender("peer", "peer")


def result(*seconds: float, accuracy: float = 0.9) -> Result:
    return Result((Run(seconds, 1.0, accuracy, None),))


def test_the_work_is_the_same_for_all():
    assert sorted(workload.partition().ravel()) == list(range(60_000))
    assert len(set(workload.cohort(3))) == workload.COHORT
    counts = {model: sum(array.size for array in workload.initial(model)) for model in workload.MODELS}
    assert counts == {"mlp": 199_210, "cnn": 1_663_370}


def test_synthetic_digits_have_the_shapes_of_mnist_and_can_be_learned():
    x, y = workload.synthetic(2000, seed=1)
    again, _ = workload.synthetic(2000, seed=1)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((2000, 28, 28), np.uint8, (2000,), np.uint8)
    np.testing.assert_array_equal(x, again)
    centres = np.stack([x[:1000][y[:1000] == digit].mean(0) for digit in range(10)]).reshape(10, -1)
    distances = ((x[1000:].reshape(-1, 1, 784) - centres) ** 2).sum(2)
    assert (distances.argmin(1) == y[1000:]).mean() > 0.9


def test_seconds_are_the_median_over_all_runs():
    both = Result((Run((1.0, 9.0), 7.0, 0.8, "graph"), Run((2.0,), 5.0, 0.9, "XLA")))
    assert (both.seconds, both.spread, both.first_round, both.note) == (2.0, (1.0, 9.0), 5.0, "XLA, graph")


def test_ratios_are_to_umbel_and_the_floor_is_the_fastest_by_hand():
    bare = [Contender("slow", "bare_slow"), Contender("fast", "bare_fast")]
    own = {UMBEL: result(2.0), PEER: result(6.0), bare[0]: result(4.0), bare[1]: result(1.6)}
    assert report.ratio(own, own[UMBEL]) == 1
    assert report.ratio(own, own[PEER]) == 3
    assert report.above_floor(own) == pytest.approx(1.25)
    assert report.ratio({PEER: own[PEER]}, own[PEER]) is None


def test_who_learned_something_else_is_named():
    agreed = {(UMBEL, "mlp"): result(1.0), (PEER, "mlp"): result(1.0, accuracy=0.9 - report.TOLERANCE / 2)}
    assert report.disagreements(agreed) == []
    third = Contender("third", "third")
    (fault,) = report.disagreements({**agreed, (third, "mlp"): result(1.0, accuracy=0.9 - 2 * report.TOLERANCE)})
    assert fault.startswith("third, mlp")
    assert len(report.disagreements({(UMBEL, "mlp"): result(1.0, accuracy=0.1)})) == 1


def test_a_contender_that_failed_is_shown_with_its_reason():
    own = {UMBEL: result(1.0), PEER: Result((), "ImportError: no such package")}
    rows = list(report.rows(own))
    assert rows[1][0] == "peer"
    assert rows[1][-1] == "ImportError: no such package"
    assert "| peer | – |" in report.summary({(contender, "mlp"): one for contender, one in own.items()})


def test_only_the_text_between_the_markers_changes(tmp_path):
    readme = tmp_path / "README.md"
    assert not report.between_markers(readme, "table")
    readme.write_text("no markers")
    assert not report.between_markers(readme, "table")
    readme.write_text(f"before {report.BEGIN}\nold\n{report.END} after")
    assert report.between_markers(readme, "table")
    assert report.between_markers(readme, "table")
    assert readme.read_text() == f"before {report.BEGIN}\ntable\n{report.END} after"


def test_reports_are_the_json_lines_of_a_process():
    program = 'print("noise"); print(\'{"round": 1, "seconds": 0.5, "accuracy": null, "note": null}\')'
    ((arrived, line),) = measure._reports([sys.executable, "-c", program])
    assert line["round"] == 1
    assert 0 < arrived < 60


def test_a_process_that_fails_gives_its_error():
    with pytest.raises(RunFailed, match="ValueError: too small"):
        list(measure._reports([sys.executable, "-c", "raise ValueError('too small')"]))


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(measure, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(RunFailed, match=r"no end after 0\.5 s"):
        list(measure._reports([sys.executable, "-c", "import time; time.sleep(60)"]))


def test_the_crowd_owns_ten_rows_each():
    population = scale.crowd(1000)
    assert len(population) == 1000
    assert set(population.sizes()) == {scale.EXAMPLES}
    own = population.examples(7)
    np.testing.assert_array_equal(own.x, population.resident().x[population.indices(7)])


def test_what_an_algorithm_costs_leaves_out_the_rounds_that_compile():
    rounds = [9.0] * algorithms.SETTLED + [1.0, 2.0, 7.0]
    clock = algorithms.Clock([sum(rounds[:count]) for count in range(len(rounds) + 1)])
    assert clock.per_round() == 2.0
    assert {algorithms.experiment_of(name).strategy for name in algorithms.STRATEGIES} == {
        *algorithms.STRATEGIES.values()
    }
