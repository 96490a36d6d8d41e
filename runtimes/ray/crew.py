"""Crew: the hosts of a cluster, and the calls that they are given. What is lost with one is done again by another.

Ray's own retries stay off: they go to the same actor, and wait for it. Here a call's answer follows from what it was
sent, so that it can be made anywhere, twice if need be, and the first answer counts: the bits are the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import ConfigError
from .calls import Asker, Call, Head, Job
from .cluster import Machine, Places, actor_options, alive_nodes, last_line
from .host import Host, Introduction, Probe
from .likeness import MIXED, SAME, Greeting, check_alike, warn_of_niceness
from .lines import said
from .shelf import Shelf

log = logging.getLogger(__name__)

UNDER_WAY = 2  # calls of a host: the next one is there when one is done
FIRST_SECONDS = 120.0  # for which an opening waits for a host that comes up
DRAIN_SECONDS = 5.0  # for which it waits for calls that nobody needs any more
OTHERS_SECONDS = 10.0  # for which it waits for those after the first, at least
ATTEMPTS = 3  # hosts that may be lost while they start, on one node, before it is left alone
LOOK_SECONDS = 2.0  # between two looks for nodes that are new
QUIET_SECONDS = 30.0  # in which a node's loss is said once


@dataclass(eq=False)
class HostHandle:
    """A host, as the driver sees it."""

    actor: Any
    machine: Machine
    process: int | None = None  # its number on that machine, once it has said so
    is_ready: bool = False
    opening: Any = None  # reference of what it was asked last, before it is ready
    calls: dict[Any, Call] = field(default_factory=dict)  # under way, by the reference of their heads
    began: float = field(default_factory=time.monotonic)

    def is_awaited(self, began: float) -> bool:
        """Return whether an opening that began then waits for this host: it starts, and is not held up for longer."""
        return self.opening is not None and (self.process is not None or self.began >= began)


@dataclass
class Figures:
    """Counts of what happened in a runtime's life."""

    lost: int = 0  # hosts
    again: int = 0  # calls that were made again, for what was lost
    twice: int = 0  # calls that were made a second time, for a host that was slow
    bytes: int = 0  # bytes of what the driver fetched


class Crew:
    """Hosts on a cluster's nodes: those that are ready for calls, and those that start."""

    def __init__(self, places: Places, settings: tuple, probing: bool):
        """Begin without hosts. settings: arguments of a Host but the last. probing: whether nodes may differ."""
        self.figures = Figures()
        self.usual: dict[str, deque[float]] = {}  # seconds that the last calls took, by method
        self.hardware = SAME
        self._members: list[HostHandle] = []
        self._places, self._settings, self._probing = places, settings, probing
        self._attempts: dict[str, int] = {}
        self._told: dict[str, float] = {}  # when each node's loss was last said
        self._digests: dict[str, str] = {}  # digests of what the nodes compute
        self._experiment: Any = None  # reference
        self._choices: Mapping[str, str] | None = None
        self._shelf: Shelf | None = None
        self._looked = 0.0
        self._is_opening = True
        self._on_gpus = False
        self._why = ""  # why the last host did not come up

    @property
    def ready(self) -> list[HostHandle]:
        """Hosts that take calls."""
        return [member for member in self._members if member.is_ready]

    @property
    def nodes(self) -> int:
        """Number of machines that these hosts are on."""
        return len({member.machine.id for member in self.ready})

    @property
    def is_on_gpus(self) -> bool:
        """Return whether each host has a GPU that Ray gave it."""
        return self._on_gpus

    @property
    def slots(self) -> int:
        """Number of clients that train side by side."""
        return max(1, len(self.ready)) * self._places.threads

    def open(self, experiment: Any, choices: Mapping[str, str] | None, shelf: Shelf | None) -> Introduction:
        """Bind every host to an experiment, a reference, and a shelf, if any; return what the first said of it.

        The first finds how clients are compiled, the others do as it does. Errors: those of opening a Simulation;
        ConfigError for nodes on which other versions are installed, and where no host comes up.
        """
        self._experiment, self._choices, self._attempts, self._digests = experiment, None, {}, {}
        self._shelf = shelf
        self._is_opening, self.hardware = True, SAME
        self.usual.clear()  # another model takes another time
        until = time.monotonic() + DRAIN_SECONDS
        while any(member.calls for member in self.ready) and time.monotonic() < until:
            self.wait(0.5)
        for member in list(self._members):
            if member.calls or (member.opening is not None and member.process is not None):
                self._dismiss(member)  # busy with what was before
            member.is_ready = False
        began = time.monotonic()
        self._on_gpus = self._places.on_gpus(alive_nodes())
        self._hire()
        introduction = self._first(choices)
        until = time.monotonic() + max(OTHERS_SECONDS, time.monotonic() - began)
        while any(member.is_awaited(began) for member in self._members) and time.monotonic() < until:
            self.wait(0.5)
        self._is_opening = False
        return introduction

    def grow(self) -> None:
        """Let hosts start on nodes that are new: for the next round. It looks once every few seconds at most."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._hire()

    def wait(self, seconds: float) -> None:
        """Wait until something answers, and take it in. Errors: whatever a call raised whose answer is wanted."""
        import ray

        asked = [member.opening for member in self._members if member.opening is not None]
        asked += [head for member in self._members for head in member.calls]
        if not asked:
            time.sleep(min(seconds, 0.2))
            self.grow()
            return
        found, _ = ray.wait(asked, num_returns=1, timeout=seconds, fetch_local=False)
        if found and len(asked) > 1:
            found, _ = ray.wait(asked, num_returns=len(asked), timeout=0, fetch_local=False)
        answered = set(found)
        for member in list(self._members):
            if member.opening in answered:
                self._advance(member)
            for head in [head for head in member.calls if head in answered]:
                if member in self._members:  # not lost with the call before
                    self._take(member, member.calls[head])

    def free_for(self, asker: Asker) -> HostHandle | None:
        """Return the host with the least to do that has room for a call of an asker; None for none.

        One that is still at a call of an earlier asker is passed by: what it was sent then is not to be mixed up.
        """
        free = [
            member
            for member in self.ready
            if len(member.calls) < UNDER_WAY and all(call.asker is asker for call in member.calls.values())
        ]
        return min(free, key=lambda member: len(member.calls), default=None)

    def idle(self) -> HostHandle | None:
        """Return a host that has nothing to do; None for none."""
        return next((member for member in self.ready if not member.calls), None)

    def calls_of(self, asker: Asker) -> list[Call]:
        """Return an asker's calls that are under way."""
        return [call for member in self._members for call in member.calls.values() if call.asker is asker]

    def begin(self, member: HostHandle, job: Job, number: int, asker: Asker) -> None:
        """Make a call."""
        method = getattr(member.actor, job.method)
        head, body = method.options(num_returns=2).remote(*job.arguments())
        member.calls[head] = Call(job, number, asker, head, body, time.monotonic())

    def close(self) -> None:
        """End every host, whatever it is doing."""
        for member in list(self._members):
            self._dismiss(member)

    def _first(self, choices: Mapping[str, str] | None) -> Introduction:
        """Let the first host that has introduced itself build the model, and tell the others how."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        until = time.monotonic() + FIRST_SECONDS
        while self._members and time.monotonic() < until:
            first = next((member for member in self._members if member.process is not None), None)
            if first is None:
                self.wait(1.0)
                continue
            try:
                introduction: Introduction = ray.get(self._opening(first, choices, True))
            except RayTaskError as error:
                if not is_of_ray(raised(error)):
                    raise raised(error) from error
                self._lose(first, error)
                continue
            except RayError as error:
                self._lose(first, error)
                continue
            said(introduction.lines)
            self._choices = introduction.described
            self._bound(first)
            for member in self._members:
                if member.process is not None and member is not first:
                    member.opening = self._opening(member, self._choices)
            return introduction
        raise ConfigError(
            f"no process came up on {self._places}{self._why}: see with ray status whether its processors are free, "
            "and whether Umbel is installed on its nodes"
        )

    def _opening(self, member: HostHandle, choices: Mapping[str, str] | None, is_first: bool = False) -> Any:
        """Ask a host to bind to the experiment; return the reference of its answer."""
        return member.actor.open.remote(self._experiment, choices, self._shelf, is_first)

    def _hire(self) -> None:
        """Start hosts where there is room for more than there are."""
        import ray

        self._looked = time.monotonic()
        nodes, most = alive_nodes(), self._places.most
        on_gpu = self._on_gpus
        host: Any = ray.remote(Host)
        for node, room in self._places.shared_out(nodes, on_gpu):
            there = sum(member.machine.id == node.id for member in self._members)
            if self._attempts.get(node.id, 0) >= ATTEMPTS:
                continue
            for _ in range(room - there):
                if most is not None and len(self._members) >= most:
                    return
                actor = host.options(**actor_options(self._places, node, on_gpu)).remote(*self._settings, on_gpu)
                self._members.append(HostHandle(actor, node, opening=actor.greet.remote(os.getcwd())))

    def _advance(self, member: HostHandle) -> None:
        """Take in the answer of a host that starts: its greeting, that it is bound, or a digest of what it computes."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        reference, member.opening = member.opening, None
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if self._is_opening and not is_of_ray(raised(error)):
                raise raised(error) from error
            self._lose(member, error)
            return
        except RayError as error:
            self._lose(member, error)
            return
        if isinstance(answer, Greeting):
            member.process = answer.process
            try:
                check_alike(answer, member.machine.name)
            except ConfigError as error:
                if self._is_opening:
                    raise
                self._leave_alone(member, str(error))
                return
            warn_of_niceness(answer, member.machine.name, os.nice(0) if hasattr(os, "nice") else 0)
            if self._choices is not None:
                member.opening = self._opening(member, self._choices)
        elif isinstance(answer, Probe):
            self._compare(member, answer)
        else:
            self._bound(member)

    def _bound(self, member: HostHandle) -> None:
        """Let a host that is bound to the experiment take calls; the first of a node says before what it computes."""
        if self._probing and member.machine.id not in self._digests:
            self._digests[member.machine.id] = ""
            member.opening = member.actor.probe.remote()
        else:
            member.is_ready = True

    def _compare(self, member: HostHandle, probe: Probe) -> None:
        """Compare a node's bits with those of the others. One that comes late, and differs, is left alone."""
        others = {digest for digest in self._digests.values() if digest}
        self._digests[member.machine.id] = probe.digest
        if not others or probe.digest in others:
            member.is_ready = True
            return
        name = member.machine.name
        if self._is_opening or self.hardware == MIXED:
            self.hardware, member.is_ready = MIXED, True
            log.warning(
                "node %s computes other bits than the others (other hardware): no run repeats exactly here", name
            )
            return
        self._leave_alone(member, f"node {name} computes other bits than the run was begun with (other hardware)")

    def _leave_alone(self, member: HostHandle, why: str) -> None:
        """Do not use a node that came late, and is not like the others."""
        self._attempts[member.machine.id] = ATTEMPTS
        self._dismiss(member)
        log.warning("%s; it is not used", why)

    def _take(self, member: HostHandle, call: Call) -> None:
        """Take in the head of an answer."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            head: Head = ray.get(call.head)
        except RayTaskError as error:
            if is_of_ray(raised(error)):
                self._lose(member, error)
                return
            del member.calls[call.head]
            if call.asker.wants(call):
                raise raised(error) from error
            return
        except RayError as error:
            self._lose(member, error)
            return
        del member.calls[call.head]
        self.usual.setdefault(call.job.method, deque(maxlen=64)).append(time.monotonic() - call.began)
        call.asker.take(call, head)

    def _lose(self, member: HostHandle, why: BaseException) -> None:
        """Let go of a host that is gone; have its calls made again, and start another where its node is alive."""
        self._dismiss(member)
        wanted = [call for call in member.calls.values() if call.asker.wants(call)]
        for call in member.calls.values():
            call.asker.again(call)
        if member.is_ready:
            self.figures.lost += 1
            self.figures.again += len(wanted)
            self._say_lost(member.machine, len(wanted), why)
        else:
            self._attempts[member.machine.id] = self._attempts.get(member.machine.id, 0) + 1
            self._why = f", where one on node {member.machine.name} ended ({last_line(why)})"
            log.info("a process on node %s did not start: %s", member.machine.name, why)
        self._hire()

    def _dismiss(self, member: HostHandle) -> None:
        import ray
        from ray.exceptions import RayError

        self._members.remove(member)
        with contextlib.suppress(RayError, ValueError):  # the cluster has ended before
            ray.kill(member.actor, no_restart=True)

    def _say_lost(self, node: Machine, calls: int, why: BaseException) -> None:
        """Log a loss: a line for a node, not for each of its processes."""
        now = time.monotonic()
        is_said = now - self._told.get(node.id, -QUIET_SECONDS) < QUIET_SECONDS
        self._told[node.id] = now
        log.log(
            logging.DEBUG if is_said else logging.WARNING,
            "lost a process on node %s (%s); what it was doing is done again, %d are left",
            node.name,
            type(why).__name__,
            len(self.ready),
        )


def raised(error: Any) -> BaseException:
    """Return the error that a host raised, as it was raised there."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def is_of_ray(error: BaseException) -> bool:
    """Return whether an error that a host raised is Ray's, whose raylet is gone, and nobody's code.

    Ray's core says so by an OSError without a number; the operating system's have one.
    """
    from ray.exceptions import RayError, RayTaskError

    is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)
    return is_rays or (type(error) is OSError and error.errno is None)
