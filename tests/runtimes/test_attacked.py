"""Attackers between clients and aggregator: only they lie, and nothing else changes."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from engines import SOONEST
from federations import blobs, dense, federation
from umbel import (
    IFCA,
    Agnostic,
    AllClients,
    ConfigError,
    FedBuff,
    IncompatibleError,
    Simulation,
    SplitFed,
    TopK,
    data,
    run,
)
from umbel.core.examples import Examples
from umbel.privacy.plan import FixedCohortPlan
from umbel.privacy.secure_sum import SecureSum
from umbel.runtimes.attacked import Attacked
from umbel.strategies.attacks import FreeRide, SignFlip


@dataclass
class Honest:
    """Sends what it would send anyway, and notes by weight who attacked and who did not."""

    seen: list = field(default_factory=list)

    def forge(self, own, honest, key):
        self.seen.append(([update.weight for update in own], [update.weight for update in honest]))
        return list(own)


def graph(workers=1):
    return Simulation(workers=workers, compile=SOONEST)


@pytest.fixture(scope="module")
def plain():
    return run(federation(), graph())


@pytest.mark.parametrize("attackers", [(), (0, 3, 5), range(8)], ids=str)
@pytest.mark.parametrize("workers", [1, 2])
def test_attackers_who_do_not_lie_change_no_bit(plain, attackers, workers):
    history = run(federation(), Attacked(graph(workers), Honest(), attackers))
    assert history.params_sha256 == plain.params_sha256
    for one, other in zip(history.rounds, plain.rounds, strict=True):
        assert one._replace(seconds=0, eval_seconds=0) == other._replace(seconds=0, eval_seconds=0)


def test_workers_give_the_same_bits_under_attack():
    one, two = (run(federation(), Attacked(graph(workers), FreeRide(0.1), (1, 2, 6))) for workers in (1, 2))
    assert one.params_sha256 == two.params_sha256


def test_it_is_the_named_clients_who_attack():
    """Whoever else fails: client 2's examples are not finite."""
    x, y = blobs(90)
    clients = [
        Examples(x[start : start + 2 + start // 8], y[start : start + 2 + start // 8]) for start in range(0, 64, 8)
    ]
    clients[2] = Examples(np.full_like(clients[2].x, np.nan), clients[2].y)
    sizes, attack = [one.count for one in clients], Honest()
    everybody = federation(population=data.PerClient(clients), sampler=AllClients(), rounds=1)
    history = run(everybody, Attacked(graph(2), attack, (1, 4)))
    assert history.rounds[0].failures == 1
    assert attack.seen == [([sizes[1], sizes[4]], [sizes[client] for client in (0, 3, 5, 6, 7)])]


def test_all_turned_round_turn_the_step_round():
    setting = {"sampler": AllClients(), "rounds": 1}
    before = run(federation(**setting), Attacked(graph(), FreeRide(), range(8))).params  # where all began
    forth, back = (
        run(federation(**setting), runtime).params for runtime in (graph(), Attacked(graph(), SignFlip(), range(8)))
    )
    np.testing.assert_allclose(back - before, before - forth, rtol=1e-3, atol=1e-6)


def test_attackers_take_part_in_secure_aggregation():
    """It hides their lie like everybody's truth: the sum of what was sent is what comes out."""
    setting = {"sampler": AllClients(), "rounds": 1, "weighting": "uniform"}
    hidden = run(
        federation(secure_aggregation=SecureSum(limit=2.0), **setting), Attacked(graph(), SignFlip(), (0, 1, 2))
    )
    seen = run(federation(**setting), Attacked(graph(), SignFlip(), (0, 1, 2)))
    np.testing.assert_allclose(hidden.params, seen.params, atol=1e-4)


def test_attackers_take_part_in_a_private_run():
    """A plan was checked before, and its noise is on the sum of what was sent."""
    plan = FixedCohortPlan(epsilon=50.0, delta=1e-3, rounds=3, population=8, cohort=4, clip_norm=0.5)
    private = federation(plan=plan, weighting="uniform")
    true, false = (run(private, runtime) for runtime in (graph(), Attacked(graph(), Honest(), (0, 1))))
    assert false.params_sha256 == true.params_sha256
    assert [one.epsilon for one in false.rounds] == [one.epsilon for one in true.rounds]


@pytest.mark.parametrize(
    "changes",
    [{"codec": TopK(0.3)}, {"reweighting": Agnostic(0.2)}, {"strategy": IFCA(2)}],
    ids=lambda one: next(iter(one)),
)
def test_attackers_take_part_in_whatever_clients_do(changes):
    """What they forge travels like every update, and is reweighted like it; each is in the cluster that it says."""
    true, false = (
        run(federation(**changes), Attacked(graph(2), attack, (0, 3, 5))) for attack in (Honest(), SignFlip())
    )
    assert true.params_sha256 == run(federation(**changes), graph()).params_sha256
    assert false.params_sha256 != true.params_sha256
    assert [record.bytes_up for record in false.rounds] == [record.bytes_up for record in true.rounds]


def test_a_run_is_resumed_under_the_same_attack(tmp_path):
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    first = run(federation(), Attacked(graph(), SignFlip(), (0, 1)), store=store)
    longer = federation(rounds=4)
    with pytest.raises(ConfigError, match="attack was SignFlip"):
        run(longer, Attacked(graph(), SignFlip(2.0), (0, 1)), store=store, resume=first.run)
    resumed = run(longer, Attacked(graph(), SignFlip(), (0, 1)), store=store, resume=first.run)
    assert resumed.params_sha256 == run(longer, Attacked(graph(), SignFlip(), (0, 1))).params_sha256


def test_refusals():
    with pytest.raises(ConfigError, match=r"attackers among 8 clients, got \[8, 99\]"):
        run(federation(), Attacked(graph(), SignFlip(), (0, 8, 99)))
    with pytest.raises(ConfigError, match="forge"):
        Attacked(graph(), dense, (0,))

    for strategy in (FedBuff(2), SplitFed("dense")):
        with pytest.raises(IncompatibleError, match=r"attackers answer to .* has other rounds"):
            run(federation(strategy=strategy), Attacked(graph(), SignFlip(), (0,)))

    class Devices:
        is_live = True

    with pytest.raises(ConfigError, match="real devices"):
        Attacked(Devices(), SignFlip(), (0,))
