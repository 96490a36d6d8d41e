"""Data for federated learning: sources, partitioners, and the populations they make.

A *source* is a data set, a *partitioner* says who owns which example, a *population* is the clients that result:

    population = Partitioned(Mnist("train"), by=Dirichlet(alpha=0.5), clients=100)
    train, validation = split_clients(population, validation=0.2)
    print(summarize(population))

All are frozen values: cheap to build, compare and pickle; data are loaded when first needed, once per process.
"""

from .attacks import Backdoor, LabelFlip
from .datasets import TfDataset, TorchDataset
from .groups import ByKey, Dbscan, KMeans
from .images import ImageFolder
from .named import Cifar10, Digits, FashionMnist, Mnist
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
from .shakespeare import Shakespeare
from .sources import Arrays, CsvTable, NpzFile, ParquetTable
from .splits import kfold_clients, kfold_within, split_clients
from .standardised import FeatureStatistics, Standardised
from .statistics import federated_statistics
from .summary import Summary, plot_population, summarize

ALL_SOURCES = (
    Arrays,
    CsvTable,
    NpzFile,
    ParquetTable,
    ImageFolder,
    TfDataset,
    TorchDataset,
    Digits,
    Mnist,
    FashionMnist,
    Cifar10,
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
    "ClassesPerClient",
    "CsvTable",
    "Dbscan",
    "Digits",
    "Dirichlet",
    "FashionMnist",
    "FeatureSkew",
    "FeatureStatistics",
    "Generated",
    "Iid",
    "ImageFolder",
    "KMeans",
    "LabelFlip",
    "LogNormal",
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
    "federated_statistics",
    "kfold_clients",
    "kfold_within",
    "plot_population",
    "split_clients",
    "summarize",
]
