"""`umbel models`: the versions that runs have left in a store, and the names that point at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.reading.loading import experiment_names, load_experiment
from ..core.reading.overrides import settings_of
from .console import accuracy, print_table, to_json
from .options import JsonOption, StoreKeyOption
from .run import DEFAULT_STORE

if TYPE_CHECKING:  # SQLAlchemy is imported when a store is opened
    from ..server.store import ModelVersion, Store

app = typer.Typer()

StoreOption = Annotated[
    str,
    typer.Option(
        metavar="URL", envvar="UMBEL_STORE", help="Store of the versions: sqlite:///FILE.db or postgresql://…."
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION")]


def _opened(store: str, key: str | None) -> Store:
    from ..server.store import Store

    return Store.open(store, create=False, key=key)


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the versions of models that runs have left, and say which of them is in use.

    A version never changes. NAME is its experiment's, VERSION a number, an alias, or latest.
    """
    if context.invoked_subcommand is not None:
        return
    with _opened(store, store_key) as opened:
        found = opened.models.list()
    if as_json:
        for one in found:
            print(to_json(_row(one)))
        return
    print_table(
        ["model", "version", "run", "accuracy", "ε", "aliases", "labels"],
        [
            (
                one.name,
                str(one.version),
                one.run,
                accuracy(one.metrics),
                "" if one.epsilon is None else f"{one.epsilon:.4g}",
                ", ".join(one.aliases),
                ", ".join(one.labels),
            )
            for one in found
        ],
    )


@app.command()
def alias(
    name: NameArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", show_default=False)],
    version: VersionArgument,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Let ALIAS, such as production, point at a version; none lets it point at nothing.

    Rolling back is pointing it at an earlier version. Each move leaves a line in the log.
    """
    with _opened(store, store_key) as opened:
        if version == "none":
            opened.models.remove_alias(name, alias)
        else:
            opened.models.set_alias(name, alias, version)
        print(f"{alias} → {opened.models.aliases(name).get(alias, 'none')}")


@app.command()
def label(
    name: NameArgument,
    version: VersionArgument,
    label: Annotated[str, typer.Argument(metavar="LABEL", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Take the label off.")] = False,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Attach a label to a version, such as reviewed."""
    with _opened(store, store_key) as opened:
        if remove:
            opened.models.unlabel(name, version, label)
        else:
            opened.models.label(name, version, label)


@app.command()
def log(
    name: NameArgument,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where each alias of a model has pointed, first to last."""
    with _opened(store, store_key) as opened:
        opened.models.get(name)  # that there is such a model
        moves = opened.models.alias_history(name)
    if as_json:
        for one in moves:
            print(to_json(one._asdict()))
        return
    rows = [(one.moved[:19].replace("T", " "), one.alias, str(one.version or "none")) for one in moves]
    print_table(["moved (UTC)", "alias", "version"], rows)


@app.command()
def verify(name: NameArgument, store: StoreOption = DEFAULT_STORE, store_key: StoreKeyOption = None) -> None:
    """Check every version of a model: the chain of hashes, signatures where there is a key, and the weights.

    Exits with 2 at the first that was changed.
    """
    with _opened(store, store_key) as opened:
        opened.models.get(name)  # that there is such a model
        count = opened.models.verify(name)
    print(f"{name}: {count} verified")


@app.command()
def export(
    name: NameArgument,
    version: VersionArgument = "latest",
    to: Annotated[
        Literal["npz", "safetensors", "keras", "saved_model", "onnx", "litert"] | None,
        typer.Option(help="The format. [dim]\\[default: by what FILE ends in, else npz][/dim]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write. [dim]\\[default: NAME-VERSION][/dim]"),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The experiment that builds the model. [dim]\\[default: Umbel's own of that name][/dim]",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Write a version, verified, for other programs: its arrays, or the whole model.

    npz and safetensors hold arrays by the paths of their variables; keras, saved_model, onnx and litert (.tflite) the
    model that the experiment builds, with the version's weights.
    """
    from ..studies.export import FORMATS, TrainedModel, checked_format
    from ..studies.export import export as write

    format = to or ("npz" if output is None else checked_format(output, None))
    if output is not None:
        checked_format(output, format)
    with _opened(store, store_key) as opened:
        found, params = opened.models.get(name, version)
        base = opened.models.base(name, found.version)
        built = None if format in ("npz", "safetensors") else _builder(opened, found, experiment)
        choices = {} if built is None else opened.load_run(found.run).choices
    notes = {"model": name, "version": str(found.version), "hash": found.hash, "run": found.run}
    path = output or Path(f"{name}-{found.version}{FORMATS[format]}")
    write(TrainedModel(found.spec, params, base, built, choices, notes), path, format)
    print(path)


def _builder(store: Store, version: ModelVersion, reference: str | None) -> Experiment:
    """Return the experiment that builds a version's model, with the settings of its run.

    Errors: ConfigError where it is not one of Umbel's own, and no file is named.
    """
    if reference is None and version.name not in experiment_names():
        raise ConfigError(
            f"model {version.name!r} is of an experiment that is not Umbel's own; say where it is built: "
            "--experiment FILE.py"
        )
    reference = reference or version.name
    settings: list[str] = []
    if reference in experiment_names():
        settings = settings_of(load_experiment(reference), store.load_run(version.run).description)
    return load_experiment(reference, settings)


def _row(one: ModelVersion) -> dict[str, Any]:
    """Return a version as JSON shows it."""
    return {
        "model": one.name,
        "version": one.version,
        "run": one.run,
        "metrics": one.metrics,
        "epsilon": one.epsilon,
        "parent": one.parent,
        "created": one.created,
        "params_sha256": one.params_sha256,
        "hash": one.hash,
        "labels": list(one.labels),
        "aliases": list(one.aliases),
    }
