"""`umbel privacy`: what a plan would cost in ε, and the noise that keeps a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import to_json

app = typer.Typer()

NoiseOption = Annotated[float, typer.Option(metavar="Z", help="Standard deviation of the noise over the clip norm.")]
RateOption = Annotated[
    float, typer.Option(metavar="Q", help="Each client's probability of taking part in a round; 1: all always do.")
]
RoundsOption = Annotated[int, typer.Option(metavar="T", help="Number of rounds.")]
DeltaOption = Annotated[float, typer.Option(metavar="D", help="δ: well below one over the number of clients.")]
PopulationOption = Annotated[
    int | None, typer.Option(metavar="N", help="Number of clients; refuses a δ too large for it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def privacy(context: typer.Context) -> None:
    """Compute what training would cost in privacy, before it is run.

    It is that of central differential privacy of whole clients: Poisson cohorts, clipped updates, and Gaussian noise on
    their sum.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def epsilon(
    noise_multiplier: NoiseOption,
    sampling_rate: RateOption,
    rounds: RoundsOption,
    delta: DeltaOption,
    population: PopulationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the ε of so many rounds, by privacy loss distributions and, looser, by Rényi differential privacy."""
    from ..core.validation import require_count
    from ..privacy import accounting

    require_count("rounds", rounds)
    event = accounting.Gaussian(noise_multiplier, sampling_rate)
    found = accounting.epsilon({str(event): rounds}, delta, population=population)
    show({"epsilon_pld": found.pld, "epsilon_rdp": found.rdp}, as_json)


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(metavar="E", help="Budget, in ε.")],
    sampling_rate: RateOption,
    rounds: RoundsOption,
    delta: DeltaOption,
    population: PopulationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the smallest noise multiplier, to 0.001, with which so many rounds cost at most ε."""
    from ..privacy import accounting

    found = accounting.calibrate(epsilon, delta, rounds, sampling_rate, population=population)
    show({"noise_multiplier": found}, as_json)


def show(facts: dict[str, float | None], as_json: bool) -> None:
    """Print a name and a number a line, or one JSON object with every digit."""
    if as_json:
        print(to_json(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {'unknown' if value is None else f'{value:.6g}'}")
