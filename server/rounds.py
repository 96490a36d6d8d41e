"""One round, over any runtime: cohort → broadcast → total → new params. Nothing here is kept between calls."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ..core.errors import RunStopped
from ..core.experiment import Experiment
from ..core.faults import crash_point
from ..core.random import derive
from ..core.types import Broadcast, Failure, RoundRecord, RoundResult, Runtime, ServerState


def play_round(
    experiment: Experiment, runtime: Runtime, state: ServerState, records: Sequence[RoundRecord] = ()
) -> tuple[ServerState, RoundRecord, Sequence[Failure]]:
    """The round after `state`. Returns the new state, what there is to say about the round, and who failed.

    Errors: RunStopped with fewer than min_clients valid updates, a total weight of 0, or params that are not finite;
    the state passed in is still good then.
    """
    number = state.round + 1
    key = derive(experiment.seed, "round", number)
    started = time.perf_counter()
    cohort = experiment.sampler.sample(runtime.client_ids(), experiment.population.sizes, key.derive("cohort"))
    rate = experiment.local.learning_rate_at(number, records)
    extra = experiment.strategy.broadcast(state.strategy)
    crash_point("before-training", number)
    result = runtime.collect(Broadcast(number, state.params, extra, state.transforms, rate), cohort, key)
    _check_enough(experiment, number, result)
    transforms, total = experiment.transforms.decode(state.transforms, result.total, key.derive("decode"))
    mean = total.mean()
    strategy, params = experiment.strategy.update(state.strategy, state.params, mean)
    seconds = time.perf_counter() - started
    if not np.isfinite(params).all():
        raise RunStopped(f"round {number}: the new params are not finite; lower the learning rate (it was {rate})")
    crash_point("after-aggregation", number)
    record = RoundRecord(
        round=number,
        clients=total.clients,
        failures=len(result.failures),
        metrics={f"train_{name}": value for name, value in mean.metrics.items()},
        seconds=seconds,
        eval_seconds=None,
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        epsilon=None,
    )
    return (
        ServerState(number, params.astype(np.float32, copy=False), strategy, transforms, state.ledger),
        record,
        result.failures,
    )


def evaluate(experiment: Experiment, runtime: Runtime, state: ServerState, record: RoundRecord) -> RoundRecord:
    """record with test metrics and the clients' validation metrics (mean, 10th, 50th, 90th percentile) added."""
    started = time.perf_counter()
    metrics = dict(record.metrics)
    examples = experiment.test_examples()
    if examples is not None:
        found = runtime.evaluate(state.params, examples)
        metrics |= {f"test_{name}": value.mean() for name, value in found.items()}
    if experiment.validation is not None:
        clients = runtime.evaluate_clients(state.params, range(len(experiment.validation)))
        metrics |= {f"validation_{name}": value.mean() for name, value in clients.total.items()}
        for name, values in clients.per_client.items():
            for percent in (10, 50, 90):
                metrics[f"validation_{name}_p{percent}"] = float(np.nanpercentile(values, percent))
    return record._replace(metrics=metrics, eval_seconds=time.perf_counter() - started)


def _check_enough(experiment: Experiment, number: int, result: RoundResult) -> None:
    """Raise RunStopped when there is nothing, or too little, to aggregate."""
    failures, total = result.failures, result.total
    if total.clients < experiment.min_clients:
        reasons = sorted({failure.reason for failure in failures})
        example = f"; client {failures[0].client}: {failures[0].detail}" if failures else ""
        remedy = ". Lower local.learning_rate or check the model's loss" if reasons == ["non_finite"] else ""
        raise RunStopped(
            f"round {number}: {total.clients} valid updates, expected at least {experiment.min_clients} "
            f"({len(failures)} failed: {', '.join(reasons) or 'nobody was sampled'}{example}){remedy}"
        )
    if not total.weight > 0:
        raise RunStopped(f"round {number}: the {total.clients} updates have a total weight of {total.weight:g}")
