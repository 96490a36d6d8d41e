"""What attackers send is what their papers say, and aggregators do what theirs say about it."""

import numpy as np
import pytest

from engines import SOONEST
from federations import blobs, federation
from umbel import AllClients, ConfigError, Local, Simulation, data, derive, run
from umbel.core.aggregators import WeightedSum
from umbel.core.types import ClientUpdate, Weighted
from umbel.data.attacks import Backdoor, LabelFlip
from umbel.runtimes.attacked import Attacked
from umbel.strategies import (
    Bulyan,
    CentredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from umbel.strategies.attacks import ALL_ATTACKS, Alie, FreeRide, Ipm, Scaling, SignFlip, largest_deviation

SIZE, KEY = 5000, derive(0, "attack")


def updates(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        ClientUpdate(
            (1 + generator.normal(size=SIZE)).astype(np.float32),
            generator.normal(size=3).astype(np.float32),
            float(client + 1),
            {"loss": Weighted(1.0, 2.0)},
        )
        for client in range(count)
    ]


@pytest.mark.parametrize("attack", [*ALL_ATTACKS, FreeRide(0.5)], ids=repr)
class TestContract:
    def test_only_the_vectors_change(self, attack):
        own, honest = updates(2), updates(8, seed=1)
        for forged, update in zip(attack.forge(own, honest, KEY), own, strict=True):
            assert (forged.weight, forged.metrics) == (update.weight, update.metrics)
            assert (forged.delta.dtype, forged.delta.shape) == (np.float32, (SIZE,))
            assert (forged.extra.dtype, forged.extra.shape) == (np.float32, (3,))
        for update, before in zip([*own, *honest], [*updates(2), *updates(8, seed=1)], strict=True):
            np.testing.assert_array_equal(update.delta, before.delta)

    def test_equal_keys_give_equal_bits(self, attack):
        one, other = (attack.forge(updates(2), updates(8, seed=1), KEY) for _ in range(2))
        for forged, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(forged.delta, again.delta)

    def test_a_cohort_of_attackers_alone(self, attack):
        assert all(np.isfinite(forged.delta).all() for forged in attack.forge(updates(2), [], KEY))


class TestFormulas:
    def test_sign_flip(self):
        (forged,) = SignFlip(3.0).forge(updates(1), updates(4, seed=1), KEY)
        np.testing.assert_array_equal(forged.delta, -3 * updates(1)[0].delta)

    def test_model_replacement_lands_fedavg_on_the_attackers_model(self):
        """Where the honest deltas cancel out: then the mean is the attackers' own."""
        own, one = updates(2), updates(1, seed=1)[0]
        honest = [one, one._replace(delta=-one.delta)]
        aggregator = WeightedSum()
        total = aggregator.zero(SIZE)
        for update in [*Scaling().forge(own, honest, KEY), *honest]:
            total = aggregator.add(total, update)
        expected = np.average([update.delta for update in own], axis=0, weights=[update.weight for update in own])
        np.testing.assert_allclose(total.mean().delta, expected, rtol=1e-4, atol=1e-5)

    def test_alie_hides_among_the_honest(self):
        honest = updates(8, seed=1)
        rows = np.stack([update.delta for update in honest])
        for forged in Alie(z=1.2).forge(updates(2), honest, KEY):
            np.testing.assert_allclose(forged.delta, rows.mean(0) - 1.2 * rows.std(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("clients", "attackers", "fraction"), [(50, 12, 24 / 38), (10, 2, 4 / 8), (20, 6, 9 / 14)])
    def test_alies_largest_deviation(self, clients, attackers, fraction):
        """Φ(z) = (n − m − s)/(n − m), s = ⌊n/2⌋ + 1 − m: by drawing from Φ."""
        draws = np.random.default_rng(0).normal(size=200_000)
        assert (draws < largest_deviation(clients, attackers)).mean() == pytest.approx(fraction, abs=0.005)

    def test_ipm_turns_the_inner_product_with_the_honest_mean(self):
        honest = updates(8, seed=1)
        mean = np.mean([update.delta for update in honest], axis=0)
        (forged,) = Ipm(0.5).forge(updates(1), honest, KEY)
        np.testing.assert_allclose(forged.delta, -0.5 * mean, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("agreement", "fooled"), [(0.5, True), (2.0, False)])
    def test_a_small_ipm_is_krums_choice_where_honest_updates_differ_more_than_they_agree(self, agreement, fooled):
        """m forged among n: Σ of n − m − 2 squared distances, (n − 2m − 1)·(σ² + (1 + ε)²μ²) against twice σ² each."""
        generator = np.random.default_rng(0)
        spread = generator.normal(size=(12, SIZE)).astype(np.float32)
        honest = [ClientUpdate(np.float32(agreement) + row, row[:0], 1.0, {}) for row in spread]
        forged = Ipm(0.1).forge(honest[:3], honest, KEY)
        chosen = Krum(3).centre([update.delta for update in [*forged, *honest]], np.ones(15))
        assert np.array_equal(chosen, forged[0].delta) == fooled

    def test_free_riders_send_noise_of_their_own_or_nothing(self):
        assert not FreeRide().forge(updates(1), [], KEY)[0].delta.any()
        one, other = FreeRide(0.5).forge(updates(2), [], KEY)
        assert one.delta.std() == pytest.approx(0.5, rel=0.05)
        assert abs(np.corrcoef(one.delta, other.delta)[0, 1]) < 0.1

    @pytest.mark.parametrize(
        "make",
        [
            lambda: SignFlip(0.0),
            lambda: Scaling(-1.0),
            lambda: Alie("far"),
            lambda: Ipm(float("nan")),
            lambda: FreeRide(-1.0),
        ],
    )
    def test_bad_values(self, make):
        with pytest.raises(ConfigError, match="expected"):
            make()


CLIENTS, BAD = 15, (3, 8, 12)  # 20 % attackers
POPULATION = data.Partitioned(data.Arrays(*blobs(1000)), by=data.Iid(), clients=CLIENTS)
TRIGGERED = Backdoor(POPULATION, BAD, target=0, pixels=(0, 1), value=4.0)
FLIPPED = LabelFlip(POPULATION, BAD, classes=3)
TEST = blobs(500, seed=5)
AGGREGATORS = (
    Median(),
    TrimmedMean(0.2),
    Krum(3),
    MultiKrum(3),
    Bulyan(3),
    GeometricMedian(),
    CentredClipping(0.5),
    NormBound(0.5),
)
ATTACKS = {
    "sign flip": (POPULATION, SignFlip(10.0)),
    "ipm": (POPULATION, Ipm(10.0)),
    "noise": (POPULATION, FreeRide(5.0)),
    "flipped labels": (FLIPPED, Scaling(50.0)),
    "backdoor": (TRIGGERED, Scaling(50.0)),
}


@pytest.fixture(scope="module")
def simulation():
    with_models = Simulation(workers=2, compile=SOONEST)
    yield with_models
    with_models.close()


def trained(simulation, aggregator, population=POPULATION, attack=None):
    """The history of four rounds with everybody in them."""
    local = Local(epochs=2, batch_size=10, learning_rate=0.1)
    experiment = federation(
        aggregator=aggregator,
        population=population,
        sampler=AllClients(),
        local=local,
        rounds=4,
        evaluate_every=4,
        weighting="uniform",
        test=TEST,
    )
    return run(experiment, Attacked(simulation, attack, BAD) if attack else simulation)


def accuracy(history):
    return history.rounds[-1].metrics["test_accuracy"]


@pytest.fixture(scope="module")
def unharmed(simulation):
    return accuracy(trained(simulation, WeightedSum()))


@pytest.mark.parametrize("name", ATTACKS)
class TestOneClientInFiveAttacks:
    def test_fedavg_breaks(self, simulation, unharmed, name):
        assert accuracy(trained(simulation, WeightedSum(), *ATTACKS[name])) < unharmed - 0.15

    @pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda aggregator: type(aggregator).__name__)
    def test_a_robust_fold_holds(self, simulation, unharmed, name, aggregator):
        assert accuracy(trained(simulation, aggregator, *ATTACKS[name])) > unharmed - 0.07


def backdoor_success(simulation, aggregator, attack):
    params = trained(simulation, aggregator, TRIGGERED, attack).params
    return simulation.evaluate(params, TRIGGERED.success_test(TEST))["accuracy"].mean()


def test_model_replacement_plants_a_backdoor_in_fedavg(simulation, unharmed):
    """While the accuracy that everybody looks at stays."""
    assert backdoor_success(simulation, WeightedSum(), Scaling()) > 0.5
    assert accuracy(trained(simulation, WeightedSum(), TRIGGERED, Scaling())) > unharmed - 0.07


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda aggregator: type(aggregator).__name__)
def test_robust_folds_keep_it_out(simulation, aggregator):
    assert backdoor_success(simulation, aggregator, Scaling()) < 0.05
