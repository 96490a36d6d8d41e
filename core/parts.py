"""Whether an Experiment is given the parts that it takes: a mistake is said where it is made, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .examples import Examples
from .validation import require, shown

if TYPE_CHECKING:
    from .experiment import Experiment

CLIENTS = ("sizes", "examples", "resident", "indices", "__len__")
REQUIRED_METHODS = {
    "population": (CLIENTS, "data.Partitioned((x, y), clients=10) or data.PerClient([(x, y), …])"),
    "strategy": (("init", "broadcast", "update"), "FedAvg()"),
    "sampler": (("sample",), "FixedCohort(10)"),
    "transforms": (("init", "encode", "decode"), "Chain(Clip(1.0))"),
    "codec": (("encode", "decode", "payload_bytes"), "TopK(0.1)"),
    "fold": (("zero", "add", "merge", "total"), "WeightedSum()"),
    "validation": (CLIENTS, "the second half of data.split_clients(population)"),
}
OPTIONAL = ("codec", "validation")


def check_parts(experiment: Experiment) -> None:
    """Errors: ConfigError for a part that cannot do what it is there for, by its methods, or that is a class."""
    for name, (methods, example) in REQUIRED_METHODS.items():
        part = getattr(experiment, name)
        if part is not None or name not in OPTIONAL:
            _check(name, part, methods, example)
    for name, kind, example in (("callbacks", object, "StopAt('test_accuracy', 0.9)"), ("personal", str, "'head/.*'")):
        members = getattr(experiment, name)
        require(
            isinstance(members, tuple) and all(isinstance(one, kind) for one in members),
            f"expected {name}={shown(members)} to be a tuple, such as ({example},)",
        )
    for one in experiment.callbacks:
        _check("callbacks", one, ("decide", "best_round"), "(StopAt('test_accuracy', 0.9),)")
    _check_model(experiment.model)
    _check_test(experiment.test)


def _check(name: str, part: Any, methods: Sequence[str], example: str) -> None:
    if isinstance(part, type):
        require(False, f"expected {name}={part.__name__} to be a value, not a class: {part.__name__}(…)")
    missing = ", ".join(method for method in methods if not hasattr(part, method))
    require(not missing, f"expected {name}={shown(part)} to have {missing}(), such as {example}")


def _check_model(model: Any) -> None:
    is_built = hasattr(model, "trainable_weights") and not isinstance(model, type)  # a Keras model, which is callable
    require(
        callable(model) and not is_built,
        f"expected model={shown(model)} to be a function that builds a compiled Keras model, for every worker its own",
    )


def _check_test(test: Any) -> None:
    if test is None:
        return
    require(not hasattr(test, "element_spec"), "expected test=… of arrays; wrap a tf.data.Dataset: data.TfDataset(…)")
    require(
        isinstance(test, Examples) or hasattr(test, "load"), f"expected test={shown(test)} to be (x, y), or a data set"
    )
    require(not isinstance(test, Examples) or test.count > 0, "expected test to have examples, got none")
