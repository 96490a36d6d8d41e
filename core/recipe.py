"""Recipe: an experiment with all that follows from its fields, which is what rounds and runtimes read.

An Experiment keeps what it was given. Its recipe has what was left out filled in (a plan's sampler and transform, the
strategy's rule), and plain classes adapted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .bases import (
    Aggregator,
    Callback,
    Codec,
    LearningSampler,
    Population,
    Reweighting,
    Sampler,
    Schedule,
    UpdateTransform,
)
from .examples import Examples
from .parts.algorithms import (
    AsynchronousStrategy,
    ClientRule,
    ClusteredStrategy,
    Correction,
    SplitStrategy,
    Strategy,
)
from .parts.chain import Chain, flattened
from .parts.devices import Deadline, Devices
from .parts.local import Local
from .parts.phases import Course, FineTune
from .parts.private import PerExamplePrivacy, Plan, RemoteAggregation, SecureAggregation
from .parts.start import InitialWeights
from .protocols import Source
from .random import Key
from .reading.adapted import adapted, adapted_transforms, rule_of
from .reading.defaults import default_sampler, default_strategy
from .reading.old_words import taking
from .spec import ModelSpec
from .traits import Declared, Trait
from .types import Broadcast, ClientUpdate, Shape
from .validation import fields_of, lacking

ADAPTED: dict[str, tuple[type, ...]] = {
    "population": (Population,),
    "validation": (Population,),
    "codec": (Codec,),
    "plan": (Plan,),
    "secure_aggregation": (RemoteAggregation, SecureAggregation),
    "reweighting": (Reweighting,),
}
STRATEGIES = (AsynchronousStrategy, SplitStrategy, ClusteredStrategy, Strategy)


@taking(fold="aggregator", aggregation="secure_aggregation")  # a user's own part, such as a plan, reads the old names
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An Experiment with all that follows from its fields. `rule` and `aggregator` differ from the Experiment's:

    Parameters
    ----------
    rule
        The client's half of the algorithm, the strategy's own where it has one; None for plain training.
    aggregator
        How updates become a Total; under a clustered strategy for each cluster apart.
    """

    name: str
    model: Callable[[], Any]
    population: Population
    start: InitialWeights | None
    strategy: Strategy
    sampler: Sampler
    local: Local
    rule: ClientRule | None
    is_rule_own: bool  # whether the rule is the strategy's
    transforms: UpdateTransform
    codec: Codec | None
    plan: Plan | None
    aggregator: Aggregator
    secure_aggregation: SecureAggregation | None
    rounds: int
    seed: int
    test: Examples | Source | None
    validation: Population | None
    evaluate_every: int
    personal: tuple[str, ...]
    fine_tune: FineTune | None
    weighting: Literal["examples", "uniform"]
    reweighting: Reweighting | None
    min_clients: int
    callbacks: tuple[Callback, ...]
    devices: Devices | None
    deadline: Deadline | None

    @property
    def resolved(self) -> Recipe:
        """The recipe itself, so that what takes an experiment takes its recipe, too."""
        return self

    @property
    def needs_losses(self) -> bool:
        """Return whether the server has to hear each client's loss, for its sampler."""
        return Trait.EACH_LOSS in self.sampler.needs

    def encoded_shape(self, broadcast: Broadcast) -> Shape:
        """Return the lengths of a client's update as it leaves the client, after its rule and the transforms."""
        size = len(broadcast.params)
        if size not in self._shapes:  # encoding may be dear, and lengths are the same in every round
            extra = np.zeros(extra_size(self.rule, size), np.float32)
            update = ClientUpdate(np.zeros(size, np.float32), extra, 1.0, {})
            encoded = self.transforms.encode(broadcast.transforms, update, Key(bytes(16)))
            self._shapes[size] = Shape(len(encoded.delta), len(encoded.extra))
        return self._shapes[size]

    def upload_bytes(self, broadcast: Broadcast) -> int:
        """Return the bytes of a client's update as it leaves the client, where no aggregation hides it."""
        shape = self.encoded_shape(broadcast)
        delta = 4 * shape.delta if self.codec is None else self.codec.payload_bytes(shape.delta)
        return delta + 4 * shape.extra

    def test_examples(self) -> Examples | None:
        """Return the server's examples in the population's numbers, loaded once if they come from a Source."""
        return self._test

    def validation_clients(self) -> Population | None:
        """Return the validation clients in the training population's numbers; None for none.

        Errors: ConfigError for a label that is none of the population's classes.
        """
        encoding = None if self.validation is None else self.population.encoding()
        return self.validation if self.validation is None or encoding is None else encoding.translated(self.validation)

    @cached_property
    def _shapes(self) -> dict[int, Shape]:
        return {}

    @cached_property
    def _test(self) -> Examples | None:
        encoding = None if self.test is None else self.population.encoding()
        if self.test is None or isinstance(self.test, Examples):
            return self.test if self.test is None or encoding is None else encoding.encode(self.test, "test")
        return Examples.of(self.test.load()) if encoding is None else encoding.read(self.test, "test")

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without what was computed from them."""
        return fields_of(self)


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an Experiment's fields, with what was left out filled in.

    A plan brings its sampler; else a round has 10 clients, or all where there are no more.
    """
    plan: Plan | None = None if fields["plan"] is None else adapted(fields["plan"], Plan)
    full = dict(fields)
    if plan is not None:
        full["sampler"] = plan.sampler if fields["sampler"] is None else fields["sampler"]
        full["transforms"] = with_plan(fields["transforms"], plan)
        if fields["local"].per_example is None:
            full["local"] = dataclasses.replace(fields["local"], per_example=plan.per_example)
    if full["strategy"] is None:
        full["strategy"] = default_strategy()
    if full["sampler"] is None:
        full["sampler"] = default_sampler(len(fields["population"]))
    if fields["weighting"] is None:
        full["weighting"] = "examples" if plan is None else "uniform"
    return full


def with_plan(transforms: UpdateTransform, plan: Plan) -> UpdateTransform:
    """Append the plan's own transform to the transforms, if it is not among them."""
    transform = plan.transform
    members = transforms.transforms if isinstance(transforms, Chain) else (transforms,)
    return transforms if transform in members else Chain(*members, transform)


def resolve(fields: Mapping[str, Any]) -> Recipe:
    """Resolve an Experiment's fields to its recipe.

    Errors: ConfigError for a part that cannot do what it is there for.
    """
    full = filled(fields)
    strategy: Strategy = adapted(full["strategy"], *STRATEGIES)
    aggregator: Aggregator = adapted(full["aggregator"], Aggregator)
    full["local"] = _adapted_local(full["local"])
    full |= {
        "strategy": strategy,
        "aggregator": strategy.aggregator(aggregator) if isinstance(strategy, ClusteredStrategy) else aggregator,
        "sampler": adapted(full["sampler"], LearningSampler, Sampler),
        "transforms": adapted_transforms(full["transforms"]),
        "rule": rule_of(strategy) if full["rule"] is None else adapted(full["rule"], Correction, ClientRule),
        "is_rule_own": full["rule"] is None,
        "callbacks": tuple(adapted(one, Callback) for one in full["callbacks"]),
    }
    for name, bases in ADAPTED.items():
        if full[name] is not None:
            full[name] = adapted(full[name], *bases)
    return Recipe(**full)


def _adapted_local(local: Local) -> Local:
    """Return Local with a schedule or a privacy of the user's own adapted."""
    changes: dict[str, Any] = {}
    if not lacking(local.learning_rate, ("at",)):
        changes["learning_rate"] = adapted(local.learning_rate, Schedule)
    if local.per_example is not None:
        changes["per_example"] = adapted(local.per_example, PerExamplePrivacy)
    return dataclasses.replace(local, **changes)


def declared(recipe: Recipe) -> list[Declared]:
    """List every part of a recipe, with what it needs and what it hides."""
    covered = Trait.NONE if recipe.plan is None else recipe.plan.covers
    parts: dict[str, Any] = {
        "strategy": recipe.strategy,
        "plan": recipe.plan,
        "secure_aggregation": recipe.secure_aggregation,
        "local.per_example": recipe.local.per_example,
        "aggregator": recipe.aggregator,
        "sampler": recipe.sampler,
        "reweighting": recipe.reweighting,
        "codec": recipe.codec,
        "fine_tune": recipe.fine_tune,
        "deadline": recipe.deadline,
        "devices": recipe.devices,
    }
    declarations = [Declared(name, part, part.needs, part.hides) for name, part in parts.items() if part is not None]
    declarations += [Declared("transforms", one, one.needs, one.hides) for one in flattened(recipe.transforms)]
    if recipe.personal:
        declarations.append(Declared("personal", recipe.personal, Trait.NO_OWN_MODEL, Trait.NONE))
    if recipe.validation is not None:
        held_out = Trait.TRAINING_EXAMPLES if recipe.validation.is_some_clients else Trait.NONE
        declarations.append(Declared("validation", recipe.validation, Trait.CLIENT_METRICS, held_out))
    if recipe.rule is not None:
        declarations.append(
            Declared("strategy" if recipe.is_rule_own else "rule", recipe.rule, rule_needs(recipe), recipe.rule.hides)
        )
    if rule_of(recipe.strategy) is not None:
        declarations.append(Declared("strategy", recipe.strategy, Trait.NONE, Trait.RULE_FROM_ELSEWHERE))
    return [one._replace(needs=one.needs & ~covered) for one in declarations]


def rule_needs(recipe: Recipe) -> Trait:
    """Return what the rule needs: if it is not the strategy's own, all that a client half from elsewhere does."""
    elsewhere = Trait.ONE_MODEL | Trait.WHOLE_MODEL | Trait.RULE_FROM_ELSEWHERE
    return Trait.NONE if recipe.is_rule_own else elsewhere


def is_memory_kept(recipe: Recipe, spec: ModelSpec) -> bool:
    """Return whether clients keep anything at home from one round to the next."""
    rule, codec = recipe.rule, recipe.codec
    return spec.keeps or (rule is not None and rule.remembers) or (codec is not None and codec.error_feedback)


def extra_size(rule: ClientRule | None, size: int) -> int:
    """Return the length of what clients send besides delta. size: length of delta."""
    return rule.extra_size(size) if isinstance(rule, Correction) else 0


def course_of(recipe: Recipe) -> Course:
    """Return the training that the round's model goes through on a client."""
    if recipe.rule is None:
        return Course()
    parts = tuple((phase.epochs, phase.trains) for phase in recipe.rule.phases if phase.epochs != 0)
    return Course(parts, recipe.rule.proximal)


def own_course(recipe: Recipe) -> Course | None:
    """Return the training that a client's own model goes through; None where clients have none."""
    own = None if recipe.rule is None else recipe.rule.own
    return None if own is None else Course(((own.epochs, "all"),), own.proximal, own.proximal > 0)


def most_passes(recipe: Recipe, usual: float) -> float:
    """Return how often a client goes through its examples in a round, all phases together.

    usual: as often as Local says.
    """
    courses = course_of(recipe), own_course(recipe)
    return sum(course.passes(usual) for course in courses if course is not None)


def visited(recipe: Recipe, examples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Return the examples that clients compute gradients of in a round, all phases together: int64, shape (clients,).

    examples: number of examples of each client. epochs: epochs of each client, as Local says.
    """
    usual = recipe.local.visited(examples, epochs)
    courses = [course for course in (course_of(recipe), own_course(recipe)) if course is not None]
    parts = [own for course in courses for own, _ in course.parts]
    return np.sum([usual if own is None else own * np.asarray(examples, np.int64) for own in parts], axis=0)
