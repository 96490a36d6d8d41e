"""Host: a process of the cluster in which clients train, with a Simulation of its own for as long as the runtime lasts.

A call's answer follows from what it was sent: nothing that an earlier call left counts.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ...core.errors import UmbelError
from ...core.examples import Examples
from ...core.experiment import Experiment
from ...core.parts.algorithms import AsynchronousStrategy
from ...core.random import Key, derive
from ...core.reading.directions import Measures
from ...core.reading.fingerprints import digest_of
from ...core.recipe import Recipe
from ...core.runtime import Arrival, Assignment, Opened, Subtotal, added_up
from ...core.summation import Summation
from ...core.types import NOTHING, Broadcast, ClientUpdate, CodedUpdate, Metrics, Value, Vector
from ..simulation import Simulation
from .calls import Head
from .likeness import Greeting, versions
from .lines import Line, Lines
from .shelf import Shelf

FETCHED = 6  # values of the object store that a host keeps at hand: vectors of the last rounds

Measured = tuple[list[tuple[int, Metrics]], Mapping[str, np.ndarray]]  # each client's states, and all clients' values


class Introduction(NamedTuple):
    """All that the driver, which builds no model, has to know of it."""

    lines: Sequence[Line]  # what was logged on the way
    opened: Opened
    described: Mapping[str, str]
    measures: Measures
    initial_params: Vector
    chunk: int  # number of examples in a chunk of a central evaluation
    devices: tuple[str, ...]  # devices that clients train on


class Probe(NamedTuple):
    """The bits that a host's hardware makes of one client's training."""

    digest: str


class Sent(NamedTuple):
    """A broadcast as it travels: its vectors, and all else of it, each a list of one reference that hosts fetch."""

    params: list[Any]
    extra: list[Any]  # empty for no numbers
    rest: list[Any]


class ClientRun(NamedTuple):
    """Neighbours in a cohort, who are trained in one call."""

    broadcasts: Sequence[Sent]
    clients: Sequence[tuple[int, int, Key]]  # place of the broadcast, number of the client, key of the cohort
    memory: Mapping[int, list[np.ndarray]]  # what those clients keep at home, or notes of it, where they keep anything
    summation: Summation
    is_added_up: bool


class Host:
    """An actor of the cluster. Calls may overlap; the driver sees to it that none overlaps with an earlier round's."""

    def __init__(self, workers: int, compile: Literal["auto", "xla", "graph"], aggregation: Any, on_gpu: bool):
        self._simulation = Simulation(workers, compile, None if on_gpu else ["CPU:0"], aggregation=aggregation)
        self._experiment: Experiment | None = None
        self._opened: Opened | None = None
        self._memory: dict[int, list[np.ndarray]] = {}
        self._shelf: Shelf | None = None
        self._fetched: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._lines = Lines()

    def greet(self, folder: str) -> Greeting:
        """Say what is installed here, before anything of the user's is read.

        folder: the driver's, which relative paths of data are meant from.
        """
        if os.path.isdir(folder):
            os.chdir(folder)
        return Greeting(versions(), os.getpid(), os.nice(0) if hasattr(os, "nice") else 0)

    def open(
        self, experiment: Experiment, choices: Mapping[str, str] | None, shelf: Shelf | None, is_first: bool
    ) -> Introduction | None:
        """Bind to an experiment; the first host says what it is like, and the others have its choices.

        shelf: where clients keep what they remember; None: the driver sends it.
        """
        if shelf is not None:
            shelf.check_shared(platform.node())
        simulation, self._experiment, self._shelf = self._simulation, experiment, shelf
        self._opened = opened = simulation.open(experiment, self, choices)
        lines = self._lines.take()  # each host has the same to say
        if not is_first:
            return None
        return Introduction(
            lines,
            opened,
            simulation.describe(),
            simulation.measures(),
            simulation.initial_params(),
            simulation.chunk,
            simulation.used_devices(),
        )

    def probe(self) -> Probe:
        """Train the first client that has examples, and digest what comes of it: equal machines have equal bits."""
        assert self._opened is not None
        recipe, params = self._recipe, self._simulation.initial_params()
        extra = recipe.strategy.broadcast(recipe.strategy.init(params))
        rest = recipe.transforms.init(self._opened.spec), recipe.local.learning_rate_at(1, ())
        client = int(np.argmax(recipe.population.sizes() > 0))
        work = [Assignment(Broadcast(1, params, extra, *rest), client, derive(recipe.seed, "probe"))]
        try:
            (arrival,) = self._simulation.train(work, one_by_one(self._opened.summation))
        except UmbelError as error:  # it is for a round to tell
            return Probe(str(error))
        content = arrival.content
        if isinstance(content, CodedUpdate):
            return Probe(repr(digest_of(np.frombuffer(content.payload, np.uint8))))
        return Probe(repr(digest_of(content.delta)) if isinstance(content, ClientUpdate) else repr(content))

    def train(self, run: ClientRun) -> tuple[Head, Any]:
        """Train a run's clients; return what comes back of it: their sum, or a list of an Arrival for each."""
        broadcasts = [self._broadcast(sent) for sent in run.broadcasts]
        work = (Assignment(broadcasts[place], client, key) for place, client, key in run.clients)
        self._memory.update(run.memory)
        try:
            arrivals = self._shelved(self._simulation.train(work, one_by_one(run.summation)), run)
            if not run.is_added_up:
                content = list(arrivals)
                return Head(self._lines.take()), content
            arrival = added_up(arrivals, run.summation)
        finally:
            self._forget(run.memory)
        subtotal = arrival.content
        assert isinstance(subtotal, Subtotal)
        return Head(self._lines.take(), arrival._replace(content=subtotal._replace(sum=None))), subtotal.sum

    def evaluate(self, params: list[Any], examples: list[Any], starts: Sequence[int]) -> tuple[Head, list[Metrics]]:
        """Measure chunks of the server's examples.

        examples: a list of one reference, or empty for the experiment's own, which each host has.
        """
        own = self._fetch(examples) if examples else self._recipe.test_examples()
        assert isinstance(own, Examples)
        found = list(self._simulation.measured(self._fetch(params), own, starts))
        return Head(self._lines.take()), found

    def evaluate_clients(
        self, params: list[Any], extra: list[Any], clients: Sequence[int], memory: Mapping[int, list[np.ndarray]]
    ) -> tuple[Head, Measured]:
        """Measure clients on their own validation examples."""
        self._memory.update(memory)
        try:
            found = list(self._simulation.measured_clients(self._fetch(params), clients, self._fetch(extra)))
        finally:
            self._forget(memory)
        return Head(self._lines.take()), (found, self._simulation.gathered(found).per_client)

    def results(self, step: Literal["train", "test"], metrics: Metrics) -> tuple[Head, Mapping[str, Value]]:
        """Return the values of joined states."""
        return Head(), self._simulation.results(step, metrics)

    def read(self, client: int) -> list[np.ndarray] | None:
        """Return what a client keeps: as the driver sent it, or from the shelf. A host is its simulation's memory."""
        kept = self._memory.get(client)
        return kept if kept is None or self._shelf is None else self._shelf.read(client, kept)

    def write(self, client: int, arrays: list[np.ndarray]) -> None:
        """Keep nothing: it is the server that writes."""

    @property
    def _recipe(self) -> Recipe:
        assert self._experiment is not None
        return self._experiment.resolved

    def _shelved(self, arrivals: Iterable[Arrival], run: ClientRun) -> Iterator[Arrival]:
        """Yield arrivals; where there is a shelf, what clients keep is put there, and the driver is sent notes."""
        shelf = self._shelf
        if shelf is None:
            yield from arrivals
            return
        round_of = {client: self._broadcast(run.broadcasts[place]).round for place, client, _ in run.clients}
        # In rounds with cohorts what a client is sent of its memory is committed: nobody asks for what was before.
        is_committed = not isinstance(self._recipe.strategy, AsynchronousStrategy)
        for arrival in arrivals:
            for client in arrival.memory:
                if is_committed and client in run.memory:
                    shelf.forget_before(client, run.memory[client])
            notes = {client: shelf.write(client, round_of[client], kept) for client, kept in arrival.memory.items()}
            yield arrival._replace(memory=notes)

    def _forget(self, memory: Mapping[int, list[np.ndarray]]) -> None:
        for client in memory:
            del self._memory[client]

    def _broadcast(self, sent: Sent) -> Broadcast:
        """Put a broadcast together, of the same vectors for all who ask for it: they lie on the device already."""
        rest: Broadcast = self._fetch(sent.rest)
        return rest._replace(params=self._fetch(sent.params), extra=self._fetch(sent.extra))

    def _fetch(self, reference: list[Any]) -> Any:
        """Return a value of the object store; at hand, where it was fetched before."""
        import ray

        if not reference:
            return NOTHING
        name = reference[0].hex()
        with self._lock:
            if name not in self._fetched:
                self._fetched[name] = ray.get(reference[0])
                if len(self._fetched) > FETCHED:
                    self._fetched.popitem(last=False)
            self._fetched.move_to_end(name)
            return self._fetched[name]


def one_by_one(summation: Summation) -> Summation:
    """Return a summation under which each client arrives by itself: whoever asked adds up what is to be added up."""
    return dataclasses.replace(summation, subtotals=False)
