"""One algorithm, one file: server half and client half together, paper cited at the top."""

from .fedavg import FedAvg

ALL_STRATEGIES = (FedAvg,)

__all__ = ["ALL_STRATEGIES", "FedAvg"]
