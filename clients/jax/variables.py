"""A model's variables as pure values: what a client's training starts from, what a step changes, what is left.

    begin(vector, personal, rate, seeds) ─► state ─► step ─► … ─► state ─► finish ─► delta, personal, metrics

A *state* holds the arrays of the variables that a round changes, by their number. All others lie in `still`, once for
all clients: a frozen body is not multiplied by the clients of a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np

from ...core.spec import ModelSpec
from ...core.types import Trains
from ..keras.meter import Meter
from ..keras.slots import copies_of, inner_optimizers, is_averaging, sets_own_rate
from .eager import groups_of

State = dict[int, Any]  # arrays by the number of their variable


class ModelVariables:
    """The variables of a model, sorted by what happens to them in a client's round, and its steps as functions."""

    def __init__(self, model: keras.Model, spec: ModelSpec, meter: Meter, assigned: Sequence[keras.Variable]):
        """Sort the variables of a model. assigned: those that a training step assigns."""
        self.model, self.spec, self.meter = model, spec, meter
        groups = groups_of(model)
        measured = {id(variable) for variable in groups[3]}
        # What a step returns and no metric tracks is added up in variables that the model does not know.
        self.trackers = [variable for variable, _ in meter.variables if id(variable) not in measured]
        self.groups = (*groups, self.trackers)
        self.all = [variable for group in self.groups for variable in group]
        self.numbers = {id(variable): number for number, variable in enumerate(self.all)}
        pairs = list(zip(model.weights, spec.variables, strict=True))
        self.shared = [(weight, variable) for weight, variable in pairs if variable.offset is not None]
        self.personal = [weight for weight, variable in pairs if variable.is_at_home]
        self.seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
        self.has_own_schedule = sets_own_rate(model.optimizer)
        self.copies = copies_of([model.optimizer])
        self.rate = None if self.has_own_schedule else model.optimizer.learning_rate
        resets = {id(variable): reset for variable, reset in meter.variables}
        self.initial = [resets.get(id(one), np.array(one.value)).astype(one.dtype) for one in self.all]
        own = [weight for weight, _ in self.shared] + self.personal + self.seeds + list(assigned)
        own += [*self.groups[3], *self.trackers, *([] if self.rate is None else [self.rate])]
        self.moving = sorted({self.numbers[id(variable)] for variable in own})
        optimizer = {self.numbers[id(variable)] for variable in self.groups[2]}
        self.optimizer = [number for number in self.moving if number in optimizer]
        self.still: State = {
            number: jnp.asarray(self.initial[number]) for number in set(range(len(self.all))) - set(self.moving)
        }

    def begin(self, is_training: bool, params: Any, personal: list[Any], rate: Any, seeds: list[Any]) -> State:
        """Return the state that a client starts from. seeds: two words for each random generator."""
        state: State = {}
        skipped = set() if is_training else set(self.optimizer)
        for number in self.moving:
            if number not in skipped:
                state[number] = jnp.asarray(self.initial[number])
        for weight, variable in self.shared:
            part = params[variable.place]
            state[self.numbers[id(weight)]] = part.reshape(variable.shape).astype(weight.dtype)
        values = [*zip(self.personal, personal, strict=True), *zip(self.seeds, seeds, strict=True)]
        if is_training and self.rate is not None:
            values.append((self.rate, rate))
        for variable, value in values:
            state[self.numbers[id(variable)]] = value.astype(variable.dtype)
        return self._copied(state) if is_training else state

    def reset_optimizer(self, state: State, rate: Any) -> State:
        """Return the state with the optimizer as compiled, but for the rate."""
        state = self.finish_optimizer(state)
        state = state | {number: jnp.asarray(self.initial[number]) for number in self.optimizer}
        if self.rate is not None:
            state[self.numbers[id(self.rate)]] = rate.astype(self.rate.dtype)
        return self._copied(state)

    def finish_optimizer(self, state: State) -> State:
        """Return the state with the weights that `fit` leaves at its end; where no step was taken nothing changes."""
        if not is_averaging(self.model.optimizer):
            return state
        trained, _, optimizer, *_ = self.grouped(state, self.still)
        known = [*zip(self.groups[0], trained, strict=True), *zip(self.groups[2], optimizer, strict=True)]
        after = dict(state)
        for inner in inner_optimizers(self.model.optimizer):
            with keras.StatelessScope(state_mapping=known) as scope:
                inner.finalize_variable_values(inner._trainable_variables)
                has_stepped = inner.iterations.value > 0
            for variable in inner._trainable_variables:
                number = self.numbers[id(variable)]
                if number in after:
                    value = scope.get_current_value(variable).astype(variable.dtype)
                    after[number] = jnp.where(has_stepped, value, state[number])
        return after

    def train_step(self, state: State, still: State, batch: tuple, examples: int) -> tuple[Any, State]:
        """Return what Keras's own train_step logs of a batch, and the state after it."""
        *values, trackers = self.grouped(state, still)
        logs, after = self.model.train_step(tuple(values), batch)
        return logs, self.kept(state, [*after, self._tracked("train", trackers, logs, examples)])

    def test_step(self, state: State, still: State, batch: tuple, examples: int) -> State:
        """Return the state after Keras's own test_step on a batch."""
        trained, others, optimizer, metrics, trackers = self.grouped(state, still)
        logs, (trained, others, metrics) = self.model.test_step((trained, others, metrics), batch)
        return self.kept(state, [trained, others, optimizer, metrics, self._tracked("test", trackers, logs, examples)])

    def finish(self, step: Any, state: State, params: Any) -> tuple[Any, list[Any], list[Any]]:
        """Return local − global as float32 of shape (d,), the personal variables, and what the metrics hold."""
        state = self.finish_optimizer(state) if step == "train" else state
        parts = [state[self.numbers[id(weight)]].astype(jnp.float32).ravel() for weight, _ in self.shared]
        measured = [*self.groups[3], *self.trackers]
        mapping = [(variable, state[self.numbers[id(variable)]]) for variable in measured]
        with keras.StatelessScope(state_mapping=mapping):
            read = self.meter.read(step)
        personal = [state[self.numbers[id(weight)]] for weight in self.personal]
        return jnp.concatenate(parts) - params, personal, read

    @contextlib.contextmanager
    def corrected(self, proximal: float, towards: Any, offset: Any, trains: Trains) -> Iterator[None]:
        """Let a step inside take gradient + proximal·(w − towards) + offset, and move no weights but those named.

        The optimizer's `apply` is where every train_step ends. offset: None for nothing.
        """
        if not proximal and offset is None and trains == "all":
            yield
            return
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        places = {id(weight): variable for weight, variable in self.shared}
        named = self.personal if trains == "personal" else [weight for weight, _ in self.shared]
        kept, apply = {id(weight) for weight in named}, optimizer.apply

        def correct(gradient: Any, weight: keras.Variable) -> Any:
            place = places.get(id(weight))
            if gradient is None or place is None:
                return gradient
            where = place.place
            if proximal:
                drift = weight.value - towards[where].reshape(place.shape).astype(gradient.dtype)
                gradient = gradient + jnp.asarray(proximal, gradient.dtype) * drift
            if offset is not None:
                gradient = gradient + offset[where].reshape(place.shape).astype(gradient.dtype)
            return gradient

        def corrected_apply(gradients: Any, trainable_variables: Any = None) -> Any:
            weights = optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
            pairs = [(correct(g, w), w) for g, w in zip(gradients, weights, strict=True)]
            if trains == "all":
                return apply([gradient for gradient, _ in pairs], trainable_variables)
            pairs = [(gradient, weight) for gradient, weight in pairs if id(weight) in kept]
            return apply([gradient for gradient, _ in pairs], [weight for _, weight in pairs])

        optimizer.apply = corrected_apply
        try:
            yield
        finally:
            del optimizer.apply

    def _copied(self, state: State) -> State:
        """Return the state with the optimizer's variables that begin as the weights do."""
        slots = {self.numbers[id(slot)]: (slot, state[self.numbers[id(weight)]]) for slot, weight in self.copies}
        return state | {number: value.astype(slot.dtype) for number, (slot, value) in slots.items() if number in state}

    def grouped(self, state: State, still: State) -> list[list[Any]]:
        """Return the arrays of all variables, as `groups` has them; the optimizer's from `initial` in an evaluation."""
        values = iter(
            state[number] if number in state else still[number] if number in still else self.initial[number]
            for number in range(len(self.all))
        )
        return [[next(values) for _ in group] for group in self.groups]

    def kept(self, state: State, groups: Sequence[Sequence[Any]]) -> State:
        """Return the new state, of the same types as before: another type would compile each step anew."""
        values = [value for group in groups for value in group]
        return {number: jnp.asarray(values[number]).astype(before.dtype) for number, before in state.items()}

    def _tracked(self, step: Any, trackers: list[Any], logs: Any, examples: int) -> list[Any]:
        """Return what the trackers hold after a step."""
        if not trackers:
            return trackers
        with keras.StatelessScope(state_mapping=list(zip(self.trackers, trackers, strict=True))) as scope:
            self.meter.track(step, logs, examples)
        return [scope.get_current_value(variable) for variable in self.trackers]
