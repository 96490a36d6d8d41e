"""The `umbel` command. SQLAlchemy, Flower and TensorFlow are imported by the commands that need them."""

from __future__ import annotations

import ast
import glob
import logging
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from .commands_audit import audit
from .commands_compare import compare_command
from .commands_deploy import client, deploy, server
from .commands_keys import app as keys
from .commands_models import app as models
from .commands_privacy import app as privacy
from .commands_store import app as store_commands
from .console import (
    JsonLines,
    accuracy,
    check_plot_path,
    exclusive_output,
    print_table,
    progress,
    save_plot,
    summary,
    to_json,
)
from .core.errors import ClientError, UmbelError
from .core.loading import experiment_names, load_experiment
from .core.overrides import paths
from .launch import DEFAULT_EXPERIMENT, DEFAULT_STORE, Paused, Request, launch
from .server.history import History
from .watching import logged, monitored, was_logged

EXAMPLES = """
[bold]umbel run[/bold] [dim]# trains digits_fedavg: offline, in seconds[/dim]

[bold]umbel run mnist_2nn --set local.epochs=5[/bold] [dim]# changes a setting[/dim]

[bold]umbel run mine.py --json > rounds.jsonl[/bold] [dim]# your own; a line per round[/dim]

[bold]umbel run --resume latest[/bold] [dim]# goes on where a run was interrupted[/dim]
"""

app = typer.Typer(
    name="umbel",
    help="Federated learning for Keras: simulate a million clients, or run the same experiment on real devices.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    suggest_commands=False,  # click suggests them already
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_experiments(incomplete: str) -> list[str]:
    """Names of experiments, folders and Python files that begin with incomplete."""

    beginning = glob.escape(incomplete)
    files = sorted(glob.glob(f"{beginning}*/") + glob.glob(f"{beginning}*.py"))
    return [name for name in experiment_names() if name.startswith(incomplete)] + files


def complete_settings(context: typer.Context, incomplete: str) -> list[str]:
    """Dotted paths into the experiment on the command line that begin with incomplete."""

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
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]


@app.callback(invoke_without_command=True)
def umbel(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """What holds for every command."""
    if show_version:
        print(f"umbel {version('umbel')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    experiment: Annotated[
        str | None,
        typer.Argument(autocompletion=complete_experiments),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a setting: rounds=5."
        ),
    ] = None,
    runtime: Annotated[
        Literal["simulation", "flower"],
        typer.Option(help="Where clients run: in this process, or over Flower, each a process."),
    ] = "simulation",
    workers: Annotated[
        int | None, typer.Option(help="Clients side by side. [dim]\\[default: one per processor][/dim]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=….")] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            help="How many clients share the data. [dim]\\[default: as the experiment says; over Flower 3][/dim]"
        ),
    ] = None,
    federation: Annotated[
        str | None,
        typer.Option(metavar="KIT", help="Over Flower: the operator's kit of a federation that runs (umbel deploy)."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run: its id, the beginning of one, or latest.")
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
    compile: Annotated[
        Literal["auto", "xla", "graph"], typer.Option(help="How to compile; auto measures where that may pay.")
    ] = "auto",
    aggregation: Annotated[
        Literal["arithmetic", "protocol"],
        typer.Option(help="How a simulation hides updates: as numbers alone, or with every key and mask."),
    ] = "arithmetic",
    debug: Annotated[bool, typer.Option("--debug", help="Run clients eagerly; errors name the batch.")] = False,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw accuracy and loss: .png, .svg, .pdf.")] = None,
    log: Annotated[
        Literal["json", "plain"] | None, typer.Option(help="Write a log to standard error instead of the progress.")
    ] = None,
    monitor: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there.")
    ] = None,
) -> None:
    """Train an experiment: a name that `umbel experiments` lists, or a .py file that defines `experiment`.

    Without one, digits_fedavg. Every round is committed to the store: a run can be killed at any moment, and resumed.
    """

    output = exclusive_output() if as_json else None
    if debug and log is None:
        logging.basicConfig(level=logging.INFO)
    if plot:
        check_plot_path(plot)
    shorthands = [f"seed={seed}"] if seed is not None else []
    request = Request(
        experiment,
        [*shorthands, *(settings or [])],
        runtime,
        workers,
        clients,
        store,
        resume,
        compile,
        debug,
        aggregation,
        store_key,
        federation,
    )
    printed = [JsonLines(output)] if output else []
    own = store if federation is None else None  # a federation's store is its server's to answer for
    with logged(log) as logs, monitored(monitor, own, store_key) as metrics, progress(quiet or bool(log)) as shown:
        ended = launch(request, [*shown, *logs, *metrics, *printed])
    if plot:
        save_plot(ended.history, plot)
    if not output and not quiet:
        print(summary(ended, plot))


@app.command()
def experiments(as_json: JsonOption = False) -> None:
    """List the experiments that come with Umbel."""

    folder = Path(__file__).parent / "experiments"
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
    from .server.store import Store

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
    run: Annotated[str, typer.Argument()] = "latest",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .png, .svg or .pdf. [dim]\\[default: RUN.png][/dim]"),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    store_key: StoreKeyOption = None,
) -> None:
    """Draw a stored run's accuracy and loss. RUN is its id, the beginning of one, or latest."""
    from .server.store import Store

    if output:
        check_plot_path(output)
    with Store.open(store, create=False, key=store_key) as opened:
        stored = opened.load_run(run)
    path = output or f"{stored.run}.png"
    save_plot(History(stored.name, tuple(stored.records), stored.server_state.params, stored.spec, stored.run), path)
    print(path)


app.command("compare")(compare_command)
app.command()(audit)
app.add_typer(models, name="models")
app.add_typer(store_commands, name="store")
app.add_typer(deploy, name="deploy")
app.add_typer(server, name="server")
app.add_typer(client, name="client")
app.add_typer(keys, name="keys")
app.add_typer(privacy, name="privacy")


def main() -> None:
    """The entry point: runs the command line, says in one line what went wrong, exits with the contract's status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ε should not end a run
    sys.exit(execute(sys.argv[1:]))


def execute(words: Sequence[str]) -> int:
    """Run a command line; its exit status. Bugs, and user code that fails, keep their traceback."""
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
    """One line on standard error."""
    print(f"umbel: {' '.join(message.split())}", file=sys.stderr)
