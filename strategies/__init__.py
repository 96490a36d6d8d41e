"""One algorithm, one file: server half and client half together, paper cited at the top."""

from .codecs import ALL_CODECS, Quantised, RandomK, RandomMask, Sign, TopK
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedasync import FedAsync
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedbuff import FedBuff
from .feddyn import FedDyn
from .fednova import FedNova
from .fedprox import FedProx, Proximal
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
from .scaffold import Scaffold
from .semisynchronous import SemiSynchronous

ALL_STRATEGIES = (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedProx, Scaffold, FedNova, FedDyn)
ALL_ASYNCHRONOUS = (FedAsync, FedBuff, SemiSynchronous)

__all__ = [
    "ALL_ASYNCHRONOUS",
    "ALL_CODECS",
    "ALL_FOLDS",
    "ALL_STRATEGIES",
    "Bulyan",
    "CentredClipping",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormBound",
    "Proximal",
    "QFair",
    "Quantised",
    "RandomK",
    "RandomMask",
    "Scaffold",
    "SemiSynchronous",
    "Sign",
    "TopK",
    "TrimmedMean",
]
