"""How the process that plays a run ends, and what is said of it."""

import sys

import httpx
import pytest

from umbel.runtimes.flower.link import executor, play


class Grid:
    """A run's grid that notes how its task ended. fails: whether the SuperLink is gone by then."""

    def __init__(self, fails=False):
        self.ended, self.fails = [], fails

    def begin(self):
        return "a context"

    def end(self, sub_status, details, is_patient=True):
        if self.fails:
            raise httpx.ConnectError("gone")
        self.ended.append((sub_status, details, is_patient))


def raising(error):
    def app(grid, context):
        assert context == "a context"
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "ended"),
    [
        (None, 0, ("completed", "", True)),
        (ValueError("a reason"), 1, ("failed", "ValueError: a reason", True)),
        (KeyboardInterrupt(), 1, ("failed", "the process that played the run was asked to end", False)),
    ],
    ids=["played", "raised", "stopped"],
)
def test_the_superlink_is_told_how_a_run_ended(monkeypatch, error, status, ended):
    grid = Grid()
    monkeypatch.setattr(play, "app", raising(error))
    assert play.play(grid) == status
    assert grid.ended == [ended]


def test_who_is_stopped_waits_for_no_superlink_that_is_gone(monkeypatch):
    monkeypatch.setattr(play, "app", raising(KeyboardInterrupt()))
    assert play.play(Grid(fails=True)) == 1


@pytest.mark.parametrize(("status", "count"), [(0, 0), (1, 1), (-9, 1)])
def test_a_process_that_died_is_missed_at_once(status, count):
    """Otherwise its run is taken for played until it was silent for minutes."""
    grid = Grid()
    executor._bury(status, grid)
    assert [said for _, said, _ in grid.ended] == [
        f"the process that played the run ended with status {status}"
    ] * count
    executor._bury(status, Grid(fails=True))


def test_no_user_of_the_machine_sees_a_runs_token(monkeypatch, tmp_path):
    """It comes by the process's input, and not on its command line."""
    place = tmp_path / "said"
    (tmp_path / "playing.py").write_text(
        f"import pathlib, sys; pathlib.Path({str(place)!r}).write_text(repr((sys.stdin.readline(), sys.argv[2:])))"
    )
    monkeypatch.setattr(executor, "PLAY", "playing")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = executor._started("127.0.0.1:1", None, "a token")
    assert process.wait(60) == 0
    assert process.args[0] == sys.executable
    assert place.read_text() == repr(("a token\n", ["127.0.0.1:1"]))
    assert not any("a token" in word for word in process.args)
