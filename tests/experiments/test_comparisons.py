"""The experiments that compare: each variant builds and trains, and says what it is."""

import dataclasses
import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel import Simulation, run
from umbel.core.reading.loading import load_experiments
from umbel.data import PerClient
from umbel.experiments import fashion_cnn_bn
from umbel.runtimes.team import workers_of
from umbel.strategies.attacks import ALL_ATTACKS

mnist = pytest.mark.skipif(
    not Path(os.environ.get("UMBEL_DATA", "/nowhere"), "mnist.npz").is_file(), reason="no mnist.npz in $UMBEL_DATA"
)
COUNTS = {
    **{"optimizers_compared": 16, "strategies_compared": 30, "byzantine": 72, "regularisation": 4},
    **{"digits_split": 3, "digits_lora": 2},
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_variant_differs_from_every_other(name):
    experiments = load_experiments(name)
    assert len(experiments) == COUNTS[name]
    assert len({one.digest for one in experiments.values()}) == COUNTS[name]


# One of each kind of client: models are what takes time to build.
@pytest.mark.parametrize(
    "reference",
    [
        *(f"optimizers_compared:{kind}" for kind in ("momentum/step", "Nadam/self-tuned")),
        *(pytest.param(f"strategies_compared:shards/{kind}", marks=mnist) for kind in ("Scaffold", "DeltaSGD")),
        *(f"byzantine:{kind}" for kind in ("Ipm/Bulyan", "LabelFlip/Krum")),
        *(f"regularisation:{kind}" for kind in ("weight decay", "dropout")),
        "digits_split:SplitFed, version 2",
    ],
)
def test_a_round_trains(reference):
    (experiment,) = load_experiments(reference, ["rounds=1"]).values()
    history = run(experiment, Simulation(workers=1, compile="graph"))
    assert np.isfinite(history.params).all()
    assert 0 <= history.column("test_accuracy")[-1] <= 1


def test_attacks_share_the_workers_of_two_models():
    """72 runs, and not 72 times the seconds that a model and its programs take to build."""
    in_turn = [workers_of(one.resolved) for one in load_experiments("byzantine").values()]
    assert 1 + sum(one != before for before, one in itertools.pairwise(in_turn)) == 2


@mnist
def test_fednova_is_fedavg_where_clients_take_equally_many_steps():
    fedavg, fednova = (
        run(one, Simulation(workers=1, compile="graph"))
        for name in ("FedAvg", "FedNova")
        for one in load_experiments(f"strategies_compared:iid/{name}", ["rounds=1"]).values()
    )
    np.testing.assert_allclose(fednova.params, fedavg.params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@mnist
def test_scaffold_and_feddyn_need_fewer_rounds_than_fedavg_though_each_has_its_best_rate():
    needed = {}
    for name in ("FedAvg", "Scaffold", "FedDyn"):
        (experiment,) = load_experiments(f"strategies_compared:shards/{name}").values()
        needed[name] = run(experiment, Simulation()).rounds_to(0.95) or experiment.rounds + 1
    assert needed["FedDyn"] < needed["Scaffold"] < needed["FedAvg"]


def test_fedbn_keeps_normalisation_at_home():
    generator = np.random.default_rng(0)
    clients = [(generator.random((8, 28, 28, 1), np.float32), generator.integers(0, 10, 8)) for _ in range(2)]
    sizes = {}
    for name, experiment in fashion_cnn_bn.experiments.items():
        small = dataclasses.replace(
            experiment, population=PerClient(clients), validation=None, sampler=umbel.AllClients(), rounds=1
        )
        sizes[name] = len(run(small, Simulation(workers=1, compile="graph")).params)
    channels = 32 + 64 + 128
    assert sizes == {"shared": 94_634, "at home": 94_634 - 4 * channels}


@pytest.mark.parametrize("name", [*COUNTS, "fashion_cnn_bn"])
def test_docstrings_say_the_command(name):
    text = Path(umbel.__file__).parent.joinpath("experiments", f"{name}.py").read_text("utf-8")
    assert f"umbel compare {name}" in text.split('"""')[1]


def test_the_page_on_algorithms_runs_and_names_them_all():
    page = Path(umbel.__file__).parent.joinpath("docs", "algorithms.md").read_text("utf-8")
    for one in (*umbel.strategies.ALL_STRATEGIES, *umbel.strategies.ALL_ASYNCHRONOUS):
        assert f"`{one.__name__}`" in page
    for aggregator in umbel.strategies.ALL_AGGREGATORS:
        assert f"`{type(aggregator).__name__}`" in page
    for attack in ALL_ATTACKS:
        assert f"`{type(attack).__name__}(" in page
    found = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, found)
    found |= found["apart"]
    for name in (
        "composed",
        "falling",
        "tuned",
        "own",
        "heads",
        "kinds",
        "fair",
        "cluster_0",
        "standardised",
        "unequal",
        "halves",
        "in_turn",
    ):
        assert np.isfinite(run(found[name], Simulation(workers=1, compile="graph")).params).all()
