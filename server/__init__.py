"""The server's half: rounds, the loop, samplers, schedules, history and the store."""

from ..core.sampling import AllClients, FixedCohort, PoissonCohort, WeightedCohort
from .callbacks import EarlyStopping, KeepBest, StopAt
from .comparison import Comparison, compare
from .crossvalidation import CrossValidation, cross_validate
from .history import History
from .loop import run
from .progress import Progress
from .rounds import play_round
from .schedules import Constant, Cosine, ExponentialDecay, ReduceOnPlateau, StepDecay, WarmUp

__all__ = [
    "AllClients",
    "Comparison",
    "Constant",
    "Cosine",
    "CrossValidation",
    "EarlyStopping",
    "ExponentialDecay",
    "FixedCohort",
    "History",
    "KeepBest",
    "PoissonCohort",
    "Progress",
    "ReduceOnPlateau",
    "StepDecay",
    "StopAt",
    "WarmUp",
    "WeightedCohort",
    "compare",
    "cross_validate",
    "play_round",
    "run",
]
