"""Differential privacy of whole clients on MNIST: 1,000 clients, ε = 8 at δ = 1e-5, 93 % test accuracy.

Geyer, Klein, Nabi 2017: Differentially Private Federated Learning: A Client Level Perspective, which reports 92 % for
1,000 clients at this budget. https://arxiv.org/abs/1712.07557
60 examples per client, each in a round with probability 0.2; updates clipped to norm 0.5, which is most of them.
A perceptron of 64 hidden units ends at 92 %, softmax regression at 90 %: what larger models learn outweighs the noise
on their larger updates.
"""

from umbel import Experiment, FedAvg, Local
from umbel.data import Iid, Mnist, Partitioned
from umbel.privacy import PrivacyPlan

from ._models import two_hidden_layers

experiment = Experiment(
    name="mnist_dp",
    model=two_hidden_layers,
    population=Partitioned(Mnist("train", flat=True), by=Iid(), clients=1000),
    strategy=FedAvg(),
    plan=PrivacyPlan(epsilon=8.0, delta=1e-5, rounds=60, population=1000, sampling_rate=0.2, clip_norm=0.5),
    local=Local(epochs=2, batch_size=10, learning_rate=0.1),
    rounds=60,
    test=Mnist("test", flat=True),
    evaluate_every=5,
)
