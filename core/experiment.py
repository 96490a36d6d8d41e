"""Experiment: everything that changes the result of a run, in one frozen value, validated when built."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import numpy as np

from .chain import Chain
from .clusters import check_clusters
from .compatible import check_fold, check_pooling, check_released
from .description import describe
from .devices import Deadline, Devices
from .epochs import Epochs, ListedEpochs
from .errors import ConfigError, IncompatibleError
from .examples import Examples
from .folds import WeightedSum
from .parts import check_parts
from .phases import FineTune, check_phases
from .protocols import (
    Aggregation,
    Callback,
    Codec,
    Correction,
    Fold,
    LocalRule,
    PerExamplePrivacy,
    Plan,
    Population,
    Sampler,
    Schedule,
    Source,
    Strategy,
    UpdateTransform,
)
from .random import Key
from .reweighting import Reweighting, check_reweighting
from .split import check_split
from .types import Broadcast, ClientUpdate, RoundRecord, Shape
from .validation import plain_numbers, require, require_count, require_real


@dataclass(frozen=True)
class Local:
    """What a client does in its round.

    epochs: passes over its own examples: a number for all, Epochs(low, high) drawn per round and client, or an array
        with one per client.
    batch_size: examples per step; None: all at once. The last batch of an epoch may be smaller; none is dropped.
    learning_rate: of the model's own optimizer; a schedule over rounds; None leaves the optimizer as compiled.
    shuffle: a fresh order per epoch, derived from (seed, round, client, epoch).
    per_example: what hides single examples (DP-SGD): a step then takes each example with probability batch_size over
        the client's number of examples, in place of shuffled epochs.
    """

    epochs: int | Epochs | ListedEpochs = 1
    batch_size: int | None = 32
    learning_rate: float | Schedule | None = None
    shuffle: bool = True
    per_example: PerExamplePrivacy | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.epochs, (np.ndarray, list, tuple)):
            object.__setattr__(self, "epochs", ListedEpochs(np.asarray(self.epochs)))
        if not isinstance(self.epochs, (Epochs, ListedEpochs)):
            require_count("epochs", self.epochs)
        elif self.per_example is not None:
            raise IncompatibleError(
                f"{self.per_example!r} accounts for as many steps of every client; epochs={self.epochs!r} are not. "
                "Give one number of epochs"
            )
        if self.batch_size is not None:
            require_count("batch_size", self.batch_size)
        if self.learning_rate is not None and not hasattr(self.learning_rate, "at"):
            require_real("learning_rate", self.learning_rate, above=0)

    def learning_rate_at(self, round: int, records: Sequence[RoundRecord]) -> float | None:
        """The clients' learning rate in `round`, after the rounds in `records`; None: the optimizer's own."""
        if self.learning_rate is None or isinstance(self.learning_rate, (int, float)):
            return self.learning_rate
        return self.learning_rate.at(round, records)

    def epochs_of(self, clients: np.ndarray, round: int, seed: int) -> np.ndarray:
        """How many epochs each client makes in `round` of a run with that seed: int64, shape (len(clients),)."""
        if isinstance(self.epochs, int):
            return np.full(len(clients), self.epochs, np.int64)
        return self.epochs.of(clients, round, seed)

    @property
    def most_epochs(self) -> int:
        """That any client makes in any round."""
        return self.epochs if isinstance(self.epochs, int) else self.epochs.most

    @property
    def mean_epochs(self) -> float:
        """Expected of a client."""
        return float(self.epochs) if isinstance(self.epochs, int) else self.epochs.mean

    def steps(self, examples: int, epochs: int | None = None) -> int:
        """Optimizer steps of a client with `examples` examples. epochs: that it makes; None: as many as any may."""
        if self.per_example is not None and self.per_example.steps is not None and examples:
            return self.per_example.steps
        batch = self.batch_size or max(examples, 1)
        return (self.most_epochs if epochs is None else epochs) * -(-examples // batch)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A federated experiment. It runs unchanged in simulation, over Flower and in a notebook.

    name: letters, digits, "-" and "_"; what runs are listed under.
    model: builds and compiles a fresh Keras model; called once per worker.
    population: the clients and their training examples.
    strategy: the server's half of the algorithm.
    sampler: who takes part in a round; under a plan the plan's own.
    local: what a client does in its round.
    rule: the client's half of an algorithm (a gradient correction); by default the strategy's own, where it has one.
    transforms: privacy and compression, applied to each update and undone on the sum.
    codec: how what is left of an update after the transforms travels in fewer bytes, at some loss; None: 4 bytes a
        number.
    plan: a privacy budget: it brings sampler and transform, or the clients' per-example noise, keeps the ledger, and
        ends the run before it is exceeded.
    fold: how updates become a sum; streaming and weighted unless robust.
    aggregation: what hides single updates from whoever sums them; None: the server sees each.
    rounds, seed: how long, and from which randomness. Equal seeds give equal bits.
    test: the server's examples, (x, y) or a Source, for central evaluation; None for none.
    validation: each client's held-out examples, for federated evaluation; None for none.
    evaluate_every: rounds between evaluations; the last round is always evaluated.
    personal: regular expressions over variable paths; what matches stays with the client (a head, normalisation).
    fine_tune: how a client's model is tuned to it before it is evaluated once more (validation_personal_…); None: not.
    weighting: a client's say in the mean: its number of "examples", or "uniform". By default "examples", and "uniform"
        under a plan, which bounds what a client can say.
    reweighting: what changes that say from round to round, by what clients lose (Agnostic); None: nothing.
    min_clients: updates that a round needs at least; with fewer the run stops.
    callbacks: what may end the run early; part of the result, unlike watchers handed to `run`.
    devices: a simulated fleet: its virtual clock says who takes part, who fails, and how long a round lasts. None:
        nothing takes any time. An asynchronous strategy keeps as many clients at work as sampler has in a round.
    deadline: when a synchronous round of that fleet ends though clients are still at work.

    Errors: ConfigError for a value out of bounds, IncompatibleError for parts that exclude one another.
    """

    name: str
    model: Callable[[], Any]
    population: Population
    strategy: Strategy
    sampler: Sampler = None  # type: ignore[assignment]  # None until it is filled in
    local: Local = field(default_factory=Local)
    rule: LocalRule | None = None
    transforms: UpdateTransform = field(default_factory=Chain)
    codec: Codec | None = None
    plan: Plan | None = None
    fold: Fold = field(default_factory=WeightedSum)
    aggregation: Aggregation | None = None
    rounds: int = 50
    seed: int = 0
    test: Examples | tuple | Source | None = None
    validation: Population | None = None
    evaluate_every: int = 1
    personal: tuple[str, ...] = ()
    fine_tune: FineTune | None = None
    weighting: Literal["examples", "uniform"] = None  # type: ignore[assignment]
    reweighting: Reweighting | None = None
    min_clients: int = 1
    callbacks: tuple[Callback, ...] = ()
    devices: Devices | None = None
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        self._fill_in()
        require(
            bool(re.fullmatch(r"[\w-]{1,64}", self.name)), f"expected name={self.name!r} of letters, digits, - and _"
        )
        require_count("rounds", self.rounds)
        require_count("evaluate_every", self.evaluate_every)
        require_count("min_clients", self.min_clients)
        require_count("seed", self.seed, at_least=0)
        require(
            self.weighting in ("examples", "uniform"), f"expected weighting={self.weighting!r} in examples, uniform"
        )
        check_parts(self)
        if self.fold.needs_individual_updates and self.aggregation is not None:
            raise IncompatibleError(
                f"{self.fold!r} needs individual updates; {self.aggregation!r} reveals only their sum"
            )
        if self.rule is not None and is_rule(self.strategy):
            raise IncompatibleError(f"{self.strategy!r} brings a rule for clients of its own; drop rule={self.rule!r}")
        divisions = [getattr(part, "division", None) for part in (self.population, self.validation)]
        if None not in divisions and divisions[0] != divisions[1]:
            raise ConfigError("population and validation are parts of different divisions; examples would be in both")
        self._check_time()
        self._check_codec()
        check_fold(self)
        check_pooling(self)
        check_released(self)
        check_phases(self)
        check_clusters(self)
        check_reweighting(self)
        check_split(self)
        if self.plan is not None:
            self.plan.check(self)

    def _fill_in(self) -> None:
        """What follows from the other fields, where it was left out."""
        filled: dict[str, Any] = {}
        if self.plan is not None:
            filled["sampler"] = self.sampler or self.plan.sampler
            filled["transforms"] = with_plan(self.transforms, self.plan)
            if self.local.per_example is None and hasattr(self.plan, "per_example"):
                filled["local"] = dataclasses.replace(self.local, per_example=self.plan.per_example)
        elif self.sampler is None:
            raise ConfigError("expected a sampler, such as FixedCohort(10), or a plan that brings one")
        if self.weighting is None:
            filled["weighting"] = "examples" if self.plan is None else "uniform"
        if isinstance(self.test, (tuple, list)):
            filled["test"] = Examples.of(tuple(self.test))
        for name in ("callbacks", "personal"):
            if isinstance(getattr(self, name), list):
                filled[name] = tuple(getattr(self, name))
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def _check_time(self) -> None:
        """Refuse what the virtual clock, samplers that learn, and asynchronous rounds exclude."""
        if self.deadline is not None and self.devices is None:
            raise ConfigError(f"{self.deadline!r} needs devices, whose speeds say who is late")
        if self.plan is not None and self.deadline is not None and self.deadline.over_selection > 1:
            raise IncompatibleError(
                f"{self.deadline!r} counts the fastest, so that one client decides whether another is counted; "
                f"{self.plan!r} accounts for clients that are counted each on its own. Use over_selection=1"
            )
        if getattr(self.sampler, "needs_losses", False):
            for name in ("plan", "aggregation"):
                if (part := getattr(self, name)) is not None:
                    raise IncompatibleError(f"{self.sampler!r} needs each client's loss, which {name}={part!r} hides")
        if not is_asynchronous(self.strategy):
            return
        if hasattr(self.sampler, "choose"):
            raise IncompatibleError(f"{self.strategy!r} has no cohorts for {self.sampler!r}; use FixedCohort")
        for name in ("plan", "aggregation", "deadline"):
            if (part := getattr(self, name)) is not None:
                raise IncompatibleError(f"{self.strategy!r} has no cohorts, which {name}={part!r} is about")
        if (part := one_that(self.transforms, "same_round_only")) is not None:
            raise IncompatibleError(f"{self.strategy!r} sums updates from different rounds, which {part!r} tells apart")
        if getattr(self.strategy, "mixes_models", False) and members(self.transforms):
            raise IncompatibleError(
                f"{self.strategy!r} mixes models; {self.transforms!r} would change them like updates"
            )

    def _check_codec(self) -> None:
        """Refuse what cannot be summed once it is encoded, and codecs that undo what bounds an update."""
        if self.codec is None:
            return
        if self.aggregation is not None:
            raise IncompatibleError(
                f"{self.codec!r} encodes each update in its own way, and {self.aggregation!r} sums what it cannot "
                "decode; a linear compression works with it: RandomMask, among the transforms"
            )
        if is_asynchronous(self.strategy):
            raise IncompatibleError(f"{self.codec!r} is for synchronous rounds; {self.strategy!r} has none")
        clips, plan = one_that(self.transforms, "clip_norm"), self.plan
        # Noise that clients add after clipping covers whatever becomes of an update later, what they keep included.
        if plan is not None and plan.clients_release and hasattr(plan.transform, "clip_norm"):
            return
        if clips is None and (plan is None or plan.clients_release):
            return
        for is_broken, why in (
            (self.codec.error_feedback, "adds what earlier rounds left out to an update after it was clipped"),
            (not self.codec.shrinks, "may lengthen an update after it was clipped"),
        ):
            if is_broken:
                raise IncompatibleError(
                    f"{self.codec!r} {why}, beyond the bound of {clips or plan!r}; use TopK(…, error_feedback=False)"
                )

    def made_for(self, field_name: str) -> dict[str, Any]:
        """What other fields have only because of the one named, as they would be without it: for replacing that one."""
        if field_name != "plan" or self.plan is None:
            return {}
        own = self.plan.transform
        without = Chain(*(one for one in members(self.transforms) if one != own))
        found: dict[str, Any] = {"transforms": without}
        if self.sampler == self.plan.sampler:
            found["sampler"] = None
        if self.local.per_example is not None and self.local.per_example == getattr(self.plan, "per_example", None):
            found["local"] = dataclasses.replace(self.local, per_example=None)
        return found

    @property
    def client_rule(self) -> LocalRule | None:
        """The client's half of the algorithm; None for plain training."""
        return self.rule or (self.strategy if is_rule(self.strategy) else None)  # type: ignore[return-value]

    def encoded_shape(self, broadcast: Broadcast) -> Shape:
        """Lengths of a client's update as it leaves the client, after its rule and the transforms."""
        size, known = len(broadcast.params), vars(self).get("_shapes", {})
        if size in known:
            return known[size]  # encoding may be dear, and lengths are the same in every round
        extra = np.zeros(extra_size(self.client_rule, size), np.float32)
        update = ClientUpdate(np.zeros(size, np.float32), extra, 1.0, {})
        encoded = self.transforms.encode(broadcast.transforms, update, Key(bytes(16)))
        found = Shape(len(encoded.delta), len(encoded.extra))
        object.__setattr__(self, "_shapes", {size: found})
        return found

    def upload_bytes(self, broadcast: Broadcast) -> int:
        """Of a client's update as it leaves the client, where no aggregation hides it."""
        shape = self.encoded_shape(broadcast)
        delta = 4 * shape.delta if self.codec is None else self.codec.payload_bytes(shape.delta)
        return delta + 4 * shape.extra

    def test_examples(self) -> Examples | None:
        """The server's examples, loaded if they come from a Source."""
        if self.test is None or isinstance(self.test, Examples):
            return self.test
        found: Examples | None = vars(self).get("_test_examples")
        if found is None:  # a source of somebody's own may read its files at each `load`
            found = Examples.of(self.test.load())  # type: ignore[union-attr]
            object.__setattr__(self, "_test_examples", found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """The fields, without what was computed from them."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}

    def describe(self) -> dict[str, str]:
        """Every value that changes the result, as {dotted path: text}; arrays by shape and content hash.

        `rounds` is left out: a finished run may be resumed with more of them.
        """
        flat: dict[str, str] = {}
        for part in dataclasses.fields(self):
            if part.name != "rounds":
                describe(part.name, getattr(self, part.name), flat)
        return flat

    @property
    def digest(self) -> str:
        """SHA-256 of `describe()`, hex."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def check_unchanged(self, stored: Mapping[str, str]) -> None:
        """Raise ConfigError naming the first value that differs from a stored run's `describe()`."""
        current = self.describe()
        for path in sorted(stored.keys() | current.keys()):
            before, now = stored.get(path, "absent"), current.get(path, "absent")
            if before != now:
                raise ConfigError(
                    f"the experiment changed since this run began: {path} was {before}, is now {now}; "
                    "restore it, or start a new run without --resume"
                )


def is_asynchronous(strategy: Strategy) -> bool:
    """Whether strategy is an AsynchronousStrategy."""
    return hasattr(strategy, "receive")


def is_rule(part: Any) -> bool:
    """Whether part is, or brings, a LocalRule."""
    return hasattr(part, "proximal") and hasattr(part, "remembers")


def is_correction(rule: LocalRule | None) -> TypeGuard[Correction]:
    """Whether rule is a Correction."""
    return hasattr(rule, "finish")


def extra_size(rule: LocalRule | None, size: int) -> int:
    """Length of what clients send besides delta. size: of delta."""
    return rule.extra_size(size) if is_correction(rule) else 0


def members(transforms: UpdateTransform) -> tuple[UpdateTransform, ...]:
    """The transforms of a chain, or the one that is none."""
    return transforms.transforms if isinstance(transforms, Chain) else (transforms,)


def one_that(transforms: UpdateTransform, has: str) -> UpdateTransform | None:
    """The first of the transforms, chains in chains included, with a true attribute of that name; None if none is."""
    if not isinstance(transforms, Chain):
        return transforms if getattr(transforms, has, None) else None
    return next((found for one in transforms.transforms if (found := one_that(one, has)) is not None), None)


def with_plan(transforms: UpdateTransform, plan: Plan) -> UpdateTransform:
    """transforms with the plan's own at their end, if it is not among them."""
    own, given = plan.transform, members(transforms)
    return transforms if own in given else Chain(*given, own)
