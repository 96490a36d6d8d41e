"""Runs of every kind that a page has to look right with, written into a store."""

import math

import numpy as np

from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import RoundRecord, ServerState

SPEC = ModelSpec((VariableSpec("dense/kernel", (20, 10), "float32", True, 0),))
DIRECTIONS = {"accuracy": "max", "loss": "min"}
INJECTED = "<script>document.title='injected'</script><b>bold</b>"
LONG = "a_very_long_name_of_an_experiment_about_hospitals_and_their_scanners_" * 3
PLAN = {
    "plan": "PrivacyPlan",
    "plan.epsilon": "2.0",
    "plan.delta": "1e-05",
    "plan.rounds": "40",
    "plan.population": "1000",
}


def state(round):
    """Return a server's state after a round."""
    return ServerState(round, np.full(SPEC.size, round, np.float32), (), (), {})


def record(round, top=0.95, **more):
    """Make the record of a round of a run that learns, more or less."""
    learnt = 1 - math.exp(-round / 8)
    metrics = {}
    for group, less in (("train", 0.0), ("test", 0.03), ("validation", 0.05)):
        metrics |= {f"{group}_accuracy": top * learnt - less, f"{group}_loss": 2.3 * (1 - learnt) + 0.1 + less}
    for percent, less in ((10, 0.2), (50, 0.02), (90, -0.06)):
        metrics[f"validation_accuracy_p{percent}"] = top * learnt - less
    flat = {"seconds": 0.4 + 0.1 * (round % 3), "eval_seconds": 0.05, "bytes_up": 8000, "bytes_down": 9000}
    return RoundRecord(round, 10, round % 4 == 0, metrics | more.pop("metrics", {}), **flat, epsilon=None)._replace(
        **more
    )


def begin(store, name="digits_fedavg", planned=20, description=None, choices=None):
    """Add a run that has begun; return its id."""
    described = {"name": repr(name), "strategy": "FedAvg", "strategy.server_lr": "1.0", "plan": "None"}
    chosen = {"compile": "xla"} | (choices or {})
    return store.create_run(name, described | (description or {}), planned, 7, chosen, SPEC, state(0), DIRECTIONS)


def go_on(store, run, rounds, **more):
    """Commit rounds of a run."""
    for round in rounds:
        store.commit_round(run, state(round), record(round, **more), {})


def fill(store):
    """Add one run of every kind; return their ids by kind."""
    runs = {"long": begin(store, LONG, planned=3)}
    go_on(store, runs["long"], range(1, 4))
    store.finish(runs["long"], "paused", "interrupted")
    runs["injected"] = begin(store, INJECTED, 5, {"strategy": INJECTED})
    go_on(store, runs["injected"], range(1, 6), metrics={INJECTED: 0.5})
    store.finish(runs["injected"], "finished")
    store.models.register(runs["injected"], state(5).params, SPEC, {"test_accuracy": 0.5})
    runs["one"] = begin(store, "once", 1)
    go_on(store, runs["one"], [1])
    store.finish(runs["one"], "finished")
    runs["empty"] = begin(store, "empty", 5)
    store.finish(runs["empty"], "failed", "ClientError: client 3: the batch holds text")
    runs["nan"] = begin(store, "diverged", 12)
    go_on(store, runs["nan"], range(1, 7))
    go_on(store, runs["nan"], range(7, 13), metrics={"test_loss": math.nan, "train_loss": math.inf})
    store.finish(runs["nan"], "stopped", "the params after round 12 are not finite. Lower the learning rate")
    runs["private"] = begin(store, "private", 60, PLAN, {"noise": "seeded"})
    for round in range(1, 31):
        spent = record(round, top=0.85, epsilon=2.0 * math.sqrt(round / 40))
        store.commit_round(runs["private"], state(round), spent, {})
    runs["finished"] = begin(store, "digits_fedavg", 20, {"strategy.server_lr": "0.5"})
    go_on(store, runs["finished"], range(1, 21))
    store.finish(runs["finished"], "finished")
    for accuracy in (0.8, 0.9):
        params = np.full(SPEC.size, accuracy, np.float32)
        store.models.register(runs["finished"], params, SPEC, {"test_accuracy": accuracy, "test_loss": 1 - accuracy})
    store.models.set_alias("digits_fedavg", "production", 1)
    store.models.set_alias("digits_fedavg", "production", 2)
    store.models.label("digits_fedavg", 2, "reviewed")
    runs["running"] = begin(store, "digits_fedavg", 20)
    go_on(store, runs["running"], range(1, 9), top=0.9)
    return runs


def standing(**changed):
    """Say how a federation stands, as `deploy.federation.status` does: a client is away, a certificate nearly over."""
    clients = [
        {"name": "north", "state": "online", "since": "2026-11-30T09:00:00+00:00", "process": 1, "trusts": ["a" * 64]},
        {"name": "south", "state": "offline", "since": "2026-11-29T09:00:00+00:00", "process": None, "trusts": None},
        {"name": INJECTED, "state": "registered", "since": "", "process": None, "trusts": None},
    ]
    certificates = [
        {"file": "/kits/operator/ca.crt", "sha256": "a" * 64, "expires": "2036-11-30T09:00:00+00:00", "days": 3650.0},
        {"file": "/kits/server/server.crt", "sha256": "b" * 64, "expires": "2026-12-10T09:00:00+00:00", "days": 9.5},
    ]
    return {
        "server": {"address": "127.0.0.1:8443", "connected": True, "process": 2},
        "clients": clients,
        "authority": {"stage": "steady", "next": ""},
        "certificates": certificates,
        "runs": [{"run": "12345", "status": "running", "started": "2026-12-01T09:00:00+00:00"}],
    } | changed


def sweep(store):
    """A search: ten runs, of which two were ended early, one diverged, and all differ in two settings."""
    for number, rate in enumerate((0.01, 0.02, 0.04, 0.08, 0.1, 0.2, 0.4, 0.5, 0.9, 1.0)):
        settings = {
            "local.learning_rate": str(rate),
            "strategy": ("FedAvg", "FedAdam")[number % 2],
            "seed": str(number),
        }
        run = begin(store, "swept", 3, settings)
        more = {"metrics": {"test_accuracy": math.nan}} if number == 9 else {}
        go_on(store, run, range(1, 4 - number % 5 // 4), top=0.9 - abs(rate - 0.2), **more)
        store.finish(run, "finished" if number % 5 < 4 else "paused")
