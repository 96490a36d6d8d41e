"""Folds under attack, on handwritten digits: three of fifteen clients attack, and all fifteen are in every round.

umbel compare byzantine                                 # test accuracy
umbel compare byzantine --metric validation_success     # attack success, on the test images

Updates: sign flip, A Little Is Enough; success is any mistake. Examples: a backdoor (four lit corners mean 0);
success is 0 for lit images of other digits.
"""

import dataclasses

from umbel import AllClients, Experiment, FedAvg, Local
from umbel.core.folds import WeightedSum
from umbel.data import Backdoor, Digits, Iid, Partitioned
from umbel.runtimes.attacked import Intercepted
from umbel.strategies import Bulyan, CentredClipping, GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean
from umbel.strategies.attacks import Alie, SignFlip

from ._models import mistaken, succeeding

CLIENTS, ATTACKERS, TEST = 15, (0, 1, 2), Digits("test")
honest = Partitioned(Digits("train"), by=Iid(), clients=CLIENTS)
lit = Backdoor(honest, ATTACKERS, target=0, pixels=(0, 7, 56, 63))


@dataclasses.dataclass(frozen=True)
class Forged:
    """A round's sum by a fold, after the attackers have forged their updates."""

    fold: object
    attack: object
    aggregation = None
    metrics = ()

    def session(self, shape, cohort, round, key, is_real):
        return Intercepted(self, self.attack, ATTACKERS).session(shape, cohort, round, key, is_real)


def attacks(fold):
    """What changes in the experiment under each attack, by its name."""
    yield "none", {"fold": fold, "model": mistaken}
    yield "SignFlip", {"aggregation": Forged(fold, SignFlip(scale=4.0)), "model": mistaken}
    yield "Alie", {"aggregation": Forged(fold, Alie()), "model": mistaken}
    yield "Backdoor", {"fold": fold, "population": lit, "judged": lit.success_test(TEST)}


def attacked(judged=TEST, **parts):
    everything = {"name": "byzantine", "model": succeeding, "population": honest, "strategy": FedAvg()} | parts
    held_out, local = Partitioned(judged, clients=CLIENTS), Local(2, 8, learning_rate=0.1)
    settings = {"weighting": "uniform", "rounds": 20, "evaluate_every": 20, "sampler": AllClients(), "local": local}
    return Experiment(**everything, **settings, validation=held_out, test=TEST)


ROBUST = (Median(), TrimmedMean(0.2), Krum(3), MultiKrum(3), Bulyan(3), GeometricMedian(), CentredClipping(1.0))
FOLDS = (WeightedSum(), NormBound(1.0), *ROBUST)
experiments = {f"{name}/{type(fold).__name__}": attacked(**parts) for fold in FOLDS for name, parts in attacks(fold)}
experiment = experiments["none/WeightedSum"]
