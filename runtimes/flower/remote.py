"""A federation that runs already, on this host or at the end of a tunnel: runs are submitted to it and followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.errors import RunStopped, UmbelError
from ...core.reading.loading import load_experiment, source_digest
from ...core.reading.overrides import fit_to, override
from ...server.events import Events, Finished
from .control import RunStatus
from .events import unpacked
from .local import app_config, pyproject
from .secured import Operator

LOST = "No heartbeat received"  # Flower's words for a run whose process is gone


class RemoteFederation:
    """A SuperLink and its nodes. A context that closes the connection; the federation goes on.

    address: host:port of the SuperLink. certificates: its authority's, PEM, or a file that may be replaced under a run.
    token: the operator's. clients: number of clients that experiments are divided among. members: those of them that
    are still there; None: all. quorum: fewest that have to be connected for a round to begin.
    """

    def __init__(
        self,
        address: str,
        certificates: bytes | Path,
        token: str,
        clients: int,
        members: int | None = None,
        quorum: int = 1,
    ):
        self.address, self.clients, self.members, self.quorum = address, clients, members or clients, quorum
        self._operator = Operator(address, certificates, token)

    def __enter__(self) -> RemoteFederation:
        return self

    def __exit__(self, *_: object) -> None:
        self._operator.control.close()

    def submit(
        self,
        reference: str,
        overrides: Sequence[str] = (),
        *,
        resume: str | None = None,
        digest: str = "",
        source: str = "",
        timeout_seconds: float = 600.0,
    ) -> Events:
        """Start a run and yield its events, as `LocalFederation.submit` does. A caller that leaves ends the run.

        Of a file only the name is sent: each party has its own copy, and its own say in what it runs. digest, source:
        of the experiment that is meant, and of its file; a server whose copy is another refuses. timeout_seconds: a
        round's deadline.
        Errors: those of `umbel.run`; ConfigError when the token is refused; UmbelError when the server is lost or the
        run fails.
        """
        self._operator.nodes()  # a refused token, or no server, in words
        control, path = self._operator.control, Path(reference)
        name = path.name if ".py" in path.name else reference
        config = app_config(
            name,
            overrides,
            0,
            resume,
            timeout_seconds=timeout_seconds,
            digest=digest,
            source=source,
            quorum=self.quorum,
        )
        run_id, done = control.start_run(pyproject(config)), False
        try:
            for event in unpacked(self._operator.events(run_id)):
                yield event
                done = isinstance(event, Finished)
            if not done:
                raise _explained(control.status(run_id))
        finally:
            if not done:
                self._stop(run_id)

    def _stop(self, run_id: int) -> None:
        """End a run that its submitter gave up; a server that is gone has ended it already."""
        try:
            if self._operator.control.status(run_id).status != "finished":
                self._operator.control.stop_run(run_id)
        except Exception:
            return


def _explained(status: RunStatus) -> UmbelError:
    """Say why a run ended without a last event."""
    if LOST in status.details:
        return RunStopped(
            "the server's process that played the run was lost without a word; what it had charged for the round under "
            "way stays charged, and that round is played anew"
        )
    why = status.details or "no reason given"
    return UmbelError(f"the run {status.sub_status or status.status}: {why}; the server's log says more")


def play_remote(
    federation: RemoteFederation,
    reference: str,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    timeout_seconds: float = 600.0,
) -> Events:
    """Yield the events of a run on a federation. Same as `play_local`, on the clients that the federation has."""
    experiment = load_experiment(reference, overrides)
    fitted = fit_to(experiment, federation.clients, federation.members)
    digest = override(experiment, fitted).digest
    overrides, source = [*overrides, *fitted], source_digest(reference)
    yield from federation.submit(
        reference, overrides, resume=resume, digest=digest, source=source, timeout_seconds=timeout_seconds
    )
