"""A private run that is killed, resumed, or out of budget: what was spent is on record, and nothing is paid for twice.

In simulation a round that was cut off is repeated bit for bit, and is the same release; real devices make another one.
"""

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from federations import federation
from interruptions import CRASH_POINTS, Killed, Live, kill_at
from simulations import play, simulation
from umbel import AdaptiveClip, ConfigError, KeepBest, PrivacyPlan, RunStopped, SecureSum, Simulation, override, run
from umbel.core.errors import BudgetSpent
from umbel.privacy import DistributedPlan, FixedCohortPlan, LocalPlan, accounting, grid_limit
from umbel.privacy.central import CentralGaussian
from umbel.server.feedback import sampled
from umbel.server.monitoring.monitor import Monitor
from umbel.server.progress import Progress
from umbel.server.store import Store

NUMBERS = {"epsilon": 500.0, "delta": 1e-3, "rounds": 3, "population": 8, "noise_multiplier": 1.0}
LIMIT = grid_limit(64.0)
CENTRAL = PrivacyPlan(**NUMBERS, clip_norm=0.5, sampling_rate=0.6)
BASE = federation()
PRIVATE = {
    "central": {"plan": CENTRAL},
    "adaptive": {"plan": dataclasses.replace(CENTRAL, clip_norm=AdaptiveClip(initial=0.3, count_noise=2.0))},
    "fixed cohort": {"plan": FixedCohortPlan(**NUMBERS, clip_norm=0.5, cohort=4)},
    "local": {"plan": LocalPlan(**NUMBERS, clip_norm=0.5)},
    "distributed": {
        "plan": DistributedPlan(**NUMBERS, clip_norm=0.5, cohort=6, survivors_floor=4, limit=LIMIT),
        "secure_aggregation": SecureSum(LIMIT, metrics=(), minimum_clients=4),
    },
}
SUMMED = {"secure_aggregation": SecureSum(1.0), "weighting": "uniform"}


def private(name, **changes):
    """The federation under one of the plans above."""
    return dataclasses.replace(BASE, sampler=None, weighting=None, **PRIVATE[name] | changes)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'runs.db'}"


@pytest.fixture(scope="module")
def uninterrupted():
    """Runs that nothing disturbed, each played when first asked for."""
    played = {}

    def history(name, experiment):
        if name not in played:
            played[name] = play(experiment)
        return played[name]

    return history


@pytest.fixture(scope="module")
def devices():
    """A simulation for `Live` alone: its workers stay live."""
    with contextlib.closing(Simulation(1, "graph")) as runtime:
        yield runtime


@pytest.fixture
def releases(monkeypatch):
    """(key of the noise, sum under it) of every noisy sum that the server forms."""
    seen, decode = [], CentralGaussian.decode

    def spy(self, state, total, key):
        seen.append((key.digest, hashlib.sha256(total.delta.tobytes()).digest()))
        return decode(self, state, total, key)

    monkeypatch.setattr(CentralGaussian, "decode", spy)
    return seen


def on_record(url):
    """The last run, and the counts of the ledger in its store and of that in its last checkpoint."""
    with Store.open(url) as store:
        stored = store.load_run("latest")
        assert store.check() == []
    return stored, sum(stored.ledger.values()), sum(stored.server_state.ledger.values())


def killed(monkeypatch, experiment, runtime, url, point, round=2):
    kill_at(monkeypatch, point, round)
    with pytest.raises(Killed):
        run(experiment, runtime, store=url)
    return on_record(url)


CASES = [("central", point) for point in CRASH_POINTS]
CASES += [(name, point) for name in PRIVATE if name != "central" for point in ("mid-training", "after-aggregation")]


@pytest.mark.parametrize(("name", "point"), CASES)
def test_a_killed_run_ends_with_the_ledger_and_the_bits_of_one_that_was_not(
    name, point, url, monkeypatch, uninterrupted, releases
):
    experiment = private(name)
    whole = uninterrupted(name, experiment)
    _, spent, committed = killed(monkeypatch, experiment, simulation(experiment), url, point)
    released = {"before-training": 1, "mid-training": 1 + experiment.plan.clients_release}.get(point, 2)
    assert (spent, committed) == (released, 2 if point == "after-commit" else 1)
    resumed = play(experiment, store=url, resume="latest")
    stored, spent, committed = on_record(url)
    assert (spent, committed) == (3, 3)
    assert stored.ledger == {str(experiment.plan.round_event): 3}
    assert resumed.params_sha256 == whole.params_sha256
    assert [one.epsilon for one in resumed.rounds] == [one.epsilon for one in whole.rounds]
    assert resumed.privacy == whole.privacy
    # The round that was cut off was released again as it had been: no noise covers two different sums.
    assert len({key for key, _ in releases}) == len(set(releases))


@pytest.mark.parametrize("point", ["mid-training", "after-aggregation"])
@pytest.mark.parametrize("mode", ["arithmetic", "protocol"])
def test_a_secure_sum_is_resumed_too(point, mode, url, monkeypatch, uninterrupted):
    experiment = dataclasses.replace(BASE, **SUMMED)
    runtime = Simulation(1, "graph", aggregation=mode)
    killed(monkeypatch, experiment, runtime, url, point)
    resumed = run(experiment, runtime, store=url, resume="latest")
    runtime.close()
    assert resumed.params_sha256 == uninterrupted("summed", experiment).params_sha256
    assert resumed.privacy == {"aggregation": mode}


@pytest.mark.parametrize(
    ("name", "point", "attempts"),
    [
        ("central", "before-training", 3),
        ("central", "mid-training", 3),
        ("central", "after-aggregation", 4),
        ("central", "before-commit", 4),
        ("central", "after-commit", 3),
        ("local", "mid-training", 4),
    ],
)
def test_real_devices_pay_for_both_attempts_and_draw_fresh_noise(
    name, point, attempts, url, monkeypatch, releases, devices
):
    experiment, live = private(name), Live(devices)
    killed(monkeypatch, experiment, live, url, point)
    resumed = run(experiment, live, store=url, resume="latest")
    stored, spent, committed = on_record(url)
    event = str(experiment.plan.round_event)
    assert (spent, committed) == (attempts, attempts)
    assert resumed.rounds[-1].epsilon == resumed.privacy["epsilon"] == experiment.plan.spent({event: attempts})
    assert resumed.privacy["noise"] == "operating system"
    with Store.open(url) as store:
        assert store.models.get(stored.name)[0].epsilon == resumed.privacy["epsilon"]
    assert len({key for key, _ in releases}) == len(releases)
    again = run(experiment, live)
    assert again.params_sha256 != resumed.params_sha256  # neither cohorts nor noise follow from the seed


def test_noise_of_real_devices_is_fresh_without_a_plan_too(devices):
    """A chain's noise must not follow from a published seed only because nobody keeps a ledger of it."""
    chain = private("central").resolved.transforms
    experiment = dataclasses.replace(BASE, transforms=chain, weighting="uniform", rounds=1)
    live = Live(devices)
    assert run(experiment, live).params_sha256 != run(experiment, live).params_sha256
    plain = dataclasses.replace(BASE, rounds=1)
    assert run(plain, live).params_sha256 == play(plain).params_sha256  # and nothing else of a run is random


def test_cohorts_of_real_devices_do_not_follow_from_the_seed(monkeypatch, devices):
    """Nor are they drawn again alike: a plan's price takes it for secret who takes part."""
    drawn = []

    def spy(*words):
        drawn.append(tuple(sampled(*words)))
        return drawn[-1]

    monkeypatch.setattr("umbel.server.rounds.sampled", spy)
    experiment = private("central")
    for _ in range(2):
        play(experiment)
    assert drawn[:3] == drawn[3:]
    for _ in range(2):
        run(experiment, Live(devices))
    assert len({tuple(drawn[start : start + 3]) for start in (3, 6, 9)}) == 3


def test_a_run_does_not_change_between_simulated_and_real_devices(url, monkeypatch, devices):
    """A simulation would take a round that real devices had paid for to be its own, and repeat it for nothing."""
    experiment = private("central")
    live = Live(devices)
    killed(monkeypatch, experiment, live, url, "before-commit")
    with pytest.raises(ConfigError, match="noise was operating system, is now seeded; restore the runtime"):
        play(experiment, store=url, resume="latest")
    assert on_record(url)[1:] == (2, 1)
    plain = dataclasses.replace(BASE, rounds=1)
    play(plain, store=url)
    run(dataclasses.replace(plain, rounds=2), live, store=url, resume="latest")  # without noise, nothing differs


SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
from interruptions import Live
from simulations import simulation
from test_interrupted_runs import private
import umbel
umbel.run(private("central"), Live(simulation(private("central"))), store=sys.argv[1])
"""


def test_a_process_that_is_killed_on_real_devices_has_paid(url, devices):
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = {**os.environ, "UMBEL_CRASH_AT": "before-commit:2"}
    process = subprocess.run([sys.executable, "-c", SCRIPT, url, *folders], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert on_record(url)[1:] == (2, 1)
    run(private("central"), Live(devices), store=url, resume="latest")
    assert on_record(url)[1:] == (4, 4)


def limited(rounds, **changes):
    """The federation under a budget for just so many rounds, and with more of them to do."""
    event = str(CENTRAL.round_event)
    low, high = (accounting.epsilon({event: count}, CENTRAL.delta).pld for count in (rounds, rounds + 1))
    plan = dataclasses.replace(CENTRAL, epsilon=(low + high) / 2)
    return private("central", plan=plan, rounds=rounds + 5, **changes)


def test_a_run_stops_before_the_round_that_would_exceed_its_budget(url):
    experiment = limited(2)
    whole = play(dataclasses.replace(experiment, rounds=2))
    for resume in (None, "latest"):  # resumed, it stops at once again
        with pytest.raises(BudgetSpent) as stopped:
            play(experiment, store=url, resume=resume)
        plan = experiment.plan
        for part in ("2 rounds cost", f"epsilon={plan.epsilon:g}", f"delta={plan.delta:g}", "begin a new run"):
            assert part in str(stopped.value)
        stored, spent, committed = on_record(url)
        assert (stored.state, len(stored.records), spent, committed) == ("stopped", 2, 2, 2)
        assert stored.reason == str(stopped.value)
        np.testing.assert_array_equal(stored.server_state.params, whole.params)
        with Store.open(url) as store:
            (version,) = store.models.list(stored.name)
            np.testing.assert_array_equal(store.models.get(stored.name)[1], whole.params)
        assert version.epsilon == stored.records[-1].epsilon == plan.spent(stored.ledger) <= plan.epsilon


def test_a_larger_budget_is_another_experiment(url):
    experiment = limited(1)
    with pytest.raises(RunStopped):
        play(experiment, store=url)
    with pytest.raises(ConfigError, match=r"plan\.epsilon was .*, is now 900"):
        play(override(experiment, ["plan.epsilon=900"]), store=url, resume="latest")
    assert on_record(url)[1:] == (1, 1)


def test_what_a_lost_attempt_cost_counts_towards_the_budget(url, monkeypatch, devices):
    experiment = limited(2)
    live = Live(devices)
    killed(monkeypatch, experiment, live, url, "before-commit", round=2)
    with pytest.raises(BudgetSpent):
        run(experiment, live, store=url, resume="latest")
    stored, spent, committed = on_record(url)
    assert (len(stored.records), spent, committed) == (1, 2, 1)
    with Store.open(url) as store:
        version, _ = store.models.get(stored.name)
    assert version.epsilon == experiment.plan.spent(stored.ledger) > stored.records[-1].epsilon


def test_the_best_round_costs_what_all_of_them_did(url):
    """It was chosen by looking at all of them."""
    local = dataclasses.replace(BASE.local, learning_rate=None)
    history = play(private("central", callbacks=(KeepBest("test_loss"),), local=local), store=url)
    with Store.open(url) as store:
        assert store.models.get("small")[0].epsilon == history.privacy["epsilon"] == history.rounds[-1].epsilon


def test_epsilon_grows_by_the_round_wherever_it_is_shown(url):
    experiment = private("central")
    history = play(experiment, store=url)
    event = str(experiment.plan.round_event)
    expected = [experiment.plan.spent({event: count}) for count in (1, 2, 3)]
    assert expected == sorted(set(expected))
    assert list(history.column("epsilon")) == expected
    assert list(history.to_frame()["epsilon"]) == expected
    assert [record.to_json()["epsilon"] for record in history.rounds] == expected
    assert history.final()["privacy"] == {"epsilon": expected[-1], "delta": 1e-3, "noise": "seeded"}
    stored, _, _ = on_record(url)
    assert [record.epsilon for record in stored.records] == expected


def test_cohorts_of_a_fixed_size_are_drawn_from_everyone_or_not_at_all(url, devices):
    """From fewer clients each would be drawn more often than the plan's price reckons with."""
    experiment = private("fixed cohort")
    runtime = Live(devices)
    runtime.client_ids = lambda: range(7)
    with pytest.raises(RunStopped, match=r"7 clients can be reached, .* drawn from all 8"):
        run(experiment, runtime, store=url)
    assert on_record(url)[1:] == (0, 0)
    poisson = private("central", rounds=1)
    runtime = Live(devices)
    runtime.client_ids = lambda: range(7)
    assert len(run(poisson, runtime).rounds) == 1  # each on its own, whoever else there is


def test_records_of_real_devices_tell_no_time_of_a_secret_cohort(devices, capsys):
    """It is that of the slowest who took part. A simulation's cohort follows from its seed, and so does its time."""
    monitor = Monitor()
    history = run(private("central", rounds=2), Live(devices), watchers=[Progress(), monitor])
    assert list(history.column("seconds")) == [0, 0]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert len(lines) == 2
    assert not any(line.endswith(" s") for line in lines)
    assert 'umbel_phase_seconds_count{phase="training"} 0' in monitor.text()
    assert all(play(private("central", rounds=2)).column("seconds"))
