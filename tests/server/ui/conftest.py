"""Stores to be looked at."""

import pytest

from shown import fill
from umbel.server.store import Store


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def seen(tmp_path_factory):
    """A store with every kind of run, and their ids by kind: for tests that change nothing."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('seen')}/runs.db") as opened:
        yield opened, fill(opened)
