"""Aggregators, which add up a cohort's updates when the plain weighted sum is not wanted."""

from .bulyan import Bulyan
from .centred_clipping import CentredClipping
from .geometric_median import GeometricMedian
from .krum import Krum, MultiKrum
from .median import Median, TrimmedMean
from .norm_bound import NormBound
from .qfair import QFair
from .robust import RobustAggregator

# One of each, for a cohort of 11 with 2 attackers: what the contract tests run on.
ALL_AGGREGATORS = (
    Median(),
    TrimmedMean(trim=0.2),
    Krum(byzantine=2),
    MultiKrum(byzantine=2),
    Bulyan(byzantine=2),
    GeometricMedian(),
    CentredClipping(clip_radius=1.0),
    NormBound(max_norm=1.0),
    QFair(q=1.0, learning_rate=0.1),
)

__all__ = [
    "ALL_AGGREGATORS",
    "Bulyan",
    "CentredClipping",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormBound",
    "QFair",
    "RobustAggregator",
    "TrimmedMean",
]
