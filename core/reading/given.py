"""Checks that an Experiment is given the parts that it takes: a mistake is said where it is made, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..examples import Examples
from ..validation import lacking, require, require_methods, shown

CLIENTS = ("sizes", "examples", "resident", "indices", "__len__")
REQUIRED_METHODS = {
    "population": (CLIENTS, "data.Partitioned((x, y), clients=10) or data.PerClient([(x, y), …])"),
    "strategy": (("init", "update"), "FedAvg()"),
    "sampler": (("sample",), "FixedCohort(10)"),
    "transforms": (("init", "encode", "decode"), "Chain(Clip(1.0))"),
    "codec": (("encode", "decode", "payload_bytes"), "TopK(0.1)"),
    "aggregator": (("zero", "add", "merge", "total"), "WeightedSum()"),
    "validation": (CLIENTS, "the second half of data.split_clients(population)"),
}
OPTIONAL = ("codec", "validation")


def check_parts(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError for a part that cannot do what it is there for, by its methods, or that is a class.

    fields: an Experiment's, filled in.
    """
    for name, (methods, example) in REQUIRED_METHODS.items():
        part = fields[name]
        if part is not None or name not in OPTIONAL:
            require_methods(name, part, methods, example)
    for name, kind, example in (("callbacks", object, "StopAt('test_accuracy', 0.9)"), ("personal", str, "'head/.*'")):
        members = fields[name]
        require(
            isinstance(members, tuple) and all(isinstance(one, kind) for one in members),
            f"expected {name}={shown(members)} to be a tuple, such as ({example},)",
        )
    for one in fields["callbacks"]:
        require_methods("callbacks", one, ("decide", "best_round"), "(StopAt('test_accuracy', 0.9),)")
    _check_model(fields["model"])
    _check_test(fields["test"])


def _check_model(model: Any) -> None:
    require(
        callable(model),
        f"expected model={shown(model)} to be a compiled Keras model, or a function that builds one",
    )


def _check_test(test: Any) -> None:
    if test is None:
        return
    require(
        bool(lacking(test, ("element_spec",))), "expected test=… of arrays; wrap a tf.data.Dataset: data.TfDataset(…)"
    )
    require(
        isinstance(test, Examples) or not lacking(test, ("load",)),
        f"expected test={shown(test)} to be (x, y), or a data set",
    )
    require(not isinstance(test, Examples) or test.count > 0, "expected test to have examples, got none")
