"""Choice of regularisation, by federated cross-validation: python -m umbel.experiments.regularisation.

None, weight decay, Dropout and label smoothing, for clients with one to three digits each. Every client holds out a
third of its own images in turn; measured is the mean accuracy on what is held out, which never leaves the clients. The
choice is then trained on all images. `umbel compare regularisation --seeds 2` compares the four on the test images.
"""

import dataclasses

from umbel import Simulation, run
from umbel.data import kfold_within
from umbel.studies.crossvalidation import cross_validate

from .digits_fedavg import build_model
from .digits_fedavg import experiment as digits


def regularised(weight_decay=0.0, dropout=0.0, label_smoothing=0.0):
    """Build an MLP of 64-64-10 with either of them."""
    import keras
    from keras.layers import Dense, Dropout

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)

    def smoothed(y_true, y_pred):
        return loss(keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), 10), y_pred)

    layers = [Dense(64, "relu", kernel_regularizer=keras.regularizers.L2(weight_decay)), Dropout(dropout), Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(keras.optimizers.SGD(), smoothed, metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])
    return model


def weight_decay():
    return regularised(weight_decay=1e-3)


def dropout():
    return regularised(dropout=0.2)


def label_smoothing():
    return regularised(label_smoothing=0.1)


experiment = dataclasses.replace(digits, name="regularisation", rounds=20, evaluate_every=20)
models = {"none": build_model, "weight decay": weight_decay, "dropout": dropout, "label smoothing": label_smoothing}
experiments = {name: dataclasses.replace(experiment, model=model) for name, model in models.items()}

if __name__ == "__main__":
    runtime, scores = Simulation(), {}
    for name, one in experiments.items():
        found = cross_validate(one, runtime, kfold_within(one.population, 3))
        scores[name] = found.scores().mean()
        print(f"{name}: {found.summary()}")
    chosen = max(scores, key=scores.__getitem__)
    print(f"chosen: {chosen}, test accuracy {run(experiments[chosen], runtime).column('test_accuracy')[-1]:.3f}")
