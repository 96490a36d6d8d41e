"""Keras models of published experiments, as functions that build and compile them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def two_hidden_layers() -> keras.Model:
    """Build McMahan et al. 2017's 2NN: 784-200-200-10, 199,210 parameters; inputs of shape (784,)."""
    import keras

    layers = [
        keras.Input((784,)),
        keras.layers.Dense(200, "relu"),
        keras.layers.Dense(200, "relu"),
        keras.layers.Dense(10),
    ]
    return compiled(keras.Sequential(layers))


def convolutional() -> keras.Model:
    """Build McMahan et al. 2017's CNN: two 5×5 convolutions, 1,663,370 parameters; inputs of shape (28, 28, 1)."""
    import keras

    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 5, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 5, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(512, "relu"),
        keras.layers.Dense(10),
    ]
    return compiled(keras.Sequential(layers))


def compiled(model: keras.Model) -> keras.Model:
    """Compile model, whose outputs are logits, with plain SGD; the experiment sets the learning rate."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, metrics=["accuracy"])
    return model


def succeeding() -> keras.Model:
    """Build digits_fedavg's model with the metric "success", accuracy: for labels that are an attacker's aim."""
    import keras

    return judged_by(keras.metrics.SparseCategoricalAccuracy("success"))


def mistaken() -> keras.Model:
    """Build digits_fedavg's model with the metric "success", the fraction that it has wrong: an attacker's hope."""
    import keras

    def success(y_true: Any, y_pred: Any) -> Any:
        return 1 - keras.metrics.sparse_categorical_accuracy(y_true, y_pred)

    return judged_by(success)


def judged_by(success: Any) -> keras.Model:
    """Build digits_fedavg's model with one more metric."""
    from .digits_fedavg import build_model

    model = build_model()
    model.compile(model.optimizer, model.loss, metrics=["accuracy", success])
    return model
