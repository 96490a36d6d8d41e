"""The commands: what they print, where it goes, and what they resume."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from umbel.cli.console import figures, print_grid, print_table, to_json
from umbel.cli.options import complete_experiments, complete_settings
from umbel.core.reading.loading import experiment_names, load_experiment
from umbel.core.reading.overrides import fit_to, override
from umbel.core.types import RoundRecord

SMALL = ("--set", "rounds=2", "--set", "local.epochs=1", "--seed", "7", "--clients", "50")


def record(**metrics):
    return RoundRecord(1, 3, 0, metrics, 0.5, None, None, None, None)


def test_a_run_ends_with_a_summary_and_can_be_listed_drawn_and_resumed(here):
    status, output, errors = here("run", *SMALL)
    assert status == 0
    assert output.startswith("digits_fedavg\n  reached   test accuracy 0.")
    assert "compiled  as TensorFlow graphs, without XLA" in output
    assert "20 of 50 per round" in output
    _, listed, _ = here("runs", "--json")
    (row,) = [json.loads(line) for line in listed.splitlines()]
    assert (row["experiment"], row["state"], row["rounds"]) == ("digits_fedavg", "finished", 2)
    assert f"umbel run --resume {row['run']} --set rounds=4" in output
    assert errors.splitlines()[0] == f"digits_fedavg as run {row['run']}, round 0 of 2 done"

    _, table, _ = here("runs")
    titles, line = table.splitlines()
    assert titles.split() == ["run", "experiment", "state", "rounds", "accuracy", "begun", "(UTC)"]
    assert line.split()[:4] == [row["run"], "digits_fedavg", "finished", "2/2"]

    status, path, _ = here("plot", row["run"][:10], "-o", "drawn/run.svg")
    assert (status, path) == (0, "drawn/run.svg\n")
    assert "<svg" in Path("drawn/run.svg").read_text()

    # The settings it began with come from the store: repeating them is not needed, contradicting them is refused.
    status, output, _ = here("run", "--resume", "latest", "--set", "rounds=3")
    assert status == 0
    assert "20 of 50 per round" in output
    status, _, errors = here("run", "--resume", "latest", "--seed", "8")
    assert (status, "seed was 7, is now 8" in errors) == (2, True)


def test_quiet_is_silent(here):
    assert here("run", "tiny.py", "--set", "rounds=1", "--quiet") == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_pauses_the_run_with_128_and_its_number(here, number):
    source = Path("tiny.py").read_text().replace("strategy=FedAvg()", "strategy=Stopping()")
    strategy = """
import dataclasses, os, signal
from umbel import FedAvg
@dataclasses.dataclass(frozen=True)
class Stopping(FedAvg):
    def update(self, state, params, mean):
        os.kill(os.getpid(), NUMBER)
        return super().update(state, params, mean)
"""
    Path("tiny.py").write_text(strategy.replace("NUMBER", str(int(number))) + source)
    handler = signal.getsignal(number)
    status, _, errors = here("run", "tiny.py")
    assert status == 128 + number
    assert errors.splitlines()[-1].startswith("umbel: paused, asked to stop. 0 rounds are kept; resume with: umbel run")
    assert signal.getsignal(number) is handler
    assert '"state": "paused"' in here("runs", "--json")[1]


def test_any_other_command_ends_so_too(here):
    """Also while a file is loaded; and nohup's SIGHUP stays ignored."""
    Path("stopping.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    for words in (("compare", "stopping.py"), ("run", "stopping.py"), ("client", "digest", "stopping.py")):
        assert here(*words) == (143, "", "umbel: asked to stop\n")
    Path("stopping.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\n")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert here("run", "stopping.py")[0] == 2
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_experiments_are_listed_with_their_first_line(here):
    status, output, _ = here("experiments", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert [row["name"] for row in rows] == experiment_names()
    assert all(20 < len(row["description"]) <= 120 for row in rows)
    assert here("experiments")[1].splitlines()[0].split() == ["name", "description"]


def test_an_output_that_has_no_greek_letters_gets_question_marks(finish):
    status, output, _ = finish("experiments", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert status == 0
    assert "? = 8 at ? = 1e-5" in output


@pytest.mark.parametrize("columns", [30, 46, 60, 100])
def test_a_terminal_of_any_width_shows_all_of_what_commands_take(capfd, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(["run", "experiment", "state"], [["20261121-sev0wy", "digits_fedavg", "finished early"]])
    shown = re.sub(r"\x1b\[\d*m", "", capfd.readouterr().out)
    assert "20261121-sev0wy  digits_fedavg  finished" in shown
    assert "…" not in shown
    lines = [line.rstrip() for line in shown.splitlines()]
    assert len(lines) == 2 or max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [16, 24, 40, 100])
def test_a_terminal_of_any_width_shows_a_grid_in_blocks_that_fit(capfd, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    table = [
        ["aggregator", *"abcdef"],
        *([f"row{row}", *(f"{row}.{place:02}" for place in range(6))] for row in range(9)),
    ]
    print_grid(table)
    shown = re.sub(r"\x1b\[\d*m", "", capfd.readouterr().out)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= columns
    blocks = [[line.split() for line in block.splitlines()] for block in shown.strip().split("\n\n")]
    for place, row in enumerate(table):
        assert [cell for block in blocks for cell in block[place][1:]] == row[1:]
    assert all([row[0] for row in block] == [row[0] for row in table] for block in blocks)


def test_a_grid_is_turned_round_where_only_that_fits(capsys):
    wide = [["", *(f"a long title {place}" for place in range(9))], ["row", *"012345678"]]
    for table in (wide, [*zip(*wide, strict=True)]):
        print_grid(table)
        assert len(capsys.readouterr().out.splitlines()) == 10


def test_version_and_bare_command(here):
    assert here("--version") == (0, f"umbel {version('umbel')}\n", "")
    assert here() == here("--help")


def test_help_says_what_arguments_are(here):
    _, output, _ = here("compare", "--help")
    assert "Names or .py files" in output


def test_completion_knows_experiments_files_and_settings(here):
    class Context:
        params = {"experiment": "tiny.py"}  # noqa: RUF012

    assert complete_experiments("mnist_2") == ["mnist_2nn", "mnist_2nn_shards"]
    assert complete_experiments("ti") == ["tiny.py"]
    assert complete_settings(Context, "local.e") == ["local.epochs="]
    Context.params = {}
    assert "population.by.alpha=" in complete_settings(Context, "population.")
    shell = {**os.environ, "_UMBEL_COMPLETE": "complete_bash", "COMP_WORDS": "umbel run digits_f", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "umbel"]
    assert subprocess.run(command, env=shell, capture_output=True, text=True).stdout.split() == ["digits_fedavg"]


def test_json_has_no_nan():
    assert json.loads(to_json(record(test_loss=float("nan")).to_json()))["test_loss"] == "NaN"
    assert json.loads(to_json({"final": {"seconds": float("inf")}})) == {"final": {"seconds": "Infinity"}}


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"test_accuracy": 0.5, "train_accuracy": 0.9, "train_loss": 1.0}, "test accuracy 0.5000  train loss 1.0000"),
        ({"train_loss": 1.0}, "train loss 1.0000"),
        ({}, ""),
    ],
)
def test_figures_are_of_the_most_telling_examples(metrics, text):
    assert figures(record(**metrics)) == text


def test_fewer_clients_than_a_cohort_shrink_the_cohort():
    experiment = load_experiment("digits_fedavg")
    assert fit_to(experiment, 3) == ["population.clients=3", "sampler.size=3"]
    fitted = override(experiment, fit_to(experiment, 3))
    assert (len(fitted.population), fitted.sampler.size) == (3, 3)
