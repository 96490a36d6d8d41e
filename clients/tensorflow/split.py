"""A model in two halves: a client computes up to a layer, the server the rest; what passes between them is counted.

    client   x ─► client half ─► activations ═╗                  ╔═► their gradient ─► client half's step
    - - - - - - - - - - - - - - - - - - - - - ║ - - the cut - - ║ - - - - - - - - - - - - - - - - - - - -
    server                         y, weights ╚═► server half ─► loss ─► server half's step

Split learning: Vepakomma, Gupta, Swedish, Raskar 2018, https://arxiv.org/abs/1812.00564 (section 3.1: labels are sent).
The halves are Keras models of their own over the layers of the whole one, each with an optimizer of its own. No
gradient tape sees both. Where the server is another machine, `RemoteHalf` stands in its place on the client, and
`second` plays its half there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras.src.models import Functional

from ...core.errors import ConfigError
from ...core.examples import leaves
from ...core.spec import ModelSpec
from ...core.validation import suggest
from ..optimizers import DeltaSGD

CROSSING = "umbel_crossing"  # name of the operation that waits for the server's half


class FirstHalf:
    """The client's half of a cut model: the layers up to the cut."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        self.model, self.optimizer = model, optimizer

    def forward(self, x: Any) -> tuple[tf.Tensor, list[tf.Tensor], tf.GradientTape]:
        """Compute activations of a batch, the half's own penalties (regularisation), and the tape for `backward`."""
        with tf.GradientTape() as tape:
            activations = self.model(x, training=True)
            penalties = list(self.model.losses)
        return activations, penalties, tape

    def backward(
        self, activations: tf.Tensor, penalties: list[tf.Tensor], tape: tf.GradientTape, gradient: tf.Tensor
    ) -> None:
        """Take a step. gradient: the loss's, at the activations."""
        weights, arriving = self.model.trainable_variables, [gradient, *map(tf.ones_like, penalties)]
        gradients = tape.gradient([activations, *penalties], weights, output_gradients=arriving)
        self.optimizer.apply(gradients, weights)


class ServerStep(Protocol):
    """The server's half of one step, wherever it is computed."""

    def step(
        self, activations: tf.Tensor, penalties: tf.Tensor, y: Any, sample_weight: Any, count: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """Take a step of `count` examples; return the loss's gradient at the activations, and the metrics so far.

        penalties: those of the client's half, for the loss that is reported: shape (how many,).
        """


class SecondHalf:
    """The server's half of a cut model: the layers after the cut, loss and metrics."""

    def __init__(self, whole: keras.Model, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        self.whole, self.model, self.optimizer = whole, model, optimizer

    def step(
        self, activations: tf.Tensor, penalties: tf.Tensor, y: Any, sample_weight: Any, count: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """Take the step here; see `ServerStep`."""
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(activations)
            predicted = self.model(activations, training=True)
            loss = self._loss(predicted, penalties, y, sample_weight)
        self.whole._loss_tracker.update_state(loss, sample_weight=count)
        at_cut, *gradients = tape.gradient(loss, [activations, *weights])
        self.optimizer.apply(gradients, weights)
        return at_cut, self.whole.compute_metrics(None, y, predicted, sample_weight=sample_weight)

    def _loss(self, predicted: Any, penalties: tf.Tensor, y: Any, sample_weight: Any) -> tf.Tensor:
        """Compute what Keras would report of the whole model. The client's penalties are numbers here."""
        terms = [] if self.whole._compile_loss is None else [self.whole._compile_loss(y, predicted, sample_weight)]
        terms += [tf.reduce_sum(penalty) for penalty in self.model.losses]
        if len(terms) == 1 and penalties.shape[0] == 0:
            return terms[0]
        if not terms:
            raise ConfigError("the server's half has no loss: compile the model with one")
        own = tf.stack([tf.cast(term, terms[0].dtype) for term in terms])
        return tf.reduce_sum(tf.concat([own, tf.cast(penalties, own.dtype)], 0))


# (numbers of examples in a step, activations and penalties, then labels and weights, as flat arrays) → the gradient
Crossing = Callable[[int, Sequence[np.ndarray]], np.ndarray]


class RemoteHalf:
    """The server's half where that is another machine, as a client sees it.

    crossing: sends a step, and waits for its answer; set before a training begins. failure: what it raised last.
    """

    def __init__(self) -> None:
        self.crossing: Crossing | None = None
        self.failure: Exception | None = None

    def step(
        self, activations: tf.Tensor, penalties: tf.Tensor, y: Any, sample_weight: Any, count: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """Let the server take the step; see `ServerStep`. Metrics are measured there, and stay there."""
        told = [one for one in tf.nest.flatten((y, sample_weight)) if one is not None]
        sent = [count, activations, penalties, *told]
        gradient = tf.numpy_function(self._cross, sent, activations.dtype, name=CROSSING)
        gradient.set_shape(activations.shape)
        return gradient, {}

    def _cross(self, count: np.ndarray, *sent: np.ndarray) -> np.ndarray:
        """Cross, and keep what goes wrong: TensorFlow passes on its words alone."""
        assert self.crossing is not None
        try:
            return self.crossing(int(count), sent)
        except Exception as error:
            self.failure = error
            raise


class Halves:
    """A client and the server as they train together.

    on_client: which numbers of the vector are the client's half: bool, shape (d,).
    """

    def __init__(self, model: keras.Model, spec: ModelSpec, cut: str, remote: RemoteHalf | None = None):
        """Cut model after the layer of that name.

        remote: stands for the server's half, where that is another machine: this is the client's half alone.
        Errors: ConfigError for a layer that is not there, a model that it does not cut in two, personal variables of
        the server's half, and what does not train in halves.
        """
        check_divisible(model)
        before, after = halves_of(model, cut)
        paths = {weight.path for weight in before.weights}
        stays = [variable.path for variable in spec.variables if variable.is_at_home and variable.path not in paths]
        if stays:
            raise ConfigError(f"{stays[0]!r} lies after the cut {cut!r}, on the server: it cannot be personal")
        self.on_client = spec.places(paths)
        self.client = FirstHalf(before, own_optimizer(model.optimizer, before))
        self.server: ServerStep = remote or SecondHalf(model, after, own_optimizer(model.optimizer, after))
        self.crossed = keras.Variable(np.zeros(2), dtype="int64", trainable=False, name="crossed")  # bytes up, down
        held = {id(weight) for weight in before.weights}
        self.places = [at for at, weight in enumerate(model.weights) if remote is None or id(weight) in held]
        self.weights = [model.weights[at] for at in self.places]  # those that lie here, in the whole model's order

    @property
    def counters(self) -> list[keras.Variable]:
        """Variables that start at 0 with each client."""
        return [self.crossed]

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """Optimizers of the halves that lie here: the client's, then the server's."""
        server = [self.server.optimizer] if isinstance(self.server, SecondHalf) else []
        return [self.client.optimizer, *server]

    def train_step(self, batch: tuple) -> dict[str, Any]:
        """Take one step of both halves: what the model's own `train_step` does, across the cut."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        activations, penalties, tape = self.client.forward(x)
        if getattr(activations, "_keras_mask", None) is not None:
            raise ConfigError("the activations at the cut carry a mask, which does not cross; cut after what uses it")
        sent = tf.stop_gradient(activations), flat_penalties(penalties)
        gradient, results = self.server.step(*sent, y, sample_weight, tf.shape(next(leaves(x)))[0])
        self.crossed.assign_add(tf.stack([bytes_of((*sent, y, sample_weight)), bytes_of(gradient)]))
        self.client.backward(activations, penalties, tape, gradient)
        return results

    def traffic(self, counters: list[np.ndarray]) -> tuple[int, int]:
        """Return the bytes up and down of a client's round: of its half of the model, and of what crossed the cut.

        counters: values of `counters` after the client's steps.
        """
        half = 4 * int(np.count_nonzero(self.on_client))
        up, down = counters[0].tolist()
        return half + up, half + down


def flat_penalties(penalties: list[tf.Tensor]) -> tf.Tensor:
    """Return the sum of each penalty: float32, shape (how many,)."""
    sums = [tf.cast(tf.reduce_sum(penalty), tf.float32) for penalty in penalties]
    return tf.stack(sums) if sums else tf.zeros([0], tf.float32)


def bytes_of(tensors: Any) -> tf.Tensor:
    """Count the bytes that all tensors of a nested structure take: int64, a scalar."""
    sizes = [tf.size(tensor, tf.int64) * tensor.dtype.size for tensor in leaves(tensors)]
    return tf.add_n(sizes or [tf.constant(0, tf.int64)])


def check_divisible(model: keras.Model) -> None:
    """Raise ConfigError for a model that is no graph of layers, or an optimizer that looks at all of it at once."""
    if type(model) not in (keras.Sequential, Functional):
        raise ConfigError(
            f"a {type(model).__name__} has code of its own and cannot be cut; use keras.Sequential, or keras.Model("
            "inputs, outputs)"
        )
    optimizer = model.optimizer
    if hasattr(optimizer, "inner_optimizer"):
        raise ConfigError("a cut model's loss cannot be scaled; use the dtype policy mixed_bfloat16")
    if optimizer.global_clipnorm is not None or isinstance(optimizer, DeltaSGD):
        what = f"global_clipnorm={optimizer.global_clipnorm:g}" if optimizer.global_clipnorm else "DeltaSGD"
        raise ConfigError(f"{what} needs all gradients at once, and a cut model's are in two places; use clipnorm")


def own_optimizer(whole: keras.optimizers.Optimizer, half: keras.Model) -> keras.optimizers.Optimizer:
    """Make an optimizer like that of the whole model, for one half's variables."""
    optimizer = type(whole).from_config(whole.get_config())
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):  # not among what is serialised
        if hasattr(whole, name):
            setattr(optimizer, name, getattr(whole, name))
    optimizer.build(half.trainable_variables)
    return optimizer


def halves_of(model: keras.Model, cut: str) -> tuple[keras.Model, keras.Model]:
    """Cut model in two: up to the layer named cut, and from there on, over the same variables. Errors: ConfigError."""
    graph = getattr(model, "_functional", None) or model  # a Sequential's
    nodes = list(nodes_before(graph.outputs, until=None))
    at = [node for node in nodes if node.operation.name == cut]
    if not at:
        names = [node.operation.name for node in nodes if not node.is_input]
        raise ConfigError(f"the model has no layer {cut!r} to be cut at: {suggest(cut, names)}")
    if len(at) > 1 or len(at[0].output_tensors) > 1:
        raise ConfigError(f"the model cannot be cut at {cut!r}, which is used more than once or has several outputs")
    through = at[0].output_tensors[0]
    server, client = list(nodes_before(graph.outputs, until=through)), list(nodes_before([through], until=None))
    used = {id(node.operation) for node in client}
    for node in server:
        if node.is_input or node in client:
            raise ConfigError(f"{cut!r} does not cut the model in two: {node.operation.name!r} reaches its end past it")
        if id(node.operation) in used:
            raise ConfigError(f"{cut!r} does not cut the model in two: {node.operation.name!r} is on both sides of it")
    for half, side in ((client, "before"), (server, "after")):
        if not any(getattr(node.operation, "trainable_variables", ()) for node in half):
            raise ConfigError(f"nothing is trained {side} the cut {cut!r}; cut between layers that are")
    return keras.Model(graph.input, through), keras.Model(through, graph.output)


def nodes_before(tensors: list[Any], until: Any) -> Iterator[Any]:
    """Yield the calls of layers that symbolic tensors come from, each once; those that lead to `until` are left out."""
    seen, waiting = set(), list(tensors)
    while waiting:
        tensor = waiting.pop()
        if tensor is until:
            continue
        operation, number, _ = tensor._keras_history
        node = operation._inbound_nodes[number]
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting.extend(node.input_tensors)
