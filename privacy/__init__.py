"""Protection of clients: plans and the transforms they bring, and aggregations that hide single updates."""

from .adaptive import AdaptiveClip
from .central import CentralGaussian
from .clipping import Clip, ClipPerLayer, clip
from .distributed import DistributedSkellam, grid_limit
from .homomorphic import Homomorphic
from .local import LocalGaussian
from .per_example import PerExample, PerExamplePlan
from .plan import DistributedPlan, FixedCohortPlan, LocalPlan, PrivacyPlan
from .secure_sum import SecureSum

__all__ = [
    "AdaptiveClip",
    "CentralGaussian",
    "Clip",
    "ClipPerLayer",
    "DistributedPlan",
    "DistributedSkellam",
    "FixedCohortPlan",
    "Homomorphic",
    "LocalGaussian",
    "LocalPlan",
    "PerExample",
    "PerExamplePlan",
    "PrivacyPlan",
    "SecureSum",
    "clip",
    "grid_limit",
]
