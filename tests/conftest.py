import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for number in (signal.SIGINT, signal.SIGHUP):  # ignored by what is started in the background, and so by its children
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # `from federations import …` in every test


# The files that take longest. With two workers, whoever begins one of them last keeps the other waiting; and files that
# wait for processes of a federation alternate with files that compute.
FIRST = (
    "deploy/test_federation.py",
    "clients/test_rules.py",
    "runtimes/flower/test_federation.py",
    "experiments/test_experiments.py",
    "cli/test_process.py",
    "clients/test_per_example.py",
)


def _lines(file: str) -> list[str]:
    lines = (TESTS / file).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _long() -> dict[str, int]:
    """Return how many cases `make test` keeps of each test, or file, that tests/long.txt names."""
    pairs = (line.split(" ", 1) for line in _lines("long.txt"))
    return {name: int(kept) for kept, name in pairs}


# Tests, classes and files that a session on JAX leaves out; files are not even imported.
NOT_ON_JAX = _lines("tensorflow.txt") if os.environ.get("KERAS_BACKEND") == "jax" else []
collect_ignore = [name for name in NOT_ON_JAX if "::" not in name]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Leave out what is another backend's, mark what is long, and run the longest files first."""
    named, chosen = _long(), any("::" in word for word in config.args)
    for name, kept in named.items():
        file = name.partition("::")[0]
        cases = [item for item in items if _is(item, name)]
        if not cases and not chosen and any(_is(item, file) for item in items):
            raise pytest.UsageError(f"tests/long.txt names a test that does not exist: {name}")
        # Spread over all: neighbours are most alike.
        stay = {len(cases) * number // kept for number in range(kept)}
        for number, item in enumerate(cases):
            if number not in stay and not chosen:
                item.add_marker(pytest.mark.long)
    others = [item for item in items if any(_is(item, name) for name in NOT_ON_JAX)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    rank = {str(TESTS / name): number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(FIRST)))


def _is(item, name):
    """Return whether name, below tests/, is the test, or its function, class or file."""
    own = item.nodeid.removeprefix("tests/")
    return own.startswith(name) and own[len(name) : len(name) + 1] in ("", "[", ":")
