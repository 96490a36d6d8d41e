"""The usual slips: a dict, a class or a bare number where an Experiment takes a value of ours. Said before all else."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..validation import require, shown
from .fingerprint import is_users_own

# Members that each part has, and no other value has by chance; and an example of the part.
PARTS = {
    "start": (("describe", "load_into"), "'pretrained.keras' or server.StoredModel('mine')"),
    "local": (("learning_rate_at", "epochs_of"), "Local(epochs=1, batch_size=32)"),
    "rule": (("proximal", "remembers"), "Proximal(mu=0.1)"),
    "plan": (("sampler", "transform", "charge", "spent"), "PrivacyPlan(epsilon=8.0, delta=1e-5, …)"),
    "secure_aggregation": (("metrics",), "SecureSum(limit=1.0)"),
    "reweighting": (("factors", "heard"), "Agnostic(step=0.01)"),
    "fine_tune": (("epochs", "learning_rate"), "FineTune(epochs=2)"),
    "devices": (("dropout", "availability"), "Devices(dropout=0.1)"),
    "deadline": (("seconds", "over_selection"), "Deadline(seconds=60)"),
}
LOCAL_PARTS = {
    "learning_rate": (("at",), "0.1 or Cosine(0.1, rounds=50)"),
    "per_example": (("clip_norm", "noise"), "PerExample(clip_norm=1.0, noise_multiplier=1.0)"),
}
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "sampler": {"sample": ("clients", "sizes", "key")},
    "strategy": {"init": ("params",), "broadcast": ("state",), "update": ("state", "params", "mean")},
    "callbacks": {"decide": ("records",), "best_round": ("records",)},
}


def check_kinds(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError for a field of an Experiment that is of another kind than it takes.

    fields: as they were given.
    """
    require(isinstance(fields["name"], str), f"expected name={shown(fields['name'])} to be a string")
    require(fields["local"] is not None, f"expected local=None to be {PARTS['local'][1]}")
    for name, part in fields.items():
        if name in PARTS and part is not None and not (name == "start" and isinstance(part, (str, os.PathLike))):
            check_part(name, part, *PARTS[name])
    test = fields["test"]
    if isinstance(test, type):
        require(False, f"expected test={test.__name__} to be a value, not a class: {test.__name__}(…)")
    check_patterns(fields["personal"])


def check_local(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError for a field of Local that is of another kind than it takes."""
    shuffle = fields["shuffle"]
    require(isinstance(shuffle, bool), f"expected shuffle={shown(shuffle)} to be True or False")
    for name, (members, example) in LOCAL_PARTS.items():
        part = fields[name]
        is_number = name == "learning_rate" and not isinstance(part, type) and not callable(part)
        if part is not None and not (is_number and not hasattr(part, "at")):
            check_part(name, part, members, example)


def check_part(name: str, part: Any, members: Sequence[str], example: str) -> None:
    """Raise ConfigError for a class in place of its value, and for a value without the members."""
    if isinstance(part, type):
        require(False, f"expected {name}={part.__name__} to be a value, not a class: {part.__name__}(…)")
    is_part = all(hasattr(part, member) for member in members)
    require(is_part, f"expected {name}={shown(part)} to be a value such as {example}")


def check_methods(fields: Mapping[str, Any]) -> None:
    """Raise ConfigError for a method of a user's own part that takes other arguments than it will be handed."""
    for name, methods in METHODS.items():
        parts = fields[name] if isinstance(fields[name], tuple) else (fields[name],)
        for part in (part for part in parts if is_users_own(type(part))):
            for method, handed in methods.items():
                function = getattr(part, method, None)
                if function is not None and not takes(function, len(handed)):
                    named = f"{type(part).__name__}.{method}"
                    require(False, f"expected {named}{inspect.signature(function)} to take ({', '.join(handed)})")


def takes(function: Any, count: int) -> bool:
    """Return whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it has no signature that Python knows
        return True
    return True


def check_patterns(patterns: Any) -> None:
    """Raise ConfigError for a pattern of `personal` that is no regular expression."""
    for pattern in patterns if isinstance(patterns, (tuple, list)) else ():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            require(False, f"expected personal={shown(pattern)} to be a regular expression: {error}")
