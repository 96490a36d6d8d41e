"""FedAvg with a perceptron of two hidden layers on MNIST, 100 clients with two digits each.

McMahan et al. 2017, section 3. https://arxiv.org/abs/1602.05629
C = 0.1, E = 1, B = 10. Sorted by digit, cut into 200 shards, two per client: the paper's pathological partition.
"""

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Mnist, Partitioned, Shards

from ._models import two_hidden_layers

experiment = Experiment(
    name="mnist_2nn_shards",
    model=two_hidden_layers,
    population=Partitioned(Mnist("train", flat=True), by=Shards(2), clients=100),
    strategy=FedAvg(),
    sampler=FixedCohort(10),
    local=Local(epochs=1, batch_size=10, learning_rate=0.2),
    rounds=400,
    test=Mnist("test", flat=True),
)
