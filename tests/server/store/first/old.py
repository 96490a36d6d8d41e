"""Run by version 0.1.0: a store with runs of several kinds, and a model with aliases and labels."""

import contextlib
import sqlite3

from umbel import Experiment, FedAdam, FedAvg, FixedCohort, Local, Scaffold, Simulation, StopAt, data, run
from umbel.core.errors import RunStopped
from umbel.privacy import PrivacyPlan
from umbel.server.store import Store

FILE = "umbel-0.1.0.sqlite"


def build_model():
    """Softmax regression: 650 parameters."""
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def experiment(name, **fields):
    """Ten clients with handwritten digits."""
    local = {"epochs": 1, "batch_size": 32, "learning_rate": 0.1, **fields.pop("local", {})}
    return Experiment(
        name=name,
        model=build_model,
        population=data.Partitioned(data.Digits("train"), by=data.Iid(), clients=10),
        local=Local(**local),
        test=data.Digits("test"),
        **{"strategy": FedAvg(), "rounds": 3, **fields},
    )


plan = PrivacyPlan(epsilon=20.0, delta=1e-3, rounds=3, population=10, sampling_rate=0.5, clip_norm=0.5)


class Cut:
    """A watcher that ends a run in its second round, as a signal would."""

    def on_start(self, experiment, runtime, run, records):
        """Nothing."""

    def on_round(self, record, failures):
        """The end."""
        if record.round == 2:
            raise KeyboardInterrupt

    def on_end(self, history):
        """Nothing."""


def main():
    """Write the file."""
    simulation = Simulation(workers=1, compile="graph")
    with Store.open(f"sqlite:///{FILE}") as store:
        run(experiment("plain", sampler=FixedCohort(4), rounds=4), simulation, store=store)
        stop = (StopAt("test_accuracy", 0.5),)
        run(
            experiment("plain", sampler=FixedCohort(4), strategy=FedAdam(0.01), seed=1, callbacks=stop),
            simulation,
            store=store,
        )
        run(experiment("remembered", sampler=FixedCohort(4), strategy=Scaffold()), simulation, store=store)
        run(experiment("private", plan=plan), simulation, store=store)
        with contextlib.suppress(KeyboardInterrupt):
            run(experiment("paused", sampler=FixedCohort(4)), simulation, store=store, watchers=[Cut()])
        with contextlib.suppress(RunStopped):
            run(experiment("failed", sampler=FixedCohort(4), local={"learning_rate": 1e38}), simulation, store=store)
        store.models.set_alias("plain", "production", 1)
        store.models.set_alias("plain", "production", 2)
        store.models.set_alias("plain", "production", 1)
    with contextlib.closing(sqlite3.connect(FILE)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
