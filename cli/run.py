"""A typed request, played to a finished run: `umbel run` without its options and its output."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..core.errors import BudgetSpent, ConfigError, RunStopped, UmbelError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.loading import experiment_names, load_experiment
from ..core.reading.overrides import fit_to, override, settings_of
from ..core.runtime import Runtime
from ..core.system.quiet import without_native_logs
from ..core.types import Failure, RoundRecord
from ..core.validation import require
from ..deploy.federated import follow, opened_here, player, size_of
from ..server import History, run
from ..server.events import Events, history_of, watched
from ..server.vault import VAULT_VARIABLE
from .console import Ended, Interrupted

if TYPE_CHECKING:  # SQLAlchemy is imported when a run begins, not for shell completion
    from ..server.store import Store, StoredRun

DEFAULT_EXPERIMENT = "digits_fedavg"
DEFAULT_STORE = "sqlite:///umbel.db"
FLOWER_CLIENTS = 3  # number by default; each is a process with a TensorFlow of its own


class Paused(UmbelError):
    """A run was interrupted between two commits. Exits with 128 + the signal that did it, 130 for Ctrl-C."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that was typed after `umbel run`."""

    reference: str | None  # name or file of the experiment; None: the default, or that of the run to resume
    store: str
    settings: Sequence[str] = ()  # each as path=value
    runtime: Literal["simulation", "ray", "flower"] = "simulation"
    workers: int | None = None
    clients: int | None = None
    resume: str | None = None
    compile: Literal["auto", "xla", "graph"] = "auto"
    debug: bool = False
    aggregation: Literal["arithmetic", "protocol"] = "arithmetic"
    store_key: str | None = None  # file of the key of an encrypted store; None: UMBEL_STORE_KEY, if any
    federation: str | None = None  # kit of the operator of a federation that runs; None: one for this run alone
    address: str | None = None  # of a Ray cluster that runs; None: one for this run alone
    gpus: int | None = None  # the most that are used with Ray; None: all
    memory: str | None = None  # folder of a cluster's nodes for what clients keep; None: the store

    def __post_init__(self) -> None:
        if self.runtime != "ray":
            cluster = (("--address", self.address), ("--gpus", self.gpus), ("--memory", self.memory))
            for option, value in cluster:
                require(value is None, f"{option} is of a cluster; add --runtime ray")
        require(self.runtime != "ray" or not self.debug, "--debug is of one process; drop --runtime ray")
        if self.runtime != "flower":
            require(self.federation is None, "--federation is of real devices; add --runtime flower")
            return
        if self.federation is not None and self.clients is not None:
            raise ConfigError("--clients is of a federation made for one run; one that runs has the clients it has")
        if self.workers is not None or self.debug:
            option = "--debug" if self.debug else "--workers"
            raise ConfigError(f"{option} is of the simulation; over Flower every client is a process of its own")
        if self.aggregation != "arithmetic":
            raise ConfigError(
                "--aggregation is of the simulation; over Flower updates are hidden for real, or not at all"
            )
        if self.compile == "xla":
            raise ConfigError("--compile xla is of the simulation; over Flower clients run plain graphs")

    @property
    def overrides(self) -> list[str]:
        """Settings of the run, that of the number of clients among them."""
        return ([] if self.clients is None else [f"population.clients={self.clients}"]) + list(self.settings)

    def again(self, run: str, *more: str) -> str:
        """Return the command that resumes a run.

        One of Umbel's own experiments finds its name and settings in the store.
        """
        is_file = self.reference is not None and self.reference not in experiment_names()
        clients = [] if self.clients is None else ["--clients", str(self.clients)]
        words = [str(self.reference), *clients, *(word for setting in self.settings for word in ("--set", setting))]
        runtime = ["--runtime", self.runtime] if self.runtime != "simulation" else []
        runtime += ["--federation", self.federation] if self.federation is not None else []
        runtime += ["--address", self.address] if self.address is not None else []
        runtime += ["--memory", self.memory] if self.memory is not None else []
        return shlex.join(["umbel", "run", *words * is_file, *runtime, "--resume", run, *more, *self.store_words])

    @property
    def store_words(self) -> list[str]:
        """Options for the store, those that are needed; without a password."""
        key = [] if self.store_key is None else ["--store-key", self.store_key]
        if self.federation is not None or self.store == os.environ.get("UMBEL_STORE", DEFAULT_STORE):
            return key
        from ..server.store.address import parse

        return ["--store", str(parse(self.store)), *key]


class PlayedRun(NamedTuple):
    """A run that was played, and what its runtime says of it."""

    history: History
    compiled: str | None  # see Ended
    figures: Mapping[str, int]  # see Ended


def launch(request: Request, watchers: Sequence[Watcher]) -> Ended:
    """Play a new or resumed run to its end.

    Errors: those of `umbel.run`; RunStopped says how to resume, as does Paused, for Ctrl-C, SIGTERM and closed output.
    """
    request = at_federation(request)
    with contextlib.ExitStack() as stack:
        stack.enter_context(named_store_key(request.store_key))
        with without_native_logs():  # an experiment's file may import Keras
            if request.resume is None:
                # Before the store: a misspelt name, or missing data, should not leave an empty one behind.
                reference = DEFAULT_EXPERIMENT if request.reference is None else request.reference
                overrides = request.overrides
                experiment = load_experiment(reference, overrides)
                if request.federation is None:  # whose data are its clients', and its server's
                    experiment.population.sizes()
                    experiment.resolved.test_examples()
                store = stack.enter_context(opened_for(request))
            else:
                store = stack.enter_context(opened_for(request))
                stored = None if store is None else store.load_run(request.resume)
                reference, overrides = resumed(request, stored)
                experiment = load_experiment(reference, overrides)
        if request.clients is not None:
            experiment = override(experiment, fit_to(experiment, request.clients))
        kept = Kept(request)
        with kept:
            play = federate if request.runtime == "flower" else simulate
            played = play(request, reference, overrides, experiment, store, [kept, *watchers])
        history = played.history
        more = f"rounds={2 * len(history.rounds)}"
        commands = {"go on": request.again(str(history.run), "--set", more)}
        if history.elsewhere is None:
            commands["list"] = shlex.join(["umbel", "runs", *replace(request, federation=None).store_words])
        return Ended(experiment, history, played.compiled, commands, played.figures)


def opened_for(request: Request) -> contextlib.AbstractContextManager[Store | None]:
    """Open the store of a request, which a resumed run does not make; None where it is a server's on another host."""
    from ..server.store import Store

    if request.federation is None:
        return Store.open(request.store, create=request.resume is None)
    from ..deploy.kits import OperatorKit

    return opened_here(OperatorKit.find(Path(request.federation)))


def resumed(request: Request, stored: StoredRun | None) -> tuple[str, list[str]]:
    """Return a stored run's reference and overrides: its number of rounds, and one of Umbel's own its settings.

    stored: None where the store is not reached from here: then all has to be typed again. A file may have been edited
    since, so its settings are its own: resuming compares them with the run's.
    """
    if stored is None:
        if request.reference is None:
            raise ConfigError(
                f"the server's store is not reached from here; name the experiment of run {request.resume}, with its "
                f"settings: umbel run NAME --resume {request.resume} …"
            )
        return request.reference, request.overrides
    reference = request.reference or stored.name
    is_own = reference in experiment_names()
    if request.reference is None and not is_own:
        raise ConfigError(
            f"run {stored.run} is of experiment {reference!r}, which is not one of Umbel's own; name its file: "
            f"umbel run FILE.py --resume {stored.run}"
        )
    settings = settings_of(load_experiment(reference), stored.description) if is_own else []
    return reference, [*settings, f"rounds={stored.rounds}", *request.overrides]


def simulate(
    request: Request,
    reference: str,
    overrides: Sequence[str],
    experiment: Experiment,
    store: Store | None,
    watchers: Sequence[Watcher],
) -> PlayedRun:
    """Play the run's rounds in this process: clients train here, or on a cluster."""
    with contextlib.closing(runtime_of(request, [experiment])) as runtime:
        history = run(experiment, runtime, store=store, resume=request.resume, watchers=watchers)
        return PlayedRun(history, runtime.describe().get("compile"), runtime.figures)


def runtime_of(request: Request, experiments: Iterable[Experiment]) -> Runtime:
    """Make the runtime of runs whose rounds this process plays, and load what their experiments need."""
    from ..clients.teams import load as load_engine
    from ..runtimes.simulation import Simulation, prepare

    if request.runtime == "ray":  # this process imports no TensorFlow
        from ..runtimes.ray.runtime import Ray

        return Ray(
            request.address,
            workers=request.workers,
            gpus=request.gpus,
            memory=request.memory or "driver",
            compile=request.compile,
            aggregation=request.aggregation,
        )
    runtime = Simulation(request.workers, request.compile, debug=request.debug, aggregation=request.aggregation)
    with without_native_logs():
        for experiment in experiments:
            prepare(experiment.resolved)
        load_engine()
    return runtime


def federate(
    request: Request,
    reference: str,
    overrides: Sequence[str],
    experiment: Experiment,
    store: Store | None,
    watchers: Sequence[Watcher],
) -> PlayedRun:
    """Play the run over Flower, on this machine or a federation; the history is read back from the store."""
    play, clients, members = played_by(request, experiment, store)
    fitted = override(experiment, fit_to(experiment, clients, members))
    events = follow(play(reference, overrides, resume=request.resume), fitted, store)
    return PlayedRun(history_of(watched(events, watchers)), None, {})


def played_by(request: Request, experiment: Experiment, store: Store | None) -> tuple[Callable[..., Events], int, int]:
    """Return what plays a run over Flower, on this machine or a federation, and among how many clients, still there."""
    if request.federation is None:
        from ..runtimes.flower.local import play_local

        clients = request.clients or default_clients(experiment, store, request.resume)
        return partial(play_local, clients=clients, store=request.store), clients, clients
    from ..deploy.kits import OperatorKit

    kit = OperatorKit.find(Path(request.federation))
    clients, members = size_of(kit, store, request.resume)
    return player(kit, clients, members), clients, members


def at_federation(request: Request) -> Request:
    """Return the request, with the store of the federation that it names.

    Errors: ConfigError when it names another, too.
    """
    if request.federation is None:
        return request
    from ..deploy.kits import OperatorKit

    store = OperatorKit.find(Path(request.federation)).store
    if request.store not in (DEFAULT_STORE, store):
        raise ConfigError(
            "a federation keeps its runs in its server's store; drop --store and UMBEL_STORE, or set store in "
            "operator.toml to where it is reached from here"
        )
    return replace(request, store=store)


def default_clients(experiment: Experiment, store: Store | None, resume: str | None) -> int:
    """Return how many clients a run over Flower has: those it began with, or a few."""
    if resume is None or store is None:
        return FLOWER_CLIENTS
    stored = store.load_run(resume).description.get("population.clients", "")
    return int(stored) if stored.isdecimal() else len(experiment.population)


class Kept:
    """Watches what a run has committed. Around a run, it adds to the error that ends one how to resume it."""

    def __init__(self, request: Request):
        self._request, self._rounds = request, 0
        self._run: str | None = None

    def on_start(
        self, experiment: Experiment, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Note the run, and how many rounds it has."""
        self._run, self._rounds = run, len(records)

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Count a round more."""
        self._rounds = record.round

    def on_end(self, history: History) -> None:
        """Do nothing: all is committed."""

    def __enter__(self) -> None:
        """Do nothing: no run has begun yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BudgetSpent):  # resumed, it would stop at once
            raise BudgetSpent(f"{error}. {self.kept}") from error
        if isinstance(error, RunStopped):
            raise RunStopped(f"{error}. {self}") from error
        if isinstance(error, Interrupted):
            raise Paused(f"paused, {error.reason}. {self}", error.status) from error
        if isinstance(error, KeyboardInterrupt):
            raise Paused(f"paused. {self}", 130) from error

    def __str__(self) -> str:
        if self._run is None:
            return "No run was begun"
        return f"{self.kept}; resume with: {self._request.again(self._run)}"

    @property
    def kept(self) -> str:
        """Sentence that says how many rounds are kept."""
        return f"{self._rounds} {'round is' if self._rounds == 1 else 'rounds are'} kept"


@contextlib.contextmanager
def named_store_key(path: str | None) -> Iterator[None]:
    """Name a store's key, for this process and, over Flower, the server's: they read UMBEL_STORE_KEY."""
    before = os.environ.get(VAULT_VARIABLE)
    if path is not None:
        os.environ[VAULT_VARIABLE] = os.path.abspath(path)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VAULT_VARIABLE, None)
        else:
            os.environ[VAULT_VARIABLE] = before
