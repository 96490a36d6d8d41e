"""Finding an experiment: by its name in `umbel.experiments`, or by the path of a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from .errors import ConfigError
from .experiment import Experiment
from .overrides import override
from .validation import shown, suggest

T = TypeVar("T")

PACKAGE = f"{__name__.partition('.')[0]}.experiments"


class Compared(NamedTuple):
    """What a module or a file defines to be run side by side."""

    experiments: dict[str, Experiment]  # by name, at least one
    by: tuple[str, ...]  # metrics: its `compared_by`; none where it names none


def load_experiment(reference: str, overrides: Sequence[str] = ()) -> Experiment:
    """The `experiment` of a module of `umbel.experiments` ("digits_fedavg") or of a file ("work/mine.py").

    overrides: `key=value` assignments, applied left to right. A file is run anew at each call; its module stays in
    `sys.modules`, so that what it defines can be pickled. Errors: ConfigError for an unknown name (with the nearest
    one), a missing file, a file that fails, or one that defines no Experiment.
    """
    if ":" in reference and not Path(reference).exists():
        return next(iter(load_experiments(reference, overrides).values()))
    return override(_only(_module(reference), reference), overrides)


def load_experiments(reference: str, overrides: Sequence[str] = ()) -> dict[str, Experiment]:
    """Every experiment that a module or file defines, by name: `experiments`, a mapping, or else its one `experiment`.

    "NAME:VARIANT" is one of a mapping. Errors: as for `load_experiment`; ConfigError for an unknown variant.
    """
    return load_compared(reference, overrides).experiments


def load_compared(reference: str, overrides: Sequence[str] = ()) -> Compared:
    """`load_experiments`, with what they are compared by: the module's `compared_by`, names of metrics.

    Errors: as for `load_experiments`; ConfigError for a `compared_by` of anything else.
    """
    place, _, variant = reference.partition(":")
    module = _module(place)
    found, by = _several(module), _compared_by(module, place)
    if not found and not variant:
        only = override(_only(module, place), overrides)
        return Compared({only.name: only}, by)
    if variant:
        if not found:
            raise ConfigError(f"{reference}: {place} defines one experiment, or none; leave out :{variant}")
        if variant not in found:
            raise ConfigError(f"{place} has no experiment {variant!r}; {suggest(variant, found)}")
        found = {variant: found[variant]}
    return Compared({name: override(experiment, overrides) for name, experiment in found.items()}, by)


def _only(module: ModuleType, reference: str) -> Experiment:
    """A module's `experiment`. Errors: ConfigError for a module without one, or with something else of that name."""
    found, several = getattr(module, "experiment", None), _several(module)
    if found is None and several:
        first = next(iter(several))
        raise ConfigError(
            f"{reference} defines {len(several)} experiments; run one, such as {reference}:{first}, or all of them: "
            f"umbel compare {reference}"
        )
    if not isinstance(found, Experiment):
        kind = "no `experiment`" if found is None else f"experiment of type {type(found).__name__}"
        raise ConfigError(f"{reference} defines {kind}; expected experiment = Experiment(…)")
    return found


def _several(module: ModuleType) -> dict[str, Experiment]:
    """A module's `experiments`, if it is a mapping to nothing else."""
    found = getattr(module, "experiments", None)
    is_mapping = isinstance(found, dict) and all(isinstance(one, Experiment) for one in found.values())
    return dict(found) if is_mapping and found else {}


def _compared_by(module: ModuleType, reference: str) -> tuple[str, ...]:
    """A module's `compared_by`, each name once; nothing where it has none."""
    found = getattr(module, "compared_by", ())
    names = (found,) if isinstance(found, str) else found
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{reference} defines compared_by={shown(found)}; expected names of metrics, such as "
            '("test_accuracy", "test_loss")'
        )
    return tuple(dict.fromkeys(names))


def experiment_names() -> list[str]:
    """The names that `load_experiment` knows, sorted. Imports none of them."""
    folder = importlib.import_module(PACKAGE).__path__
    return sorted(
        name for _, name, is_package in pkgutil.iter_modules(folder) if not is_package and not name.startswith("_")
    )


def _module(reference: str) -> ModuleType:
    is_path = reference.endswith(".py") or "/" in reference or "\\" in reference
    return _load_file(Path(reference)) if is_path else _load_name(reference)


def _load_name(name: str) -> ModuleType:
    names = experiment_names()
    if name not in names:
        remedy = f"{suggest(name, names)}. " if names else ""
        raise ConfigError(f"unknown experiment {name!r}: {remedy}Or give the path of a .py file")
    module = f"{PACKAGE}.{name}"
    return _imported(name, lambda: importlib.import_module(module))


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    # The digest keeps two files of one stem apart, and a file apart from any installed module of its name.
    name = f"umbel_experiment_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # Not through the byte-code cache, which takes a file edited within a second, at the same size, for unchanged.
        _imported(str(path), lambda: exec(compile(path.read_bytes(), str(path), "exec"), vars(module)))
    except ConfigError:
        del sys.modules[name]
        raise
    return module


def _imported(reference: str, load: Callable[[], T]) -> T:
    """load(), with anything it raises as a ConfigError of one line that says where."""
    try:
        return load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error).strip().split("\n")[0]
        raise ConfigError(f"{_place(reference, error)}: {type(error).__name__}: {reason}") from error


def _place(reference: str, error: BaseException) -> str:
    """reference, with the line at which its own code failed, if it was its own."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).stem == Path(reference).stem
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{reference}, line {line}" if line else reference
