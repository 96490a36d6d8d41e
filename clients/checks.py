"""What an experiment asks of the optimizer that its model is compiled with."""

from __future__ import annotations

import keras

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.protocols import LocalRule
from .program import ModelState


def check_rates(experiment: Experiment, state: ModelState) -> None:
    """Errors: ConfigError for a learning rate that the optimizer's own schedule would overrule."""
    for name, part in (("local", experiment.local), ("fine_tune", experiment.fine_tune)):
        if state.has_own_schedule and part is not None and part.learning_rate is not None:
            raise ConfigError(
                f"the model's optimizer has a learning rate schedule of its own; drop it, or {name}.learning_rate"
            )


def check_rule(rule: LocalRule, state: ModelState) -> None:
    """Errors: ConfigError for a model that rule cannot reckon with; see LocalRule."""
    momentum = getattr(rule, "sgd_momentum", None)
    needs_rate = momentum is not None or (rule.remembers and not hasattr(rule, "own"))
    if state.has_own_schedule and needs_rate:
        raise ConfigError(
            f"{rule!r} has to know the learning rate; give local.learning_rate in place of the optimizer's schedule"
        )
    for _, trains in getattr(rule, "phases", ()):
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
