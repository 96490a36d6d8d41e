"""A version of the registry as the weights that an experiment starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.frozen import Base
from ..core.parts.start import InitialWeights
from ..core.spec import ModelSpec
from ..core.types import Vector


@dataclass(frozen=True)
class StoredModel(InitialWeights):
    """Weights of a version of the registry, verified: `Experiment(start=StoredModel("mine", "production"))`.

    Errors, when first used: StoreError where there is no such version, or it does not verify.

    Parameters
    ----------
    name
        The model's, which is its experiment's.
    version
        A number, an alias, or "latest"; which version that is, is looked up once.
    store
        A database URL.
    key
        A storage key's file, of an encrypted store.
    """

    name: str
    version: int | str = "latest"
    store: str = "sqlite:///umbel.db"
    key: str | Path | None = None

    def describe(self) -> str:
        """Return the model's name, the version's number, and the beginning of its hash."""
        number, digest, *_ = self._found
        return f"{self.name} version {number} sha256:{digest[:16]}"

    def load_into(self, model: Any) -> None:
        """Assign the version's weights, frozen ones too."""
        *_, spec, params, base = self._found
        spec.load_into(model, params, base)

    @cached_property
    def _found(self) -> tuple[int, str, ModelSpec, Vector, Base]:
        from .store import Store

        with Store.open(self.store, create=False, key=self.key) as store:
            version, params = store.models.get(self.name, self.version)
            return version.version, version.hash, version.spec, params, store.models.base(self.name, version.version)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without what was looked up."""
        return {name: value for name, value in self.__dict__.items() if name != "_found"}
