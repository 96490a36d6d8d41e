"""Clients whose examples stay where they are: on each client's own disk, never in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.validation import require, require_count
from .encoding import Classes, Encoding, checked_classes, require_numbers
from .populations import require_alike, require_client, streamed_only
from .sources.files import NpzFile
from .values import fields_only, hash_fields, same_fields

DATA_VARIABLE = "UMBEL_CLIENT_DATA"  # environment variable that `umbel client start --data FILE` sets


@dataclass(frozen=True, eq=False, repr=False)
class OnDevice(Population):
    """Real devices: each client's examples are in an .npz file on its own host, with arrays x, y, sample_weight.

    Errors, on a client: ConfigError for a file that is missing, or that holds something else or more. Anywhere else
    there are no examples: such an experiment runs over Flower, not in simulation.

    Parameters
    ----------
    clients
        Their number.
    like
        An example as (x, y) or (x, y, sample_weight), arrays of length 1, of the shapes and dtypes that every client's
        have; the server builds its model on it.
    most
        The most examples that a client has; nobody can say more in the mean.
    classes
        Every label by name, in the order of their numbers: as for `Partitioned`, and needed where labels are text,
        since no client sees another's.
    """

    clients: int
    like: Examples | tuple
    most: int
    classes: Classes | None = None

    __eq__ = same_fields
    __hash__ = hash_fields
    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require_count("clients", self.clients)
        require_count("most", self.most)
        object.__setattr__(self, "like", Examples.of(self.like))
        object.__setattr__(self, "classes", checked_classes(self.classes))
        if self.classes is None:
            require_numbers(self.sample(), "like")
        require(self.sample().count == 1, f"expected like to be one example, got {self.sample().count}")

    def __repr__(self) -> str:
        return f"OnDevice(clients={self.clients}, most={self.most})"

    def __len__(self) -> int:
        return self.clients

    def sizes(self) -> np.ndarray:
        """Return the most examples per client: int64, shape (clients,)."""
        return np.full(self.clients, self.most, np.int64)

    def encoding(self) -> Encoding:
        """Return what the numbers of all clients mean."""
        return Encoding(checked_classes(self.classes) or ())

    def sample(self) -> Examples:
        """Return the one example that a model is built on, here and on every client."""
        like: Any = self.like
        return self.encoding().encode(like, "like")

    def examples(self, client: int) -> Examples:
        """Load this device's own examples, whichever client it is."""
        require_client(client, self.clients)
        path = os.environ.get(DATA_VARIABLE)
        if not path:
            raise ConfigError(
                f"the examples of {self!r} are on its clients: umbel client start KIT --data FILE.npz, and "
                "umbel run --runtime flower --federation KIT"
            )
        like = self.sample()
        y, weight = (
            None if part is None else name for part, name in ((like.y, "y"), (like.sample_weight, "sample_weight"))
        )
        own = self.encoding().encode(NpzFile(path, y=y, sample_weight=weight).load(), path)
        require(0 < own.count <= self.most, f"{path} holds {own.count} examples, expected 1 to {self.most}")
        require_alike(like, own, client)
        return own

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise streamed_only(self)
