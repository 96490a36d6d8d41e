"""Options that several commands have, and those of `umbel run`: each is written down once."""

from __future__ import annotations

import glob
from typing import Annotated, Literal

import typer

from ..core.errors import UmbelError
from ..core.reading.loading import experiment_names, load_experiment
from ..core.reading.overrides import paths
from .run import DEFAULT_EXPERIMENT


def complete_experiments(incomplete: str) -> list[str]:
    """List the names of experiments, folders and Python files that begin with incomplete."""
    beginning = glob.escape(incomplete)
    files = sorted(glob.glob(f"{beginning}*/") + glob.glob(f"{beginning}*.py"))
    return [name for name in experiment_names() if name.startswith(incomplete)] + files


def complete_settings(context: typer.Context, incomplete: str) -> list[str]:
    """List the dotted paths into the experiment on the command line that begin with incomplete."""
    try:
        experiment = load_experiment(context.params.get("experiment") or DEFAULT_EXPERIMENT)
    except UmbelError:
        return []
    return [f"{path}=" for path in paths(experiment) if path.startswith(incomplete)]


StoreOption = Annotated[
    str,
    typer.Option(metavar="URL", envvar="UMBEL_STORE", help="Where runs are kept: sqlite:///FILE.db or postgresql://…."),
]
StoreKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The key of an encrypted store; umbel keys new makes one. [dim]\\[env: UMBEL_STORE_KEY][/dim]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Number of clients that train side by side. [dim]\\[default: one per processor][/dim]"),
]

# Which run: what is trained, and where
ExperimentArgument = Annotated[str | None, typer.Argument(autocompletion=complete_experiments)]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a setting: rounds=5."),
]
RuntimeOption = Annotated[
    Literal["simulation", "ray", "flower"],
    typer.Option(help="Where clients run: in this process, on a cluster, or over Flower, each a process."),
]
PlayedOption = Annotated[
    Literal["simulation", "ray"],
    typer.Option("--runtime", help="Where clients run: in this process, or on a cluster."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="With Ray: a cluster that this machine is in. [dim]\\[default: one of its own][/dim]"
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(min=0, help="With Ray: the most GPUs, a process on each; 0: none. [dim]\\[default: all][/dim]"),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="With Ray: what clients keep between rounds lies there, where all nodes see it. "
        "[dim]\\[default: in the store][/dim]",
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of all randomness; short for --set seed=….")]
ClientsOption = Annotated[
    int | None,
    typer.Option(help="How many clients share the data. [dim]\\[default: as the experiment says; over Flower 3][/dim]"),
]
FederationOption = Annotated[
    str | None,
    typer.Option(metavar="KIT", help="Over Flower: the operator's kit of a federation that runs (umbel deploy)."),
]
ResumeOption = Annotated[
    str | None, typer.Option(metavar="RUN", help="Continue a run: its id, the beginning of one, or latest.")
]
BackendOption = Annotated[
    Literal["tensorflow", "jax"] | None,
    typer.Option(help="What Keras computes with. [dim]\\[default: KERAS_BACKEND, else TensorFlow][/dim]"),
]
CompileOption = Annotated[
    Literal["auto", "xla", "graph"], typer.Option(help="How to compile; auto: XLA where it is known to pay.")
]
AggregationOption = Annotated[
    Literal["arithmetic", "protocol"],
    typer.Option(help="How a simulation hides updates: as numbers alone, or with every key and mask."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Run clients eagerly: errors name the batch.")]

# What is shown of it
PlotOption = Annotated[str | None, typer.Option(metavar="FILE", help="Draw accuracy and loss: .png, .svg, .pdf.")]
LogOption = Annotated[
    Literal["json", "plain"] | None, typer.Option(help="Write a log to standard error instead of the progress.")
]
MonitorOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there.")
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TRACKER[=PLACE]",
        help="Write the run into tensorboard, mlflow or wandb too, at a folder, URI or project; may be repeated.",
    ),
]
PageOption = Annotated[bool, typer.Option("--ui", help="Show the run in a browser, live.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Try three rounds, keep nothing, and say what the run would take.")
]
