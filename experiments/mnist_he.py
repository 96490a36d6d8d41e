"""Homomorphic encryption of a perceptron's updates on MNIST: 100 clients, and a server that adds ciphertexts.

mnist_secagg, with BFV (16 bits a number, exact sums) in place of masks; the limit is the same, and as far from being
reached. One client together with the server reads every update, which masks would not allow. Needs umbel[he].

umbel run mnist_he                                  # the integers that would be encrypted, added
umbel run mnist_he --aggregation protocol           # encrypted by clients, added blindly, decrypted by a client
"""

from umbel import AllClients, Experiment, FedAvg, Local
from umbel.data import Iid, Mnist, Partitioned
from umbel.privacy.homomorphic import Homomorphic

from ._models import two_hidden_layers

experiment = Experiment(
    name="mnist_he",
    model=two_hidden_layers,
    population=Partitioned(Mnist("train", flat=True), by=Iid(), clients=100),
    strategy=FedAvg(),
    sampler=AllClients(),
    weighting="uniform",
    secure_aggregation=Homomorphic(limit=0.5, clients=100),
    local=Local(epochs=1, batch_size=10, learning_rate=0.2),
    rounds=40,
    test=Mnist("test", flat=True),
)
