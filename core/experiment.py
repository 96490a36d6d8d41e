"""Experiment: everything that changes the result of a run, in one frozen value, validated when built."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .aggregators import WeightedSum
from .bases import Aggregator, Callback, Codec, Population, Reweighting, Sampler, UpdateTransform
from .errors import ConfigError
from .examples import Examples, FrameExamples
from .parts.algorithms import ClientRule, Strategy
from .parts.chain import Chain
from .parts.devices import Deadline, Devices
from .parts.local import Local
from .parts.phases import FineTune
from .parts.private import Plan, SecureAggregation
from .parts.start import InitialWeights, WeightsFile
from .protocols import Source
from .reading.coercion import is_frame
from .reading.compatible import check_together
from .reading.defaults import NAME
from .reading.description import describe
from .reading.given import check_parts
from .reading.old_words import in_new_words, taking
from .reading.slips import check_kinds, check_methods
from .recipe import Recipe, filled, resolve
from .validation import fields_of, plain_numbers, require, require_count


@taking(fold="aggregator", aggregation="secure_aggregation")
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A federated experiment. It runs unchanged in simulation, over Flower and in a notebook.

    Parameters
    ----------
    name
        Letters, digits, "-" and "_"; what runs are listed under.
    model
        A function that builds and compiles a Keras model; or a compiled model, which others are built like, with its
        weights as the start.
    population
        The clients and their training examples.
    start
        Weights to begin with, a pre-trained body's say: a file (.keras, .weights.h5, .npz), or a version of the
        registry, server.StoredModel("mine"). None: those that the model is built with. Known by their hash, they are
        part of the experiment.
    strategy
        The server's half of the algorithm; None: FedAvg.
    sampler
        Who takes part in a round; None: the plan's own; without a plan 10 clients, or all where there are no more.
    local
        What a client does in its round.
    rule
        The client's half of an algorithm (a gradient correction); by default the strategy's own, where it has one.
    transforms
        Privacy and compression, applied to each update and undone on the sum.
    codec
        How what is left of an update after the transforms travels in fewer bytes, at some loss; None: 4 bytes a number.
    plan
        A privacy budget: it brings sampler and transform, or the clients' per-example noise, keeps the ledger, and ends
        the run before it is exceeded.
    aggregator
        How updates become a sum; streaming and weighted unless robust.
    secure_aggregation
        What hides single updates from whoever sums them; None: the server sees each.
    rounds, seed
        How long, and from which randomness. Equal seeds give equal bits.
    test
        The server's examples, (x, y) or a Source, for central evaluation; None for none.
    validation
        Each client's held-out examples, for federated evaluation; None for none.
    evaluate_every
        Rounds between evaluations; the last round is always evaluated.
    personal
        Regular expressions over variable paths; what matches stays with the client (a head, normalisation).
    fine_tune
        How a client's model is tuned to it before it is evaluated once more (validation_personal_…); None: not.
    weighting
        A client's say in the mean: its number of "examples", or "uniform". By default "examples", and "uniform" under a
        plan, which bounds what a client can say.
    reweighting
        What changes that say from round to round, by what clients lose (Agnostic); None: nothing.
    min_clients
        Updates that a round needs at least; with fewer the run stops. A round in which nobody takes part, as nobody was
        sampled or could be reached, is none with too few: it changes nothing, and the run goes on.
    callbacks
        What may end the run early; part of the result, unlike watchers handed to `run`.
    devices
        A simulated fleet: its virtual clock says who takes part, who fails, and how long a round lasts. None: nothing
        takes any time. An asynchronous strategy keeps as many clients at work as sampler has in a round.
    deadline
        When a synchronous round of that fleet ends though clients are still at work.

    Raises
    ------
    ConfigError
        For a value out of bounds.
    IncompatibleError
        For parts that exclude one another.
    """

    name: str = NAME
    model: Callable[[], Any] | Any
    population: Population
    start: InitialWeights | str | None = None
    strategy: Strategy | None = None
    sampler: Sampler | None = None
    local: Local = field(default_factory=Local)
    rule: ClientRule | None = None
    transforms: UpdateTransform = field(default_factory=Chain)
    codec: Codec | None = None
    plan: Plan | None = None
    aggregator: Aggregator = field(default_factory=WeightedSum)
    secure_aggregation: SecureAggregation | None = None
    rounds: int = 50
    seed: int = 0
    test: Examples | tuple | Source | None = None
    validation: Population | None = None
    evaluate_every: int = 1
    personal: tuple[str, ...] = ()
    fine_tune: FineTune | None = None
    weighting: Literal["examples", "uniform"] | None = None
    reweighting: Reweighting | None = None
    min_clients: int = 1
    callbacks: tuple[Callback, ...] = ()
    devices: Devices | None = None
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_kinds(fields_of(self))
        self._write_out()
        full = filled(fields_of(self))
        require(
            bool(re.fullmatch(r"[\w-]{1,64}", self.name)), f"expected name={self.name!r} of letters, digits, - and _"
        )
        for name in ("rounds", "evaluate_every", "min_clients"):
            require_count(name, full[name])
        require_count("seed", self.seed, at_least=0)
        require(
            full["weighting"] in ("examples", "uniform"),
            f"expected weighting={self.weighting!r} in examples, uniform",
        )
        check_parts(full)
        check_methods(full)
        check_together(self.resolved)

    def _write_out(self) -> None:
        """Replace values that may be given in short: lists become tuples, (x, y) becomes Examples."""
        if isinstance(self.test, (tuple, list)):
            has_frames = any(map(is_frame, self.test[:2]))
            test = FrameExamples.of(tuple(self.test)) if has_frames else Examples.of(tuple(self.test))
            object.__setattr__(self, "test", test)
        if isinstance(self.start, (str, os.PathLike)):
            object.__setattr__(self, "start", WeightsFile.of(self.start))
        for name, value in fields_of(self, "callbacks", "personal").items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    @property
    def filled_in(self) -> Experiment:
        """The same experiment with what follows from its fields written into them.

        So one of them can be replaced and what came with it stays: `replace(experiment.filled_in, plan=None)` still
        clips and adds noise.
        """
        return dataclasses.replace(self, **filled(fields_of(self)))

    @cached_property
    def resolved(self) -> Recipe:
        """The experiment with all that follows from its fields: what rounds and runtimes read."""
        return resolve(fields_of(self))

    @property
    def assumed(self) -> dict[str, Any]:
        """The strategy and the sampler that were left out, as they are filled in; without a plan's own sampler."""
        given = fields_of(self)
        names = ["strategy"] if self.plan is not None else ["strategy", "sampler"]
        return {name: filled(given)[name] for name in names if given[name] is None}

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without what was computed from them."""
        return fields_of(self)

    def describe(self) -> dict[str, str]:
        """Return every value that changes the result, as {dotted path: text}; arrays by shape and content hash.

        `rounds` is left out: a finished run may be resumed with more of them.
        """
        flat: dict[str, str] = {}
        for name, value in filled(fields_of(self)).items():
            if name == "start":
                flat |= {} if value is None else {name: value.describe()}
            elif name != "rounds":
                describe(name, value, flat)
        return flat

    @property
    def digest(self) -> str:
        """SHA-256 of `describe()`, hex."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def check_unchanged(self, stored: Mapping[str, str]) -> None:
        """Raise ConfigError naming the first value that differs from a stored run's `describe()`."""
        current, stored = self.describe(), in_new_words(type(self), stored)
        for path in sorted(stored.keys() | current.keys()):
            before, now = stored.get(path, "absent"), current.get(path, "absent")
            if before != now:
                raise ConfigError(
                    f"the experiment changed since this run began: {path} was {before}, is now {now}; "
                    "restore it, or start a new run without --resume"
                )
