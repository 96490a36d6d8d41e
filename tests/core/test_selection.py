"""Samplers that learn: whom they prefer, and that a run with them resumes like any other."""

import dataclasses

import numpy as np
import pytest

from federations import federation
from simulations import play
from umbel import ConfigError, FixedCohort, IncompatibleError, RunStopped, WeightedCohort, derive
from umbel.core.parts.devices import Devices, Diurnal
from umbel.core.parts.selection import InTime, Oort, PowerOfChoice
from umbel.core.types import Knowledge
from umbel.privacy.secure_sum import SecureSum
from umbel.strategies.fedbuff import FedBuff

COUNT = 60
CLIENTS = range(COUNT)
SIZES = np.random.default_rng(0).integers(5, 50, COUNT)
LOSSES = np.random.default_rng(1).random(COUNT).astype(np.float32) + 0.5


def sizes():
    return SIZES


def knowledge(round=5, losses=LOSSES, heard=None, seconds=None):
    return Knowledge(
        round,
        losses,
        np.where(np.isnan(losses), 0, 2).astype(np.int32) if heard is None else heard,
        np.zeros(COUNT) if seconds is None else seconds,
    )


def counts(sampler, known, draws=200, clients=CLIENTS):
    """How often each client is chosen."""
    found = np.zeros(COUNT, int)
    for draw in range(draws):
        found[sampler.choose(clients, sizes, derive(0, draw), known)] += 1
    return found


@pytest.mark.parametrize(
    "sampler", [PowerOfChoice(7, 20), Oort(7), Oort(7, preferred_seconds=1.0), InTime(9.0, FixedCohort(7))]
)
class TestContract:
    @pytest.mark.parametrize("unheard", [0.0, 0.5, 1.0])
    def test_distinct_members_ascending_and_a_function_of_the_key(self, sampler, unheard):
        losses = np.where(np.random.default_rng(3).random(COUNT) < unheard, np.nan, LOSSES).astype(np.float32)
        members = list(range(10, 50, 2))
        known = knowledge(losses=losses, seconds=np.linspace(0, 8, COUNT))
        cohorts = [sampler.choose(members, sizes, derive(1, draw), known) for draw in range(20)]
        for cohort in cohorts:
            assert len(cohort) == 7
            assert cohort == sorted(set(cohort) & set(members))
            assert all(type(client) is int for client in cohort)
        assert unheard < 1 or len({tuple(cohort) for cohort in cohorts}) > 10
        assert cohorts[4] == sampler.choose(members, sizes, derive(1, 4), known)

    def test_too_few_clients(self, sampler):
        with pytest.raises(RunStopped, match=r"expected size=7 ≤ 3 clients"):
            sampler.choose([1, 2, 3], sizes, derive(0), knowledge())


def test_power_of_choice_takes_the_largest_losses_of_its_candidates():
    every = PowerOfChoice(5, COUNT).choose(CLIENTS, sizes, derive(0), knowledge())
    assert every == sorted(np.argsort(-LOSSES)[:5].tolist())
    key = derive(7)
    assert PowerOfChoice(6, 6).choose(CLIENTS, sizes, key, knowledge()) == WeightedCohort(6).sample(CLIENTS, sizes, key)
    among = set(WeightedCohort(15).sample(CLIENTS, sizes, key))
    best = sorted(sorted(among, key=lambda client: -LOSSES[client])[:4])
    assert PowerOfChoice(4, 15).choose(CLIENTS, sizes, key, knowledge()) == best


def test_power_of_choice_takes_those_never_heard_first():
    losses = LOSSES.copy()
    losses[[3, 30, 55]] = np.nan
    assert {3, 30, 55} < set(PowerOfChoice(5, COUNT).choose(CLIENTS, sizes, derive(0), knowledge(losses=losses)))
    found = counts(PowerOfChoice(5, COUNT), knowledge(losses=np.full(COUNT, np.nan, np.float32)), draws=400)
    assert found.min() > 0  # ties are broken by chance, not by number


def test_oort_exploits_utility_and_explores_the_unheard():
    greedy = Oort(6, exploration=0.0, least_exploration=0.0)
    utility = SIZES * LOSSES
    found = counts(greedy, knowledge())
    best = np.argsort(-utility)[:6]
    assert found[best].min() > 100
    assert found[np.argsort(utility)[:40]].sum() == 0
    losses = LOSSES.copy()
    losses[20:] = np.nan
    share = counts(Oort(10, exploration=0.9, decay=0.5, least_exploration=0.3), knowledge(1, losses))[20:].sum() / 200
    assert share == 9
    share = counts(Oort(10, exploration=0.9, decay=0.5, least_exploration=0.3), knowledge(9, losses))[20:].sum() / 200
    assert share == 3


def test_oort_prefers_the_fast():
    seconds = np.where(np.arange(COUNT) % 2, 10.0, 1.0)
    losses, even = np.ones(COUNT, np.float32), np.arange(COUNT) % 2 == 0
    blind = counts(Oort(6, 0.0, least_exploration=0.0), knowledge(losses=losses, seconds=seconds))
    aware = counts(
        Oort(6, 0.0, least_exploration=0.0, preferred_seconds=2.0), knowledge(losses=losses, seconds=seconds)
    )
    assert aware[~even].sum() == 0 < blind[~even].sum()
    unheard = knowledge(losses=np.full(COUNT, np.nan, np.float32), seconds=seconds)
    explored = counts(Oort(6, 1.0), unheard)
    assert explored[even].sum() > 5 * explored[~even].sum()


def test_in_time_leaves_out_the_slow_alone():
    seconds = np.arange(COUNT, dtype=float)
    found = counts(InTime(19.0, FixedCohort(5)), knowledge(seconds=seconds))
    assert found[20:].sum() == 0 < found[:20].min()
    key = derive(3)
    everyone = InTime(1e9, FixedCohort(5)).choose(CLIENTS, sizes, key, knowledge(seconds=seconds))
    assert everyone == FixedCohort(5).sample(CLIENTS, sizes, key)


SLOW = Devices(examples_per_second=np.where(np.arange(8) < 3, 0.1, 10.0), availability=Diurnal(hours=20))


@pytest.mark.parametrize("sampler", [PowerOfChoice(3, 6), Oort(3, preferred_seconds=5.0), InTime(60.0, FixedCohort(3))])
def test_resumed_run_equals_uninterrupted_run(tmp_path, sampler):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    experiment = federation(sampler=sampler, devices=SLOW, rounds=6)
    whole = play(experiment, 2)
    first = play(dataclasses.replace(experiment, rounds=3), 1, store=url)
    assert play(experiment, 1, store=url, resume=first.run).params_sha256 == whole.params_sha256
    plain = play(dataclasses.replace(experiment, sampler=FixedCohort(3)), 1)
    assert whole.params_sha256 != plain.params_sha256


def test_losses_are_those_that_clients_reported():
    """Five rounds that ask whom they have never heard, until all eight are; then the largest loss."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watching:
        size: int = 2
        needs_losses = True

        def sample(self, clients, sizes, key):
            raise AssertionError

        def choose(self, clients, sizes, key, knowledge):
            seen.append(knowledge)
            return [int(2 * (knowledge.round - 1) % 8), int(2 * (knowledge.round - 1) % 8) + 1]

    history = play(federation(sampler=Watching(), rounds=5, weighting="uniform"))
    for known, record in zip(seen[1:], history.rounds, strict=False):
        two = known.heard == record.round
        weights = federation().population.sizes()[two]
        assert np.average(known.losses[two], weights=weights) == pytest.approx(record.metrics["train_loss"], rel=1e-4)
        assert np.isnan(known.losses).sum() == 8 - 2 * record.round
    assert [list(np.flatnonzero(np.isfinite(known.losses))) for known in seen[:2]] == [[], [0, 1]]


def test_who_hides_losses_has_none_to_choose_by():
    with pytest.raises(IncompatibleError, match="needs each client's loss, which secure_aggregation="):
        federation(sampler=PowerOfChoice(2, 4), secure_aggregation=SecureSum(limit=1.0), weighting="uniform")
    with pytest.raises(IncompatibleError, match=r"Oort.* needs rounds with a cohort, which strategy=FedBuff"):
        federation(sampler=Oort(2), strategy=FedBuff(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerOfChoice(5, 4),
        lambda: PowerOfChoice(0, 4),
        lambda: Oort(3, exploration=1.5),
        lambda: Oort(3, preferred_seconds=0),
        lambda: InTime(0, FixedCohort(3)),
        lambda: InTime(1.0, PowerOfChoice(3, 4)),
    ],
)
def test_values_out_of_bounds(make):
    with pytest.raises(ConfigError, match="expected"):
        make()
