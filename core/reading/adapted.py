"""Adapters that fit plain classes of the user's own to the bases of `core/bases.py`, once, when an experiment resolves.

What a plain class does not say holds as its base has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..bases import TRANSFORM_NEEDS, Aggregator, Callback, Sampler, Schedule, UpdateTransform
from ..errors import ConfigError
from ..parts.algorithms import ClientRule, Correction, Strategy
from ..parts.chain import Chain
from ..traits import Trait
from ..validation import lacking, shown
from .old_words import FLAGS

MISSING = object()


def adapted(part: Any, *bases: type) -> Any:
    """Return the part as the first of the bases that it is of, or whose methods it has: itself, or an adapter.

    bases: the most particular first, so that what a subclass adds to a general one is not passed over.
    Errors: ConfigError for one that has the methods of none.
    """
    for base in bases:
        if isinstance(part, base):
            return part
        if not lacking(part, abstract_of(base)):
            return _rebuilt(base, part)
    missing = ", ".join(lacking(part, abstract_of(bases[-1])))
    raise ConfigError(f"expected {shown(part)} to have {missing}(), as a {bases[-1].__name__} does")


def rule_of(strategy: Strategy) -> ClientRule | None:
    """Return the client's half that a strategy brings, also where its class only has what a rule has."""
    if strategy.rule is not None:
        return strategy.rule
    rule = _strategy_rule(strategy)
    return None if rule is MISSING else rule


def abstract_of(base: type) -> tuple[str, ...]:
    """Return the members that a base leaves to its leaves, sorted."""
    return tuple(sorted(base.__abstractmethods__))  # type: ignore[attr-defined]


def adapted_transforms(transforms: Any) -> UpdateTransform:
    """Return the transform adapted, or the chain with each of its members adapted."""
    if isinstance(transforms, Chain):
        members = tuple(adapted_transforms(one) for one in transforms.transforms)
        # By identity: an adapter compares equal to what it stands for.
        changed = any(one is not was for one, was in zip(members, transforms.transforms, strict=True))
        return Chain(*members) if changed else transforms
    transform: UpdateTransform = adapted(transforms, UpdateTransform)
    return transform


def plain_of(part: Any) -> Any:
    """Return the user's own value that an adapter stands for; any other value itself."""
    return part.plain if isinstance(part, _Plain) else part


class _Plain:
    """Common base of all adapters: each stands for `plain`, and prints, compares and pickles as it does."""

    def __init__(self, plain: Any):
        self.plain = plain

    def __repr__(self) -> str:
        return repr(self.plain)

    def __eq__(self, other: object) -> bool:
        return self.plain == (other.plain if isinstance(other, _Plain) else other)

    def __hash__(self) -> int:
        return hash(self.plain)

    def __reduce__(self) -> tuple:
        return _rebuilt, (type(self).__mro__[2], self.plain)

    def __getattr__(self, name: str) -> Any:  # finds what no base names: a field, such as `cut` of a split strategy
        if name.startswith("__") or name == "plain":
            raise AttributeError(name)
        return getattr(self.plain, name)


def _rebuilt(base: type, plain: Any) -> Any:
    kind: Any = type(plain)
    return _adapter(base, kind)(plain)


@functools.cache
def _adapter(base: type, kind: type) -> type:
    """Make the class with the members of a plain value of that kind, or else the base's. It has the kind's name."""
    names = [name for name in dir(base) if not name.startswith("_")]
    members = {name: property(functools.partial(_member, base, name)) for name in names}
    special = {"__len__": lambda self: len(self.plain)} if "__len__" in abstract_of(base) else {}
    return type(kind.__name__, (_Plain, base), {**members, **special})


def _member(base: type, name: str, adapter: Any) -> Any:
    for kind in base.__mro__:
        translate = TRANSLATED.get((kind, name))
        if translate is not None and (value := translate(adapter.plain)) is not MISSING:
            return value
    # What a value has only because it is of a more general base says nothing of the one it is adapted to.
    definer = next((kind for kind in type(adapter.plain).__mro__ if name in kind.__dict__), None)
    value = MISSING if definer in base.__mro__ else getattr(adapter.plain, name, MISSING)
    return getattr(super(type(adapter), adapter), name) if value is MISSING else value


def _flagged(plain: Any, word: str) -> Trait:
    """Return the trait that an attribute of that name stands for where it is true, else NONE."""
    return FLAGS[word][1] if getattr(plain, word, False) else Trait.NONE


def _transform_needs(plain: Any) -> Trait:
    bound = Trait.NORM_BOUND if hasattr(plain, "clip_norm") else Trait.NONE
    return TRANSFORM_NEEDS | _flagged(plain, "same_round_only") | bound


def _strategy_rule(plain: Any) -> Any:
    is_rule = hasattr(plain, "proximal") and hasattr(plain, "remembers")
    return adapted(plain, Correction, ClientRule) if is_rule else MISSING


# Members that plain classes name in other words than their base.
TRANSLATED: dict[tuple[type, str], Callable[[Any], Any]] = {
    (Aggregator, "needs"): lambda plain: getattr(plain, "needs", _flagged(plain, "needs_individual_updates")),
    (Aggregator, "hides"): lambda plain: getattr(plain, "hides", Trait.PLAIN_SUM | _flagged(plain, "by_coordinate")),
    (UpdateTransform, "needs"): lambda plain: getattr(plain, "needs", _transform_needs(plain)),
    (UpdateTransform, "hides"): lambda plain: getattr(plain, "hides", _flagged(plain, "by_coordinate")),
    (UpdateTransform, "adds_noise"): lambda plain: hasattr(plain, "noise_multiplier"),
    (Sampler, "cohort_size"): lambda plain: getattr(plain, "size", MISSING),
    (Schedule, "watched_metric"): lambda plain: getattr(plain, "metric", MISSING),
    (Callback, "watched_metric"): lambda plain: getattr(plain, "metric", MISSING),
    (Strategy, "rule"): lambda plain: getattr(plain, "rule", _strategy_rule(plain)),
}
