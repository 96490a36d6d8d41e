"""Whole runs on a federation that runs already: `umbel run --federation KIT`, and from Python or a notebook.

history = run(experiment, Flower("fed/operator"))
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import ConfigError
from .core.experiment import Experiment
from .core.loading import PACKAGE, experiment_names, load_experiment, load_experiments
from .core.overrides import fit_to, override, paths
from .core.protocols import Watcher
from .core.types import Failure, RoundRecord
from .server.history import History

if TYPE_CHECKING:  # SQLAlchemy and Flower are imported when a run begins
    from .deploy.kits import OperatorKit
    from .runtimes.flower.local import Outcome
    from .server.store import Store


@dataclass(frozen=True)
class Flower:
    """A federation of real devices that runs already (`umbel deploy`), for `run(experiment, Flower(kit))`.

    The run is played by the federation's server. Its rounds, checkpoints and model versions are in the server's store,
    and what `run` returns was read from there.

    kit: the operator's kit, or the folder of all kits. reference: where every party finds the experiment by itself, a
    name of `umbel experiments` or a file of the kits' folders `experiments`; by default the file that its model is
    defined in. quiet: no progress on standard error.
    """

    kit: str | Path
    reference: str | None = None
    quiet: bool = False

    def play(
        self, experiment: Experiment, *, store: Any = None, resume: str | None = None, watchers: Sequence[Watcher] = ()
    ) -> History:
        """Submit a run, and follow it to its end.

        Errors: those of `umbel.run`; ConfigError for an experiment that other processes cannot find, and for a store:
        a federation has its own.
        """
        from .console import progress
        from .deploy.kits import OperatorKit
        from .server.store import Store

        kit = OperatorKit.find(Path(self.kit).expanduser())
        if store is not None:
            raise ConfigError("a federation keeps its runs in its server's store; drop store=")
        reference, settings = locate(experiment, self.reference, kit.folder / "experiments")
        fitted = override(experiment, fit_to(experiment, len(kit.clients)))
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(Store.open(kit.store, create=resume is None))
            shown = stack.enter_context(progress(self.quiet))
            return follow(player(kit), reference, settings, fitted, opened, resume, [*shown, *watchers])


def player(kit: OperatorKit) -> Callable[..., Outcome]:
    """What plays a run on a kit's federation."""
    from .runtimes.flower.remote import RemoteFederation, run_remote

    federation = RemoteFederation(kit.address, kit.authority, kit.token, len(kit.clients))
    return partial(run_remote, federation, timeout_seconds=float(kit.timeout_seconds))


def follow(
    play: Callable[..., Outcome],
    reference: str,
    settings: Sequence[str],
    fitted: Experiment,
    store: Store,
    resume: str | None,
    watchers: Sequence[Watcher],
) -> History:
    """Play a run over Flower to its end, as watchers see it; its history is read back from the store.

    fitted: the experiment, as it is for as many clients as there are.
    """

    def on_start(run: str | None, records: Sequence[RoundRecord]) -> None:
        for watcher in watchers:
            watcher.on_start(fitted, None, run, records)

    def on_round(record: RoundRecord, failures: Sequence[Failure]) -> None:
        for watcher in watchers:
            watcher.on_round(record, failures)

    outcome = play(reference, settings, resume=resume, on_start=on_start, on_round=on_round)
    stored = store.load_run(outcome.final["run"])
    version, params = store.models.get(stored.name, outcome.final["model_version"])
    history = History(
        stored.name,
        tuple(stored.records),
        params,
        version.spec,
        stored.run,
        version.version,
        stored.reason,
        outcome.final.get("privacy", {}),
    )
    for watcher in watchers:
        watcher.on_end(history)
    return history


def locate(experiment: Experiment, reference: str | None, folder: Path) -> tuple[str, list[str]]:
    """The reference and the settings under which another process finds this very experiment.

    reference: where to look, and nowhere else. folder: of experiments, in the operator's kit. Errors: ConfigError that
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


def settings_of(experiment: Experiment, description: Mapping[str, str]) -> list[str]:
    """The overrides that lead from experiment to a stored description, as far as `--set` can go."""
    found: list[str] = []
    current = experiment.describe()
    for path in paths(experiment):
        before = description.get(path)
        if before is not None and before != current.get(path):
            with contextlib.suppress(ConfigError):  # a part of another type: resuming will name it
                experiment = override(experiment, [f"{path}={before}"])
                found.append(f"{path}={before}")
    return found


def _found(experiment: Experiment, reference: str | None, folder: Path) -> Iterator[tuple[str, Experiment]]:
    """Experiments that this one may be, and where they are; a file that does not load is passed over, unless named."""
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
    """Where an experiment may be defined: with its model; under its name, in Umbel or in the operator's kit."""
    model = experiment.model
    while isinstance(model, partial):
        model = model.func
    module = str(getattr(model, "__module__", ""))
    found = [module.removeprefix(f"{PACKAGE}.")] if module.startswith(f"{PACKAGE}.") else []
    file = getattr(sys.modules.get(module), "__file__", None)
    # A script that is running would run itself anew.
    if not found and module != "__main__" and file and file.endswith(".py"):
        found.append(file)
    own = folder / f"{experiment.name}.py"
    return [*found, *[experiment.name] * (experiment.name in experiment_names()), *[str(own)] * own.is_file()]
