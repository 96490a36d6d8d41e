"""Progress: a line for every round asked for, for the last, and for whoever was left out; never more."""

import io

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, Simulation, run
from umbel.core.types import Failure, RoundRecord
from umbel.server import History, Progress


def shown(rounds, failing=(), **settings):
    stream = io.StringIO()
    progress = Progress(stream, **settings)
    progress.on_start(federation(rounds=rounds), None, "20261121-abcdef", ())
    for number in range(1, rounds + 1):
        failures = [Failure(client, "timeout", "line\nbreak") for client in range(5)] if number in failing else []
        record = RoundRecord(number, 1, len(failures), {"test_accuracy": 0.5}, 0.25, 0.25, None, None, None)
        progress.on_round(record, failures)
    first, *lines = stream.getvalue().splitlines()
    assert first == f"small as run 20261121-abcdef, round 0 of {rounds} done"
    return lines


def test_a_line_per_round():
    assert shown(2) == [f"round {number}/2  test accuracy 0.5000  1 client  0.50 s" for number in (1, 2)]


def test_every_other_round_and_the_last():
    assert [line.split()[1] for line in shown(5, every=2)] == ["2/5", "4/5", "5/5"]


def test_a_line_in_so_many_seconds_and_the_last():
    assert [line.split()[1] for line in shown(5, seconds=3600)] == ["1/5", "5/5"]


def test_a_run_that_ends_early_shows_the_round_it_ended_with():
    stream = io.StringIO()
    progress = Progress(stream, every=5)
    records = [RoundRecord(number, 1, 0, {"test_accuracy": 0.9}, 0.5, None, None, None, None) for number in (1, 2)]
    progress.on_start(federation(rounds=9), None, None, ())
    for record in records:
        progress.on_round(record, ())
    progress.on_end(History("small", tuple(records), np.zeros(1), None, stopped_early="test_accuracy reached 0.9"))
    assert stream.getvalue().splitlines()[1:] == [
        "round 2/9  test accuracy 0.9000  1 client  0.50 s",
        "ended early: test_accuracy reached 0.9",
    ]


def test_a_run_shows_itself_unless_it_has_other_watchers(capsys):
    """On standard error: what a program prints itself can be read by another."""
    experiment, simulation = federation(rounds=2), Simulation(workers=1, compile="graph")
    run(experiment, simulation)
    output, errors = capsys.readouterr()
    assert (output, [line.split()[0] for line in errors.splitlines()]) == ("", ["small,", "round", "round"])
    run(experiment, simulation, watchers=())
    assert capsys.readouterr() == ("", "")


def test_who_is_left_out_is_shown_in_any_round_and_not_without_end():
    *failures, more, line = shown(3, failing=[1], every=10)[:-1]
    assert [failure.split(":")[1].split()[1] for failure in failures] == ["0", "1", "2"]
    assert all("\n" not in failure for failure in failures)
    assert (more, line.split()[1]) == ("… and 2 more", "1/3")


def test_standard_output_is_the_one_of_the_moment(capsys):
    Progress().on_start(federation(), None, None, ())
    assert capsys.readouterr().out == "small, round 0 of 3 done\n"


def test_no_line_at_all_is_refused():
    with pytest.raises(ConfigError, match="every=0"):
        Progress(every=0)
