"""Clients whose examples are where they are: on each client's own disk, never in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples
from ..core.validation import require, require_count
from .populations import require_alike, require_client, streamed_only
from .sources import NpzFile
from .values import fields_only, hash_fields, same_fields

DATA_VARIABLE = "UMBEL_CLIENT_DATA"  # set by `umbel client start --data FILE`


@dataclass(frozen=True, eq=False, repr=False)
class OnDevice:
    """Real devices: each client's examples are in an .npz file on its own host, with arrays x, y, sample_weight.

    clients: how many. like: an example as (x, y) or (x, y, sample_weight), arrays of length 1: of the shapes and dtypes
    that every client's have; the server builds its model on it. most: how many examples a client has at most; nobody
    can say more in the mean.
    Errors, on a client: ConfigError for a file that is missing, or that holds something else or more. Anywhere else
    there are no examples: such an experiment runs over Flower, not in simulation.
    """

    clients: int
    like: Examples | tuple
    most: int

    __eq__ = same_fields
    __hash__ = hash_fields
    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require_count("clients", self.clients)
        require_count("most", self.most)
        object.__setattr__(self, "like", Examples.of(self.like))
        require(self.sample().count == 1, f"expected like to be one example, got {self.sample().count}")

    def __repr__(self) -> str:
        return f"OnDevice(clients={self.clients}, most={self.most})"

    def __len__(self) -> int:
        return self.clients

    def sizes(self) -> np.ndarray:
        """Examples per client at most: int64, shape (clients,)."""
        return np.full(self.clients, self.most, np.int64)

    def sample(self) -> Examples:
        """What a model is built on, here and on every client."""
        like: Any = self.like
        return like

    def examples(self, client: int) -> Examples:
        """This device's own, whichever client it is."""
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
        own = NpzFile(path, y=y, sample_weight=weight).load()
        require(0 < own.count <= self.most, f"{path} holds {own.count} examples, expected 1 to {self.most}")
        require_alike(like, own, client)
        return own

    def resident(self) -> None:
        """None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Refused: there is no resident data set."""
        raise streamed_only(self)
