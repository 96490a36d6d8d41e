"""Statistics of features: those of the union of the clients' examples, however they are summed; and what they cost."""

import math
import pickle

import numpy as np
import pytest

from federations import FEATURES, blobs, federation
from interruptions import Live
from optional import needs_tenseal
from simulations import play
from umbel import (
    ConfigError,
    Homomorphic,
    IncompatibleError,
    PerExamplePlan,
    PrivacyPlan,
    RunStopped,
    SecureSum,
    Simulation,
    federated_statistics,
    run,
)
from umbel.core.bases import Population
from umbel.core.protocols import Source
from umbel.core.reading.compatible import check_fresh
from umbel.data import (
    Arrays,
    FeatureStatistics,
    Generated,
    LogNormal,
    OnDevice,
    Partitioned,
    PerClient,
    Standardised,
    kfold_clients,
    split_clients,
)
from umbel.data.standardised import StandardisedSource
from umbel.privacy import AdaptiveClip, DistributedPlan, LocalPlan
from umbel.privacy.distributed import grid_limit

BOUNDS = (-8.0, 8.0)
POPULATION = Partitioned(Arrays(*blobs(400)), by=LogNormal(sigma=0.5), clients=8)


def plan(kind=PrivacyPlan, **changes):
    """A round of everyone; the noise is given, so that nothing is calibrated."""
    numbers = {"epsilon": 900.0, "delta": 1e-4, "rounds": 2, "population": 8, "clip_norm": 1.0, "noise_multiplier": 0.2}
    rate = {"sampling_rate": 1.0} if kind is PrivacyPlan else {}
    return kind(**(numbers | rate | changes))


def close_to(found, x, tolerance):
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12, atol=tolerance)
    np.testing.assert_allclose(found.deviation, x.std(axis=0), rtol=1e-12, atol=tolerance)


@pytest.fixture(scope="module")
def statistics():
    return federated_statistics(POPULATION)


# What they are


def test_in_the_open_they_are_those_of_the_union(statistics):
    """In float64, also where a mean is 10⁸ deviations away from 0, where Σx² − (Σx)²/n would leave nothing."""
    close_to(statistics, blobs(400)[0], 1e-12)
    assert statistics.examples == 400
    generator = np.random.default_rng(0)
    clients = [generator.normal(1e8, 1.0, (size, 2, 3)) for size in (1, 30, 7)]
    found = federated_statistics(PerClient([(x,) for x in clients]))
    together = np.concatenate(clients)
    np.testing.assert_allclose(found.deviation, (together - 1e8).std(axis=0), rtol=1e-7)
    np.testing.assert_allclose(found.mean - 1e8, (together - 1e8).mean(axis=0), atol=1e-7)
    assert found.mean.shape == (2, 3)


def test_bounds_hold_what_lies_outside():
    x = blobs(400)[0]
    close_to(federated_statistics(POPULATION, bounds=(-1.0, np.full(FEATURES, 0.5))), x.clip(-1, 0.5), 1e-9)


@pytest.mark.parametrize("hiding", ["arithmetic", "protocol"])
def test_a_secure_sum_gives_the_same_to_its_rounding(hiding):
    """z and z² are rounded by less than a step; both ways of hiding give the same bits."""
    aggregation = SecureSum(limit=0.3)
    found = federated_statistics(POPULATION, secure_aggregation=aggregation, bounds=BOUNDS, hiding=hiding)
    close_to(found, blobs(400)[0], 8 * 16 * aggregation.encoding(8).step / 0.3)
    assert found.examples == pytest.approx(400, abs=0.01)
    if hiding == "protocol":
        assert found == federated_statistics(POPULATION, secure_aggregation=aggregation, bounds=BOUNDS)
    assert found != federated_statistics(POPULATION, secure_aggregation=aggregation, bounds=BOUNDS, seed=1)
    with pytest.warns(DeprecationWarning, match="aggregation of federated_statistics is secure_aggregation now"):
        assert federated_statistics(POPULATION, aggregation=aggregation, bounds=BOUNDS, hiding=hiding) == found


def test_rounding_is_no_deviation():
    """A feature that is constant must not be divided by what the grid made of it."""
    x = blobs(400)[0].copy()
    x[:, 2] = 0.3
    population = Partitioned(Arrays(x), by=LogNormal(sigma=0.5), clients=8)
    found = federated_statistics(population, secure_aggregation=SecureSum(limit=1.0), bounds=BOUNDS)
    assert found.deviation[2] == 0
    assert (np.delete(found.deviation, 2) > 0.9 * np.delete(x.std(0), 2)).all()


@needs_tenseal
def test_ciphertexts_give_the_same_to_their_rounding():
    found = federated_statistics(POPULATION, secure_aggregation=Homomorphic(limit=1.0, scheme="ckks"), bounds=BOUNDS)
    close_to(found, blobs(400)[0], 1e-4)


def test_too_few_clients_are_not_summed():
    few = PerClient([blobs(5)] * 2)
    with pytest.raises(RunStopped, match="cohort of 2"):
        federated_statistics(few, secure_aggregation=SecureSum(limit=1.0), bounds=BOUNDS)


@pytest.mark.parametrize(
    ("clients", "settings", "why"),
    [
        ([np.array([[1.0, 2.0], [3.0, np.nan]])], {}, "client 1 .* not finite .* feature 1"),
        ([np.array([[1.0, np.inf]])], {"bounds": (0, 1)}, "client 1 .* not finite"),
        ([np.array([[1.0, 2.0]])], {"secure_aggregation": SecureSum(limit=1.0)}, "needs bounds"),
        ([np.array([[1.0, 2.0]])], {"plan": plan(population=2)}, "needs bounds"),
        ([np.array([[1.0, 2.0]])], {"bounds": (1.0, 1.0)}, "least below the largest"),
        ([np.array([[1.0, 2.0]])], {"bounds": (0.0, np.zeros(3))}, "shape of one input"),
        ([np.array([[1.0, 2.0]])], {"hiding": "masks"}, "hiding='masks'"),
    ],
)
def test_bad_values(clients, settings, why):
    with pytest.raises(ConfigError, match=why):
        federated_statistics(PerClient([(np.zeros((1, 2)),), *((x,) for x in clients)]), **settings)


def test_text_is_refused():
    with pytest.raises(ConfigError, match="one array of numbers"):
        federated_statistics(PerClient([(np.array(["a", "b"]),)]))


# What they cost


def test_noise_is_the_plans():
    """Examples in the middle of the bounds: all that is found of Σz is noise, of the plan's own scale and no other."""
    clients, features, noise, clip_norm = 1000, 600, 3.0, 0.1
    middle = Generated(clients, lambda client: (np.full((5, features), 1.0),), size=5)
    own = plan(population=clients, noise_multiplier=noise, clip_norm=clip_norm)
    found = federated_statistics(middle, plan=own, bounds=(0.5, 1.5))
    unit = clip_norm / math.sqrt(1 + 2 * features)  # of a client's count, and so of what Σz is divided by
    drawn = (found.mean - 1.0) / 0.5 * found.examples / 5 * unit
    assert drawn.std() == pytest.approx(noise * clip_norm, rel=0.1)
    assert not found.deviation.any()
    assert abs(drawn.mean()) < 4 * noise * clip_norm / math.sqrt(features)
    assert found.examples / 5 == pytest.approx(clients, abs=4 * noise * clip_norm / unit)


def test_the_price_is_one_round_of_the_plan():
    found = federated_statistics(POPULATION, plan=plan(), bounds=BOUNDS)
    assert found.epsilon == plan().spent(plan().charge({}))
    assert (found.delta, found.plan) == (1e-4, "PrivacyPlan")
    assert federated_statistics(POPULATION).epsilon == math.inf
    with pytest.raises(RunStopped, match="budget"):
        federated_statistics(POPULATION, plan=plan(epsilon=0.1), bounds=BOUNDS)


def test_noise_that_follows_from_a_seed_says_so_and_real_devices_refuse_it():
    """The seed is in the experiment's file: whoever has it takes the noise off."""
    seeded = federated_statistics(POPULATION, plan=plan(), bounds=BOUNDS)
    assert seeded.noise == "seeded"
    np.testing.assert_array_equal(seeded.mean, federated_statistics(POPULATION, plan=plan(), bounds=BOUNDS).mean)
    fresh = [federated_statistics(POPULATION, plan=plan(), bounds=BOUNDS, seed=None) for _ in range(2)]
    assert [one.noise for one in fresh] == ["operating system"] * 2
    assert (fresh[0].mean != fresh[1].mean).any()
    assert federated_statistics(POPULATION).noise == ""
    settings = {"plan": plan(), "sampler": None, "weighting": None, "rounds": 1, "test": None}
    for statistics in (seeded, fresh[0], FeatureStatistics(seeded.mean, seeded.deviation)):
        experiment = federation(population=Standardised(POPULATION, statistics), **settings)
        if statistics is seeded:
            with pytest.raises(ConfigError, match=r"follows from a public seed.*seed=None"):
                check_fresh(experiment.resolved)
            with pytest.raises(ConfigError, match="follows from a public seed"):
                run(experiment, Live(Simulation(workers=1, compile="graph")))
        else:
            check_fresh(experiment.resolved)


def test_a_run_adds_what_its_statistics_cost():
    statistics = federated_statistics(POPULATION, plan=plan(), bounds=BOUNDS)
    settings = {"plan": plan(), "sampler": None, "weighting": None, "rounds": 1, "test": None}
    history = play(federation(population=Standardised(POPULATION, statistics), **settings))
    assert history.rounds[-1].epsilon == 2 * statistics.epsilon
    assert history.privacy["epsilon"] == 2 * statistics.epsilon
    assert history.privacy["delta"] == 2e-4
    public = Standardised(POPULATION, FeatureStatistics(statistics.mean, statistics.deviation))
    assert play(federation(population=public, **settings)).rounds[-1].epsilon == statistics.epsilon


def test_a_plan_refuses_what_it_does_not_cover(statistics):
    settings = {"plan": plan(), "sampler": None, "weighting": None}
    with pytest.raises(IncompatibleError, match="released without noise"):
        federation(population=Standardised(POPULATION, statistics), **settings)
    with pytest.raises(IncompatibleError, match="released without noise"):  # hidden inside a part of it
        federation(population=split_clients(Standardised(POPULATION, statistics))[0], **settings)
    local = federated_statistics(POPULATION, plan=plan(LocalPlan), bounds=BOUNDS)
    with pytest.raises(IncompatibleError, match=r"LocalPlan.*PrivacyPlan"):
        federation(population=Standardised(POPULATION, local), **settings)


def test_plans_without_noise_on_a_sum_are_refused():
    numbers = {"epsilon": 9.0, "delta": 1e-5, "rounds": 1, "population": 8, "clip_norm": 1.0, "noise_multiplier": 2.0}
    examples = PerExamplePlan(**numbers, batch_size=5, smallest_client=5, steps=2)
    with pytest.raises(IncompatibleError, match="PerExamplePlan"):
        federated_statistics(POPULATION, plan=examples, bounds=BOUNDS)
    with pytest.raises(ConfigError, match="adapts to nothing"):
        federated_statistics(POPULATION, plan=plan(clip_norm=AdaptiveClip(1.0)), bounds=BOUNDS)


def test_noise_in_the_clients_shares_needs_the_secure_sum_that_hides_them():
    numbers = {"cohort": 8, "survivors_floor": 8, "limit": grid_limit(20.0)}
    own = plan(DistributedPlan, noise_multiplier=0.5, **numbers)
    with pytest.raises(IncompatibleError, match="SecureSum"):
        federated_statistics(POPULATION, plan=own, bounds=BOUNDS)
    aggregation = SecureSum(limit=own.limit, metrics=(), minimum_clients=8)
    found = federated_statistics(POPULATION, plan=own, secure_aggregation=aggregation, bounds=BOUNDS)
    assert found.plan == "DistributedPlan"
    assert np.isfinite(found.mean).all()


# What they are for


def test_standardised_inputs_have_mean_0_and_deviation_1(statistics):
    x = Standardised(POPULATION, statistics).resident().x
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-6)


def test_a_constant_feature_is_only_centred():
    x = np.column_stack([np.full(50, 1e6 / 3), np.arange(50.0)])
    found = federated_statistics(PerClient([(x[:20],), (x[20:],)]))
    standardised = found.of(np.vstack([x, [[1e6 / 3 + 2, 0]]]))
    np.testing.assert_allclose(standardised[:50, 0], 0, atol=1e-9)
    assert standardised[50, 0] == pytest.approx(2)


def test_streamed_and_resident_clients_hold_the_same(statistics):
    resident = Standardised(POPULATION, statistics)
    streamed = Standardised(PerClient([POPULATION.examples(client) for client in range(8)]), statistics)
    assert streamed.resident() is None
    assert isinstance(resident, Population)
    for client in range(8):
        one, other = resident.examples(client), streamed.examples(client)
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)
        np.testing.assert_array_equal(one.x, resident.resident().take(resident.indices(client)).x)
    np.testing.assert_array_equal(resident.sizes(), POPULATION.sizes())


def test_parts_share_one_copy_and_stay_parts(statistics):
    train, validation = (Standardised(part, statistics) for part in split_clients(POPULATION, 0.3))
    assert train.resident() is train.resident() is validation.resident()
    assert train.part_of == validation.part_of
    federation(population=train, validation=validation)
    other, _ = split_clients(POPULATION, 0.2)
    with pytest.raises(ConfigError, match="different divisions"):
        federation(population=train, validation=Standardised(other, statistics))
    fold, _ = next(kfold_clients(POPULATION, 4))
    assert Standardised(fold, statistics).is_some_clients
    assert not train.is_some_clients


def test_test_examples_take_the_same_statistics(statistics):
    x, y = blobs(30, seed=7)
    now, later = statistics.standardise((x, y)), statistics.standardise(Arrays(x, y))
    assert isinstance(later, Source)
    assert later == StandardisedSource(Arrays(x, y), statistics)
    np.testing.assert_array_equal(now.x, later.load().x)
    np.testing.assert_allclose(now.x, (x - statistics.mean) / statistics.deviation, rtol=1e-5, atol=1e-6)


def test_devices_build_their_model_on_a_standardised_example(statistics):
    population = Standardised(OnDevice(3, like=(np.ones((1, FEATURES)), np.zeros(1)), most=9), statistics)
    np.testing.assert_allclose(population.sample().x, statistics.of(np.ones((1, FEATURES))))


def test_other_inputs_are_refused(statistics):
    for x in (np.zeros((3, FEATURES + 1)), {"one": np.zeros((3, FEATURES))}, np.array([["a"] * FEATURES])):
        with pytest.raises(ConfigError, match="expected inputs"):
            statistics.of(x)
    with pytest.raises(ConfigError, match="one shape"):
        FeatureStatistics(np.zeros(3), np.ones(2))
    with pytest.raises(ConfigError, match="at least 0"):
        FeatureStatistics(np.zeros(1), -np.ones(1))
    with pytest.raises(ConfigError, match="statistics="):
        Standardised(POPULATION, (0, 1))


def test_a_run_equals_one_on_data_standardised_beforehand(statistics):
    """And it is described by what it is standardised with: equal numbers resume, others do not."""
    lazy = federation(population=Standardised(POPULATION, statistics), rounds=1, test=None)
    x, y = blobs(400)
    eager = Partitioned(Arrays(statistics.of(x), y), by=LogNormal(sigma=0.5), clients=8)
    beforehand = federation(population=eager, rounds=1, test=None)
    assert play(lazy).params_sha256 == play(beforehand).params_sha256
    again = federation(population=Standardised(POPULATION, federated_statistics(POPULATION)), rounds=1, test=None)
    assert pickle.loads(pickle.dumps(lazy.population)) == again.population
    assert again.digest == lazy.digest
    again.check_unchanged(lazy.describe())
    shifted = FeatureStatistics(statistics.mean + 1, statistics.deviation)
    with pytest.raises(ConfigError, match=r"population\.statistics"):
        federation(population=Standardised(POPULATION, shifted), rounds=1, test=None).check_unchanged(lazy.describe())
