"""FedAvg with a two-layer LSTM on Shakespeare, a client per speaker: predicts the next character.

McMahan et al. 2017, section 3. https://arxiv.org/abs/1602.05629
194 speakers with 3 to 374 sequences of 80 characters each; 10 speakers per round. Small clients count for little:
FedAvg weighs by examples.
"""

from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import ByKey, Partitioned, Shakespeare

from ._models import compiled


def build_model():
    """Build an embedding of 8, two LSTMs of 256, logits per character: the paper's model, over 87 characters."""
    import keras

    layers = [
        keras.Input((80,), dtype="int32"),
        keras.layers.Embedding(Shakespeare.vocabulary_size, 8),
        keras.layers.LSTM(256, return_sequences=True),
        keras.layers.LSTM(256, return_sequences=True),
        keras.layers.Dense(Shakespeare.vocabulary_size),
    ]
    return compiled(keras.Sequential(layers))


experiment = Experiment(
    name="shakespeare_lstm",
    model=build_model,
    population=Partitioned(Shakespeare("train"), by=ByKey()),
    strategy=FedAvg(),
    sampler=FixedCohort(10),
    local=Local(epochs=1, batch_size=10, learning_rate=1.0),
    rounds=100,
    test=Shakespeare("test"),
    evaluate_every=5,
)
