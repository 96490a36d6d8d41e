"""One-shot clustering: the kinds are found from one round's updates, and each goes on by itself."""

import numpy as np
import pytest

from federations import federation
from quadratics import ROWS, linear
from umbel import (
    AllClients,
    ConfigError,
    Experiment,
    FedAvg,
    FedBuff,
    FixedCohort,
    IncompatibleError,
    Local,
    Quantised,
    SecureSum,
    Simulation,
    data,
    run,
)
from umbel.core.frozen import NO_BASE
from umbel.core.spec import ModelSpec
from umbel.data import Selected
from umbel.studies.clustering import Begun, cluster_clients

KINDS = np.array([0, 1, 1, 0, 2, 1, 0, 2])


def of_kinds(seed=0):
    generator = np.random.default_rng(seed)
    truths, clients = [np.array([[2.0], [0], [0]]), np.array([[0], [2.0], [0]]), np.array([[0], [0], [-2.0]])], []
    for kind in KINDS:
        x = generator.normal(size=(generator.integers(ROWS, 3 * ROWS), 3)).astype(np.float32)
        clients.append((x, (x @ truths[kind]).astype(np.float32)))
    return data.PerClient(clients)


def experiment(**changes):
    settings = {
        "name": "kinds",
        "model": linear,
        "population": of_kinds(),
        "strategy": FedAvg(),
        "sampler": AllClients(),
        "local": Local(epochs=2, batch_size=ROWS, learning_rate=0.05),
        "rounds": 8,
    }
    return Experiment(**(settings | changes))


@pytest.fixture(scope="module")
def shared():
    """The simulation, the run of all clients, and their clusters."""
    simulation = Simulation(2, "graph")
    history = run(experiment(), simulation)
    return simulation, history, cluster_clients(experiment(), history.params, 3, simulation)


def test_kinds_are_found_whatever_clients_weigh(shared):
    _, history, found = shared
    np.testing.assert_array_equal(found.labels, KINDS)  # numbered as they appear
    assert found.clusters == 3
    np.testing.assert_array_equal(found.members(1), [1, 2, 5])
    by_length = cluster_clients(experiment(), history.params, 3, Simulation(1, "graph"), by_direction=False)
    np.testing.assert_array_equal(by_length.labels, KINDS)


def test_what_hides_in_an_update_does_not_hide_a_kind(shared):
    """Codecs are for what travels: the updates that are looked at are whole."""
    _, history, found = shared
    again = cluster_clients(experiment(codec=Quantised(4)), history.params, 3, Simulation(1, "graph"))
    np.testing.assert_array_equal(again.labels, found.labels)


def test_one_cluster_goes_on_as_everybody(shared):
    """From the params of 8 rounds: the run of 3 rounds more, but for the rounds' own randomness."""
    _, history, _ = shared
    local = Local(epochs=2, batch_size=ROWS, learning_rate=0.05, shuffle=False)
    first = run(experiment(local=local), Simulation(1, "graph"))
    longer = run(experiment(local=local, rounds=11), Simulation(1, "graph"))
    one = cluster_clients(experiment(local=local), first.params, 1, Simulation(1, "graph"))
    (alone,) = one.experiments(experiment(local=local, rounds=3)).values()
    assert run(alone, Simulation(1, "graph")).params_sha256 == longer.params_sha256
    assert len(history.params) == 3


def test_each_kind_finds_its_own_truth(shared):
    _, _, found = shared
    parts = found.experiments(experiment(rounds=40, validation=of_kinds(), sampler=FixedCohort(3)))
    assert list(parts) == ["cluster_0", "cluster_1", "cluster_2"]
    assert [part.name for part in parts.values()] == ["kinds-0", "kinds-1", "kinds-2"]
    assert [part.sampler.size for part in parts.values()] == [3, 3, 2]
    losses = [run(part, Simulation(1, "graph")).rounds[-1].metrics["validation_loss"] for part in parts.values()]
    assert max(losses) < 1e-3
    together = run(experiment(rounds=40, validation=of_kinds()), Simulation(1, "graph"))
    assert together.rounds[-1].metrics["validation_loss"] > 0.5
    assert len({part.digest for part in parts.values()}) == 3


def test_selected_is_a_view():
    whole = federation().population
    some = Selected(whole, [5, 2])
    assert len(some) == 2
    np.testing.assert_array_equal(some.sizes(), whole.sizes()[[5, 2]])
    np.testing.assert_array_equal(some.examples(1).x, whole.examples(2).x)
    np.testing.assert_array_equal(some.indices(0), whole.indices(5))
    assert some.resident().x is whole.resident().x
    assert some == Selected(whole, np.array([5, 2])) != Selected(whole, [2, 5])
    assert hash(some) == hash(Selected(whole, [5, 2]))
    for bad in ([], [8], [-1], [1, 1]):
        with pytest.raises(ConfigError, match="expected client"):
            Selected(whole, bad)
    with pytest.raises(ConfigError, match="expected client=2"):
        some.examples(2)


def test_begun_has_the_params_and_says_so():
    spec = ModelSpec.of(linear())
    begun = Begun(linear, np.arange(3, dtype=np.float32), spec, NO_BASE)
    np.testing.assert_array_equal(begun().get_weights()[0][:, 0], [0, 1, 2])
    assert repr(begun) == "Begun(linear)"
    with pytest.raises(ConfigError, match="vector of shape"):
        Begun(linear, np.zeros(4, np.float32), spec, NO_BASE)()


def test_refusals():
    params = np.zeros(3, np.float32)
    with pytest.raises(ConfigError, match="clusters=9 ≤ 8 clients"):
        cluster_clients(experiment(), params, 9)
    with pytest.raises(IncompatibleError, match="hides"):
        cluster_clients(experiment(secure_aggregation=SecureSum(limit=1.0), weighting="uniform"), params, 2)
    with pytest.raises(IncompatibleError, match="plain rounds"):
        cluster_clients(experiment(strategy=FedBuff(2), sampler=FixedCohort(4)), params, 2)
