"""Keras optimizers for clients. Compile a model with one: `model.compile(DeltaSGD(), loss=…)`.

Δ-SGD: Kim, Toghani, Uribe, Kyrillidis 2024: Adaptive Federated Learning with Auto-Tuned Clients, Algorithm 1.
https://arxiv.org/abs/2306.11201
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from ..core.validation import require_real


@keras.saving.register_keras_serializable("umbel")
class DeltaSGD(keras.optimizers.Optimizer):
    """SGD whose rate follows the curvature that this client meets; a client needs no rate of its own.

    η_k = min{ γ·‖x_k − x_(k−1)‖ / (2·‖g_k − g_(k−1)‖), √(1 + δ·θ_(k−1))·η_(k−1) },  θ_k = η_k / η_(k−1)

    x_k, g_k: all trained variables, and their gradient, at a client's step k. g_k and g_(k−1) are of the same batch, as
    in the authors' code (https://github.com/jlylekim/auto-tuned-FL): gradients of two batches differ by more than the
    way between them explains, and rates would fall to 0 within an epoch. So a client's step costs two gradients.
    Where the last step moved nothing, or the gradient did not change, the second term is taken. Like every optimizer
    it begins afresh with each client's round. A round of one step is SGD at the initial rate.

    learning_rate: η_0; `Local(learning_rate=…)` sets it per round. gamma: γ, above 1 bolder. delta: δ, how fast the
    rate may grow. theta: θ_0. The defaults are the paper's for all its experiments.

    It keeps one gradient per variable, of the last step: x_(k−1) is x_k + η_(k−1)·g_(k−1). For one device; it takes no
    clipping or weight decay, which would come between the gradient and the step. Where each batch is met but once, in
    `model.fit` and in DP-SGD, g_(k−1) is of the batch before. Errors: ConfigError for values out of bounds.
    """

    def __init__(
        self,
        learning_rate: float = 0.2,
        gamma: float = 2.0,
        delta: float = 0.1,
        theta: float = 1.0,
        name: str = "delta_sgd",
    ):
        require_real("learning_rate", learning_rate, above=0)  # no schedule: the rate adapts itself
        require_real("gamma", gamma, above=0)
        require_real("delta", delta, at_least=0)
        require_real("theta", theta, above=0)
        super().__init__(learning_rate=learning_rate, name=name)
        self.gamma, self.delta, self.theta = gamma, delta, theta
        self._is_looking_back = False

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the state for variables."""
        if self.built:
            return
        super().build(variables)
        self._gradients = self.add_optimizer_variables(variables, "previous_gradient")
        self._rate = self.add_variable((), dtype="float32", name="rate")  # η_k
        self._ratio = self.add_variable((), dtype="float32", name="ratio")  # θ_k
        self._length = self.add_variable((), dtype="float32", name="gradient_norm")  # ‖g_k‖

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Adapt the rate to grads, then step."""
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        pairs = [
            (ops.cast(ops.convert_to_tensor(gradient), variable.dtype), variable)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None
        ]
        if self._is_looking_back:
            for gradient, variable in pairs:
                self.assign(self._gradients[self._get_variable_index(variable)], gradient)
            return
        if pairs:
            self._adapt(pairs)
        super().apply(grads, variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step, and its gradient kept for the next."""
        gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
        self.assign(self._gradients[self._get_variable_index(variable)], gradient)
        self.assign_sub(variable, ops.cast(self._rate, variable.dtype) * gradient)

    def looking_back(self, model: keras.Model) -> Callable[[tuple], dict[str, Any]]:
        """model's train_step, where g_(k−1) is of the batch at hand: it takes that gradient first, at x_(k−1).

        model: compiled with this optimizer, built. Of the first of the two passes nothing else is left: statistics,
        metrics, seeds and a loss scale are put back, so that Dropout, too, is the same in both.
        """
        own = {id(variable) for variable in self.variables}
        metrics = [variable for metric in model.metrics for variable in metric.variables]
        found = {id(one): one for one in [*model.variables, *metrics, *model.optimizer.variables]}
        others = [variable for key, variable in found.items() if key not in own]

        def train_step(batch: tuple) -> dict[str, Any]:
            values = [ops.copy(variable) for variable in others]
            for variable, gradient in zip(self._trainable_variables, self._gradients, strict=True):
                self.assign_add(variable, ops.cast(self._rate, variable.dtype) * gradient)
            self._is_looking_back = True
            try:
                model.train_step(batch)
            finally:
                self._is_looking_back = False
            for variable, value in zip(others, values, strict=True):
                variable.assign(value)
            return model.train_step(batch)

        return train_step

    def get_config(self) -> dict[str, Any]:
        """Keras's, and only what __init__ takes."""
        return {
            "learning_rate": float(self.learning_rate),
            "gamma": self.gamma,
            "delta": self.delta,
            "theta": self.theta,
            "name": self.name,
        }

    def _adapt(self, pairs: Sequence[tuple[Any, keras.Variable]]) -> None:
        """η, θ and ‖g‖ of this step."""
        before = [(gradient, self._gradients[self._get_variable_index(variable)]) for gradient, variable in pairs]
        change = ops.sqrt(sum(squares(gradient - ops.cast(old, gradient.dtype)) for gradient, old in before))
        moved = self._rate * self._length
        grown = ops.sqrt(1 + self.delta * self._ratio) * self._rate
        measured = ops.logical_and(change > 0, moved > 0)
        fitting = self.gamma * moved / (2 * ops.where(measured, change, 1.0))
        later = ops.where(measured, ops.minimum(fitting, grown), grown)
        is_first = ops.equal(self.iterations, 0)
        rate = ops.where(is_first, ops.cast(self.learning_rate, "float32"), later)
        ratio = ops.where(is_first, self.theta, rate / ops.where(is_first, 1.0, self._rate))
        length = ops.sqrt(sum(squares(gradient) for gradient, _ in pairs))
        for variable, value in ((self._rate, rate), (self._ratio, ratio), (self._length, length)):
            self.assign(variable, value)


def squares(tensor: Any) -> Any:
    """Σ x², float32."""
    return ops.sum(ops.square(ops.cast(tensor, "float32")))
