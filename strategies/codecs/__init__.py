"""Codecs, with which a client's delta travels in fewer bytes than 4 for each number."""

from .quantised import Quantised
from .random_k import RandomK
from .random_mask import RandomMask
from .sign import Sign
from .top_k import TopK

# One of each kind, as the contract tests run them. RandomMask is none of them: it is a transform.
ALL_CODECS = (
    TopK(fraction=0.1),
    TopK(fraction=0.01, error_feedback=False),
    RandomK(fraction=0.1),
    RandomK(fraction=0.1, error_feedback=True),
    Quantised(bits=8),
    Quantised(bits=4, error_feedback=True),
    Sign(),
    Sign(error_feedback=False),
)

__all__ = ["ALL_CODECS", "Quantised", "RandomK", "RandomMask", "Sign", "TopK"]
