"""Whole runs on a federation that runs already: `umbel run --federation KIT`, and from Python or a notebook.

history = run(experiment, Flower("fed/operator"))
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, UmbelError
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.beside import file_of
from ..core.reading.loading import PACKAGE, experiment_names, load_experiment, load_experiments
from ..core.reading.overrides import fit_to, override, settings_of
from ..core.spec import ModelSpec
from ..core.types import NOTHING, RoundRecord
from ..server.events import Events, Finished, Notice, RoundDone, Started
from ..server.history import History
from ..server.progress import Progress

if TYPE_CHECKING:  # SQLAlchemy and Flower are imported when a run begins
    from ..server.store import Store
    from .kits import OperatorKit

ELSEWHERE = (
    "this run is kept in the store of the federation's server, which is not reached from here: its rounds are shown as "
    "they come, and its model, umbel runs and compare are to be had on the server's host only; or set store in "
    "operator.toml and in server.toml to a database that both reach"
)


@dataclass(frozen=True)
class Flower:
    """A federation of real devices that runs already (`umbel deploy`), for `run(experiment, Flower(kit))`.

    The run is played by the federation's server. Its rounds, checkpoints and model versions are in the server's store,
    and what `run` returns was read from there.

    Parameters
    ----------
    kit
        The operator's kit, or the folder of all kits.
    reference
        Where every party finds the experiment by itself, a name of `umbel experiments` or a file of the kits' folders
        `experiments`; by default the file that its model is defined in.
    quiet
        No progress on standard error.
    """

    kit: str | Path
    reference: str | None = None
    quiet: bool = False

    @property
    def watchers(self) -> Sequence[Watcher]:
        """Progress on standard error, unless it is to be quiet."""
        return () if self.quiet else (Progress(sys.stderr),)

    def play(self, experiment: Experiment, *, store: Any = None, resume: str | None = None) -> Events:
        """Submit a run, and follow it to its end.

        Errors: those of `umbel.run`; ConfigError for an experiment that other processes cannot find, and for a store:
        a federation has its own.
        """
        from .kits import OperatorKit

        kit = OperatorKit.find(Path(self.kit).expanduser())
        if store is not None:
            raise ConfigError("a federation keeps its runs in its server's store; drop store=")
        reference, settings = locate(experiment, self.reference, kit.folder / "experiments")
        with opened_here(kit) as opened:
            clients, members = size_of(kit, opened, resume)
            fitted = override(experiment, fit_to(experiment, clients, members))
            yield from follow(player(kit, clients, members)(reference, settings, resume=resume), fitted, opened)


@contextlib.contextmanager
def opened_here(kit: OperatorKit) -> Iterator[Store | None]:
    """Open the server's store; None where its file is not on this host, which then has only what the server says.

    Errors: StoreError for one that is here, or is a database that both reach, and cannot be opened.
    """
    from ..server.store import Store
    from ..server.store.address import parse

    path = parse(kit.store).path
    if path is not None and not path.exists():
        yield None
        return
    with Store.open(kit.store, create=False) as store:
        yield store


def size_of(kit: OperatorKit, store: Store | None, resume: str | None) -> tuple[int, int]:
    """Return among how many clients a run is divided, and how many of them are still there.

    A resumed run stays as it began, whoever joined or left since.
    """
    if resume is None or store is None:
        return len(kit.clients), len(kit.members)
    stored = store.load_run(resume).description.get("population.clients", "")
    clients = int(stored) if stored.isdecimal() else len(kit.clients)
    return clients, clients


def player(kit: OperatorKit, clients: int, members: int) -> Callable[..., Events]:
    """Make what plays a run on a kit's federation. clients, members: see `size_of`."""
    from ..runtimes.flower.remote import RemoteFederation, play_remote

    federation = RemoteFederation(kit.address, kit.authority, kit.token, clients, members, kit.quorum)
    return partial(play_remote, federation, timeout_seconds=float(kit.timeout_seconds))


def follow(events: Events, fitted: Experiment, store: Store | None) -> Events:
    """Yield the events of a run that another process plays, with what that left out.

    The history is read from the other's store. Where that is not reached from here, which the first event after the
    run's beginning says, it holds the rounds as they were told, and no params.

    fitted: the experiment, as it is for as many clients as there are.
    """
    records: list[RoundRecord] = []
    is_here = False
    with contextlib.closing(events), _settled(store):
        for event in events:
            match event:
                case Started(_, _, run, done):
                    event = replace(event, experiment=fitted)
                    is_here, records = store is not None and store.has(str(run)), list(done)
                    if not is_here:
                        yield Notice(ELSEWHERE)
                case RoundDone(record, _, _):
                    records.append(record)
                case Finished() if is_here and store is not None:
                    event = replace(event, history=read_history(store, event.final, fitted))
                case Finished():
                    event = replace(event, history=_told(event.final, records, fitted))
            yield event


@contextlib.contextmanager
def _settled(store: Store | None) -> Iterator[None]:
    """Let a run whose process was lost not stand in the store as if it were played."""
    try:
        yield
    except UmbelError:
        if store is not None:
            store.settle()
        raise


def _told(final: Mapping[str, Any], records: Sequence[RoundRecord], experiment: Experiment) -> History:
    """Return the history of a run as its server told it, without the model, which is in the server's store."""
    run, version = final["run"], final["model_version"]
    privacy = final.get("privacy", {})
    return History(
        experiment.name,
        tuple(records),
        NOTHING,
        ModelSpec(()),
        run,
        version,
        privacy=privacy,
        elsewhere=final,
        played=experiment,
    )


def read_history(store: Store, final: Mapping[str, Any], experiment: Experiment) -> History:
    """Return the history of a run of experiment that its server has finished. final: the last that it said."""
    stored = store.load_run(final["run"])
    version, params = store.models.get(stored.name, final["model_version"])
    return History(
        stored.name,
        tuple(stored.records),
        params,
        version.spec,
        stored.run,
        version.version,
        stored.reason,
        final.get("privacy", {}),
        base=store.models.base(stored.name, version.version),
        played=experiment,
    )


def locate(experiment: Experiment, reference: str | None, folder: Path) -> tuple[str, list[str]]:
    """Find the reference and the settings under which another process finds this very experiment.

    reference: where to look, and nowhere else. folder: the operator's, with experiments. Errors: ConfigError that
    says where the experiment has to be put, or what it differs in from the one that is there.
    """
    wanted, nearest = experiment.digest, None
    for place, base in _found(experiment, reference, folder):
        settings = settings_of(base, experiment.describe())
        settings += [] if base.rounds == experiment.rounds else [f"rounds={experiment.rounds}"]
        there = override(base, settings)
        if there.digest == wanted:
            return place, settings
        nearest = nearest or (place, there)
    if nearest is None:
        raise ConfigError(
            f"experiment {experiment.name!r} is defined in this process alone, and a federation runs what each party "
            f"has in its own kit: write it to a file (%%writefile {experiment.name}.py), copy that into the folder "
            f'experiments of every kit, the server\'s among them, and name it: Flower(kit, "{experiment.name}.py")'
        )
    place, there = nearest
    here, other = experiment.describe(), there.describe()
    name = next(path for path in sorted(here.keys() | other.keys()) if here.get(path) != other.get(path))
    raise ConfigError(
        f"experiment {experiment.name!r} is not the one of {place}: {name} is {here.get(name, 'absent')} here, and "
        f"{other.get(name, 'absent')} there; save the change in the file, and its copies in every kit"
    )


def _found(experiment: Experiment, reference: str | None, folder: Path) -> Iterator[tuple[str, Experiment]]:
    """Yield experiments that this one may be, and where they are; pass over files that do not load, unless named."""
    places = [reference] if reference is not None else _places(experiment, folder)
    for place in dict.fromkeys(places):
        if reference is not None and not Path(place).exists() and (folder / place).exists():
            place = str(folder / place)
        try:
            yield place, load_experiment(place)
        except ConfigError:
            try:
                variants = load_experiments(place)
            except ConfigError:
                if reference is not None:
                    raise
                continue
            yield from ((f"{place}:{name}", base) for name, base in variants.items())


def _places(experiment: Experiment, folder: Path) -> list[str]:
    """List where an experiment may be defined: with its model; under its name, in Umbel or in the operator's kit."""
    model = experiment.model
    while isinstance(model, partial):
        model = model.func
    module = str(getattr(model, "__module__", ""))
    found = [module.removeprefix(f"{PACKAGE}.")] if module.startswith(f"{PACKAGE}.") else []
    file = file_of(module) or getattr(sys.modules.get(module), "__file__", None)
    # A script that is running would run itself anew.
    if not found and module != "__main__" and file and file.endswith(".py"):
        found.append(file)
    own = folder / f"{experiment.name}.py"
    return [*found, *[experiment.name] * (experiment.name in experiment_names()), *[str(own)] * own.is_file()]
