"""FedAvg with a convolutional network on MNIST, 100 clients with two digits each.

McMahan et al. 2017, section 3. https://arxiv.org/abs/1602.05629
C = 0.1, E = 1, B = 10. Sorted by digit, cut into 200 shards, two per client: the paper's pathological partition.
"""

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Mnist, Partitioned, Shards

from ._models import convolutional

experiment = Experiment(
    name="mnist_cnn_shards",
    model=convolutional,
    population=Partitioned(Mnist("train"), by=Shards(2), clients=100),
    strategy=FedAvg(),
    sampler=FixedCohort(10),
    local=Local(epochs=1, batch_size=10, learning_rate=0.1),
    rounds=525,
    test=Mnist("test"),
)
