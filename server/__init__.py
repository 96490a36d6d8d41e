"""The server's half: rounds, the loop, samplers, schedules, history and the store."""

from .callbacks import EarlyStopping, KeepBest, StopAt
from .history import History
from .loop import run
from .rounds import play_round
from .sampling import AllClients, FixedCohort, PoissonCohort, WeightedCohort
from .schedules import Constant, Cosine, ExponentialDecay, ReduceOnPlateau, StepDecay, WarmUp

__all__ = [
    "AllClients",
    "Constant",
    "Cosine",
    "EarlyStopping",
    "ExponentialDecay",
    "FixedCohort",
    "History",
    "KeepBest",
    "PoissonCohort",
    "ReduceOnPlateau",
    "StepDecay",
    "StopAt",
    "WarmUp",
    "WeightedCohort",
    "play_round",
    "run",
]
