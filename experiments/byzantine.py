"""Aggregators under attack, on handwritten digits: 3 of 15 clients attack, in every round.

umbel compare byzantine --plot b.png

Success is measured on the test images. Forged updates, and no attack: the share that the model has wrong. Flipped
labels (digit d means 9 − d): the share called so. Backdoor (four lit corners mean 0): the share of lit images of other
digits called 0; Scaling is the same, with updates five times as long: the attackers' model replaces everybody's.
"""

from typing import Any

from umbel import AllClients, Experiment, FedAvg, Local
from umbel.core.aggregators import WeightedSum
from umbel.data import Backdoor, Digits, Iid, LabelFlip, Partitioned
from umbel.strategies import Bulyan, CentredClipping, GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean
from umbel.strategies.attacks import Alie, FreeRide, Ipm, Scaling, SignFlip

from ._forged import Forged
from ._models import mistaken, succeeding

compared_by = ("test_accuracy", "validation_success")
CLIENTS, ATTACKERS, TEST = 15, (0, 1, 2), Digits("test")
honest, held_out = Partitioned(Digits("train"), by=Iid(), clients=CLIENTS), Partitioned(TEST, clients=CLIENTS)
lit = Backdoor(honest, ATTACKERS, target=0, pixels=(0, 7, 56, 63))
backdoor = {"population": lit, "validation": Partitioned(lit.success_test(TEST), clients=CLIENTS), "model": succeeding}
flipped, as_flipped = LabelFlip(honest, ATTACKERS, classes=10), LabelFlip(held_out, range(CLIENTS), classes=10)
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "SignFlip": {"attack": SignFlip(scale=4.0)},
    "Alie": {"attack": Alie()},
    "Ipm": {"attack": Ipm(epsilon=0.1)},
    "FreeRide": {"attack": FreeRide()},
    "LabelFlip": {"population": flipped, "validation": as_flipped, "model": succeeding},
    "Backdoor": backdoor,
    "Scaling": {"attack": Scaling(), **backdoor},
}
ROBUST = (Median(), TrimmedMean(0.2), Krum(3), MultiKrum(3), Bulyan(3), GeometricMedian(), CentredClipping(1.0))
AGGREGATORS = (WeightedSum(), NormBound(1.0), *ROBUST)


def attacked(aggregator, attack=None, **parts):
    everything: dict[str, Any] = {"model": mistaken, "population": honest, "validation": held_out} | parts
    settings: dict[str, Any] = {"weighting": "uniform", "rounds": 20, "evaluate_every": 20}
    settings |= {
        "local": Local(2, 8, learning_rate=0.1),
        "aggregator": aggregator if attack is None else Forged(aggregator, attack, len(ATTACKERS)),
    }
    return Experiment(name="byzantine", strategy=FedAvg(), sampler=AllClients(), test=TEST, **settings, **everything)


experiments = {
    f"{name}/{type(f).__name__}": attacked(f, **parts) for name, parts in ATTACKS.items() for f in AGGREGATORS
}
experiment = experiments["none/WeightedSum"]
