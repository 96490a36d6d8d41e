"""`umbel audit`'s attacks end to end: they succeed where nothing protects, and fail where something does."""

import dataclasses

import pytest

import umbel
from federations import federation
from umbel.audit import Audit
from umbel.core.errors import ConfigError
from umbel.server.store import Store


def audited(experiment, path):
    with Store.open(f"sqlite:///{path}/runs.db") as store:
        history = umbel.run(experiment, umbel.Simulation(workers=1, compile="graph"), store=store)
        return Audit(experiment, store.load_run(history.run), canaries=60)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The attacks on a run without protection."""
    return audited(dataclasses.replace(federation(), test=None), tmp_path_factory.mktemp("bare"))


def test_canaries_show_in_an_unprotected_model(bare):
    found = bare.canary()
    assert found.verdict == "succeeded"
    assert found.found["epsilon_at_least"] > 1


def test_an_unprotected_update_gives_its_example_away(bare):
    found = bare.inversion()
    assert found.verdict == "succeeded"
    assert found.found == found.control


def test_membership_needs_examples_that_were_not_trained_on(bare):
    assert bare.membership().verdict == "not applicable"


def test_membership_is_measured_against_a_model_that_knows_its_examples(tmp_path):
    found = audited(federation(), tmp_path).membership()
    assert found.control["auc"] > 0.5
    assert found.found["members"] <= 103


def test_a_run_without_rounds_is_refused(tmp_path):
    experiment = federation()
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as store:
        stored = store.load_run(umbel.run(experiment, umbel.Simulation(workers=1), store=store).run)
    with pytest.raises(ConfigError, match="no round yet"):
        Audit(experiment, dataclasses.replace(stored, records=[]))
