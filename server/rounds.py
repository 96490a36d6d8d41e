"""One round, over any runtime: cohort → broadcast → total → new params. Nothing here is kept between calls."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..core.aggregators import BLOCK
from ..core.errors import RunStopped
from ..core.parts.algorithms import ClusteredStrategy, SplitStrategy
from ..core.parts.clusters import CLUSTER
from ..core.parts.discretion import has_secret_cohort
from ..core.parts.private import SecureAggregation
from ..core.parts.sampling import least_cohort
from ..core.protocols import Memory
from ..core.random import Key, derive
from ..core.reading.adapted import plain_of
from ..core.reading.compatible import spent
from ..core.recipe import Recipe
from ..core.runtime import Assignment, Opened, Opening, Runtime
from ..core.spec import ModelSpec
from ..core.sums import Meeting, digest_of
from ..core.system.faults import crash_point
from ..core.types import (
    NOTHING,
    Broadcast,
    ClientValues,
    Failure,
    Mean,
    RoundRecord,
    RoundResult,
    ServerState,
    Total,
    Value,
    Vector,
)
from .clock import METRIC, VirtualClock
from .collect import collect, collect_hidden
from .feedback import reweighted, sampled, updated
from .returned import checked_step
from .statistics import followed
from .turns import Turns
from .watched import PERCENTILES, shows_percentiles

Spend = Callable[[Mapping[str, int]], None]
Played = tuple[ServerState, RoundRecord, Sequence[Failure]]  # (new state, the round's record, the clients that failed)


@dataclass(frozen=True)
class RoundSetup:
    """Things that a run's rounds are played with, the same in each.

    Parameters
    ----------
    opened
        What the runtime said of the experiment.
    memory
        What clients keep at home.
    spend
        Puts a plan's ledger on record; called before anything that it pays for is released.
    name
        The server's name for the rounds that it plays without a restart: started again, it plays a round anew, which
        clients of a hidden sum refuse under one name.
    barred
        Clients that spoiled a hidden sum once it could not be tried again; they are asked for no other.
    """

    experiment: Recipe
    runtime: Runtime
    opened: Opened
    memory: Memory
    spend: Spend = lambda ledger: None
    name: str = field(default_factory=lambda: secrets.token_hex(16))
    barred: set[int] = field(default_factory=set)


def play_round(table: RoundSetup, state: ServerState, records: Sequence[RoundRecord] = ()) -> Played:
    """Play the round after `state`.

    A round in which nobody takes part changes neither params nor what strategy and transforms remember; under a plan
    whose server adds noise, that noise is released all the same. Under a plan whose cohort is secret the record tells
    what is expected, and nobody is named who failed.
    Errors: RunStopped with fewer than min_clients valid updates, a total weight of 0, params that are not finite, or a
    round that the plan's budget does not allow; the state passed in is still good then.
    """
    experiment, runtime, plan = table.experiment, table.runtime, table.experiment.plan
    number, keys = state.round + 1, RoundKeys.of(experiment, runtime, state.round + 1)
    before = charged(experiment, state)
    started = time.perf_counter()
    clients, clock = runtime.client_ids(), VirtualClock.of(experiment, runtime, records)
    candidates = clients if clock is None else clock.reachable(clients)
    check_reachable(experiment, number, candidates)
    rate = experiment.local.learning_rate_at(number, records)
    extra = experiment.strategy.broadcast(state.strategy)
    broadcast = Broadcast(number, state.params, extra, state.transforms, rate)
    cohort = sampled(experiment, state, broadcast, candidates, clock, keys.cohort) if len(candidates) else []
    crash_point("before-training", number)
    if plan is not None and plan.clients_release:
        table.spend(before.ledger)
    result, mean, before = summed(table, before, broadcast, cohort, keys, clock)
    if mean is None:
        after, record = before._replace(round=number), recorded(experiment, before, number, {}, result)
    else:
        after, record = conclude(experiment, before, broadcast, mean, result, table.opened.spec)
    timed = {} if clock is None else {METRIC: clock.now}
    record = record._replace(seconds=time.perf_counter() - started, metrics={**record.metrics, **timed})
    crash_point("after-aggregation", number)
    if has_secret_cohort(experiment):
        assert mean is not None  # its noise is released whoever took part
        expected = mean.participation * len(clients)
        return after, public_record(experiment, broadcast, record, expected, runtime.is_live), []
    return after, record, result.failures


class RoundKeys(NamedTuple):
    """Sources of a round's randomness."""

    round: Key  # key of clients' work
    cohort: Key  # key of the choice of clients
    decode: Key  # key of the transforms' noise

    @staticmethod
    def of(experiment: Recipe, runtime: Runtime, number: int) -> RoundKeys:
        """Return the keys of round `number`.

        On real devices neither the noise nor, under a plan, the cohort may follow from a seed: both stay secret.
        """
        key = derive(experiment.seed, "round", number)
        server_key = Key.fresh() if experiment.plan is not None and runtime.is_live else key
        decode_key = Key.fresh() if runtime.is_live else server_key
        return RoundKeys(key, server_key.derive("cohort"), decode_key.derive("decode"))


def charged(experiment: Recipe, state: ServerState) -> ServerState:
    """Return the state with a round more in its ledger. Errors: RunStopped when the plan's budget forbids that."""
    if experiment.plan is None:
        return state
    ledger = experiment.plan.charge(state.ledger)
    experiment.plan.check_budget(ledger)
    return state._replace(ledger=ledger)


def summed(
    table: RoundSetup,
    before: ServerState,
    broadcast: Broadcast,
    cohort: Sequence[int],
    keys: RoundKeys,
    clock: VirtualClock | None,
) -> tuple[RoundResult, Mean | None, ServerState]:
    """Sum up a cohort's updates; return the result, its mean, and the state with the transforms' after it.

    The mean is None where nothing is released.

    before: the state before the round, its ledger after. The result's vectors are gone: they are as large as the model
    that is made next.
    """
    experiment, plan = table.experiment, table.experiment.plan
    counted, late, down = (cohort, (), 0) if clock is None else clock.admitted(broadcast, cohort, keys.round)
    result = collected(table, before, broadcast, counted, keys.round) if counted else RoundResult.of_nobody()
    result = result._replace(failures=[*result.failures, *late], bytes_down=result.bytes_down + down)
    check_enough(experiment, broadcast.round, result)
    if plan is not None and not plan.clients_release:
        table.spend(before.ledger)
    # An empty Poisson cohort still releases the server's noise: to skip it would reveal that nobody was sampled.
    if result.is_of_nobody and (plan is None or plan.clients_release):
        return result, None, before
    mean, before = averaged(experiment, before, broadcast, result.total, keys.decode, table.runtime)
    return result._replace(total=without_vectors(result.total)), mean, before


def public_record(
    experiment: Recipe, broadcast: Broadcast, record: RoundRecord, expected: float, is_live: bool
) -> RoundRecord:
    """Return record, with what is expected in place of what the round's secret cohort did.

    It is on screens, pages and disks.

    How many replied, failed, and how much they sent are exact numbers of a cohort that the plan's price takes to be
    unknown. expected: the size of a cohort, which is public. The server's own log names who failed. How long the round
    took is that of the slowest who took part; a simulation's cohort follows from its seed, and its time tells no more.
    """
    up = None if experiment.secure_aggregation is not None else round(expected * experiment.upload_bytes(broadcast))
    down = round(expected * (broadcast.params.nbytes + broadcast.extra.nbytes))
    seconds = 0.0 if is_live else record.seconds
    return record._replace(clients=round(expected), failures=0, bytes_up=up, bytes_down=down, seconds=seconds)


def collected(
    table: RoundSetup, state: ServerState, broadcast: Broadcast, cohort: Sequence[int], key: Key
) -> RoundResult:
    """Add up what the cohort's training comes to, whatever kind of round this is. key: the round's.

    Errors: RunStopped when an aggregation reveals no sum.
    """
    experiment, opened, train = table.experiment, table.opened, table.runtime.train
    strategy, summation = experiment.strategy, opened.summation
    if summation.aggregation is not None and cohort:
        return _hidden(table, summation.aggregation, broadcast, cohort, key)
    if isinstance(strategy, SplitStrategy):
        assert opened.on_client is not None
        turns = Turns(strategy, broadcast, cohort, key, opened.on_client)
        result = collect(train, turns, summation, table.memory, counts_as=turns.counts_as)
        return result._replace(total=turns.closed(result.total))
    needed = max(1, round(len(cohort) / opened.over_selection))
    is_closed_early = needed < len(cohort)
    summation, enough = replace(summation, in_order=not is_closed_early), needed if is_closed_early else math.inf
    work = (Assignment(broadcast, client, key) for client in cohort)
    counts_as = reweighted(experiment, state, cohort)
    return collect(train, work, summation, table.memory, counts_as=counts_as, enough=enough)


def _hidden(
    table: RoundSetup, aggregation: SecureAggregation, broadcast: Broadcast, cohort: Sequence[int], key: Key
) -> RoundResult:
    """Same as `collected`, by the stages of the experiment's aggregation."""
    runtime, summation = table.runtime, table.opened.summation
    cohort = [client for client in cohort if client not in table.barred]
    # In one process nobody could hold other params, and a digest of them takes longer than a small round.
    model = digest_of(broadcast, table.opened.digest) if runtime.is_live else bytes(32)
    least = least_cohort(table.experiment.sampler, len(table.experiment.population))
    shape, joins = summation.shape, table.opened.joins
    meeting = Meeting(table.name, broadcast.round, len(cohort), shape, model, least, joins)
    server, half = runtime.hidden_sum(aggregation, meeting, cohort)
    messages = server.advance()
    work = [
        Assignment(broadcast, client, key, Opening(meeting, messages[client], server.reply_bytes, half))
        for client in cohort
    ]
    summation = replace(summation, in_order=False, subtotals=False)
    result = collect_hidden(runtime, work, summation, table.memory, server)
    if result.is_spoiled:
        table.barred.update(server.left_out)
    return result


def averaged(
    experiment: Recipe,
    state: ServerState,
    broadcast: Broadcast,
    total: Total,
    key: Key,
    runtime: Runtime,
) -> tuple[Mean, ServerState]:
    """Return the mean of a round's sum, decoded, and the state, with the transforms' after it.

    state: that before the round, its ledger after it. key: for decoding. runtime: its clients are the whole federation,
    and its model makes values of metrics' states.
    """
    total = total if total.clients else _nothing(experiment, broadcast, total)
    transforms, total = experiment.transforms.decode(state.transforms, total, key)
    delta, extra = (vector.astype(np.float32, copy=False) for vector in (total.delta, total.extra))
    total = total._replace(delta=delta, extra=extra)
    everyone = (
        float(experiment.population.sizes().sum())
        if experiment.weighting == "examples"
        else float(len(runtime.client_ids()))
    )
    mean = total.mean()._replace(metrics=runtime.results("train", total.metrics), participation=total.weight / everyone)
    return mean, state._replace(transforms=transforms)


def without_vectors(total: Total) -> Total:
    """Return the sum without its vectors: what a round's record says of it."""
    return total._replace(delta=NOTHING, extra=NOTHING)


def conclude(
    experiment: Recipe,
    state: ServerState,
    broadcast: Broadcast,
    mean: Mean,
    result: RoundResult,
    spec: ModelSpec,
) -> tuple[ServerState, RoundRecord]:
    """Return the state and the record after a round's mean is known; the record's seconds are 0.

    mean, state: see `averaged`. result: the round's; its sum's vectors are not looked at.
    Errors: RunStopped when the new params are not finite.
    """
    number, rate = broadcast.round, broadcast.learning_rate
    step = experiment.strategy.update(state.strategy, state.params, mean)
    strategy, params = checked_step(plain_of(experiment.strategy), step, state.params)
    # A model that is itself mixed from models, FedAsync's, has mixed their statistics too.
    if not experiment.strategy.mixes_models:
        params = followed(params, state.params, mean.delta, spec)
    if not _is_finite(params):
        raise RunStopped(f"round {number}: the new params are not finite; lower the learning rate (it was {rate})")
    record = recorded(experiment, state, number, mean.metrics, result)
    params = params.astype(np.float32, copy=False)
    feedback = updated(experiment, state, result, number)
    return ServerState(number, params, strategy, state.transforms, state.ledger, feedback), record


def recorded(
    experiment: Recipe, state: ServerState, number: int, metrics: Mapping[str, Value], result: RoundResult
) -> RoundRecord:
    """Return the record of round `number`, its seconds 0. state: with the ledger after it. metrics: of training."""
    return RoundRecord(
        round=number,
        clients=result.total.clients,
        failures=len(result.failures),
        metrics={f"train_{name}": value for name, value in metrics.items()},
        seconds=0.0,
        eval_seconds=None,
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        epsilon=spent(experiment, state.ledger),
    )


def evaluate(
    experiment: Recipe, runtime: Runtime, state: ServerState, record: RoundRecord
) -> tuple[RoundRecord, ClientValues | None]:
    """Add test metrics and the clients' validation metrics (mean, 10th, 50th, 90th percentile) to record.

    Also returns what each client measured, where nothing is to hide it; a percentile is a single client's, too.
    """
    each = None
    started, strategy = time.perf_counter(), experiment.strategy
    metrics = dict(record.metrics)
    examples = experiment.test_examples()
    if examples is not None:
        found = runtime.results("test", runtime.evaluate(state.params, examples))
        metrics |= {f"test_{name}": value for name, value in found.items()}
        if isinstance(strategy, ClusteredStrategy):
            for number, model in enumerate(strategy.models(state.strategy)):
                found = runtime.results("test", runtime.evaluate(model, examples))
                metrics |= {f"test_{CLUSTER}{number}_{name}": value for name, value in found.items()}
    if experiment.validation is not None:
        extra = [strategy.broadcast(state.strategy)] if isinstance(strategy, ClusteredStrategy) else []
        clients = runtime.evaluate_clients(state.params, range(len(experiment.validation)), *extra)
        pooled = runtime.results("test", clients.total)
        metrics |= {f"validation_{name}": value for name, value in pooled.items()}
        for name, values in clients.per_client.items() if shows_percentiles(experiment) else ():
            for percent in PERCENTILES:
                metrics[f"validation_{name}_p{percent}"] = float(np.nanpercentile(values, percent))
        if shows_percentiles(experiment):
            own = {f"validation_{name}": values for name, values in clients.per_client.items()}
            each = ClientValues(record.round, clients.clients, own)
    return record._replace(metrics=metrics, eval_seconds=time.perf_counter() - started), each


def _is_finite(vector: Vector) -> bool:
    """Return whether all numbers of the vector are finite; without an answer for each of them in memory."""
    return all(np.isfinite(vector[start : start + BLOCK]).all() for start in range(0, len(vector), BLOCK))


def _nothing(experiment: Recipe, broadcast: Broadcast, total: Total) -> Total:
    """Return the total of an empty cohort, with as many numbers as that of any other."""
    shape = experiment.encoded_shape(broadcast)
    return total._replace(delta=np.zeros(shape.delta, np.float32), extra=np.zeros(shape.extra, np.float32))


def check_reachable(experiment: Recipe, number: int, candidates: Sequence[int]) -> None:
    """Raise RunStopped when a cohort would be drawn from fewer clients than the plan's price reckons with."""
    drawn_from = 0 if experiment.plan is None else experiment.plan.drawn_from
    if len(candidates) < drawn_from:
        raise RunStopped(
            f"round {number}: {len(candidates)} clients can be reached, and the plan accounts for cohorts drawn from "
            f"all {drawn_from}: each client would take part more often than it pays for. Wait for the others, or use "
            "a PrivacyPlan, in which each takes part on its own"
        )


def check_enough(experiment: Recipe, number: int, result: RoundResult) -> None:
    """Raise RunStopped when there is too little to aggregate. That nobody took part is no reason to stop."""
    failures, total = result.failures, result.total
    # A round whose clients all failed releases noise as any other: an end of the run would reveal that somebody failed.
    if result.is_of_nobody or has_secret_cohort(experiment):
        return
    if total.clients < experiment.min_clients:
        reasons = sorted({failure.reason for failure in failures})
        example = f"; client {failures[0].client}: {failures[0].detail}" if failures else ""
        remedy = ". Lower local.learning_rate, or look for NaN in the examples" if reasons == ["non_finite"] else ""
        raise RunStopped(
            f"round {number}: {total.clients} valid updates, expected at least {experiment.min_clients} "
            f"({len(failures)} failed: {', '.join(reasons)}{example}){remedy}"
        )
    if not total.weight > 0:
        raise RunStopped(
            f"round {number}: the {total.clients} updates have a total weight of {total.weight:g}; where they are "
            "hidden, none of them was finite: lower local.learning_rate, or look for NaN in the examples"
        )
