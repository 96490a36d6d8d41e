"""Every program and every command of the documentation is run as it is printed, or stands in a list with the reason."""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
import typer

import umbel
from federations import dense, federation
from umbel import Simulation, override
from umbel.cli.main import app, execute
from umbel.core.reading.loading import load_experiments
from umbel.privacy.keys import KeyFile

ROOT = Path(umbel.__file__).parent
PAGES = ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))]

# Blocks that another test runs, which knows what they should come to.
ELSEWHERE = {
    ("docs/models.md", "sh"): "tests/docs/test_models_page.py",
    ("docs/models.md", "python"): "tests/docs/test_models_page.py",
    ("docs/extending.md", "python"): "tests/docs/test_extending.py",
    ("docs/privacy.md", "python"): "tests/docs/test_privacy_pages.py",
    ("docs/deploy.md", "sh"): "tests/deploy/test_page.py",
    ("docs/ray.md", "sh"): "tests/runtimes/test_ray.py",
    ("docs/ray.md", "python"): "tests/runtimes/test_ray.py",
    ("docs/kubernetes.md", "yaml"): "tests/deploy/test_manifests.py",
}
# What only a person, or a machine that this test has not, can run; by how a block or a command begins.
LEFT_OUT = {
    "docker build": "needs Docker; tests/deploy/test_manifests.py reads the images' files",
    "kubectl": "needs a cluster; tests/deploy/test_manifests.py reads what is applied",
    "tar -C": "packs a kit for kubectl",
    "rm ": "removes what was packed for kubectl",
    "make": "is this test, or installs; the targets are looked up",
    "%%writefile": "is a notebook's cell",
    "from umbel import Flower, run": "needs a federation that runs: tests/deploy/test_federation.py",
    "groups:": "is Prometheus's",
    "umbel run digits_fedavg --runtime flower": "starts processes: tests/runtimes/flower/test_federation.py",
    "umbel run mnist_": "takes minutes: tests/experiments/test_experiments.py",
    "umbel compare strategies_compared": "takes minutes: tests/experiments/test_comparisons.py",
    "umbel compare byzantine": "takes a minute: tests/experiments/test_comparisons.py",
    "umbel audit": "takes a minute: tests/cli/test_compare_audit.py",
}
SHORTER = {"umbel compare async_vs_sync": ["--set", "rounds=2", "--quiet"]}
PROGRAMS = {"README.md": None, "docs/reproductions.md": 1, "docs/algorithms.md": 1}  # rounds of a run; None: all


class Block(NamedTuple):
    """A fenced block."""

    page: str
    language: str
    text: str


def blocks_of(page):
    text = (ROOT / page).read_text("utf-8")
    return [Block(page, *found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(text):
    """The commands of a shell block, without comments."""
    lines = [line.split(" #")[0] for line in text.splitlines()]
    return [command.strip() for line in lines for command in re.split(r";|&&", line) if command.strip()]


def is_left_out(text):
    return any(text.startswith(beginning) for beginning in LEFT_OUT)


COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands_of(block.text)]
TYPED = {
    page: [
        command
        for block in blocks_of(page)
        if block.language == "sh" and (page, "sh") not in ELSEWHERE
        for command in commands_of(block.text)
        if not is_left_out(command)
    ]
    for page in PAGES
}
RUN = {
    page: [
        block.text
        for block in blocks_of(page)
        if block.language == "python" and (page, "python") not in ELSEWHERE and not is_left_out(block.text)
    ]
    for page in PAGES
}


def test_no_block_is_without_a_rule():
    for block in BLOCKS:
        is_run = block.language in ("python", "sh") or (block.page, block.language) in ELSEWHERE
        assert is_run or block.language == "text" or is_left_out(block.text), block
    for (page, _), test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8"), test
    everything = [*COMMANDS, *(block.text for block in BLOCKS)]
    for beginning, reason in LEFT_OUT.items():
        assert any(text.startswith(beginning) for text in everything), beginning
        assert all((ROOT / test).is_file() for test in re.findall(r"tests/[\w/]+\.py", reason)), reason


def test_commands_that_are_left_out_could_be_run():
    """Their options exist, and so do their experiments and the settings of these."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "make":
            assert words[0] in targets, command
        if program == "umbel" and is_left_out(command):
            check_words(words)


def check_words(words):
    """Errors: click's, for a command, an option or a value that does not exist; ConfigError for an experiment."""
    group, context = typer.main.get_command(app), None
    while isinstance(group, click.Group):
        context = click.Context(group, parent=context, info_name="umbel")
        _, group, words = group.resolve_command(context, list(words))
    parsed = group.make_context("umbel", list(words), parent=context).params
    for name in parsed.get("experiments") or [parsed.get("experiment")]:
        if name is not None:
            assert load_experiments(name, parsed.get("settings") or [])


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder: a run in the store, the keys that the pages speak of, and nothing set from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("UMBEL_STORE", "UMBEL_STORE_KEY", "UMBEL_MODEL_KEY"):
        monkeypatch.delenv(name, raising=False)
    KeyFile.generate("operator", 1).save("operator.key")
    node = KeyFile.generate("node", 1)
    node.save("old.key")
    Path("members.csv").write_text(f"node,key,owner,expiry\n1,{node.public.text},ada,2100-01-01\n")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if TYPED[page]])
def test_commands_run(page, reader, capfd):
    umbel.run(federation(name="mine", rounds=1), Simulation(workers=1, compile="graph"), store="sqlite:///umbel.db")
    for command in TYPED[page]:
        program, *words = shlex.split(command)
        assert program == "umbel", f"no rule for {command!r}"
        more = [word for beginning, given in SHORTER.items() if command.startswith(beginning) for word in given]
        assert execute([*words, *more]) == 0, (command, capfd.readouterr().err)


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]])
def test_programs_run(page, reader, monkeypatch, capfd):
    """A page's programs one after the other, as in one notebook; the README's whole, the others for a round."""
    names = {"np": np, "dense": dense}
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a program may choose a backend
    if PROGRAMS.get(page, 1) is not None:
        shorten(monkeypatch)
        umbel.run(federation(name="mine"), Simulation(workers=1, compile="graph"), store="sqlite:///umbel.db")
    for text in RUN[page]:
        exec(compile(text, page, "exec"), names)
    if page == "README.md":
        check_readme(names, capfd.readouterr().err)


def shorten(monkeypatch):
    """One round is enough to see that a program runs."""
    run, compare = umbel.run, umbel.compare
    monkeypatch.setattr(umbel, "run", lambda one, *rest, **more: run(override(one, ["rounds=1"]), *rest, **more))

    def compare_shortly(experiments, *rest, **more):
        return compare({name: override(one, ["rounds=1"]) for name, one in experiments.items()}, *rest, **more)

    monkeypatch.setattr(umbel, "compare", compare_shortly)


def check_readme(names, errors):
    """What the README says of its two programs."""
    history, plan = names["history"], names["plan"]
    assert history.column("test_accuracy")[-1] > 0.9
    assert history.seconds < 20  # five, where nothing else runs
    lines = errors.splitlines()
    assert lines[0] == "experiment, round 0 of 50 done"  # and nothing of TensorFlow's before it
    assert lines[1] == "by default strategy FedAvg(server_lr=1.0), sampler FixedCohort(size=10), in a Simulation"
    assert "round 50/50  test accuracy 0.9" in errors
    assert Path("accuracy.png").is_file()
    assert "<svg" in Path("report.html").read_text("utf-8")
    x, y, _ = umbel.data.Digits("test").load()
    _, accuracy = names["model"].evaluate(x, y, verbose=0)
    assert np.isclose(accuracy, history.column("test_accuracy")[-1])
    private = umbel.run(override(names["private"], ["rounds=2"]), Simulation(workers=1), watchers=())
    assert 0 < private.rounds[0].epsilon < private.rounds[1].epsilon < plan.epsilon
    assert plan.spent({str(plan.round_event): 100}) <= 8
