"""One round, over any runtime: cohort → broadcast → total → new params. Nothing here is kept between calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from ..core.clusters import CLUSTER, is_clustered
from ..core.compatible import spent
from ..core.errors import RunStopped
from ..core.experiment import Experiment
from ..core.faults import crash_point
from ..core.folds import BLOCK
from ..core.protocols import Runtime
from ..core.random import Key, derive
from ..core.spec import ModelSpec
from ..core.types import NOTHING, Broadcast, Failure, Mean, RoundRecord, RoundResult, ServerState, Total, Vector
from .clock import METRIC, VirtualClock
from .feedback import Reweighing, sampled, updated
from .statistics import followed

Spend = Callable[[Mapping[str, int]], None]


def play_round(
    experiment: Experiment,
    runtime: Runtime,
    state: ServerState,
    records: Sequence[RoundRecord] = (),
    spend: Spend = lambda ledger: None,
    spec: ModelSpec | None = None,
) -> tuple[ServerState, RoundRecord, Sequence[Failure]]:
    """The round after `state`. Returns the new state, what there is to say about the round, and who failed.

    spend: puts a plan's ledger on record; called before anything that it pays for is released.
    spec: of the model, as `runtime.open` returned it: its statistics follow the clients' mean, whatever the strategy.
    None: it has none.
    Errors: RunStopped with fewer than min_clients valid updates, a total weight of 0, params that are not finite, or a
    round that the plan's budget does not allow; the state passed in is still good then.
    """
    number, plan = state.round + 1, experiment.plan
    key = derive(experiment.seed, "round", number)
    # On real devices neither the cohort nor the noise may follow from a seed: both have to stay secret.
    server_key = Key.fresh() if plan is not None and runtime.is_live else key
    decode_key = (Key.fresh() if runtime.is_live else server_key).derive("decode")
    ledger = state.ledger if plan is None else plan.charge(state.ledger)
    if plan is not None:
        plan.check_budget(ledger)
    started = time.perf_counter()
    clients, clock = runtime.client_ids(), VirtualClock.of(experiment, runtime, records)
    candidates = clients if clock is None else clock.reachable(clients)
    check_reachable(experiment, number, candidates)
    rate = experiment.local.learning_rate_at(number, records)
    extra = experiment.strategy.broadcast(state.strategy)
    broadcast = Broadcast(number, state.params, extra, state.transforms, rate)
    cohort = sampled(experiment, state, broadcast, candidates, clock, server_key.derive("cohort"))
    crash_point("before-training", number)
    if plan is not None and plan.clients_release:
        spend(ledger)
    players = runtime if experiment.reweighting is None else Reweighing(experiment, runtime, state)
    collect = players.collect if clock is None else partial(clock.collect, players)
    result = collect(broadcast, cohort, key)
    check_enough(experiment, number, result, cohort)
    if plan is not None and not plan.clients_release:
        spend(ledger)
    before = state._replace(ledger=ledger)
    mean, before = averaged(experiment, before, broadcast, result.total, len(clients), decode_key)
    result = result._replace(total=without_vectors(result.total))  # as large as the model that is made next
    after, record = conclude(experiment, before, broadcast, mean, result, spec)
    timed = {} if clock is None else {METRIC: clock.now}
    record = record._replace(seconds=time.perf_counter() - started, metrics={**record.metrics, **timed})
    crash_point("after-aggregation", number)
    return after, record, result.failures


def averaged(
    experiment: Experiment, state: ServerState, broadcast: Broadcast, total: Total, clients: int, key: Key
) -> tuple[Mean, ServerState]:
    """The mean of a round's sum, decoded, and the state, with the transforms' after it.

    state: before the round, its ledger after. clients: of the whole federation. key: for decoding.
    """
    total = total if total.clients else _nothing(experiment, broadcast, total)
    transforms, total = experiment.transforms.decode(state.transforms, total, key)
    everyone = float(experiment.population.sizes().sum()) if experiment.weighting == "examples" else float(clients)
    return total.mean()._replace(participation=total.weight / everyone), state._replace(transforms=transforms)


def without_vectors(total: Total) -> Total:
    """What a round's record says of its sum."""
    return total._replace(delta=NOTHING, extra=NOTHING)


def conclude(
    experiment: Experiment,
    state: ServerState,
    broadcast: Broadcast,
    mean: Mean,
    result: RoundResult,
    spec: ModelSpec | None,
) -> tuple[ServerState, RoundRecord]:
    """The state and the record after a round's mean is known; the record's seconds are 0.

    mean, state: see `averaged`. result: its sum's vectors are not looked at.
    Errors: RunStopped when the new params are not finite.
    """
    number, rate = broadcast.round, broadcast.learning_rate
    strategy, params = experiment.strategy.update(state.strategy, state.params, mean)
    # A model that is itself mixed from models, FedAsync's, has mixed their statistics too.
    if spec is not None and not getattr(experiment.strategy, "mixes_models", False):
        params = followed(params, state.params, mean.delta, spec)
    if not _is_finite(params):
        raise RunStopped(f"round {number}: the new params are not finite; lower the learning rate (it was {rate})")
    record = RoundRecord(
        round=number,
        clients=result.total.clients,
        failures=len(result.failures),
        metrics={f"train_{name}": value for name, value in mean.metrics.items()},
        seconds=0.0,
        eval_seconds=None,
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        epsilon=spent(experiment, state.ledger),
    )
    params = params.astype(np.float32, copy=False)
    feedback = updated(experiment, state, result, number)
    return ServerState(number, params, strategy, state.transforms, state.ledger, feedback), record


def evaluate(experiment: Experiment, runtime: Runtime, state: ServerState, record: RoundRecord) -> RoundRecord:
    """record with test metrics and the clients' validation metrics (mean, 10th, 50th, 90th percentile) added."""
    started, strategy = time.perf_counter(), cast(Any, experiment.strategy)
    metrics = dict(record.metrics)
    examples = experiment.test_examples()
    if examples is not None:
        found = runtime.evaluate(state.params, examples)
        metrics |= {f"test_{name}": value.mean() for name, value in found.items()}
        if is_clustered(strategy):
            for number, model in enumerate(strategy.models(state.strategy)):
                found = runtime.evaluate(model, examples)
                metrics |= {f"test_{CLUSTER}{number}_{name}": value.mean() for name, value in found.items()}
    if experiment.validation is not None:
        extra = [strategy.broadcast(state.strategy)] if is_clustered(strategy) else []
        clients = runtime.evaluate_clients(state.params, range(len(experiment.validation)), *extra)
        metrics |= {f"validation_{name}": value.mean() for name, value in clients.total.items()}
        for name, values in clients.per_client.items():
            for percent in (10, 50, 90):
                metrics[f"validation_{name}_p{percent}"] = float(np.nanpercentile(values, percent))
    return record._replace(metrics=metrics, eval_seconds=time.perf_counter() - started)


def _is_finite(vector: Vector) -> bool:
    """Whether all of its numbers are; without an answer for each of them in memory."""
    return all(np.isfinite(vector[start : start + BLOCK]).all() for start in range(0, len(vector), BLOCK))


def _nothing(experiment: Experiment, broadcast: Broadcast, total: Total) -> Total:
    """The total of an empty cohort, with as many numbers as that of any other."""
    shape = experiment.encoded_shape(broadcast)
    return total._replace(delta=np.zeros(shape.delta, np.float32), extra=np.zeros(shape.extra, np.float32))


def check_reachable(experiment: Experiment, number: int, candidates: Sequence[int]) -> None:
    """Raise RunStopped when a cohort would be drawn from fewer clients than the plan's price reckons with."""
    drawn_from = getattr(experiment.plan, "drawn_from", 0)
    if len(candidates) < drawn_from:
        raise RunStopped(
            f"round {number}: {len(candidates)} clients can be reached, and the plan accounts for cohorts drawn from "
            f"all {drawn_from}: each client would take part more often than it pays for. Wait for the others, or use "
            "a PrivacyPlan, in which each takes part on its own"
        )


def check_enough(experiment: Experiment, number: int, result: RoundResult, cohort: Sequence[int]) -> None:
    """Raise RunStopped when there is nothing, or too little, to aggregate."""
    failures, total = result.failures, result.total
    # An empty Poisson cohort still releases noise: skipping the round would reveal that nobody was sampled.
    if experiment.plan is not None and not cohort:
        return
    if total.clients < experiment.min_clients:
        reasons = sorted({failure.reason for failure in failures})
        example = f"; client {failures[0].client}: {failures[0].detail}" if failures else ""
        remedy = ". Lower local.learning_rate, or look for NaN in the examples" if reasons == ["non_finite"] else ""
        raise RunStopped(
            f"round {number}: {total.clients} valid updates, expected at least {experiment.min_clients} "
            f"({len(failures)} failed: {', '.join(reasons) or 'nobody was sampled'}{example}){remedy}"
        )
    if not total.weight > 0:
        raise RunStopped(f"round {number}: the {total.clients} updates have a total weight of {total.weight:g}")
