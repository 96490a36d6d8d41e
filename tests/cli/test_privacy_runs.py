"""Private runs as typed: what they report, where they stop, what is refused, and what survives a kill."""

import json
import os
import signal
from pathlib import Path

import pytest

from interruptions import Killed, kill_at
from umbel.core.reading.loading import load_experiment
from umbel.core.reading.overrides import override
from umbel.privacy.keys import KeyFile
from umbel.server.store import Store

MODEL = """
def build_model():
    import keras
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
EXPERIMENT = """
from umbel import *
from umbel.data import *
from umbel.privacy import *
from umbel.privacy.schemes import BFV, CKKS
from umbel.strategies import *
numbers = dict(delta=1e-3, rounds=3, population=10, sampling_rate=0.7, clip_norm=1.0)
fields = dict(
    name="private", model=build_model, population=Partitioned(Digits(), clients=10), strategy=FedAvg(),
    local=Local(epochs=1, batch_size=32), rounds=3, test=Digits("test"),
)
"""
PLANNED = "plan=PrivacyPlan(epsilon=20.0, **numbers)"
SUMMED = "sampler=FixedCohort(4), secure_aggregation=SecureSum(2.0), weighting='uniform'"


def write(fields, name="private.py"):
    Path(name).write_text(f"{MODEL}{EXPERIMENT}experiment = Experiment(**fields | dict({fields}))\n")


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


def refused(result, status, *parts):
    """One sentence on standard error, and nothing else anywhere; the store, if there is one, is sound."""
    found, output, errors = result
    assert found == status, errors
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("umbel: ")
    for part in parts:
        assert part in errors
    if Path("umbel.db").exists():
        with Store.open("sqlite:///umbel.db") as store:
            assert store.check() == []


def test_a_run_reports_what_it_costs_round_by_round(here):
    write(PLANNED)
    status, output, errors = here("run", "private.py", "--json")
    *rounds, last = lines(output)
    assert status == 0, errors
    costs = [row["epsilon"] for row in rounds]
    assert costs == sorted(set(costs))
    assert 19 < costs[-1] <= 20
    assert all(row["train_loss"] is None and row["test_accuracy"] is not None for row in rounds)
    privacy = {"epsilon": costs[-1], "delta": 1e-3, "noise": "seeded"}
    assert last["final"]["privacy"] == privacy
    with Store.open("sqlite:///umbel.db") as store:
        version, _ = store.models.get("private", last["final"]["model_version"])
        assert version.epsilon == costs[-1]
        assert sum(store.load_run("latest").ledger.values()) == 3
    _, output, _ = here("run", "private.py")
    (line,) = (line for line in output.splitlines() if line.split()[0] == "privacy")
    assert f"ε = {costs[-1]:.4g} at δ = 0.001, noise from the run's seed" in line
    status, output, errors = here("audit", "latest", "private.py", "--canaries", "20")
    assert status == 0, errors
    claim, _, *found = output.splitlines()
    assert claim == f"claimed: ε = {costs[-1]:.4g} at δ = 0.001"
    promised = ["failure", "repeated", "low", "decrypting", "roll"]
    assert [row.split()[0] for row in found] == [*promised, "inversion", "membership", "canaries"]
    assert found[-1].endswith("holds")


def test_out_of_budget_a_run_stops_with_status_3_and_again_when_it_is_resumed(here):
    write(PLANNED)
    more = ("--set", "rounds=9")
    stopped = here("run", "private.py", "-q", *more)
    parts = ("3 rounds cost ε=", "above epsilon=20 at delta=0.001", "begin a new run", "3 rounds are kept")
    refused(stopped, 3, *parts)
    assert "resume with" not in stopped[2]  # it would not help
    for _ in range(2):
        refused(here("run", "private.py", "-q", "--resume", "latest", *more), 3, *parts)
    with Store.open("sqlite:///umbel.db") as store:
        (run,) = store.runs()
        stored = store.load_run(run.run)
        (version,) = store.models.list("private")
    assert (run.state, run.rounds_done, sum(stored.ledger.values())) == ("stopped", 3, 3)
    assert version.epsilon == stored.records[-1].epsilon <= 20
    assert stored.reason in stopped[2]


def test_another_budget_is_other_noise(here):
    write(PLANNED)
    experiment = load_experiment("private.py")
    noise = [override(experiment, [f"plan.epsilon={value}"]).plan.round_event.noise_multiplier for value in (2, 20, 80)]
    assert noise == sorted(noise, reverse=True)
    for budget in (2, 80):
        assert here("run", "private.py", "-q", "--set", f"plan.epsilon={budget}")[0] == 0
        with Store.open("sqlite:///umbel.db") as store:
            stored = store.load_run("latest")
            assert 0.95 * budget < store.models.get("private")[0].epsilon <= budget
        assert list(stored.ledger) == [str(override(experiment, [f"plan.epsilon={budget}"]).plan.round_event)]
    refused(here("run", "private.py", "-q", "--resume", "latest", "--set", "plan.epsilon=90"), 2, "plan.epsilon was 80")


def test_arithmetic_and_protocol_give_the_same_integers(here):
    write(SUMMED)
    for mode in ("arithmetic", "protocol"):
        status, _, errors = here("run", "private.py", "-q", "--aggregation", mode)
        assert status == 0, errors
    with Store.open("sqlite:///umbel.db") as store:
        runs = [store.load_run(run.run) for run in store.runs()]
    assert [run.choices["aggregation"] for run in runs] == ["protocol", "arithmetic"]
    assert len({run.server_state.params.tobytes() for run in runs}) == 1
    assert len({str([record.metrics for record in run.records]) for run in runs}) == 1


def test_a_private_run_killed_again_and_again_pays_for_each_round_once(here, finish, monkeypatch):
    """By SIGKILL once; at other instructions it ends in this process, with nothing tidied up either."""
    write("plan=PrivacyPlan(epsilon=300.0, noise_multiplier=0.8, **numbers)")
    assert here("run", "private.py", "-q", "--store", "sqlite:///whole.db")[0] == 0
    with Store.open("sqlite:///whole.db") as store:
        whole = store.load_run("latest")
    # On record and, which may be behind it, in the last checkpoint: after each kill.
    ledgers = {"before-training:1": (0, 0), "mid-training:1": (0, 0), "after-aggregation:1": (1, 0)}
    ledgers |= {"before-commit:2": (2, 1), "after-commit:2": (2, 2)}
    resume = ()
    for crash, counts in ledgers.items():
        words = ("run", "private.py", "-q", *resume)
        if crash == "after-aggregation:1":
            status, _, errors = finish(*words, UMBEL_CRASH_AT=crash)
            assert status == -signal.SIGKILL, errors
        else:
            point, round = crash.split(":")
            kill_at(monkeypatch, point, int(round))
            with pytest.raises(Killed):
                here(*words)
        resume = ("--resume", "latest")
        with Store.open("sqlite:///umbel.db") as store:
            stored = store.load_run("latest")
            assert store.check() == []
        assert (sum(stored.ledger.values()), sum(stored.server_state.ledger.values())) == counts
    status, output, errors = here("run", "private.py", "-q", "--json", *resume)
    assert status == 0, errors
    *rounds, last = lines(output)
    assert [row["epsilon"] for row in rounds] == [whole.records[2].epsilon]
    assert last["final"]["privacy"]["epsilon"] == whole.records[2].epsilon
    with Store.open("sqlite:///umbel.db") as store:
        stored = store.load_run("latest")
    assert stored.ledger == whole.ledger == stored.server_state.ledger
    assert stored.server_state.params.tobytes() == whole.server_state.params.tobytes()
    assert [record.metrics for record in stored.records] == [record.metrics for record in whole.records]


BAD = {
    "delta": ("plan=PrivacyPlan(epsilon=2.0, **numbers | {'delta': 0.1})", 2, ["delta=0.1 < 1/population=0.1"]),
    "impossible budget": (
        "plan=PrivacyPlan(epsilon=1e-7, **numbers | {'delta': 1e-12})",
        2,
        ["no noise multiplier", "keeps epsilon=1e-07", "allow a larger epsilon"],
    ),
    "no budget": ("plan=PrivacyPlan(epsilon=0.0, **numbers)", 2, ["epsilon=0.0 to be a finite number > 0"]),
    "too little noise": ("plan=PrivacyPlan(epsilon=9.0, noise_multiplier=1e-3, **numbers)", 2, ["noise_multiplier"]),
    "no clipping": (
        "plan=PrivacyPlan(epsilon=9.0, **numbers | {'clip_norm': 0.0})",
        2,
        ["clip_norm=0.0 to be a finite number > 0"],
    ),
    "another population": (
        "plan=PrivacyPlan(epsilon=9.0, **numbers | {'population': 9})",
        2,
        ["population=9", "the 10 clients there are"],
    ),
    "weights": (PLANNED + ", weighting='examples'", 2, ["weighting='examples'", "'uniform'"]),
    "sampler": (PLANNED + ", sampler=FixedCohort(7)", 2, ["PoissonCohort(rate=0.7)", "drop the sampler"]),
    "validation": (
        PLANNED + ", validation=Partitioned(Digits('test'), clients=10)",
        2,
        ["validation needs metrics of single clients", "server's test examples"],
    ),
    "robust aggregator under a plan": (PLANNED + ", aggregator=Median()", 2, ["plain sums", "use WeightedSum"]),
    "metrics under a plan": (
        PLANNED + ", secure_aggregation=SecureSum(2.0)",
        2,
        ["('loss',)", "set secure_aggregation.metrics to ()"],
    ),
    "rounding": (PLANNED + ", secure_aggregation=SecureSum(2.0, metrics=())", 2, ["rounding=0.0 of the plan"]),
    "adaptive clipping of few": (
        "plan=PrivacyPlan(epsilon=2.0, **numbers | {'clip_norm': AdaptiveClip()})",
        2,
        ["adaptive clipping of 7 clients", "use a cohort above"],
    ),
    "shares in the open": (
        "plan=DistributedPlan(epsilon=9.0, delta=1e-3, rounds=3, population=10, cohort=6, survivors_floor=4, "
        "clip_norm=1.0, limit=grid_limit(64.0))",
        2,
        ["hides nothing alone", "SecureSum"],
    ),
    "robust aggregator": (
        SUMMED + ", aggregator=Krum(byzantine=1)",
        2,
        ["needs individual updates", "reveals only their sum"],
    ),
    "floor": (
        "sampler=FixedCohort(4), secure_aggregation=SecureSum(2.0, minimum_clients=2)",
        2,
        ["minimum_clients=2 to be an integer ≥ 3"],
    ),
    "threshold": (
        "sampler=FixedCohort(2), weighting='uniform', secure_aggregation=SecureSum(2.0)",
        2,
        ["needs 3 clients", "a round has 2 at most"],
    ),
    "heavy client": (
        "sampler=FixedCohort(4), secure_aggregation=SecureSum(2.0, max_weight=5)",
        2,
        ["above max_weight=5; raise max_weight"],
    ),
    "ring": (
        "sampler=FixedCohort(4), secure_aggregation=SecureSum(2.0, max_weight=10**6, ring_bits=32)",
        2,
        ["overflow a 32-bit ring; use ring_bits=64"],
    ),
    "ring of a cohort": (
        "sampler=FixedCohort(8), secure_aggregation=SecureSum(2.0, max_weight=1000, ring_bits=32)",
        2,
        ["clients=8 of max_weight=1000 overflow", "use ring_bits=64"],
    ),
    "slots": (
        "sampler=FixedCohort(4), secure_aggregation=Homomorphic(2.0, scheme=BFV(), clients=100)",
        2,
        ["sums at most 15 clients", "for clients=100", "use BFV("],
    ),
    "cohort beyond the slots": (
        "sampler=FixedCohort(8), weighting='uniform', secure_aggregation=Homomorphic(2.0, clients=4)",
        2,
        ["a cohort of 8", "Homomorphic(clients=4)", "raise it"],
    ),
    "bfv": (
        "secure_aggregation=Homomorphic(2.0, scheme=BFV(modulus_bits=(60, 60)))",
        2,
        ["below 128 bits of security"],
    ),
    "ckks": ("secure_aggregation=Homomorphic(2.0, scheme=CKKS(degree=2048))", 2, ["degree=2048 to be one of 4096"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_would_break_a_promise_is_refused_in_a_sentence(here, name):
    fields, status, parts = BAD[name]
    write(fields)
    refused(here("run", "private.py", "-q"), status, *parts)


@pytest.mark.parametrize("name", ["threshold", "heavy client", "ring of a cohort"])
def test_a_run_that_is_refused_leaves_the_runs_before_alone_and_nothing_of_itself(here, name):
    write(SUMMED + ", rounds=1")
    status, output, errors = here("run", "private.py", "-q", "--json")
    assert status == 0, errors
    final = lines(output)[-1]["final"]
    fields, status, parts = BAD[name]
    write(fields, "bad.py")
    refused(here("run", "bad.py", "-q"), status, *parts)
    with Store.open("sqlite:///umbel.db") as store:
        states = {run.run: (run.state, run.rounds_done) for run in store.runs()}
        assert len(store.models.list("private")) == 1
    assert states.pop(final["run"]) == ("finished", 1)
    assert states == {}


def test_a_store_key_that_others_can_read_or_that_was_changed_is_refused_without_being_shown(here):
    write(PLANNED + ", rounds=1")
    KeyFile.generate("storage", 1).save("store.key")
    text = Path("store.key").read_text()
    secrets = [word for word in text.replace('"', " ").split() if len(word) > 30]
    os.chmod("store.key", 0o644)
    readable = here("run", "private.py", "-q", "--store-key", "store.key")
    refused(readable, 2, "store.key", "chmod 600")
    os.chmod("store.key", 0o600)
    Path("store.key").write_text(text[: len(text) // 2])
    cut = here("run", "private.py", "-q", "--store-key", "store.key")
    refused(cut, 2, "store.key")
    assert secrets
    assert not [word for word in secrets if word[:16] in readable[2] + cut[2]]
    assert not Path("umbel.db").exists()
