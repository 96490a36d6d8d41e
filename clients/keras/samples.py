"""A sample of what clients hold, which a model is built and tried on."""

from __future__ import annotations

from ...core.bases import Population
from ...core.examples import Examples


def sample_of(population: Population) -> Examples:
    """Return one example at least, like those of every client.

    Where the clients' examples lie on devices alone, it is the population's own sample.
    """
    resident = population.resident()
    return resident if resident is not None else population.sample()
