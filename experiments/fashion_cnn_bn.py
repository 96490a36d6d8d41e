"""A convolutional network with batch normalisation on Fashion-MNIST, its normalisation shared or kept at home.

umbel compare fashion_cnn_bn --plot fashion.png        # needs fashion_mnist.npz in $UMBEL_DATA

Convolutions of 32, 64 and 128 channels, each with BatchNormalization. 100 clients, by Dirichlet(0.5). "shared": what
normalises is averaged like any other weight. "at home": FedBN, in which every client keeps its own (Li, Jiang, Zhang,
Kamp, Dou 2021, https://arxiv.org/abs/2102.07623). Measured: accuracy on what each client held out; the server has no
model of its own to test under FedBN.
"""

import dataclasses

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Dirichlet, FashionMnist, Partitioned, split_clients

from ._models import compiled


def build_model():
    """Build 3 × (Conv 3×3, BatchNormalization, ReLU, MaxPooling), mean, softmax: 94,634 parameters.

    Inputs are of shape (28, 28, 1).
    """
    import keras
    from keras.layers import Activation, BatchNormalization, Conv2D, Dense, GlobalAveragePooling2D, MaxPooling2D

    blocks = [
        [Conv2D(channels, 3, padding="same", use_bias=False), BatchNormalization(), Activation("relu"), MaxPooling2D()]
        for channels in (32, 64, 128)
    ]
    layers = [layer for block in blocks for layer in block]
    return compiled(keras.Sequential([keras.Input((28, 28, 1)), *layers, GlobalAveragePooling2D(), Dense(10)]))


train, held_out = split_clients(Partitioned(FashionMnist("train"), by=Dirichlet(alpha=0.5), clients=100))

experiment = Experiment(
    name="fashion_cnn_bn",
    model=build_model,
    population=train,
    validation=held_out,
    strategy=FedAvg(),
    sampler=FixedCohort(10),
    local=Local(epochs=1, batch_size=32, learning_rate=0.1),
    rounds=50,
    evaluate_every=5,
)
experiments = {
    "shared": experiment,
    "at home": dataclasses.replace(experiment, personal=("batch_normalization",)),
}
