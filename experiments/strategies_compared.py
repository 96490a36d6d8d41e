"""Ten ways to learn MNIST together, where clients are alike and where they are not: one table, one plot.

umbel compare strategies_compared --target 0.95 --plot strategies.png      # needs mnist.npz in $UMBEL_DATA

100 clients with 600 images each, ten of them in a round: shared out at random; by Dirichlet(0.1), which leaves 65 of
them with little but one digit; and in two shards of the images in the order of their labels. Measured: test accuracy
after 60 rounds of five epochs, and the rounds until it reaches 95 %. Rates and the strategies' own numbers: the best on
the shards among those in docs/reproductions.md; the same for all three ways. Clients take equally many steps, so that
FedNova is FedAvg. DeltaSGD: FedAvg, whose clients find their own rates.
"""

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Dirichlet, Iid, Mnist, Partitioned, Shards
from umbel.strategies import FedAdagrad, FedAdam, FedAvgM, FedDyn, FedNova, FedProx, FedYogi, Scaffold

from ._models import two_hidden_layers


def delta_sgd():
    """Build the 2NN for clients that find their own rates."""
    from umbel.clients.optimizers import DeltaSGD

    model = two_hidden_layers()
    model.compile(DeltaSGD(), model.loss, metrics=["accuracy"])
    return model


WAYS = {"iid": Iid(), "dirichlet": Dirichlet(alpha=0.1), "shards": Shards(per_client=2)}
STRATEGIES = {  # each with the learning rate of its clients, the first one for Δ-SGD
    "FedAvg": (FedAvg(), 0.2),
    "FedAvgM": (FedAvgM(server_lr=0.3, momentum=0.9), 0.2),
    "FedAdagrad": (FedAdagrad(server_lr=0.03), 0.2),
    "FedAdam": (FedAdam(server_lr=0.03), 0.2),
    "FedYogi": (FedYogi(server_lr=0.01), 0.1),
    "FedProx": (FedProx(mu=0.01), 0.2),
    "Scaffold": (Scaffold(), 0.1),
    "FedNova": (FedNova(), 0.2),
    "FedDyn": (FedDyn(alpha=0.01), 0.2),
    "DeltaSGD": (FedAvg(), 0.2),  # as the paper has it
}


def compared(by, name, strategy, rate):
    return Experiment(
        name="strategies_compared",
        model=delta_sgd if name == "DeltaSGD" else two_hidden_layers,
        population=Partitioned(Mnist("train", flat=True), by=by, clients=100),
        strategy=strategy,
        sampler=FixedCohort(10),
        local=Local(epochs=5, batch_size=32, learning_rate=rate),
        weighting="uniform",
        rounds=60,
        test=Mnist("test", flat=True),
    )


experiments = {
    f"{way}/{name}": compared(by, name, *pair) for way, by in WAYS.items() for name, pair in STRATEGIES.items()
}
experiment = experiments["shards/FedAvg"]
