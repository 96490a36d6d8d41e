"""Keras optimizers for clients. Compile a model with one: `model.compile(DeltaSGD(), loss=…)`.

Δ-SGD: Kim, Toghani, Uribe, Kyrillidis 2024: Adaptive Federated Learning with Auto-Tuned Clients, Algorithm 1.
https://arxiv.org/abs/2306.11201
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from ..core.system.backend import require_tensorflow
from ..core.validation import require_real

if TYPE_CHECKING:  # TensorFlow is imported when a norm is computed: Keras may have another backend
    import tensorflow as tf

STRANDS = 5  # an odd number: strands as long as a power of two would meet in the same places of the processor's cache


@keras.saving.register_keras_serializable("umbel")
class DeltaSGD(keras.optimizers.Optimizer):
    """SGD whose rate follows the curvature that this client meets; a client needs no rate of its own.

    η_k = min{ γ·‖x_k − x_(k−1)‖ / (2·‖g_k − g_(k−1)‖), √(1 + δ·θ_(k−1))·η_(k−1) },  θ_k = η_k / η_(k−1)

    x_k, g_k: all trained variables, and their gradient, at a client's step k. g_k and g_(k−1) are of the same batch, as
    in the authors' code (https://github.com/jlylekim/auto-tuned-FL): gradients of two batches differ by more than the
    way between them explains, and rates would fall to 0 within an epoch. So a client's step costs two gradients.
    Where the last step moved nothing, or the gradient did not change, the second term is taken. Like every optimizer
    it begins afresh with each client's round. A round of one step is SGD at the initial rate.

    It keeps one more value per variable, x_(k−1). Where each batch is met but once, in `model.fit` and in DP-SGD, that
    is g_(k−1) in its place, of the batch before. For one device; it takes no clipping or weight decay, which would come
    between the gradient and the step.

    Parameters
    ----------
    learning_rate
        η_0; `Local(learning_rate=…)` sets it per round.
    gamma
        γ, above 1 bolder.
    delta
        δ, how fast the rate may grow.
    theta
        θ_0. The defaults are the paper's for all its experiments.

    Raises
    ------
    ConfigError
        For values out of bounds, and for another backend than TensorFlow.
    """

    def __init__(
        self,
        learning_rate: float = 0.2,
        gamma: float = 2.0,
        delta: float = 0.1,
        theta: float = 1.0,
        name: str = "delta_sgd",
    ):
        require_tensorflow("DeltaSGD computes")
        require_real("learning_rate", learning_rate, above=0)  # no schedule: the rate adapts itself
        require_real("gamma", gamma, above=0)
        require_real("delta", delta, at_least=0)
        require_real("theta", theta, above=0)
        super().__init__(learning_rate=learning_rate, name=name)
        self.gamma, self.delta, self.theta = gamma, delta, theta
        self._look: Look | None = None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the state for variables."""
        if self.built:
            return
        super().build(variables)
        self._before = self.add_optimizer_variables(variables, "before")  # x_(k−1), or g_(k−1)
        self._rate = self.add_variable((), dtype="float32", name="rate")  # η_k
        self._ratio = self.add_variable((), dtype="float32", name="ratio")  # θ_k
        self._length = self.add_variable((), dtype="float32", name="gradient_norm")  # ‖g_k‖

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Adapt the rate to grads, then step."""
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        found = {
            self._get_variable_index(variable): ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None
        }
        if self._look is not None and self._look.is_first:
            self._look.gradients.update(found)
            return
        if found:
            before = dict(enumerate(self._before)) if self._look is None else self._look.gradients
            self._adapt([(gradient, before[index]) for index, gradient in found.items()])
        super().apply(grads, variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one variable's step; where nothing looks back, its gradient is kept for the next."""
        gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
        if self._look is None:
            self.assign(self._before[self._get_variable_index(variable)], gradient)
        # Not assign_sub: in place, it would first copy what is still needed of x_k.
        self.assign(variable, variable - ops.cast(self._rate, variable.dtype) * gradient)

    def looking_back(self, model: keras.Model) -> Callable[[tuple], dict[str, Any]]:
        """Return model's train_step, where g_(k−1) is of the batch at hand: it takes that gradient first, at x_(k−1).

        model: compiled with this optimizer, built. Of the first of the two passes nothing else is left: statistics,
        metrics, seeds and a loss scale stay as they are, so that Dropout, too, is the same in both. Before a round's
        first step x_(k−1) is 0, and what is found there counts for nothing.
        """

        def train_step(batch: tuple) -> dict[str, Any]:
            variables = self._trainable_variables
            values = [ops.copy(variable) for variable in variables]
            self._look = Look()
            try:
                for variable, before in zip(variables, self._before, strict=True):
                    variable.assign(before)
                self._first_pass(model, batch)
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)
                self._look.is_first = False
                metrics = model.train_step(batch)
            finally:
                self._look = None
            for before, value in zip(self._before, values, strict=True):
                before.assign(value)
            return metrics

        return train_step

    def _first_pass(self, model: keras.Model, batch: tuple) -> None:
        """Have `apply` note the gradient where the variables are now."""
        outer = model.optimizer
        if outer is not self:  # a loss scale's own `apply` changes it, and calls this one's in a branch
            outer.apply = lambda grads, variables=None: self.apply(
                [None if one is None else ops.divide(one, outer.dynamic_scale) for one in grads], variables
            )
        try:
            with keras.StatelessScope(collect_losses=True) as scope:
                for variable in self._trainable_variables:
                    scope.add_update((variable, variable.value))  # regularizers look nowhere else
                model.train_step(batch)
        finally:
            if outer is not self:
                del outer.apply

    def get_config(self) -> dict[str, Any]:
        """Return Keras's config, and only what __init__ takes."""
        return {
            "learning_rate": float(self.learning_rate),
            "gamma": self.gamma,
            "delta": self.delta,
            "theta": self.theta,
            "name": self.name,
        }

    def _adapt(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Compute η, θ and ‖g‖ of this step. pairs: g_k and g_(k−1), of each variable."""
        change = norm([gradient - ops.cast(before, gradient.dtype) for gradient, before in pairs])
        moved = self._rate * self._length
        grown = ops.sqrt(1 + self.delta * self._ratio) * self._rate
        measured = ops.logical_and(ops.logical_and(change > 0, change < float("inf")), moved > 0)
        fitting = self.gamma * moved / (2 * ops.where(measured, change, 1.0))
        later = ops.where(measured, ops.minimum(fitting, grown), grown)
        is_first = ops.equal(self.iterations, 0)
        rate = ops.where(is_first, ops.cast(self.learning_rate, "float32"), later)
        ratio = ops.where(is_first, self.theta, rate / ops.where(is_first, 1.0, self._rate))
        length = norm([gradient for gradient, _ in pairs])
        for variable, value in ((self._rate, rate), (self._ratio, ratio), (self._length, length)):
            self.assign(variable, value)


class Look:
    """Gradients that the first of two passes over a batch finds."""

    def __init__(self) -> None:
        self.is_first = True  # whether the pass under way is the first
        self.gradients: dict[int, Any] = {}  # gradients by the variable's index


def norm(tensors: Sequence[Any]) -> tf.Tensor:
    """Compute √Σ x² over all numbers of all tensors: float32."""
    import tensorflow as tf

    return tf.sqrt(tf.add_n([squares(tensor) for tensor in tensors]))


def squares(tensor: Any) -> tf.Tensor:
    """Compute Σ x²: float32."""
    import tensorflow as tf

    flat = tf.reshape(tf.cast(tf.convert_to_tensor(tensor), tf.float32), [-1])
    if not is_for_xla(tf.compat.v1.get_default_graph()):
        return 2 * tf.nn.l2_loss(flat)
    # On a CPU XLA adds up a sum's numbers one by one. Strand by strand it adds many at a time: a fifth of the time.
    even = flat.shape[0] // STRANDS * STRANDS
    strands = tf.split(tf.square(flat[:even]), STRANDS)
    return tf.reduce_sum(tf.add_n(strands)) + tf.reduce_sum(tf.square(flat[even:]))


def is_for_xla(graph: Any) -> bool:
    """Return whether XLA compiles a graph; False where TensorFlow does not say, and norms take longer."""
    try:  # not public; there in TensorFlow 2.21
        from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    except ImportError:  # pragma: no cover
        return False
    return bool(GraphOrParentsInXlaContext(graph))
