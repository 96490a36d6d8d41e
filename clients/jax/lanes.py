"""Lanes: threads on which blocks of clients are computed side by side, each on a device.

XLA computes most steps of small models on one processor. So two blocks at a time keep two of them busy; and of several
devices each has lanes of its own. A block's numbers do not depend on its lane.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from ...core.system.processors import processors

T = TypeVar("T")
Item = TypeVar("Item")
MOST = 8  # lanes on one device: the states of their blocks share its memory


class _Lane(threading.local):
    """Knowledge of a thread about its lane."""

    place = 0


class Lanes:
    """The lanes of an engine."""

    def __init__(self, count: int | None = None):
        """Take a number of lanes; None: one for each processor on a CPU, else one for each device."""
        self._devices = jax.local_devices()
        usual = min(MOST, processors())
        self.count = count or max(len(self._devices), usual if jax.default_backend() == "cpu" else 1)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="umbel-lane") if self.count > 1 else None
        self._lane = _Lane()
        self._copies: dict[tuple[int, int], tuple[weakref.ref[Any], Any]] = {}

    def map(self, work: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """Return work(item) for each item, computed side by side. The first error among them is raised."""
        if self._pool is None or len(items) < 2:
            return [work(item) for item in items]
        numbered = list(enumerate(items))
        return list(self._pool.map(lambda pair: self._on_device(pair[0], work, pair[1]), numbered))

    def here(self, arrays: Any) -> Any:
        """Return nested arrays of the first device as they lie on the device of this lane, copied there once."""
        place = self.place
        return arrays if not place else jax.tree.map(lambda array: self._copied(array, place), arrays)

    def gathered(self, arrays: Sequence[Any]) -> list[Any]:
        """Return arrays of all lanes on the first device."""
        return list(arrays) if len(self._devices) == 1 else jax.device_put(list(arrays), self._devices[0])

    @property
    def place(self) -> int:
        """Number of this lane's device."""
        return self._lane.place

    def _on_device(self, number: int, work: Callable[[Item], T], item: Item) -> T:
        self._lane.place = number % len(self._devices)
        try:
            with jax.default_device(self._devices[self._lane.place]):
                return work(item)
        finally:
            self._lane.place = 0

    def _copied(self, array: Any, place: int) -> Any:
        if not isinstance(array, jax.Array) or array.devices() == {self._devices[place]}:
            return array
        found = self._copies.get((id(array), place))
        if found is None or found[0]() is not array:
            self._copies = {key: pair for key, pair in self._copies.items() if pair[0]() is not None}
            found = weakref.ref(array), jax.device_put(array, self._devices[place])
            self._copies[id(array), place] = found
        return found[1]
