"""XLA or not, measured on the user's own model: on a CPU it is many times slower for convolutions."""

from __future__ import annotations

import logging
import time

import numpy as np

from ..core.examples import Examples
from ..core.random import derive
from ..core.types import NOTHING, Broadcast
from .worker import Worker

log = logging.getLogger(__name__)

WORTHWHILE_SECONDS = 20.0  # a shorter run does not repay XLA's compilation, a few seconds per worker
ADVANTAGE = 1.2  # below this, timing noise would decide, and graph mode starts sooner
TIMED_BATCHES = 3


def choose_xla(worker: Worker, data: Examples, rows: np.ndarray) -> bool:
    """Whether worker's experiment should compile with XLA.

    Times a few full batches both ways, XLA's compilation aside. Graph mode where batches have no fixed size
    (batch_size=None or no client with a full batch) or the whole run is expected to be short.
    """
    experiment = worker.experiment
    batch = experiment.local.batch_size
    sizes = experiment.population.sizes()
    if not batch or sizes.mean() < batch or len(rows) < batch:
        return False
    rows = np.resize(rows, TIMED_BATCHES * batch)
    graph = _seconds_per_batch(worker, data, rows)
    per_round = float(sizes.mean()) / batch * experiment.local.epochs * _cohort(worker)
    expected = graph * per_round * experiment.rounds
    if expected < WORTHWHILE_SECONDS:
        return False
    worker.xla = True
    worker.forget_programs()
    xla = _seconds_per_batch(worker, data, rows)
    worker.xla = False
    worker.forget_programs()
    chosen = graph > ADVANTAGE * xla
    log.info(
        "%s: a batch takes %.2f ms with XLA, %.2f ms without", "XLA" if chosen else "no XLA", 1e3 * xla, 1e3 * graph
    )
    return chosen


def _cohort(worker: Worker) -> float:
    """Clients per round, as far as the sampler tells."""
    sampler, clients = worker.experiment.sampler, len(worker.experiment.population)
    return float(getattr(sampler, "size", getattr(sampler, "rate", 1.0) * clients))


def _seconds_per_batch(worker: Worker, data: Examples, rows: np.ndarray) -> float:
    """Seconds per full batch; the first call, which traces and compiles, is not counted."""
    broadcast = Broadcast(0, worker.initial_params, NOTHING, worker.experiment.transforms.init(worker.spec), None)
    key = derive(0, "choice")
    worker.train(broadcast, 0, key, data, rows)
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        worker.train(broadcast, 0, key, data, rows)
        best = min(best, time.perf_counter() - start)
    return best / (TIMED_BATCHES * worker.experiment.local.epochs)
