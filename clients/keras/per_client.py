"""Values that each of many clients measured: a block of their states at a time, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ...core.parts.phases import PERSONAL
from ...core.types import OWN_LOSS, ClientMetrics, Metrics, MetricState, Weighted, add_metrics, scalars
from .meter import Meter, Unit, to_value

BLOCK = 256  # number of clients whose states are held at a time: 1.6 MB for an AUC


def gathered(clients: Iterable[tuple[int, Metrics]], table: ClientTable) -> ClientMetrics:
    """Return the sum of clients' states, and each one's own values, by its number. Only a block of states is held."""
    total: dict[str, Any] = {}
    blocks: list[dict[str, np.ndarray]] = []
    lengths: list[int] = []
    numbers: list[int] = []
    waiting: list[Metrics] = []

    def close() -> None:
        blocks.append(table.values(waiting))
        lengths.append(len(waiting))
        waiting.clear()

    for client, metrics in clients:
        numbers.append(client)
        total = add_metrics(total, metrics)
        waiting.append(metrics)
        if len(waiting) == BLOCK:
            close()
    close()
    columns = {}
    for name in dict.fromkeys(name for block in blocks for name in block):
        parts = [block.get(name, np.full(length, np.nan)) for block, length in zip(blocks, lengths, strict=True)]
        columns[name] = np.concatenate(parts)
    return ClientMetrics(total, columns, np.array(numbers, np.int64))


class Rows(Protocol):
    """A metric's result() for many states, one after another in one call."""

    def __call__(self, numbers: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
        """Return what lies in the result, by its keys: float64, shape (states, …). Errors: ValueError.

        numbers: float64, shape (states, n).
        """


class ClientTable:
    """The values of many clients' evaluations, from the states of a model's test_step."""

    def __init__(self, meter: Meter, compiled: Callable[[Unit, MetricState], Rows] | None = None):
        """Set a table up for a model's meter.

        compiled: makes the call that works out a metric's result for many states, of the size of one; None: the backend
        has none.
        """
        self._meter, self._compiled = meter, compiled
        self._rows: dict[str, Rows] = {}
        self._is_slow = bool(meter.agreement.derived["test"])  # some value is of several states: one client at a time

    def values(self, clients: Sequence[Metrics]) -> dict[str, np.ndarray]:
        """Return each client's values: float64, shape (clients,), NaN where it has none; named as by `scalars`."""
        if not self._is_slow:
            try:
                return self._in_block(clients)
            except (TypeError, ValueError):  # a result() that no graph can hold
                self._is_slow = True
        rows = [scalars(self._meter.results("test", metrics)) for metrics in clients]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    def _in_block(self, clients: Sequence[Metrics]) -> dict[str, np.ndarray]:
        columns: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(name for metrics in clients for name in metrics if name != OWN_LOSS):
            rows = [row for row, metrics in enumerate(clients) if name in metrics]
            for label, values in self._columns(name, [clients[row][name] for row in rows]).items():
                columns[label] = np.full(len(clients), np.nan)
                columns[label][rows] = values
        return columns

    def _columns(self, name: str, states: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the values that are made of one state of each client. name: name under which the state travels."""
        is_personal = name.startswith(PERSONAL)
        prefix = PERSONAL if is_personal else ""
        key = name.removeprefix(prefix)
        reported = [(prefix + one.name, one.path) for one in self._meter.terms.test.reported if one.key == key]
        if isinstance(states[0], Weighted):
            values = np.array([state.mean() for state in states])
            return {label: values for label, _ in reported or [(name, ())]}
        unit = self._meter.unit("test", key)
        numbers = np.stack([state.numbers for state in states])
        results: dict[tuple[str, ...], np.ndarray]
        if unit is None:  # an average of vectors
            results = {(): numbers[:, :-1] / numbers[:, -1:]}
        elif self._compiled is None:
            raise TypeError("the backend compiles no results of many states")
        else:
            if key not in self._rows:
                self._rows[key] = self._compiled(unit, states[0])
            results = self._rows[key](numbers)
        columns: dict[str, np.ndarray] = {}
        for label, path in reported:
            columns |= components(label, results[path])
        return columns


def components(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the numbers that values are made of, each as a column.

    values: shape (clients, …). Names as in `scalars`.
    """
    names = scalars({name: to_value(values[0])})
    return dict(zip(names, values.reshape(len(values), -1).T, strict=True))
