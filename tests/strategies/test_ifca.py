"""IFCA: FedAvg at k = 1, FedAvg in each cluster beyond; and what it reports, keeps and refuses."""

import dataclasses
import functools

import numpy as np
import pytest

from engines import SOONEST
from federations import dense, federation
from interruptions import CRASH_POINTS, Killed, kill_at
from quadratics import EPOCHS, RATE, ROWS, close, linear
from simulations import play
from umbel import (
    AllClients,
    Chain,
    Clip,
    ConfigError,
    Experiment,
    FedAvg,
    FixedCohort,
    IncompatibleError,
    Local,
    PerExample,
    Quantised,
    SecureSum,
    Simulation,
    data,
    run,
)
from umbel.core.aggregators import WeightedSum
from umbel.core.parts.clusters import cluster_of, first_best, membership
from umbel.core.types import NOTHING, ClientUpdate, Weighted
from umbel.strategies import IFCA, Median, NormBound, PerCluster
from umbel.strategies.ifca import Clusters

KINDS = np.array([0, 1, 1, 0, 1, 0])  # of the clients below


def two_kinds(seed=1):
    """Clients of a linear model whose targets have opposite signs, by kind."""
    generator = np.random.default_rng(seed)
    truth, clients = generator.normal(size=(3, 1)), []
    for kind in KINDS:
        x = generator.normal(size=(ROWS, 3)).astype(np.float32)
        clients.append((x, (x @ truth * (1 - 2 * kind)).astype(np.float32)))
    return data.PerClient(clients)


def experiment(**changes):
    settings = {
        "name": "kinds",
        "model": linear,
        "population": two_kinds(),
        "strategy": IFCA(2, spread=0.9),
        "sampler": AllClients(),
        "local": Local(epochs=EPOCHS, batch_size=ROWS, learning_rate=RATE, shuffle=False),
        "rounds": 3,
    }
    return Experiment(**(settings | changes))


def by_hand(population, models, rounds, server_lr=1.0):
    """Algorithm 1 in float64, with model averaging: the models, and who chose which in the last round."""
    models = [model.astype(np.float64) for model in models]
    for _ in range(rounds):
        moved = {number: [] for number in range(len(models))}
        choices = []
        for client in range(len(population)):
            x, y, _ = population.examples(client)
            number = int(np.argmin([np.mean((x @ model - y[:, 0]) ** 2) for model in models]))
            local = models[number]
            for _ in range(EPOCHS):
                local = local - RATE * 2 * x.T @ (x @ local - y[:, 0]) / len(x)
            moved[number].append(local - models[number])
            choices.append(number)
        for number, deltas in moved.items():
            if deltas:
                models[number] = models[number] + server_lr * np.mean(deltas, axis=0)
    return models, choices


@pytest.mark.parametrize(("rounds", "server_lr"), [(1, 1.0), (4, 0.8)])
def test_rounds_are_the_closed_form(rounds, server_lr):
    strategy, simulation = IFCA(2, spread=0.9, server_lr=server_lr), Simulation(1, SOONEST)
    history = run(experiment(strategy=strategy, rounds=rounds), simulation)
    first = strategy.models(strategy.init(simulation.initial_params()))
    models, choices = by_hand(two_kinds(), first, rounds, server_lr)
    for found, expected in zip(history.models, models, strict=True):
        close(found, expected)
    share = np.mean(choices)
    last = history.rounds[-1].metrics
    assert (last["train_cluster_0"], last["train_cluster_1"]) == pytest.approx((1 - share, share))
    close(history.params, models[int(share > 0.5)])


def test_the_kinds_are_found():
    """With as many models as kinds each tends to its own kind's truth; FedAvg's one model to neither."""
    population = two_kinds()
    simulation = Simulation(2, SOONEST)
    history = run(experiment(rounds=60, validation=population), simulation)
    losses = simulation.evaluate_clients(history.params, range(6), np.concatenate([[0], history.models[1]]))
    last = history.rounds[-1].metrics
    assert last["validation_loss"] < 1e-3
    assert last["train_cluster_0"] == pytest.approx(0.5)
    assert losses.per_client["loss"].shape == (6,)
    fedavg = run(experiment(strategy=FedAvg(), rounds=60, validation=population), Simulation(2, SOONEST))
    assert fedavg.rounds[-1].metrics["validation_loss"] > 0.1


def test_one_cluster_is_fedavg_bit_for_bit():
    for changes in ({}, {"sampler": FixedCohort(3), "weighting": "uniform"}):
        ours, fedavg = (
            run(federation(**changes, strategy=strategy), Simulation(2, SOONEST)) for strategy in (IFCA(1), FedAvg())
        )
        assert ours.params_sha256 == fedavg.params_sha256
        assert [record.bytes_up for record in ours.rounds] == [record.bytes_up for record in fedavg.rounds]
        assert ours.rounds[-1].metrics["test_loss"] == fedavg.rounds[-1].metrics["test_loss"]


def test_what_travels_is_k_models_down_and_one_update_up():
    history = run(federation(strategy=IFCA(3)), Simulation(1, SOONEST))
    size = history.spec.size
    for record in history.rounds:
        assert record.bytes_down == 4 * 4 * (3 * size + 1)
        assert record.bytes_up == 4 * 4 * size
        assert sum(record.metrics[f"train_cluster_{number}"] for number in range(3)) == pytest.approx(1)


def test_each_model_is_tested_and_params_are_the_leaders():
    simulation = Simulation(1, SOONEST)
    tried = federation(strategy=IFCA(3))
    history = run(tried, simulation)
    last, test = history.rounds[-1].metrics, tried.resolved.test_examples()
    for number, model in enumerate(history.models):
        assert last[f"test_cluster_{number}_loss"] == simulation.evaluate(model, test)["loss"].mean()
    leaders = [number for number, model in enumerate(history.models) if np.array_equal(model, history.params)]
    assert last["test_loss"] in [last[f"test_cluster_{number}_loss"] for number in leaders]


def with_dropout():
    return dense(dropout=0.4)


@functools.cache
def with_heads():
    """The same value each time, so that simulations are shared."""
    return federation(model=with_dropout, strategy=IFCA(2), personal=("dense_1",))


@pytest.fixture(scope="module")
def reference():
    return play(with_heads())


def same(history, other):
    assert history.params_sha256 == other.params_sha256
    np.testing.assert_array_equal(history.models, other.models)
    assert [record.metrics for record in history.rounds] == [record.metrics for record in other.rounds]


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_same_bits(workers, reference):
    same(play(with_heads(), workers), reference)


def test_debug_and_xla_agree_with_the_compiled_path():
    tried = federation(strategy=IFCA(2))
    graph, xla, slow = (
        run(tried, Simulation(**how)) for how in ({"compile": SOONEST}, {"compile": "xla"}, {"debug": True})
    )
    for other in (xla, slow):
        np.testing.assert_allclose(other.models, graph.models, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_and_resumed_it_has_the_bits_of_one_that_was_not(point, reference, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with monkeypatch.context() as patched:
        kill_at(patched, point, 2)
        with pytest.raises(Killed):
            play(with_heads(), 1, store=url)
    same(play(with_heads(), 2, store=url, resume="latest"), reference)


def test_a_robust_fold_is_robust_in_each_cluster():
    """With every client of a kind alike the median of each cluster is any one's update."""
    population = two_kinds()
    alike = data.PerClient([tuple(population.examples(int(kind == 1)))[:2] for kind in KINDS])
    plain, median = (
        run(experiment(population=alike, rounds=2, aggregator=aggregator), Simulation(1, SOONEST))
        for aggregator in (WeightedSum(), Median())
    )
    np.testing.assert_allclose(median.models, plain.models, rtol=1e-5)
    simulation = Simulation(1, SOONEST)
    held = run(experiment(population=alike, rounds=1, aggregator=NormBound(1e-6)), simulation)
    start = IFCA(2, spread=0.9).init(simulation.initial_params())
    np.testing.assert_allclose(held.models, start.models, atol=2e-6)


def test_a_codec_goes_with_it():
    history = run(federation(strategy=IFCA(2), codec=Quantised(8)), Simulation(2, SOONEST))
    exact = run(federation(strategy=IFCA(2)), Simulation(2, SOONEST))
    np.testing.assert_allclose(history.models, exact.models, atol=0.05)
    assert history.rounds[0].bytes_up < exact.rounds[0].bytes_up / 3


def update(value, chosen=None, weight=1.0):
    metrics = {} if chosen is None else membership(chosen, 2)
    return ClientUpdate(np.full(3, value, np.float32), NOTHING, weight, metrics)


def test_sums_merge_like_one():
    aggregator = PerCluster(WeightedSum(), 2)
    updates = [update(1, 0, 2.0), update(2, 1), update(3, 0), update(4, 1, 5.0)]

    def folded(some):
        accumulator = aggregator.zero(3)
        for one in some:
            accumulator = aggregator.add(accumulator, one)
        return accumulator

    whole, parts = (
        aggregator.total(folded(updates)),
        aggregator.total(aggregator.merge(folded(updates[:1]), folded(updates[1:]))),
    )
    np.testing.assert_array_equal(whole.extra, parts.extra)
    np.testing.assert_array_equal(whole.extra, [3, 6, *[5] * 3, *[22] * 3])
    np.testing.assert_array_equal(whole.delta, [27] * 3)
    assert (whole.weight, whole.clients) == (parts.weight, parts.clients) == (9.0, 4)
    assert aggregator.total(aggregator.zero(3)).clients == 0


def test_a_cluster_without_clients_keeps_its_model():
    strategy, params = IFCA(2), np.ones(3, np.float32)
    state = strategy.init(params)
    aggregator = strategy.aggregator(WeightedSum())
    mean = aggregator.total(aggregator.add(aggregator.zero(3), update(1.0, 1))).mean()
    after, leader = strategy.update(state, params, mean)
    np.testing.assert_array_equal(after.models[0], state.models[0])
    np.testing.assert_allclose(after.models[1], state.models[1] + 1)
    np.testing.assert_array_equal(leader, after.models[1])
    assert after == Clusters(1, 1, after.models)


def test_candidates_are_the_models_in_their_order():
    strategy = IFCA(3)
    first = strategy.init(np.linspace(1, 2, 4, dtype=np.float32))
    for leader in range(3):
        state = first._replace(leader=leader)
        broadcast = type("Sent", (), {"params": state.models[leader], "extra": strategy.broadcast(state)})
        np.testing.assert_array_equal(strategy.candidates(broadcast), state.models)
    assert (first.models > 0).all()  # variances stay variances


def test_which_cluster():
    assert first_best([2.0, float("nan"), 1.0, 1.0]) == 2
    assert first_best([float("nan"), float("nan")]) == 0
    for number in range(3):
        assert cluster_of(membership(number, 3), 3) == number
    for lie in ({}, {"cluster_0": Weighted(1.0, 1.0), "cluster_1": Weighted(1.0, 1.0)}):
        with pytest.raises(ConfigError, match="one of 2 clusters"):
            cluster_of(lie, 2)


def silent():
    """A model whose test_step tells no loss."""
    import keras

    class Silent(keras.Sequential):
        def test_step(self, batch):
            return {}

        def get_metrics_result(self):
            return {name: value for name, value in super().get_metrics_result().items() if name != "loss"}

    model = Silent(dense().layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def test_refusals():
    for bad in ({"clusters": 0}, {"spread": 0}, {"spread": 1.0}, {"seed": -1}, {"server_lr": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            IFCA(**bad)
    for changes, message in (
        ({"secure_aggregation": SecureSum(limit=1.0)}, "needs individual updates, which secure_aggregation=SecureSum"),
        ({"transforms": Chain(Clip(1.0))}, "one sum of all updates"),
        (
            {"local": Local(per_example=PerExample(clip_norm=1.0, noise_multiplier=1.0))},
            "nothing else of their",
        ),
    ):
        with pytest.raises(IncompatibleError, match=message):
            federation(strategy=IFCA(2), **changes)
    train, others = next(data.kfold_clients(federation().population, 4))
    with pytest.raises(IncompatibleError, match="clients with training examples, which validation"):
        federation(population=train, validation=others, strategy=IFCA(2), sampler=AllClients())
    with pytest.raises(ConfigError, match="needs the model's test_step to report a loss"):
        run(federation(model=silent, strategy=IFCA(2)), Simulation(1, SOONEST))


def test_dropping_the_strategy_drops_what_it_brought():
    tried = federation(strategy=IFCA(2))
    assert run(dataclasses.replace(tried, strategy=FedAvg()), Simulation(1, SOONEST)).models == ()
