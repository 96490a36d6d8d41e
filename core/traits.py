"""Traits: needs of an experiment's parts, and what they take from one another, declared and compared in one place.

A part declares `needs` and `hides`, both a Trait. `check_compatible` refuses a part that needs what another hides. The
table of all of this in docs/algorithms.md is written by `python -m tests.support.exclusions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, auto
from typing import Any, NamedTuple

from .errors import IncompatibleError
from .validation import shown


class Trait(Flag):
    """Something that a part of an experiment can need, and another can hide or take away."""

    NONE = 0
    EACH_UPDATE = auto()
    ALL_UPDATES = auto()
    EACH_LOSS = auto()
    CLIENT_METRICS = auto()
    ONLY_UPDATES = auto()
    PLAIN_SUM = auto()
    SUMMABLE = auto()
    INDEPENDENT_CLIENTS = auto()
    COHORTS = auto()
    SAME_ROUND = auto()
    DELTAS = auto()
    ONE_SUM = auto()
    ONE_MODEL = auto()
    WHOLE_MODEL = auto()
    ONE_EXCHANGE = auto()
    WHOLE_UPDATE = auto()
    NORM_BOUND = auto()
    ONE_TRAINING = auto()
    RULE_FROM_ELSEWHERE = auto()
    NO_OWN_MODEL = auto()
    TRAINING_EXAMPLES = auto()


class Text(NamedTuple):
    """The wording of a trait in a message and in the table."""

    needed: str  # words that follow "<part> needs"
    hidden: str  # words that follow "which <part>"
    remedy: str


TEXTS: dict[Trait, Text] = {
    Trait.EACH_UPDATE: Text(
        "individual updates", "hides: it reveals only their sum", "drop one of them; WeightedSum works with sums alone"
    ),
    Trait.ALL_UPDATES: Text(
        "all updates of a round in one place", "adds up elsewhere", "use WeightedSum, or one machine"
    ),
    Trait.EACH_LOSS: Text("each client's loss", "hides", "drop one of them"),
    Trait.CLIENT_METRICS: Text(
        "metrics of single clients", "does not pay for", "evaluate on the server's test examples instead"
    ),
    Trait.ONLY_UPDATES: Text(
        "clients that send their updates and nothing else of their examples",
        "makes send more",
        "use a strategy such as FedAvg",
    ),
    Trait.PLAIN_SUM: Text("plain sums, which its noise is added to", "replaces", "use WeightedSum"),
    Trait.SUMMABLE: Text(
        "updates that can be summed as they are sent",
        "encodes each in its own way",
        "a linear compression works: RandomMask, among the transforms",
    ),
    Trait.INDEPENDENT_CLIENTS: Text(
        "clients that are counted each on its own",
        "counts only if they are the fastest",
        "use over_selection=1",
    ),
    Trait.COHORTS: Text(
        "rounds with a cohort", "does without", "use a synchronous strategy, or a {field} that can do without"
    ),
    Trait.SAME_ROUND: Text(
        "updates that began from one broadcast",
        "sums with those of other rounds",
        "use a synchronous strategy, or drop it",
    ),
    Trait.DELTAS: Text("updates that are differences", "turns into mixed models", "use FedBuff, or drop it"),
    Trait.ONE_SUM: Text(
        "one sum of all updates", "sums cluster by cluster", "drop it; to bound updates, use NormBound(…)"
    ),
    Trait.ONE_MODEL: Text("clients that receive one model", "sends several", "drop it"),
    Trait.WHOLE_MODEL: Text("clients that hold a whole model", "cuts in two", "drop it, or use FedAvg"),
    Trait.ONE_EXCHANGE: Text(
        "one broadcast and one update a round", "replaces by a message in every step", "drop it, or use FedAvg"
    ),
    Trait.WHOLE_UPDATE: Text(
        "means over whole updates, as they were trained",
        "takes number by number, or loses in part",
        "drop one of them",
    ),
    Trait.NORM_BOUND: Text(
        "updates whose norm stays bounded", "may lengthen after they were clipped", "use TopK(…, error_feedback=False)"
    ),
    Trait.ONE_TRAINING: Text("one training of all variables", "adds to", "use FedAvg"),
    Trait.RULE_FROM_ELSEWHERE: Text(
        "a strategy without a rule for clients of its own", "brings", "drop rule=…, or use FedAvg"
    ),
    Trait.NO_OWN_MODEL: Text("clients without a second model", "gives one to keep at home", "drop one of them"),
    Trait.TRAINING_EXAMPLES: Text(
        "clients with training examples",
        "holds out whole",
        "hold out a part of each client's, with split_clients",
    ),
}


class Declared(NamedTuple):
    """One part of an experiment as the comparison sees it."""

    name: str  # name of the field that it fills, such as "codec"
    part: Any
    needs: Trait
    hides: Trait

    def __str__(self) -> str:
        return self.name if self.name == "validation" else f"{self.name}={shown(self.part, 200)}"


def check_compatible(parts: Sequence[Declared]) -> None:
    """Raise IncompatibleError for the first trait that one part needs and another hides; it names both."""
    for trait, text in TEXTS.items():
        needing = next((one for one in parts if trait in one.needs), None)
        hiding = next((one for one in parts if trait in one.hides and one is not needing), None)
        if needing is not None and hiding is not None:
            remedy = text.remedy.format(field=needing.name)
            raise IncompatibleError(f"{needing} needs {text.needed}, which {hiding} {text.hidden}: {remedy}")
