"""One algorithm, one file: server half and client half together, paper cited at the top."""

import warnings

from .aggregators import (
    ALL_AGGREGATORS,
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
from .agnostic import Agnostic
from .codecs import ALL_CODECS, Quantised, RandomK, RandomMask, Sign, TopK
from .ditto import Ditto
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedasync import FedAsync
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedbuff import FedBuff
from .feddyn import FedDyn
from .fednova import FedNova
from .fedprox import FedProx, Proximal
from .fedrep import FedRep
from .fedyogi import FedYogi
from .ifca import IFCA, PerCluster
from .pooled_variance import PooledVariance
from .scaffold import Scaffold
from .semisynchronous import SemiSynchronous
from .splitfed import SplitFed

ALL_STRATEGIES = (
    FedAvg,
    FedAvgM,
    FedAdagrad,
    FedAdam,
    FedYogi,
    FedProx,
    Scaffold,
    FedNova,
    FedDyn,
    FedRep,
    Ditto,
    IFCA,
)
ALL_ASYNCHRONOUS = (FedAsync, FedBuff, SemiSynchronous)

__all__ = [
    "ALL_AGGREGATORS",
    "ALL_ASYNCHRONOUS",
    "ALL_CODECS",
    "ALL_STRATEGIES",
    "IFCA",
    "Agnostic",
    "Bulyan",
    "CentredClipping",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedRep",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormBound",
    "PerCluster",
    "PooledVariance",
    "Proximal",
    "QFair",
    "Quantised",
    "RandomK",
    "RandomMask",
    "Scaffold",
    "SemiSynchronous",
    "Sign",
    "SplitFed",
    "TopK",
    "TrimmedMean",
]


def __getattr__(name: str) -> object:
    if name != "ALL_FOLDS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("ALL_FOLDS is ALL_AGGREGATORS now", DeprecationWarning, stacklevel=2)
    return ALL_AGGREGATORS
