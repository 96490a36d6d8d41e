"""Checks of the optimizer that an experiment's model is compiled with."""

from __future__ import annotations

import logging
from typing import Protocol

import keras

from ...core.errors import ConfigError, IncompatibleError
from ...core.parts.algorithms import ClientRule, Correction
from ...core.recipe import Recipe


class Trainable(Protocol):
    """The part of a model's state that the checks look at."""

    model: keras.Model
    personal: list[keras.Variable]
    has_own_schedule: bool


log = logging.getLogger(__name__)


def check_rates(experiment: Recipe, state: Trainable) -> None:
    """Raise ConfigError for a learning rate that the optimizer's own schedule would overrule."""
    for name, part in (("local", experiment.local), ("fine_tune", experiment.fine_tune)):
        if state.has_own_schedule and part is not None and part.learning_rate is not None:
            raise ConfigError(
                f"the model's optimizer has a learning rate schedule or several rates of its own; drop them, or "
                f"{name}.learning_rate"
            )


def check_batches(experiment: Recipe, fixed: int | None) -> None:
    """Raise ConfigError for clients that a model with a fixed batch size cannot train on.

    fixed: that size; None: the model takes any. Errors: IncompatibleError for per_example, whose batches have any size.
    """
    if fixed is None:
        return
    local, sizes = experiment.local, experiment.population.sizes()
    if local.per_example is not None:
        raise IncompatibleError(
            f"the model takes batches of {fixed} alone, and those of {local.per_example!r} have any size; "
            "give its Input no batch size"
        )
    if local.batch_size != fixed:
        raise ConfigError(
            f"the model takes batches of {fixed} alone, got batch_size={local.batch_size}; "
            f"use Local(batch_size={fixed})"
        )
    if int(sizes.min()) < fixed:
        client = int(sizes.argmin())
        raise ConfigError(
            f"the model takes batches of {fixed} alone, and client {client} holds {sizes[client]} examples; leave it "
            "out, or give the model's Input no batch size"
        )
    left_over = int((sizes % fixed).sum())
    if left_over:
        log.warning(
            "the model takes batches of %d alone: the last %d of %d examples, all clients together, are left out",
            fixed, left_over, int(sizes.sum()),
        )  # fmt: skip


def check_rule(rule: ClientRule, state: Trainable) -> None:
    """Raise ConfigError for a model that rule cannot reckon with; see ClientRule."""
    momentum = rule.sgd_momentum if isinstance(rule, Correction) else None
    needs_rate = momentum is not None or (rule.remembers and rule.own is None)
    if state.has_own_schedule and needs_rate:
        raise ConfigError(
            f"{rule!r} has to know the learning rate; give local.learning_rate in place of the optimizer's schedule"
        )
    for _, trains in rule.phases:
        if trains == "personal" and not any(weight.trainable for weight in state.personal):
            raise ConfigError(
                f"{rule!r} trains what stays at home; nothing there is trainable: name a layer in personal"
            )
    optimizer = getattr(state.model.optimizer, "inner_optimizer", state.model.optimizer)
    if momentum is not None:
        # Exactly SGD: what other optimizers do between two gradients is not what the rule undoes.
        is_plain = type(optimizer) is keras.optimizers.SGD and not optimizer.nesterov
        if not is_plain or optimizer.momentum != momentum:
            own = "" if not isinstance(optimizer, keras.optimizers.SGD) else f"(momentum={optimizer.momentum:g})"
            raise ConfigError(
                f"{rule!r} is for clients with SGD(momentum={momentum:g}), without Nesterov's; "
                f"the model's optimizer is {type(optimizer).__name__}{own}"
            )
        # What is moved is then not what the steps add up to.
        settings = {"use_ema": optimizer.use_ema, "gradient_accumulation_steps": optimizer.gradient_accumulation_steps}
        for name, value in settings.items():
            if value:
                raise ConfigError(f"{rule!r} reckons with every step of the clients' SGD; drop {name}={value!r}")
