"""A round in which nobody takes part: it changes nothing, is counted, priced and said, and the run goes on."""

import dataclasses
import io

import numpy as np
import pytest

from federations import federation
from simulations import play
from umbel import (
    AllClients,
    Local,
    PerExamplePlan,
    PoissonCohort,
    PrivacyPlan,
    Progress,
    RunStopped,
    Simulation,
    run,
)
from umbel.core.parts.devices import Devices, Traces
from umbel.strategies import IFCA, Agnostic, FedAdam, FedBuff, Scaffold, SemiSynchronous, SplitFed


class Only:
    """A sampler that has everybody in the first round, and then nobody."""

    calls = 0

    def sample(self, clients, sizes, key):
        self.calls += 1
        return list(clients) if self.calls == 1 else []


@pytest.mark.parametrize(
    "changes",
    [{}, {"strategy": FedAdam(0.1)}, {"strategy": Scaffold()}, {"strategy": IFCA(2)}, {"strategy": SplitFed("dense")}],
    ids=["FedAvg", "FedAdam", "Scaffold", "IFCA", "SplitFed"],
)
def test_it_changes_nothing_that_a_run_has(changes):
    one = play(federation(sampler=Only(), rounds=1, **changes))
    more = play(federation(sampler=Only(), rounds=3, **changes))
    assert more.params_sha256 == one.params_sha256
    assert [(record.round, record.clients, record.failures) for record in more.rounds] == [
        (1, 8, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    first, *rest = (dict(record.metrics) for record in more.rounds)
    for metrics in rest:
        assert metrics == {name: value for name, value in first.items() if name.startswith("test_")}
    assert [record.bytes_up for record in more.rounds[1:]] == [0, 0]


def test_memory_goes_on_as_if_it_had_not_been():
    """A server's momentum is that of the rounds with clients: another run's, whose round 3 is this one's."""

    class Odd:
        calls = 0

        def sample(self, clients, sizes, key):
            self.calls += 1
            return list(clients) if self.calls % 2 else []

    same = {"strategy": FedAdam(0.1), "local": dataclasses.replace(federation().local, shuffle=False)}
    history = play(federation(sampler=Odd(), rounds=4, **same))
    assert history.params_sha256 == play(federation(sampler=AllClients(), rounds=2, **same)).params_sha256


def test_coin_flips_of_a_few_clients(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    experiment = federation(sampler=PoissonCohort(0.1), rounds=12)
    shown = io.StringIO()
    history = play(experiment, store=url, watchers=[Progress(shown)])
    clients = history.column("clients")
    assert len(clients) == 12
    assert (clients == 0).any()
    assert (clients > 0).any()
    assert shown.getvalue().count("nobody took part") == (clients == 0).sum()
    part = play(federation(sampler=PoissonCohort(0.1), rounds=5), store=url)
    resumed = play(experiment, store=url, resume=part.run)
    assert resumed.params_sha256 == history.params_sha256


def test_a_plan_pays_for_it():
    """The server's noise is released: the model moves. What clients would have released is paid for, and not there."""
    central = PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=4, population=8, sampling_rate=0.01, clip_norm=1.0)
    moved = play(federation(plan=central, sampler=None, weighting=None, rounds=4, test=None))
    assert moved.column("clients").tolist() == [0] * 4
    assert np.diff(moved.column("epsilon")).min() > 0
    assert (
        moved.params_sha256
        != play(federation(plan=central, sampler=None, weighting=None, rounds=3, test=None)).params_sha256
    )
    plan = PerExamplePlan(
        epsilon=8.0, delta=1e-3, rounds=4, population=8, clip_norm=1.0, batch_size=2, smallest_client=2, steps=2,
        sampler=PoissonCohort(0.01),
    )  # fmt: skip
    still = play(
        federation(plan=plan, sampler=None, weighting=None, rounds=4, local=Local(batch_size=2), strategy=FedAdam(0.1))
    )
    assert still.column("clients").tolist() == [0] * 4
    assert np.diff(still.column("epsilon")).min() > 0
    assert len(set(still.column("test_loss"))) == 1


def away(until):
    """Eight devices that are in reach until so many seconds, and never again."""
    return Devices(1.0, availability=Traces(np.arange(8), np.zeros(8), np.full(8, until)))


@pytest.mark.parametrize("changes", [{}, {"strategy": FedBuff(2)}, {"strategy": SemiSynchronous(60.0)}], ids=str)
def test_devices_none_of_which_can_be_reached_any_more(changes):
    history = play(federation(devices=away(45.0), rounds=4, **changes))
    clients, seconds = history.column("clients"), history.column("virtual_seconds")
    assert len(clients) == 4
    assert clients[0] > 0
    assert clients[-1] == 0
    assert (np.diff(seconds) > 0).all()
    assert len(set(history.column("test_loss")[clients == 0])) == 1


def test_a_cohort_that_cannot_be_reached_under_a_plan():
    """It is sampled from all, and released with noise."""
    plan = PrivacyPlan(epsilon=8.0, delta=1e-3, rounds=2, population=8, sampling_rate=0.9, clip_norm=1.0)
    (first, second) = play(federation(plan=plan, sampler=None, weighting=None, devices=away(1e-3), rounds=2)).rounds
    expected = 7  # of 8 at a rate of 0.9; that nobody came is not said
    assert [(record.clients, record.failures) for record in (first, second)] == [(expected, 0)] * 2
    assert second.epsilon > first.epsilon
    assert second.metrics["test_loss"] != first.metrics["test_loss"]


def test_clients_that_fail_are_another_matter():
    with pytest.raises(RunStopped, match="0 valid updates"):
        play(federation(devices=Devices(1.0, dropout=1.0)))
    with pytest.raises(RunStopped, match="expected at least 4"):
        play(federation(devices=Devices(1.0, dropout=0.5), min_clients=4))
    assert len(play(federation(min_clients=6, sampler=PoissonCohort(1e-9))).rounds) == 3


def test_reweighting_waits_for_somebody():
    experiment = federation(sampler=Only(), reweighting=Agnostic(), rounds=2)
    assert run(experiment, Simulation(1, "graph")).column("clients").tolist() == [8, 0]
