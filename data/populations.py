"""Populations: clients and their examples, lazily. A million clients are two arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..core.errors import ConfigError
from ..core.examples import Examples, brief, leaves
from ..core.protocols import Source
from ..core.random import derive
from ..core.validation import plain_numbers, require, require_count, shown
from .allocation import grouped
from .datasets import TfDataset
from .partitioners import Iid, Partitioner
from .sources import Arrays
from .values import fields_only, hash_fields, once, same_fields

DEFAULT_CLIENTS = 100
RESIDENT_FRACTION = 1 / 4  # of the machine's memory that a data set may take to be held whole


@dataclass(frozen=True)
class Partitioned:
    """A data set divided among clients. Nothing is loaded before it is needed.

    source: the data set; (x, y) stands for Arrays(x, y), a tf.data.Dataset for TfDataset of it.
    by: who owns which example.
    clients: None: as many as `by` finds (a client per group or cluster), or 100 where it finds none.
    seed: of the partition, which is apart from the seed of a run.
    stream: True: examples are gathered client by client; False: the data set is held whole (`resident`). "auto" holds
        it unless it takes more than a quarter of the machine's memory. Alters no result.
    Errors, when first used: ConfigError when a client would have no examples.
    """

    source: Source
    by: Partitioner = Iid()  # noqa: RUF009  frozen, without state
    clients: int | None = None
    seed: int = 0
    stream: bool | Literal["auto"] = field(default="auto", compare=False)

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.source, tuple):
            object.__setattr__(self, "source", Arrays(*self.source))
        elif hasattr(self.source, "as_numpy_iterator"):  # tf.data's own `load` is something else
            object.__setattr__(self, "source", TfDataset(self.source))
        require(hasattr(self.source, "load"), f"expected source={shown(self.source)} to be (x, y), or to have load()")
        is_value = hasattr(self.by, "partition") and not isinstance(self.by, type)
        require(is_value, f"expected by={shown(self.by)} to have partition(), such as Dirichlet(alpha=0.3)")
        if self.clients is not None:
            require_count("clients", self.clients)
        require_count("seed", self.seed, at_least=0)
        require(self.stream in (True, False, "auto"), f"expected stream={self.stream!r} in True, False, auto")

    __getstate__ = fields_only

    def __len__(self) -> int:
        number = self._asked_clients()
        return len(self._rows()[0]) - 1 if number is None else number

    def sizes(self) -> np.ndarray:
        """Examples per client: int64, shape (clients,)."""
        return np.diff(self._rows()[0])

    def examples(self, client: int) -> Examples:
        """This client's own examples, as a copy."""
        return self._loaded().take(self.indices(client))

    def resident(self) -> Examples | None:
        """The whole data set; None where it is streamed."""
        examples = self._loaded()
        streamed = examples.nbytes > _memory_bytes() * RESIDENT_FRACTION if self.stream == "auto" else self.stream
        return None if streamed else examples

    def indices(self, client: int) -> np.ndarray:
        """This client's rows of the data set, ascending; a view."""
        offsets, rows = self._rows()
        require_client(client, len(offsets) - 1)
        return rows[offsets[client] : offsets[client + 1]]

    def _asked_clients(self) -> int | None:
        """The number of clients known without loading."""
        return DEFAULT_CLIENTS if self.clients is None and not self.by.finds_clients else self.clients

    @once
    def _loaded(self) -> Examples:
        """A source of somebody's own may read its files at each `load`."""
        return Examples.of(self.source.load())

    @once
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64, rows int32 or int64): client k owns rows[offsets[k]:offsets[k + 1]]."""
        number = self._asked_clients()
        generator = derive(self.seed, "partition").generator()
        owners = np.asarray(self.by.partition(self.source, number, generator))
        count = self._loaded().count
        within = owners.shape == (count,) and owners.dtype.kind in "iu" and owners.min() >= 0
        within = within and (number is None or owners.max() < number)
        bounds = f"0 ≤ owner < {number}" if number is not None else "owner ≥ 0"
        require(within, f"expected {self.by!r} to give {count} integers, {bounds}, got {brief(owners)}")
        sizes = np.bincount(owners, minlength=number or 0)
        empty = np.flatnonzero(sizes == 0)
        require(not len(empty), f"{self.by!r} leaves {len(empty)} clients without examples; lower clients={number}")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        rows = grouped(owners)
        for array in (offsets, rows):
            array.flags.writeable = False  # shared by equal populations
        return offsets, rows


@dataclass(frozen=True, eq=False, repr=False)
class PerClient:
    """Clients given one by one: a sequence of Examples, or of (x, y), in the order of their numbers.

    For data that come divided; nothing is copied. Errors: ConfigError for no clients, a client without examples, or
    one whose arrays differ in shape or type from those of client 0.
    """

    clients: Sequence[Examples]

    __eq__ = same_fields
    __hash__ = hash_fields

    def __post_init__(self) -> None:
        clients = tuple(Examples.of(one) for one in self.clients)
        require(bool(clients), "expected clients, got none")
        for client, examples in enumerate(clients):
            require(examples.count > 0, f"client {client} has no examples; leave it out")
            require_alike(clients[0], examples, client)
        object.__setattr__(self, "clients", clients)

    def __repr__(self) -> str:
        return f"PerClient({len(self.clients)} clients)"

    def __len__(self) -> int:
        return len(self.clients)

    def sizes(self) -> np.ndarray:
        """Examples per client: int64, shape (clients,)."""
        return np.array([examples.count for examples in self.clients], np.int64)

    def examples(self, client: int) -> Examples:
        """This client's own examples."""
        require_client(client, len(self))
        return self.clients[client]

    def resident(self) -> None:
        """None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Refused: there is no resident data set."""
        raise streamed_only(self)


@dataclass(frozen=True, eq=False, repr=False)
class Generated:
    """Clients whose examples a function makes when they are needed: synthetic data, or files per client.

    clients: how many.
    make: client → Examples, or (x, y). A pure function: equal results each time, in every process.
    size: how many examples make(client) gives: one number for all, or an int64 array of shape (clients,).
    Errors: ConfigError when make gives another number than promised.
    """

    clients: int
    make: Callable[[int], Examples | tuple]
    size: int | np.ndarray

    __eq__ = same_fields
    __hash__ = hash_fields

    def __post_init__(self) -> None:
        require_count("clients", self.clients)
        require(callable(self.make), f"expected make={self.make!r} to be a function of the client's number")
        if isinstance(self.size, int):
            require_count("size", self.size)
            return
        sizes = np.asarray(self.size, np.int64)
        require(
            sizes.shape == (self.clients,) and sizes.min() > 0,
            f"expected size to be {self.clients} numbers ≥ 1, got {brief(sizes)}",
        )
        object.__setattr__(self, "size", sizes)

    def __repr__(self) -> str:
        name = getattr(self.make, "__qualname__", repr(self.make))
        return f"Generated(clients={self.clients}, make={name}, size={brief(self.size)})"

    def __len__(self) -> int:
        return self.clients

    def sizes(self) -> np.ndarray:
        """Examples per client: int64, shape (clients,)."""
        return np.full(self.clients, self.size, np.int64) if isinstance(self.size, int) else self.size

    def examples(self, client: int) -> Examples:
        """What make gives for this client."""
        require_client(client, self.clients)
        examples = Examples.of(self.make(client))
        promised = self.size if isinstance(self.size, int) else self.size[client]
        require(
            examples.count == promised,
            f"make({client}) gave {examples.count} examples, where size promised {promised}",
        )
        return examples

    def resident(self) -> None:
        """None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Refused: there is no resident data set."""
        raise streamed_only(self)


def require_client(client: int, clients: int) -> None:
    """Raise ConfigError unless client is a number in [0, clients): −1 would silently be the last one."""
    require(0 <= client < clients, f"expected client={client} in [0, {clients})")


def require_alike(first: Examples, examples: Examples, client: int) -> None:
    """Raise ConfigError unless client's arrays have the shapes (less the first axis) and types of client 0's."""
    layouts = [
        [(array.shape[1:], array.dtype.str) for part in one for array in leaves(part)] for one in (first, examples)
    ]
    require(layouts[0] == layouts[1], f"client {client} has {brief(tuple(examples))}, client 0 {brief(tuple(first))}")


def streamed_only(population: object) -> ConfigError:
    """The error for asking a streaming population for rows."""
    return ConfigError(f"{population!r} streams its clients: it has examples(client), but no rows to index")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
