"""Populations: clients and their examples, lazily. A million clients are two arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..core.bases import Population
from ..core.errors import ConfigError
from ..core.examples import Examples, brief, leaves
from ..core.protocols import Source
from ..core.random import derive
from ..core.reading.coercion import MEMORY_FRACTION, is_frame, is_text, memory_bytes
from ..core.validation import callable_name, lacking, plain_numbers, require, require_count, require_methods, shown
from .allocation import grouped
from .encoding import Classes, ColumnSource, Encoding, checked_classes, find_encoding, require_numbers
from .partitioners import Iid, Partitioner
from .sources.arrays import Arrays
from .sources.datasets import TfDataset
from .sources.huggingface import HuggingFace, is_dataset
from .values import fields_only, hash_fields, once, same_fields

DEFAULT_CLIENTS = 100


@dataclass(frozen=True)
class Partitioned(Population):
    """A data set divided among clients. Nothing is loaded before it is needed.

    Errors, when first used: ConfigError when a client would have no examples.

    Parameters
    ----------
    source
        The data set; (x, y) stands for Arrays(x, y), a tf.data.Dataset for TfDataset of it, a data set of Hugging Face
        for HuggingFace of it.
    by
        Who owns which example.
    clients
        None: as many as `by` finds (a client per group or cluster), or 100 where it finds none.
    seed
        Seed of the partition, which is apart from the seed of a run.
    stream
        True: examples are gathered client by client; False: the data set is held whole (`resident`). "auto" holds it
        unless it takes more than a quarter of the machine's memory. Alters no result.
    classes
        Every label by name, in the order of their numbers; None: labels of text are numbered in sorted order; (): they
        stay text, for a model that takes it. Labels that are numbers are meant by value where all classes are whole
        numbers, such as (3, 7, 9), and stay as they are elsewhere.
    """

    source: Source
    by: Partitioner = Iid()  # noqa: RUF009  frozen, without state
    clients: int | None = None
    seed: int = 0
    stream: bool | Literal["auto"] = field(default="auto", compare=False)
    classes: Classes | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "source", as_source(self.source))
        object.__setattr__(self, "classes", checked_classes(self.classes))
        require_methods("source", self.source, ("load",), "(x, y)")
        require_methods("by", self.by, ("partition",), "Dirichlet(alpha=0.3)")
        if self.clients is not None:
            require_count("clients", self.clients)
        require_count("seed", self.seed, at_least=0)
        require(self.stream in (True, False, "auto"), f"expected stream={self.stream!r} in True, False, auto")

    __getstate__ = fields_only

    def __len__(self) -> int:
        number = self._asked_clients()
        return len(self._rows()[0]) - 1 if number is None else number

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return np.diff(self._rows()[0])

    def examples(self, client: int) -> Examples:
        """Return this client's own examples, as a copy."""
        return self._loaded().take(self.indices(client))

    @once
    def encoding(self) -> Encoding:
        """Return what the numbers of all clients mean."""
        return find_encoding([(shown(self.source), self.source)], self.classes)

    def resident(self) -> Examples | None:
        """Return the whole data set; None where it is streamed."""
        examples = self._loaded()
        streamed = examples.nbytes > memory_bytes() * MEMORY_FRACTION if self.stream == "auto" else self.stream
        return None if streamed else examples

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of the data set, ascending; a view."""
        offsets, rows = self._rows()
        require_client(client, len(offsets) - 1)
        return rows[offsets[client] : offsets[client + 1]]

    @property
    def known_clients(self) -> int | None:
        """Number of clients, if it was given; else None."""
        return self.clients

    def _asked_clients(self) -> int | None:
        """Return the number of clients known without loading."""
        return DEFAULT_CLIENTS if self.clients is None and not self.by.finds_clients else self.clients

    @once
    def _loaded(self) -> Examples:
        """Load the examples in this population's numbers: a user's own source may read its files at each `load`."""
        return self.encoding().read(self.source)

    @once
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (offsets int64, rows int32 or int64): client k owns rows[offsets[k]:offsets[k + 1]]."""
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
class PerClient(Population):
    """Clients given one by one, in the order of their numbers, for data that come divided.

    Parameters
    ----------
    clients
        A sequence of Examples, (x, y), frames with labels, tf.data.Datasets, data sets of Hugging Face, or sources such
        as CsvTable and ImageFolder; or a partitioner of flwr-datasets. Sources are loaded when first needed, and
        nothing is copied. Clients may differ in the lengths of their examples, where the model takes any: sequences.
    classes
        As for `Partitioned`; None: labels of text are numbered in the sorted order of all clients' labels, so that a
        client that lacks a class shifts nobody's.

    Raises
    ------
    ConfigError
        For no clients, a client without examples, one whose arrays differ in number of axes or type from those of
        client 0, or whose columns have other names; for sources when first used.
    """

    clients: Sequence[Examples | tuple | Source]
    classes: Classes | None = None

    __eq__ = same_fields
    __hash__ = hash_fields
    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require(
            not isinstance(self.clients, dict),
            "expected clients in a list, got a dictionary: list(clients.values()), in an order that stays",
        )
        clients = tuple(map(as_client, _partitions(self.clients)))
        require(bool(clients), "expected clients, got none")
        _check_clients([(number, one) for number, one in enumerate(clients) if isinstance(one, Examples)])
        object.__setattr__(self, "clients", clients)
        object.__setattr__(self, "classes", checked_classes(self.classes))

    def __repr__(self) -> str:
        return f"PerClient({len(self.clients)} clients)"

    def __len__(self) -> int:
        return len(self.clients)

    @once
    def encoding(self) -> Encoding:
        """Return what the numbers of all clients mean."""
        return find_encoding(((f"client {number}", one) for number, one in enumerate(self.clients)), self.classes)

    @once
    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        examples = [(client, self.examples(client)) for client in range(len(self))]
        _check_clients(examples)
        return np.array([one.count for _, one in examples], np.int64)

    @property
    def known_clients(self) -> int:
        """Number of clients that were given."""
        return len(self.clients)

    def examples(self, client: int) -> Examples:
        """Return this client's own examples."""
        require_client(client, len(self))
        one: Any = self.clients[client]
        read = self.encoding().encode if isinstance(one, Examples) else self.encoding().read
        return read(one, f"client {client}")

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise streamed_only(self)


def as_source(value: Any) -> Any:
    """Return (x, y), Examples, tf.data.Datasets and Hugging Face's data sets as sources; anything else as it is."""
    if isinstance(value, tuple):
        return Arrays(*value)
    if is_dataset(value):
        return HuggingFace(value)
    # tf.data's own `load` is something else
    return value if lacking(value, ("as_numpy_iterator",)) else TfDataset(value)


def _partitions(clients: Any) -> Any:
    """Return a partitioner of flwr-datasets as its partitions, in their order; anything else as it is."""
    if lacking(clients, ("load_partition", "num_partitions")):
        return clients
    return [clients.load_partition(number) for number in range(clients.num_partitions)]


def as_client(value: Any) -> Examples | Source:
    """Return one client's data as Examples, or as a source that loads them."""
    if isinstance(value, tuple) and not isinstance(value, Examples) and any(map(is_frame, value[:2])):
        return Arrays(*value)
    if is_frame(value):
        return Arrays(value)
    if isinstance(value, Population):
        raise ConfigError(f"expected one client's examples, got a population, {shown(value)}: its clients are divided")
    source = as_source(value) if not isinstance(value, tuple) else value
    return source if isinstance(source, Source) else Examples.of(source)


def _check_clients(clients: Sequence[tuple[int, Examples]]) -> None:
    """Raise ConfigError unless each client has examples, of one number of axes and one type."""
    for client, examples in clients:
        require(examples.count > 0, f"client {client} has no examples; leave it out")
        require_alike(clients[0][1], examples, client, of_any_length=True)


@dataclass(frozen=True, eq=False, repr=False)
class Generated(Population):
    """Clients whose examples a function makes when they are needed: synthetic data, or files per client.

    Parameters
    ----------
    clients
        Number of clients.
    make
        Client → Examples, or (x, y). A pure function: equal results each time, in every process.
    size
        Number of examples that make(client) gives: one for all, or an int64 array of shape (clients,).
    classes
        As for `Partitioned`; needed where labels are text, since clients that nobody has made yet have some too.

    Raises
    ------
    ConfigError
        When make gives another number than promised.
    """

    clients: int
    make: Callable[[int], Examples | tuple]
    size: int | np.ndarray
    classes: Classes | None = None

    __eq__ = same_fields
    __hash__ = hash_fields
    __getstate__ = fields_only

    def __post_init__(self) -> None:
        require_count("clients", self.clients)
        require(callable(self.make), f"expected make={self.make!r} to be a function of the client's number")
        object.__setattr__(self, "classes", checked_classes(self.classes))
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
        name = callable_name(self.make)
        return f"Generated(clients={self.clients}, make={name}, size={brief(self.size)})"

    def __len__(self) -> int:
        return self.clients

    @property
    def known_clients(self) -> int:
        """Number of clients."""
        return self.clients

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return np.full(self.clients, self.size, np.int64) if isinstance(self.size, int) else self.size

    def examples(self, client: int) -> Examples:
        """Make this client's examples."""
        require_client(client, self.clients)
        examples = self._encoded(self.make(client), f"make({client})")
        promised = self.size if isinstance(self.size, int) else self.size[client]
        require(
            examples.count == promised,
            f"make({client}) gave {examples.count} examples, where size promised {promised}",
        )
        return examples

    @once
    def encoding(self) -> Encoding:
        """Return what the numbers of all clients mean: classes as they were given, columns as those of client 0."""
        first = as_client(self.make(0))
        columns = first.columns() if isinstance(first, ColumnSource) else ()
        return Encoding(checked_classes(self.classes) or (), columns)

    def resident(self) -> None:
        """Return None: examples are streamed."""

    def indices(self, client: int) -> np.ndarray:
        """Raise ConfigError: there is no resident data set."""
        raise streamed_only(self)

    def _encoded(self, made: Any, place: str) -> Examples:
        """Return what make gave, in this population's numbers."""
        part: Any = as_client(made)
        if isinstance(part, Examples):  # without names of columns, so that client 0 need not be made for them
            examples = Encoding(checked_classes(self.classes) or ()).encode(part, place)
        else:
            examples = self.encoding().read(part, place)
        if self.classes is None:
            require_numbers(examples, place)
        return examples


def require_client(client: int, clients: int) -> None:
    """Raise ConfigError unless client is a number in [0, clients): −1 would silently be the last one."""
    require(0 <= client < clients, f"expected client={client} in [0, {clients})")


def require_alike(first: Examples, examples: Examples, client: int, of_any_length: bool = False) -> None:
    """Raise ConfigError unless client's arrays have the shapes (less the first axis) and types of client 0's.

    of_any_length: the number of axes has to be the same, their lengths may differ. Whether a model takes them, it knows
    itself.
    """
    layouts = [
        [(array.ndim if of_any_length else array.shape[1:], _type_of(array)) for part in one for array in leaves(part)]
        for one in (first, examples)
    ]
    require(
        layouts[0] == layouts[1],
        f"client {client} has {brief(tuple(examples))}, client 0 {brief(tuple(first))}: give all of them arrays of the "
        "same axes and types",
    )


def _type_of(array: Any) -> str:
    """Return the type as a model sees it: text of any length, and floats and integers of any width, are one."""
    if is_text(array):
        return "text"
    kinds = {"f": "float", "i": "integer", "u": "integer"}  # Keras casts floats; integers are the numbers that they are
    return kinds.get(array.dtype.kind, str(array.dtype))


def streamed_only(population: object) -> ConfigError:
    """Return the error for asking a streaming population for rows."""
    return ConfigError(f"{population!r} streams its clients: it has examples(client), but no rows to index")
