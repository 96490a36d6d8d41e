"""Words of version 0.1.0 are taken for one version more, with a warning that says the new one."""

import dataclasses
import inspect
import pickle
import re

import pytest

import umbel
from federations import federation
from umbel import FedAdam, FedAvg, override, strategies
from umbel.core.errors import ConfigError, IncompatibleError
from umbel.privacy import SecureSum
from umbel.strategies import Ditto, FedBuff, FedProx, FedRep, Median, Scaffold, TrimmedMean
from umbel.strategies.staleness import Polynomial


@pytest.mark.parametrize("kind", [FedProx, FedRep, Ditto])
def test_the_rate_of_a_servers_half_is_taken_by_its_old_name(kind):
    with pytest.warns(DeprecationWarning, match=rf"server_lr of {kind.__name__} is server\.server_lr now"):
        assert kind(server_lr=0.5) == kind(server=FedAvg(0.5))
    with pytest.warns(DeprecationWarning, match="server_lr"):
        assert dataclasses.replace(kind(server=FedAdam(0.1)), server_lr=0.5) == kind(server=FedAdam(0.5))
    with pytest.warns(DeprecationWarning, match="server_lr"):
        assert override(kind(), ["server_lr=0.5"]) == kind(server=FedAvg(0.5))


def test_new_names_warn_of_nothing(recwarn):
    strategy = override(FedProx(0.1, FedAdam()), ["server.server_lr=0.5", "mu=0.2"])
    assert strategy == pickle.loads(pickle.dumps(FedProx(0.2, server=FedAdam(0.5))))
    assert list(inspect.signature(FedProx).parameters) == ["mu", "server"]
    assert not recwarn.list


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(TypeError, match="rate"):
        FedProx(rate=1.0)
    with pytest.raises(ConfigError, match="unknown key 'rate'"):
        override(FedProx(), ["rate=1.0"])


@pytest.mark.parametrize("kind", [FedProx, FedRep, Ditto, FedBuff])
def test_a_server_is_a_servers_half_and_no_more(kind):
    for server in (Scaffold(), FedBuff(), FedProx()):
        with pytest.raises(IncompatibleError, match=f"more than a server's half; {kind.__name__} would drop"):
            kind(server=server)
    for server in (0.5, Polynomial(), FedAvg):
        with pytest.raises(ConfigError, match="server="):
            kind(server=server)


def test_an_experiment_is_taken_by_its_old_names():
    hidden = {"secure_aggregation": SecureSum(limit=1.0), "weighting": "uniform"}
    with pytest.warns(DeprecationWarning, match="fold of Experiment is aggregator now"):
        assert federation(fold=Median()).digest == federation(aggregator=Median()).digest
    with pytest.warns(DeprecationWarning, match="aggregation of Experiment is secure_aggregation now"):
        old = federation(aggregation=SecureSum(limit=1.0), weighting="uniform")
    assert old.digest == federation(**hidden).digest
    with pytest.warns(DeprecationWarning, match="fold"):
        assert dataclasses.replace(federation(aggregator=Median()), fold=TrimmedMean(0.1)).fold == TrimmedMean(0.1)
    with pytest.warns(DeprecationWarning, match="fold of Recipe is aggregator now"):  # what a plan's `check` is handed
        assert federation(aggregator=Median()).resolved.fold == Median()
    with pytest.warns(DeprecationWarning, match="aggregation"):
        assert override(old, ["aggregation.limit=2.0"]).secure_aggregation.limit == 2.0


def test_stored_settings_are_read_in_their_old_words():
    experiment = federation(aggregator=TrimmedMean(0.1))
    stored = {re.sub(r"^aggregator", "fold", path): text for path, text in experiment.describe().items()}
    stored = {re.sub(r"^secure_aggregation", "aggregation", path): text for path, text in stored.items()}
    assert {"fold.trim", "aggregation"} <= stored.keys()
    experiment.check_unchanged(stored)
    with pytest.raises(ConfigError, match=r"aggregator\.trim was 0\.2, is now 0\.1"):
        experiment.check_unchanged(stored | {"fold.trim": "0.2"})


def test_the_list_of_aggregators_has_its_old_name():
    with pytest.warns(DeprecationWarning, match="ALL_AGGREGATORS"):
        assert strategies.ALL_FOLDS is strategies.ALL_AGGREGATORS
    with pytest.raises(AttributeError, match="ALL_SORTS"):
        _ = strategies.ALL_SORTS


@pytest.mark.parametrize("name", ["Comparison", "CrossValidation", "compare", "cross_validate"])
def test_names_that_moved_are_found_where_they_were(name):
    with pytest.warns(DeprecationWarning, match=rf"umbel\.server\.{name} is umbel\.studies\.{name} now"):
        found = getattr(umbel.server, name)
    assert found is getattr(umbel.studies, name)
    with pytest.raises(AttributeError, match="has no attribute 'comparing'"):
        umbel.server.comparing  # noqa: B018
