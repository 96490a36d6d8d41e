"""FedAvg with a perceptron of two hidden layers on MNIST, 100 IID clients: 97 % test accuracy.

McMahan et al. 2017, section 3. https://arxiv.org/abs/1602.05629
C = 0.1, E = 1, B = 10: 600 examples per client, 10 clients per round.
"""

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Iid, Mnist, Partitioned

from ._models import two_hidden_layers

experiment = Experiment(
    name="mnist_2nn",
    model=two_hidden_layers,
    population=Partitioned(Mnist("train", flat=True), by=Iid(), clients=100),
    strategy=FedAvg(),
    sampler=FixedCohort(10),
    local=Local(epochs=1, batch_size=10, learning_rate=0.2),
    rounds=60,
    test=Mnist("test", flat=True),
)
