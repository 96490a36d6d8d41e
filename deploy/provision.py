"""Keys that an experiment's aggregation needs beyond what every kit has: the one that clients encrypt under."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError
from ..core.parts.private import RemoteAggregation, SecureAggregation
from .federation import parties
from .kits import ClientKit


def provision(folder: Path, aggregation: SecureAggregation | None) -> list[Path]:
    """Complete a folder of kits for an experiment's aggregation; return the new files, to hand out with the kits.

    Kits that have what it needs are left as they are. Errors: ConfigError for an aggregation that needs no kits, and
    for a folder that has not all kits of its federation.
    """
    if not isinstance(aggregation, RemoteAggregation):
        raise ConfigError(f"expected an experiment with a SecureSum or Homomorphic aggregation, got {aggregation!r}")
    server, *clients = parties(folder)
    before = _files(folder)
    aggregation.provision(server.kit, {ClientKit.load(party.kit).number: party.kit for party in clients})
    return sorted(path for path, written in _files(folder).items() if before.get(path) != written)


def _files(folder: Path) -> dict[Path, int]:
    """Return when each file of the kits was written, without what their processes write."""
    found = [path for kit in ("server", "clients/*") for path in folder.glob(f"{kit}/*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in found}
