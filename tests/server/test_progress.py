"""Progress: a line for every round asked for, for the last, and for whoever was left out; never more."""

import io

import pytest

from federations import federation
from umbel import ConfigError
from umbel.core.types import Failure, RoundRecord
from umbel.server import Progress


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
