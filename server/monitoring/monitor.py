"""Monitor: a run, or one after another, as metrics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ...core.errors import BudgetSpent, ConfigError, RunStopped
from ...core.runtime import Runtime
from ...core.types import Failure, RoundRecord
from .certificates import validity, warn_of_expiry
from .health import read_certificate
from .metrics import OTHER, Registry

# Why a client's update is not in the sum. "lost": it never came; "rejected": it came, and was refused.
REASONS: Mapping[str, str] = {
    **dict.fromkeys(("timeout", "unreachable", "deadline", "dropped_out", "unavailable", "round_closed"), "lost"),
    **dict.fromkeys(("client_error", "experiment", "memory", "policy", "version"), "lost"),
    **dict.fromkeys(("schema", "dtype", "shape", "metrics", "round", "weight", "non_finite", "norm"), "rejected"),
    **dict.fromkeys(
        ("stale", "signature", "replay", "sealed", "too_large", "codec", "ciphertext", "unfit"), "rejected"
    ),
    # Reasons in hidden sums: what a client has lost or refuses, and what is refused of it.
    **dict.fromkeys(("no_session", "abandoned", "below_threshold", "out_of_order", "replayed_session"), "lost"),
    **dict.fromkeys(
        ("second_unmask", "other_roster", "other_model", "other_parameters", "other_key", "spent_key"), "lost"
    ),
    **dict.fromkeys(("not_in_roster", "expired", "forged_survivors", "lowered_threshold"), "lost"),
    **dict.fromkeys(("malformed", "other_session", "other_node", "unexpected", "repeated_key", "weak_key"), "rejected"),
    **dict.fromkeys(("wrong_signature", "wrong_receivers", "wrong_shares", "bad_share", "bad_ciphertext"), "rejected"),
    **dict.fromkeys(("wrong_dispute", "wrong_points", "bad_delivery", "bad_dealing"), "rejected"),
    OTHER: "rejected",
}
AWAY = ("timeout", "unreachable", "unavailable")  # reasons of a client that may be gone

ROUND_RESULTS = ("complete", "partial", "abandoned", "failed")
RUN_STATES = ("running", "finished", "stopped", "failed", "paused")
PHASES = ("training", "evaluation", "commit")
CLIENT_STATES = ("counted", "left_out", "away", "idle")
CERTIFICATES = ("ca", "server", "client", OTHER)
NOW, EVENTS = ("nodes", "processes"), ("lost", "again", "twice")  # what a cluster has, and what happened in it
MEASURES = ("loss", "accuracy")
EXAMPLES = ("train", "test", "validation")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)

STALL_SECONDS = 3600.0  # six times as long as a round over Flower waits for one exchange at most, by default


class Monitor:
    """A Watcher, and around `run` a `with` block: what ends a run by an error is seen as the block's.

        with Monitor() as monitor, Exporter("127.0.0.1:9464", monitor.text, {"loop": monitor.check_loop}):
            run(experiment, runtime, watchers=[monitor])

    Parameters
    ----------
    certificates
        PEM files by role, "ca", "server" or "client", read whenever metrics are: they may be replaced.
    stall_seconds
        Without a round for so long, a run hangs.
    """

    def __init__(
        self,
        certificates: Mapping[str, Path | str] | None = None,
        stall_seconds: float = STALL_SECONDS,
        clock: Any = None,
    ):
        self._certificates, self._stall_seconds = dict(certificates or {}), stall_seconds
        self._now = clock or time.monotonic
        self._lock = threading.Lock()
        self._last: float | None = None  # when the loop was last seen; None when no run is under way
        self._clients, self._hides, self._metrics = 0, False, _Metrics()
        self._runtime: Runtime | None = None
        self._figures: Mapping[str, int] = {}  # the runtime's, as they were last shown

    def text(self) -> str:
        """Return every metric, for Prometheus."""
        metrics = self._metrics
        for role, path in self._certificates.items():
            with contextlib.suppress(ConfigError):  # /readyz says why there is no number
                pem = read_certificate(path)
                metrics.certificate.set(validity(pem).ends.timestamp(), certificate=role)
        return metrics.registry.render()

    def warn_of_certificates(self) -> list[str]:
        """List sentences on certificates that expire within 14 days, also logged, or that cannot be read."""
        found = []
        for role, path in self._certificates.items():
            try:
                found.append(warn_of_expiry(read_certificate(path), f"{role} ({path})"))
            except ConfigError as error:
                found.append(str(error))
        return [said for said in found if said]

    def check_loop(self) -> None:
        """Check that rounds go on, or no run is under way. Errors: RunStopped for a loop that hangs."""
        with self._lock:
            waited = 0.0 if self._last is None else self._now() - self._last
        if waited > self._stall_seconds:
            raise RunStopped(f"no round in {waited:.0f} s, more than stall_seconds={self._stall_seconds:g}")

    def on_start(
        self, experiment: Any, runtime: Runtime | None, run: str | None, records: Sequence[RoundRecord]
    ) -> None:
        """Note that a run begins, or goes on; what it did before is counted by the process that did it."""
        self._clients, self._hides = len(experiment.population), experiment.secure_aggregation is not None
        metrics = self._metrics
        if runtime is not self._runtime:
            self._runtime, self._figures = runtime, {}
        self._show_cluster()
        metrics.round.set(len(records))
        metrics.planned.set(experiment.rounds)
        self._show_clients(0, ())
        self._set_state("running")
        if records and records[-1].epsilon is not None:
            metrics.epsilon.set(records[-1].epsilon)
        self._tick()
        if self._certificates:
            self.warn_of_certificates()

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Count a committed round."""
        metrics, before = self._metrics, self._tick()
        metrics.rounds.add(result="partial" if record.failures else "complete")
        metrics.updates.add(record.clients, result="counted", reason="none")
        for failure in failures:
            reason = failure.reason if failure.reason in REASONS else OTHER
            metrics.updates.add(result=REASONS[reason], reason=reason)
        phases = {"training": record.seconds or None, "evaluation": record.eval_seconds}
        if before is not None and record.seconds:
            spent = record.seconds + (record.eval_seconds or 0.0)
            phases["commit"] = max(0.0, self._now() - before - spent)
        for phase, seconds in phases.items():
            if seconds is not None:
                metrics.phases.observe(seconds, phase=phase)
        for direction, count in (("up", record.bytes_up), ("down", record.bytes_down)):
            if count is not None:
                metrics.bytes.add(count, direction=direction)
        metrics.round.set(record.round)
        if record.epsilon is not None:
            metrics.epsilon.set(record.epsilon)
        self._show_clients(record.clients, failures)
        self._show_cluster()
        self._show_quality(record.numbers)

    def on_end(self, history: Any) -> None:
        """Note that the run has finished."""
        self._end("finished")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.on_error(error)

    def on_error(self, error: BaseException) -> None:
        """Note what ended a run otherwise. The end of a `with` block calls this itself, and so does a supervisor."""
        if self._last is None:
            return
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
            self._end("paused")
        elif isinstance(error, RunStopped):
            self._metrics.rounds.add(result="abandoned")
            if self._hides and not isinstance(error, BudgetSpent):
                self._metrics.aborts.add()
            self._end("stopped")
        else:
            self._metrics.rounds.add(result="failed")
            self._end("failed")

    def _tick(self) -> float | None:
        """Note that the loop was seen now; return when it was seen before that, or None."""
        with self._lock:
            before, self._last = self._last, self._now()
        return before

    def _end(self, state: str) -> None:
        with self._lock:
            self._last = None
        self._set_state(state)
        self._show_clients(0, ())

    def _set_state(self, now: str) -> None:
        for state in RUN_STATES:
            self._metrics.state.set(state == now, state=state)

    def _show_clients(self, counted: int, failures: Sequence[Failure]) -> None:
        away = sum(failure.reason in AWAY for failure in failures)
        left_out = len(failures) - away
        idle = max(0, self._clients - counted - len(failures))
        for state, count in zip(CLIENT_STATES, (counted, left_out, away, idle), strict=True):
            self._metrics.clients.set(count, state=state)

    def _show_cluster(self) -> None:
        """Show the machines that a runtime has, and what happened to them since the last look."""
        before, self._figures = self._figures, {} if self._runtime is None else self._runtime.figures
        for name, count in self._figures.items():
            grown = count - before.get(name, 0)
            grown = count if grown < 0 else grown  # a runtime that was closed, and opened again, counts from 0
            if name in NOW:
                self._metrics.cluster.set(count, what=name)
            elif name in EVENTS:
                self._metrics.events.add(grown, what=name)
            else:
                self._metrics.fetched.add(grown)

    def _show_quality(self, metrics: Mapping[str, float]) -> None:
        """Show the two measures that every experiment has; others have names of their own, perhaps many."""
        for examples in EXAMPLES:
            for measure in MEASURES:
                value = metrics.get(f"{examples}_{measure}")
                if value is not None:
                    self._metrics.quality.set(value, examples=examples, measure=measure)


class _Metrics:
    """All metrics that a monitor shows."""

    def __init__(self) -> None:
        self.registry = make = Registry()
        results = ("counted", "lost", "rejected")
        self.rounds = make.counter("umbel_rounds_total", "Rounds by how they ended.", result=ROUND_RESULTS)
        self.updates = make.counter(
            "umbel_updates_total",
            "Client updates by what became of them, and why they were not counted.",
            result=results,
            reason=("none", *REASONS),
        )
        self.phases = make.histogram(
            "umbel_phase_seconds", "Seconds that the phases of a round took.", SECONDS, phase=PHASES
        )
        self.bytes = make.counter(
            "umbel_bytes_total", "Bytes of updates (up) and broadcasts (down).", direction=("up", "down")
        )
        self.aborts = make.counter("umbel_aggregation_aborts_total", "Rounds abandoned while updates were hidden.")
        self.clients = make.gauge("umbel_clients", "Clients by their part in the last round.", state=CLIENT_STATES)
        self.state = make.gauge("umbel_run_state", "1 for the state of the last run, else 0.", state=RUN_STATES)
        self.cluster = make.gauge("umbel_cluster", "Machines of a cluster, and processes that train on them.", what=NOW)
        self.events = make.counter(
            "umbel_cluster_events_total", "Processes lost, and calls made again for them, or twice.", what=EVENTS
        )
        self.fetched = make.counter("umbel_cluster_bytes_total", "Bytes of what the cluster sent to this process.")
        self.round = make.gauge("umbel_round", "Rounds finished.")
        self.planned = make.gauge("umbel_rounds_planned", "Rounds that the run is to have.")
        self.epsilon = make.gauge("umbel_epsilon", "Privacy spent so far, epsilon at the plan's delta.")
        self.quality = make.gauge(
            "umbel_quality", "Loss and accuracy as last measured.", examples=EXAMPLES, measure=MEASURES
        )
        self.certificate = make.gauge(
            "umbel_certificate_expiry_timestamp_seconds",
            "When a certificate expires, seconds since 1970.",
            certificate=CERTIFICATES,
        )
