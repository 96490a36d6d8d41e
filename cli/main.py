"""The `umbel` command. SQLAlchemy, Flower and TensorFlow are imported by the commands that need them."""

from __future__ import annotations

import ast
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from ..core.errors import ClientError, UmbelError
from ..core.reading.loading import experiment_names, load_experiment
from ..core.system.backend import use_backend
from ..core.validation import require
from ..server.history import History
from ..server.monitoring.watching import logged, monitored, was_logged
from ..server.tracking import tracker_named
from .audit import audit
from .compare import compare_command
from .console import (
    JsonLines,
    accuracy,
    check_plot_path,
    ended_by_signals,
    exclusive_output,
    print_table,
    progress,
    save_plot,
    summary,
    to_json,
)
from .deploy import client, deploy, server
from .keys import app as keys
from .models import app as models
from .new import new
from .options import (
    AddressOption,
    AggregationOption,
    BackendOption,
    ClientsOption,
    CompileOption,
    DebugOption,
    DryRunOption,
    ExperimentArgument,
    FederationOption,
    GpusOption,
    JsonOption,
    LogOption,
    MemoryOption,
    MonitorOption,
    PageOption,
    PlotOption,
    QuietOption,
    ResumeOption,
    RuntimeOption,
    SeedOption,
    SettingsOption,
    StoreKeyOption,
    StoreOption,
    TrackOption,
    WorkersOption,
)
from .privacy import app as privacy
from .replay import replay_command
from .report import report
from .run import DEFAULT_STORE, Paused, Request, at_federation, launch
from .store import app as store_commands
from .sweep import sweep_command
from .ui import shown_beside, ui

EXAMPLES = """
[bold]umbel run[/bold] [dim]# trains digits_fedavg: offline, in seconds[/dim]

[bold]umbel run mnist_2nn --set local.epochs=5[/bold] [dim]# changes a setting[/dim]

[bold]umbel run mine.py --json > rounds.jsonl[/bold] [dim]# your own; a line per round[/dim]

[bold]umbel run --resume latest[/bold] [dim]# goes on where a run was interrupted[/dim]
"""

INTERRUPTED = 130  # status that Typer gives a command which Ctrl-C ended

app = typer.Typer(
    name="umbel",
    help="Federated learning for Keras: simulate a million clients, or run the same experiment on real devices.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    suggest_commands=False,  # click suggests them already
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def umbel(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Show the version, or the help where no command is named."""
    if show_version:
        print(f"umbel {version('umbel')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    experiment: ExperimentArgument = None,
    settings: SettingsOption = None,
    runtime: RuntimeOption = "simulation",
    workers: WorkersOption = None,
    seed: SeedOption = None,
    clients: ClientsOption = None,
    federation: FederationOption = None,
    address: AddressOption = None,
    gpus: GpusOption = None,
    memory: MemoryOption = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    resume: ResumeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    backend: BackendOption = None,
    compile: CompileOption = "auto",
    aggregation: AggregationOption = "arithmetic",
    debug: DebugOption = False,
    plot: PlotOption = None,
    log: LogOption = None,
    monitor: MonitorOption = None,
    track: TrackOption = None,
    show: PageOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train an experiment: a name that `umbel experiments` lists, or a .py file that defines `experiment`.

    The default is digits_fedavg. Every round is stored: a run can be killed at any moment, and resumed.
    """
    if backend is not None:
        use_backend(backend)
    request = Request(
        reference=experiment,
        settings=[*([] if seed is None else [f"seed={seed}"]), *(settings or [])],
        runtime=runtime,
        workers=workers,
        clients=clients,
        federation=federation,
        address=address,
        gpus=gpus,
        memory=memory,
        store=store,
        store_key=store_key,
        resume=resume,
        compile=compile,
        aggregation=aggregation,
        debug=debug,
    )
    if dry_run:
        from . import rehearsal

        rehearsal.show(request, exclusive_output() if as_json else None)
        return
    shown = Shown(
        as_json=as_json, quiet=quiet, plot=plot, log=log, monitor=monitor, page=show, track=tuple(track or ())
    )
    launch_shown(request, shown)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Ways in which a run is shown, and where."""

    as_json: bool
    quiet: bool
    plot: str | None
    log: Literal["json", "plain"] | None
    monitor: str | None
    page: bool
    track: Sequence[str] = ()  # trackers, as `tracker_named` takes them


def launch_shown(request: Request, shown: Shown) -> None:
    """Play a run to its end, and show it as is asked."""
    output = exclusive_output() if shown.as_json else None
    if request.debug and shown.log is None:
        logging.basicConfig(level=logging.INFO)
    if shown.plot:
        check_plot_path(shown.plot)
    trackers = [tracker_named(text) for text in shown.track]
    printed, key, is_here = [JsonLines(output)] if output else [], request.store_key, request.federation is None
    own = request.store if is_here else None  # a federation's store is its server's to answer for
    at = request.store if is_here else at_federation(request).store
    with shown_beside(shown.page, at, key) as pages:
        bar = progress(shown.quiet or bool(shown.log))
        with logged(shown.log) as logs, monitored(shown.monitor, own, key) as metrics, bar as bars:
            ended = launch(request, [*bars, *logs, *metrics, *pages, *trackers, *printed])
        if shown.plot:
            save_plot(ended.history, shown.plot)
        if not output and not shown.quiet:
            print(summary(ended, shown.plot))


@app.command()
def experiments(as_json: JsonOption = False) -> None:
    """List the experiments that come with Umbel."""

    folder = Path(__file__).parents[1] / "experiments"
    # Read, not imported: a list should not need what an experiment needs.
    texts = {
        name: ast.get_docstring(ast.parse((folder / f"{name}.py").read_text("utf-8"))) for name in experiment_names()
    }
    rows = [{"name": name, "description": (text or "").split("\n")[0]} for name, text in texts.items()]
    if as_json:
        for row in rows:
            print(to_json(row))
    else:
        print_table(["name", "description"], [list(row.values()) for row in rows])


@app.command()
def runs(store: StoreOption = DEFAULT_STORE, store_key: StoreKeyOption = None, as_json: JsonOption = False) -> None:
    """List the runs of a store, newest first."""
    from ..server.store import Store

    with Store.open(store, create=False, key=store_key) as opened:
        found = opened.runs()
    if as_json:
        for one in found:
            row = {"run": one.run, "experiment": one.experiment, "state": one.state, "rounds": one.rounds_done}
            print(to_json(row | {"rounds_planned": one.rounds_planned, "created": one.created, "metrics": one.metrics}))
        return
    print_table(
        ["run", "experiment", "state", "rounds", "accuracy", "begun (UTC)"],
        [
            (
                one.run,
                one.experiment,
                one.state,
                f"{one.rounds_done}/{one.rounds_planned}",
                accuracy(one.metrics),
                one.created[:16].replace("T", " "),
            )
            for one in found
        ],
    )


@app.command()
def plot(
    run: Annotated[
        str, typer.Argument(help="A run: its id, the beginning of one, latest. Or an experiment.")
    ] = "latest",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write, a .png, .svg or .pdf. [dim]\\[default: RUN.png, NAME-clients.png][/dim]",
        ),
    ] = None,
    settings: SettingsOption = None,
    clients: Annotated[int, typer.Option(min=1, help="Of an experiment: how many of its clients are drawn.")] = 50,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Draw a stored run's accuracy and loss; or, of an experiment (a name, or a .py file), which client has what."""
    from ..server.store import Store

    if output:
        check_plot_path(output)
    if run.endswith(".py") or run in experiment_names():
        from ..studies.plots import save_population

        experiment = load_experiment(run, settings or [])
        path = output or f"{experiment.name}-clients.png"
        save_population(experiment.population, clients, path)
        print(path)
        return
    require(not settings, "--set is of an experiment; a stored run is as it was")
    with Store.open(store, create=False, key=store_key) as opened:
        stored = opened.load_run(run)
    path = output or f"{stored.run}.png"
    save_plot(History(stored.name, tuple(stored.records), stored.server_state.params, stored.spec, stored.run), path)
    print(path)


app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("replay")(replay_command)
app.command()(audit)
app.command()(ui)
app.command()(report)
app.command()(new)
app.add_typer(models, name="models")
app.add_typer(store_commands, name="store")
app.add_typer(deploy, name="deploy")
app.add_typer(server, name="server")
app.add_typer(client, name="client")
app.add_typer(keys, name="keys")
app.add_typer(privacy, name="privacy")


def main() -> None:
    """Run the command line, say in one line what went wrong, and exit with the contract's status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ε should not end a run
    sys.exit(execute(sys.argv[1:]))


def execute(words: Sequence[str]) -> int:
    """Run a command line; return its exit status. Bugs, and user code that fails, keep their traceback."""
    with ended_by_signals() as received:
        status = typed(words)
    if status == INTERRUPTED and received:
        say("asked to stop")
        return 128 + received[-1]
    return status


def typed(words: Sequence[str]) -> int:
    """Same as `execute`, but for signals."""
    debug = "--debug" in words
    try:
        return app(list(words), prog_name="umbel", standalone_mode=False) or 0
    except click.ClickException as error:
        say(f"{error.format_message().rstrip('.')}; see umbel --help")
        return error.exit_code
    except click.Abort:  # of a question
        say("nothing was done")
        return 1
    except UmbelError as error:
        if debug and not isinstance(error, Paused):
            traceback.print_exc()
        hint = "; --debug names the batch" if isinstance(error, ClientError) and not debug else ""
        if not was_logged(error):
            say(f"{error}{hint}")
        return error.exit_status


def say(message: str) -> None:
    """Print one line on standard error."""
    print(f"umbel: {' '.join(message.split())}", file=sys.stderr)
