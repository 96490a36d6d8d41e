"""The server's half: rounds, the loop, samplers, schedules, history and the store."""

from ..core.parts.sampling import AllClients, FixedCohort, PoissonCohort, WeightedCohort
from ..core.reading.old_words import moved
from .callbacks import EarlyStopping, KeepBest, StopAt
from .each_client import EachClient
from .events import Finished, Notice, RoundDone, Started
from .history import History
from .loop import play, run
from .progress import Progress
from .rounds import play_round
from .schedules import Constant, Cosine, ExponentialDecay, ReduceOnPlateau, StepDecay, WarmUp
from .stored_model import StoredModel
from .tracking import MLflow, TensorBoard, WeightsAndBiases

__all__ = [
    "AllClients",
    "Constant",
    "Cosine",
    "EachClient",
    "EarlyStopping",
    "ExponentialDecay",
    "Finished",
    "FixedCohort",
    "History",
    "KeepBest",
    "MLflow",
    "Notice",
    "PoissonCohort",
    "Progress",
    "ReduceOnPlateau",
    "RoundDone",
    "Started",
    "StepDecay",
    "StopAt",
    "StoredModel",
    "TensorBoard",
    "WarmUp",
    "WeightedCohort",
    "WeightsAndBiases",
    "play",
    "play_round",
    "run",
]

_STUDIES = ("Comparison", "CrossValidation", "compare", "cross_validate")
__getattr__ = moved(__name__, dict.fromkeys(_STUDIES, "umbel.studies"))
