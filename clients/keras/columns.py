"""States of many clients in columns, a row for each, and the sum of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.tree import room_for, summed_rows
from ...core.types import JOINS, OWN_LOSS, Join, MetricState, Weighted, loss_of
from ..engine import Measured, StepName
from .meter import Column, Meter


def summed_up(
    meter: Meter, step: StepName, arrays: Sequence[np.ndarray], visited: np.ndarray, examples: np.ndarray
) -> tuple[dict[str, Column], np.ndarray | None]:
    """Return the states of clients as columns, the loss of each among them as with `Meter.with_loss`, and mean losses.

    arrays: as `Meter.read` returns them, a row for each client. visited: number of examples of all passes together;
    examples: those that a client holds.
    """
    columns = meter.columns(step, arrays, visited)
    if not meter.reports(step, "loss"):
        return columns, None
    if "loss" in columns and columns["loss"].joins is None:
        return columns, means_of(columns["loss"].numbers)
    losses = np.array([own_loss(meter, step, columns, place, int(count)) for place, count in enumerate(examples)])
    columns[OWN_LOSS] = Column(np.stack([losses * examples, examples.astype(float)], 1), None)
    return columns, losses


def own_loss(meter: Meter, step: StepName, columns: dict[str, Column], place: int, examples: int) -> float:
    """Return the mean loss of one client, where it is the state of some metric."""
    loss = loss_of(meter.with_loss(step, state_at(columns, place), examples))
    return float("nan") if loss is None else loss


def state_at(columns: dict[str, Column], place: int) -> Measured:
    """Return what one client measured."""
    return {name: one_state(column.numbers[place], column.joins) for name, column in columns.items()}


def one_state(numbers: np.ndarray, joins: tuple[tuple[Join, int], ...] | None) -> Weighted | MetricState:
    """Return numbers as a state. joins: None for a mean."""
    return Weighted(*numbers.tolist()) if joins is None else MetricState(numbers, joins)


def means_of(numbers: np.ndarray) -> np.ndarray:
    """Return sum / count of each row; NaN where nothing was counted."""
    means = np.full(len(numbers), np.nan)
    np.divide(numbers[:, 0], numbers[:, 1], out=means, where=numbers[:, 1] != 0)
    return means


def joined(column: Column, counted: np.ndarray) -> Weighted | MetricState:
    """Return the joined states of the clients that count, of which there is one at least; sums as a Tree adds up."""
    rows = np.zeros((room_for(len(counted)), column.numbers.shape[1]))
    rows[: len(counted)][counted] = column.numbers[counted]
    total, start = summed_rows(rows), 0
    for join, count in column.joins or ():
        part = slice(start, start + count)
        if join != "sum":
            total[part] = JOINS[join].reduce(column.numbers[counted, part], axis=0)
        start += count
    return one_state(total, column.joins)
