"""Experiments found by their name in `umbel.experiments`, or by the path of a file."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from ..errors import ConfigError
from ..experiment import Experiment
from ..system.backend import require_backend
from ..validation import shown, suggest
from .beside import PREFIX, run_file
from .overrides import override

T = TypeVar("T")

PACKAGE = f"{__name__.partition('.')[0]}.experiments"


class Compared(NamedTuple):
    """The experiments that a module or a file defines, to be run side by side."""

    experiments: dict[str, Experiment]  # {name: experiment}, at least one
    by: tuple[str, ...]  # metrics of the module's `compared_by`; none where it names none


def load_experiment(reference: str, overrides: Sequence[str] = ()) -> Experiment:
    """Load the `experiment` of a module of `umbel.experiments` ("digits_fedavg") or of a file ("work/mine.py").

    overrides: `key=value` assignments, applied left to right. A file is run anew at each call, with the modules beside
    it that it imports (see `core/reading/beside.py`); they stay in `sys.modules`, so that what they define can be
    pickled.
    Errors: ConfigError for an unknown name (with the nearest one), a missing file, a file that fails, or one that
    defines no Experiment.
    """
    if ":" in reference and not Path(reference).exists():
        return next(iter(load_experiments(reference, overrides).values()))
    return override(_only(_module(reference), reference), overrides)


def load_experiments(reference: str, overrides: Sequence[str] = ()) -> dict[str, Experiment]:
    """Load every experiment that a module or file defines, by name: its mapping `experiments`, or its one `experiment`.

    "NAME:VARIANT" is one of a mapping. Errors: as for `load_experiment`; ConfigError for an unknown variant.
    """
    return load_compared(reference, overrides).experiments


def load_compared(reference: str, overrides: Sequence[str] = ()) -> Compared:
    """Load experiments as `load_experiments` does, with the metrics of the module's `compared_by`, a tuple of names.

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
    """Return a module's `experiment`.

    Errors: ConfigError for a module without one, or with something else of that name.
    """
    found, several = getattr(module, "experiment", None), _several(module)
    others = [name for name, value in vars(module).items() if isinstance(value, Experiment)]
    if found is None and several:
        first = next(iter(several))
        raise ConfigError(
            f"{reference} defines {len(several)} experiments; run one, such as {reference}:{first}, or all of them: "
            f"umbel compare {reference}"
        )
    if found is None and others:
        raise ConfigError(
            f"{reference} defines {' and '.join(others[:3])}, and no `experiment`: call one of them so, or put them "
            "into experiments = {name: …}"
        )
    if found is None and hasattr(module, "experiments"):
        listed = shown(module.experiments)
        raise ConfigError(f"{reference} defines experiments={listed}; expected experiments = {{name: Experiment(…)}}")
    if not isinstance(found, Experiment):
        kind = "no `experiment`" if found is None else f"experiment of type {type(found).__name__}"
        raise ConfigError(f"{reference} defines {kind}; expected experiment = Experiment(…)")
    return found


def _several(module: ModuleType) -> dict[str, Experiment]:
    """Return a module's `experiments`, if it is a mapping to nothing else; else an empty one."""
    found = getattr(module, "experiments", None)
    is_mapping = isinstance(found, dict) and all(isinstance(one, Experiment) for one in found.values())
    return dict(found) if is_mapping and found else {}


def _compared_by(module: ModuleType, reference: str) -> tuple[str, ...]:
    """Return a module's `compared_by`, each name once; nothing where it has none."""
    found = getattr(module, "compared_by", ())
    names = (found,) if isinstance(found, str) else found
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{reference} defines compared_by={shown(found)}; expected names of metrics, such as "
            '("test_accuracy", "test_loss")'
        )
    return tuple(dict.fromkeys(names))


def experiment_names() -> list[str]:
    """List the names that `load_experiment` knows, sorted. Imports none of them."""
    folder = importlib.import_module(PACKAGE).__path__
    return sorted(
        name for _, name, is_package in pkgutil.iter_modules(folder) if not is_package and not name.startswith("_")
    )


def source_digest(reference: str) -> str:
    """Return the SHA-256 of the file that a reference names, as in "mine.py" or "mine.py:NAME"; "" where it is none."""
    path, suffix, _ = reference.rpartition(".py")
    try:
        return hashlib.sha256(Path(f"{path}.py").expanduser().read_bytes()).hexdigest() if suffix else ""
    except OSError:
        return ""


def _module(reference: str) -> ModuleType:
    require_backend()
    is_path = reference.endswith(".py") or "/" in reference or "\\" in reference
    return _load_file(Path(reference)) if is_path else _load_name(reference)


def _load_name(name: str) -> ModuleType:
    names = experiment_names()
    if name not in names:
        remedy = f"{_suggested(name, names)}. " if names else ""
        if Path(f"{name}.py").is_file():
            remedy = f"did you mean the file {name}.py? "
        elif name and Path(name).exists():
            raise ConfigError(f"{name} is no Python file; give the path of a .py file that defines `experiment`")
        raise ConfigError(f"unknown experiment {name!r}: {remedy}Or give the path of a .py file")
    module = f"{PACKAGE}.{name}"
    return _imported(name, lambda: importlib.import_module(module))


def _suggested(name: str, names: Sequence[str]) -> str:
    """Return the tail of an error about an unknown name: the first that begins with it, or as `suggest`."""
    longer = [one for one in names if name and one.startswith(name)]
    if not longer:
        return suggest(name, names)
    others = f" Others that begin so: {', '.join(longer[1:])}" if longer[1:] else ""
    return f"did you mean {longer[0]!r}?{others}"


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
        remedy = f"; did you mean {near[0]}?" if near and near[0] != path.name else ""
        raise ConfigError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}{remedy}")
    return _imported(str(path), lambda: run_file(path))


def _imported(reference: str, load: Callable[[], T]) -> T:
    """Call load(), with anything it raises as a ConfigError of one line that says where."""
    try:
        return load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        text = error.msg if isinstance(error, SyntaxError) else str(error).strip().split("\n")[0]
        reason = re.sub(rf"\b{PREFIX}\w+\.", "", text)  # what lies beside a file is known by its own name
        raise ConfigError(f"{_place(reference, error)}: {type(error).__name__}: {reason}") from error


def _place(reference: str, error: BaseException) -> str:
    """Return the line at which an experiment's own code failed, or that of a module beside it; else reference alone."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    lines = [
        f"{frame.f_code.co_filename if '/' in reference else reference}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if (name := str(frame.f_globals.get("__name__"))).startswith(PREFIX) or name == f"{PACKAGE}.{reference}"
    ]
    return lines[-1] if lines else reference
