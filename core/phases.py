"""Phases: which of a client's variables are trained in its round, for how long, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import ConfigError, IncompatibleError
from .split import is_split
from .validation import require_count, require_real

if TYPE_CHECKING:
    from .experiment import Experiment

Trains = Literal["all", "shared", "personal"]  # variables of the federated vector, or those that stay at home
PERSONAL = "personal_"  # before the metrics of a client's own model


class Phase(NamedTuple):
    """Part of a client's round: passes over its examples in which some variables are trained, the others frozen.

    Each begins with the optimizer as it was compiled. Statistics (BatchNorm) move in every phase: no gradient moves
    them.
    """

    epochs: int | None = None  # None: as many as Local says; 0: the phase is left out
    trains: Trains = "all"


class OwnModel(NamedTuple):
    """A second model of the federated vector's shape that a client keeps: what its rule remembers.

    After each of the client's rounds it is trained too, along gradient + proximal·(v − params). At first it is params.
    """

    epochs: int | None = None  # None: as many as Local says
    proximal: float = 0.0


class Course(NamedTuple):
    """A client's training as one program runs it."""

    parts: tuple[tuple[int | None, Trains], ...] = ((None, "all"),)  # as in Phase, in order; one None at most
    proximal: float = 0.0
    is_anchored: bool = False  # pulled towards a vector handed over in place of an offset; else towards where it starts

    def passes(self, usual: Any) -> Any:
        """Epochs of all parts together. usual: as many as Local says, a number or an array of them."""
        return sum(usual if epochs is None else epochs for epochs, _ in self.parts)

    def correction(self, start: Any, offset: Any) -> tuple[float, Any, Any]:
        """(proximal, towards what, offset) of its gradients. start, offset: tensors; offset None for none."""
        return (self.proximal, offset, None) if self.is_anchored else (self.proximal, start, offset)


@dataclass(frozen=True)
class FineTune:
    """A client's model after `epochs` more on its own training examples, evaluated beside the model it received.

    All variables are trained, as `Local` says but for epochs, without a rule's correction; what comes of it is
    measured and forgotten. learning_rate: None for Local's, which must then not be a schedule.
    """

    epochs: int = 1
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs)
        if self.learning_rate is not None:
            require_real("learning_rate", self.learning_rate, above=0)


def course_of(experiment: Experiment) -> Course:
    """What the round's model goes through on a client."""
    rule = experiment.client_rule
    phases: tuple[Phase, ...] = getattr(rule, "phases", (Phase(),))
    parts = tuple((phase.epochs, phase.trains) for phase in phases if phase.epochs != 0)
    return Course(parts, 0.0 if rule is None else rule.proximal)


def own_course(experiment: Experiment) -> Course | None:
    """What a client's own model goes through; None where clients have none."""
    own: OwnModel | None = getattr(experiment.client_rule, "own", None)
    return None if own is None else Course(((own.epochs, "all"),), own.proximal, own.proximal > 0)


def tuning_course(tune: FineTune) -> Course:
    """What a client's model goes through before it is evaluated."""
    return Course(((tune.epochs, "all"),))


def passes(experiment: Experiment, usual: Any) -> Any:
    """How often a client goes through its examples in a round, all phases together.

    usual: as many epochs as Local says, a number or an array of them.
    """
    courses = course_of(experiment), own_course(experiment)
    return sum(course.passes(usual) for course in courses if course is not None)


def check_phases(experiment: Experiment) -> None:
    """Errors: ConfigError, IncompatibleError for phases that the other parts of experiment leave nothing to do."""
    rule, course = experiment.client_rule, course_of(experiment)
    trains = {what for _, what in course.parts}
    own = own_course(experiment)
    if trains != {"all"} and not experiment.personal:
        raise ConfigError(f'{rule!r} trains what stays at home apart from the rest: say what it is, personal=("…",)')
    if own is not None and experiment.personal:
        raise IncompatibleError(
            f"{rule!r} keeps a whole model at home, and so what is in personal={experiment.personal!r}; drop personal"
        )
    if (trains != {"all"} or own is not None) and experiment.local.per_example is not None:
        raise IncompatibleError(
            f"{experiment.local.per_example!r} covers one training of all variables; {rule!r} has more: use FedAvg"
        )
    if experiment.fine_tune is not None:
        _check_fine_tune(experiment, experiment.fine_tune)


def _check_fine_tune(experiment: Experiment, tune: FineTune) -> None:
    """Errors: ConfigError, IncompatibleError where nothing could be tuned, or nothing be learnt from it."""
    if experiment.validation is None:
        raise ConfigError(f"{tune!r} is for what clients hold out; give a validation population, as from split_clients")
    if hasattr(experiment.validation, "members"):
        raise IncompatibleError(f"{tune!r} needs clients with training examples; those of validation hold none")
    if is_split(experiment.strategy):
        raise IncompatibleError(f"{tune!r} trains whole models; clients of {experiment.strategy!r} hold a half")
    if own_course(experiment) is not None:
        raise IncompatibleError(f"{experiment.client_rule!r} has personal models, which are evaluated; drop {tune!r}")
    if hasattr(experiment.local.learning_rate, "at") and tune.learning_rate is None:
        raise ConfigError(f"{tune!r} needs a learning_rate of its own: local.learning_rate changes with the rounds")
