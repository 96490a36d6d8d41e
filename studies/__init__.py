"""Studies, which take several runs, or a round that trains nothing."""

from .comparison import Comparison, compare
from .crossvalidation import CrossValidation, cross_validate

__all__ = ["Comparison", "CrossValidation", "compare", "cross_validate"]
