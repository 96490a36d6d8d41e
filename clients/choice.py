"""XLA or not, measured on the user's own model: on a CPU it is many times slower for convolutions."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..core.examples import Examples
from ..core.experiment import Experiment
from ..core.random import derive
from ..core.types import Broadcast
from .worker import Worker

log = logging.getLogger(__name__)

WORTHWHILE_SECONDS = 20.0  # a shorter run does not repay XLA's compilation, a few seconds per worker
PROBE_SECONDS = 0.3  # of one timed call, unless a single batch takes longer


def choose_xla(team: Sequence[Worker], data: Sequence[Examples], rows: np.ndarray) -> bool:
    """Whether the workers of a team should compile with XLA. data: what rows refer to, on each worker's device.

    Times clients of the mean size both ways, XLA's compilation aside, all workers at once, since they compete for the
    same cores; fewer batches where batches are slow. Graph mode where batches have no fixed size (batch_size=None, or
    clients smaller than one batch) or the whole run is expected to be short.
    """
    experiment = team[0].experiment
    batch, mean = experiment.local.batch_size, float(experiment.population.sizes().mean())
    if not batch or mean < batch or not len(rows):
        return False
    steps = int(mean / batch)
    graph = _seconds_per_batch(team, data, rows, steps)
    expected = graph * steps * experiment.local.mean_epochs * _cohort(experiment) * experiment.rounds / len(team)
    if expected < WORTHWHILE_SECONDS:
        return False
    for worker in team:
        worker.use_xla(True)
    xla = _seconds_per_batch(team, data, rows, steps)
    chosen = xla < graph  # both are compiled by now: nothing else speaks for either
    log.info(
        "a batch takes %.2f ms with XLA, %.2f ms without: %s", 1e3 * xla, 1e3 * graph, "XLA" if chosen else "no XLA"
    )
    return chosen


def _cohort(experiment: Experiment) -> float:
    """Clients per round, as far as the sampler tells."""
    sampler, clients = experiment.sampler, len(experiment.population)
    return float(getattr(sampler, "size", getattr(sampler, "rate", 1.0) * clients))


def _seconds_per_batch(team: Sequence[Worker], data: Sequence[Examples], rows: np.ndarray, steps: int) -> float:
    """Seconds in which every worker does a full batch: of `steps` a call, or of as many as PROBE_SECONDS allow."""
    experiment, spec = team[0].experiment, team[0].spec
    params, strategy = team[0].initial_params, experiment.strategy
    extra = strategy.broadcast(strategy.init(params))
    broadcast = Broadcast(1, params, extra, experiment.transforms.init(spec), None)
    batch = experiment.local.batch_size or 1
    epochs = int(experiment.local.epochs_of(np.zeros(1, np.int64), broadcast.round, experiment.seed)[0])

    with ThreadPoolExecutor(len(team)) as pool:

        def seconds(steps: int) -> float:
            visited = np.resize(rows, steps * batch)
            start = time.perf_counter()
            list(pool.map(lambda worker, own: worker.train(broadcast, 0, derive(0), own, visited), team, data))
            return (time.perf_counter() - start) / (steps * epochs)

        seconds(1)  # traces and compiles
        single = seconds(1)
        allowed = max(1, min(steps, int(PROBE_SECONDS / (single * epochs))))
        return min(seconds(allowed) for _ in range(3)) if allowed > 1 else single
