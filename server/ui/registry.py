"""The registry of models as the page shows it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ...core.errors import StoreError
from ...core.types import scalars
from ..store import ModelVersion, Store
from .plain import number


def models(store: Store) -> list[dict[str, Any]]:
    """List every model: its versions, whether their chain verifies, where its aliases point, and where they pointed."""
    return [_model(store, name) for name in store.models.names()]


def verify(store: Store, name: str) -> dict[str, Any]:
    """Check that the weights of every version are those that were registered. Reads all of them."""
    try:
        return {"verified": store.models.verify(name), "problem": None}
    except StoreError as error:
        return {"verified": 0, "problem": str(error)}


def arrays(store: Store, name: str, version: int) -> tuple[str, bytes]:
    """Return a version's weights, verified, as the bytes of a .npz, and a name for the file.

    Errors: StoreError where there is no such version, or it does not verify.
    """
    found, held = store.models.arrays(name, version)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **held)
    return f"{found.name}-{found.version}.npz", file.getvalue()


def _model(store: Store, name: str) -> dict[str, Any]:
    moves = [move._asdict() for move in store.models.alias_history(name)]
    try:
        versions = [_version(version) for version in reversed(store.models.list(name))]
        problem = None
    except StoreError as error:
        versions, problem = [], str(error)
    return {
        "name": name,
        "problem": problem,
        "versions": versions,
        "aliases": store.models.aliases(name),
        "moves": list(reversed(moves)),
    }


def _version(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "run": version.run,
        "created": version.created,
        "metrics": {name: number(value) for name, value in scalars(version.metrics).items()},
        "epsilon": number(version.epsilon),
        "size": version.spec.size,
        "params_sha256": version.params_sha256,
        "hash": version.hash,
        "labels": list(version.labels),
        "aliases": list(version.aliases),
    }
