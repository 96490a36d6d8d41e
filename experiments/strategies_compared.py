"""Nine strategies on handwritten digits, where clients are alike and where they are not: one table.

umbel compare strategies_compared --seeds 2 --target 0.9

100 clients with 14 images each, 20 of them in a round: shared out at random, by Dirichlet(0.1), and in two shards of
the images in the order of their labels. Measured: test accuracy after 40 rounds, and the rounds until it reaches 90 %.
Learning rates and the strategies' own numbers: the best after 40 rounds on the shards, among those in
docs/reproductions.md; the same for all three ways.
"""

import dataclasses

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Digits, Dirichlet, Iid, Partitioned, Shards
from umbel.strategies import FedAdagrad, FedAdam, FedAvgM, FedDyn, FedNova, FedProx, FedYogi, Scaffold

from .digits_fedavg import build_model

WAYS = {"iid": Iid(), "dirichlet": Dirichlet(alpha=0.1), "shards": Shards(per_client=2)}
STRATEGIES = {  # and the learning rate of its clients
    "FedAvg": (FedAvg(), 0.3),
    "FedAvgM": (FedAvgM(momentum=0.9), 0.3),
    "FedAdagrad": (FedAdagrad(server_lr=0.1), 0.3),
    "FedAdam": (FedAdam(server_lr=0.1), 0.1),
    "FedYogi": (FedYogi(server_lr=0.1), 0.3),
    "FedProx": (FedProx(mu=0.01), 0.3),
    "Scaffold": (Scaffold(), 0.3),
    "FedNova": (FedNova(), 0.3),
    "FedDyn": (FedDyn(alpha=0.1), 0.3),
}

experiment = Experiment(
    name="strategies_compared",
    model=build_model,
    population=Partitioned(Digits("train"), by=WAYS["shards"], clients=100),
    strategy=FedAvg(),
    sampler=FixedCohort(20),
    local=Local(epochs=5, batch_size=8, learning_rate=0.3),
    weighting="uniform",
    rounds=40,
    test=Digits("test"),
)
experiments = {
    f"{way}/{name}": dataclasses.replace(
        experiment,
        population=Partitioned(Digits("train"), by=by, clients=100),
        strategy=strategy,
        local=Local(epochs=5, batch_size=8, learning_rate=rate),
    )
    for way, by in WAYS.items()
    for name, (strategy, rate) in STRATEGIES.items()
}
