"""Phases of a client's round: which of its variables are trained, for how long, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..traits import Trait
from ..types import Trains
from ..validation import require_count, require_real

PERSONAL = "personal_"  # prefix of the metrics of a client's own model


class Course(NamedTuple):
    """Course of a client's training, as one program runs it."""

    parts: tuple[tuple[int | None, Trains], ...] = ((None, "all"),)  # (epochs, trains) of each Phase; one None
    proximal: float = 0.0
    is_anchored: bool = False  # pulled towards a vector in place of an offset; else to where it starts

    def passes(self, usual: Any) -> Any:
        """Return the epochs of all parts together. usual: as many as Local says, a number or an array of them."""
        return sum(usual if epochs is None else epochs for epochs, _ in self.parts)

    def correction(self, start: Any, offset: Any) -> tuple[float, Any, Any]:
        """Return (proximal, towards what, offset) of its gradients. start, offset: tensors; offset None for none."""
        return (self.proximal, offset, None) if self.is_anchored else (self.proximal, start, offset)


@dataclass(frozen=True)
class FineTune:
    """Fine-tuning of a client's model before its evaluation: `epochs` more on the client's own training examples.

    The tuned model is evaluated beside the model that the client received. All variables are trained, as `Local` says
    but for epochs, without a rule's correction; what comes of it is measured and forgotten. learning_rate: None for
    Local's, which must then not be a schedule.
    """

    epochs: int = 1
    learning_rate: float | None = None

    needs: ClassVar[Trait] = Trait.WHOLE_MODEL | Trait.NO_OWN_MODEL | Trait.TRAINING_EXAMPLES
    hides: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs)
        if self.learning_rate is not None:
            require_real("learning_rate", self.learning_rate, above=0)


def tuning_course(tune: FineTune) -> Course:
    """Return the training that a client's model goes through before it is evaluated."""
    return Course(((tune.epochs, "all"),))
