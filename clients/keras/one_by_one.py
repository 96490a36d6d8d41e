"""Models whose examples go through them one by one, as DP-SGD needs: which can, and what the loss of some is."""

from __future__ import annotations

from typing import Any

import keras

from ...core.errors import IncompatibleError
from ...core.examples import Examples


def check_model(model: keras.Model, one: Examples) -> None:
    """Raise IncompatibleError for a model whose examples have no gradients of their own, or none that we can see."""
    name = type(model).__name__
    if type(model).train_step is not keras.Model.train_step:
        raise IncompatibleError(
            f"{name} has a train_step of its own, in which per_example cannot clip each example's gradient; "
            "override compute_loss in its place"
        )
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        raise IncompatibleError("per_example needs gradients as they are; use mixed_bfloat16 in place of mixed_float16")
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise IncompatibleError(
                f"layer {layer.name!r} ({type(layer).__name__}) mixes the examples of a batch, so that none has a "
                "gradient of its own, as per_example needs; use GroupNormalization or LayerNormalization, or freeze it "
                "with trainable=False"
            )
    check_statistics(model, one)


def check_statistics(model: keras.Model, one: Examples) -> None:
    """Raise IncompatibleError for a layer that keeps statistics of what it sees, which no noise would cover."""
    kept = [variable for variable in model.non_trainable_variables if not is_seed(variable)]
    with keras.StatelessScope() as scope:
        model(one.x, training=True)
    for variable in kept:
        if scope.get_current_value(variable) is not None:
            raise IncompatibleError(
                f"training changes {variable.path}, a statistic of the examples that per_example's noise does not "
                "cover; leave its layer out, or freeze it with trainable=False"
            )


def batch_loss(model: keras.Model, batch: tuple) -> Any:
    """Compute the loss that Keras's train_step differentiates."""
    x, y, weight = (*batch, None, None)[:3]
    predicted = model(x, training=True) if model._call_has_training_arg else model(x)
    return model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=True)


def penalised(model: keras.Model) -> list[Any]:
    """List the trainable variables that have a regularizer."""
    return [variable for variable in model.trainable_variables if getattr(variable, "regularizer", None) is not None]


def is_seed(variable: Any) -> bool:
    """Return whether a variable is the state of a layer's random generator."""
    return variable.name == "seed_generator_state"
