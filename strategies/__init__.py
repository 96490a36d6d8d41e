"""One algorithm, one file: server half and client half together, paper cited at the top."""

from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedyogi import FedYogi
from .folds import (
    ALL_FOLDS,
    Bulyan,
    CentredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    QFair,
    TrimmedMean,
)

ALL_STRATEGIES = (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)

__all__ = [
    "ALL_FOLDS",
    "ALL_STRATEGIES",
    "Bulyan",
    "CentredClipping",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormBound",
    "QFair",
    "TrimmedMean",
]
