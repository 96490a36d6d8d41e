"""A federation that runs already, on this host or at the end of a tunnel: runs are submitted to it and followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.errors import UmbelError
from ...core.loading import load_experiment
from ...core.overrides import fit_to, override
from ...server.events import Events, Finished
from .events import unpacked
from .local import app_config, pyproject
from .secured import Operator


class RemoteFederation:
    """A SuperLink and its `clients` nodes. A context that closes the connection; the federation goes on.

    address: host:port of the SuperLink. certificates: its authority's, PEM, or a file that may be replaced under a run.
    token: the operator's.
    """

    def __init__(self, address: str, certificates: bytes | Path, token: str, clients: int):
        self.address, self.clients = address, clients
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
        timeout_seconds: float = 600.0,
    ) -> Events:
        """Start a run and yield its events, as `LocalFederation.submit` does. A caller that leaves ends the run.

        Of a file only the name is sent: each party has its own copy, and its own say in what it runs. digest: of the
        experiment that is meant; a server whose copy is another refuses. timeout_seconds: a round's deadline.
        Errors: those of `umbel.run`; ConfigError when the token is refused; UmbelError when the server is lost or the
        run fails.
        """
        self._operator.nodes()  # a refused token, or no server, in words
        control, path = self._operator.control, Path(reference)
        name = path.name if ".py" in path.name else reference
        config = app_config(name, overrides, self.clients, resume, timeout_seconds=timeout_seconds, digest=digest)
        run_id, done = control.start_run(pyproject(config)), False
        try:
            for event in unpacked(self._operator.events(run_id)):
                yield event
                done = isinstance(event, Finished)
            if not done:
                status = control.status(run_id)
                raise UmbelError(
                    f"the run {status.sub_status or status.status}: {status.details or 'no reason given'}; "
                    "the server's log says more"
                )
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
    fitted = fit_to(experiment, federation.clients)
    digest = override(experiment, fitted).digest
    overrides = [*overrides, *fitted]
    yield from federation.submit(reference, overrides, resume=resume, digest=digest, timeout_seconds=timeout_seconds)
