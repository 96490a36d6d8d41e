"""Data for federated learning: sources, partitioners, and the populations they make.

A *source* is a data set, a *partitioner* says who owns which example, a *population* is the clients that result:

    population = Partitioned(Mnist("train"), by=Dirichlet(alpha=0.5), clients=100)
    train, validation = split_clients(population, validation=0.2)
    print(summarize(population))

All are frozen values: cheap to build, compare and pickle; data are loaded when first needed, once per process.
"""

import importlib
import warnings

from .attacks import Backdoor, LabelFlip
from .class_weights import ClassWeighted
from .encoding import Encoding
from .groups import ByKey, Dbscan, KMeans
from .on_device import OnDevice
from .partitioners import (
    ClassesPerClient,
    Dirichlet,
    FeatureSkew,
    Iid,
    LogNormal,
    Partitioner,
    PowerLaw,
    Shards,
)
from .populations import Generated, Partitioned, PerClient
from .selected import Selected
from .sources.arrays import Arrays
from .sources.datasets import TfDataset, TorchDataset
from .sources.files import NpzFile
from .sources.huggingface import HuggingFace
from .sources.images import ImageFolder
from .sources.leaf import Femnist
from .sources.medmnist import MedMnist
from .sources.named import Cifar10, Digits, FashionMnist, Mnist
from .sources.shakespeare import Shakespeare
from .sources.tables import CsvTable, ParquetTable
from .splits import kfold_clients, kfold_within, split_clients
from .standardised import FeatureStatistics, Standardised
from .summary import Summary, plot_population, summarize

ALL_SOURCES = (
    Arrays,
    CsvTable,
    NpzFile,
    ParquetTable,
    ImageFolder,
    TfDataset,
    TorchDataset,
    HuggingFace,
    Digits,
    Mnist,
    FashionMnist,
    Cifar10,
    MedMnist,
    Femnist,
    Shakespeare,
)
ALL_PARTITIONERS = (
    Iid,
    Dirichlet,
    Shards,
    ClassesPerClient,
    LogNormal,
    PowerLaw,
    FeatureSkew,
    ByKey,
    KMeans,
    Dbscan,
)

__all__ = [
    "ALL_PARTITIONERS",
    "ALL_SOURCES",
    "Arrays",
    "Backdoor",
    "ByKey",
    "Cifar10",
    "ClassWeighted",
    "ClassesPerClient",
    "CsvTable",
    "Dbscan",
    "Digits",
    "Dirichlet",
    "Encoding",
    "FashionMnist",
    "FeatureSkew",
    "FeatureStatistics",
    "Femnist",
    "Generated",
    "HuggingFace",
    "Iid",
    "ImageFolder",
    "KMeans",
    "LabelFlip",
    "LogNormal",
    "MedMnist",
    "Mnist",
    "NpzFile",
    "OnDevice",
    "ParquetTable",
    "Partitioned",
    "Partitioner",
    "PerClient",
    "PowerLaw",
    "Selected",
    "Shakespeare",
    "Shards",
    "Standardised",
    "Summary",
    "TfDataset",
    "TorchDataset",
    "kfold_clients",
    "kfold_within",
    "plot_population",
    "split_clients",
    "summarize",
]


def __getattr__(name: str) -> object:
    """Import what has moved, for one version more."""
    if name != "federated_statistics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("import federated_statistics from umbel, not from umbel.data", DeprecationWarning, stacklevel=2)
    return importlib.import_module("umbel.studies.statistics").federated_statistics
