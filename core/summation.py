"""Summation: all that a runtime and the server's loop need to know of how a round's updates become a sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .aggregators import DoubleSum, WeightedSum
from .bases import Aggregator, Codec
from .parts.private import SecureAggregation
from .recipe import Recipe
from .spec import ModelSpec
from .traits import Trait
from .types import NOTHING, Broadcast, Shape


@dataclass(frozen=True)
class Summation:
    """The way in which a round's updates become a sum.

    Parameters
    ----------
    aggregator
        Adds up what is seen.
    shape
        Lengths of an update as it leaves a client.
    codec
        Encodes its delta; None for none.
    aggregation
        Hides each update from whoever sums them; None: the server sees each.
    in_order
        Whether arrivals come in the order of the work.
    subtotals
        Whether a runtime may add up aligned runs itself, and send a Subtotal for each.
    losses
        Whether the server needs each client's loss; a Subtotal carries them only then.
    strangers
        Whether updates come from outside this process: one that does not fit is then a Failure, and no error.
    """

    aggregator: Aggregator
    shape: Shape
    codec: Codec | None = None
    aggregation: SecureAggregation | None = None
    in_order: bool = True
    subtotals: bool = True
    losses: bool = False
    strangers: bool = False


def summation_of(recipe: Recipe, spec: ModelSpec) -> Summation:
    """Return the summation of a recipe's rounds. spec: the model's variables."""
    params = np.zeros(spec.size, np.float32)
    broadcast = Broadcast(0, params, NOTHING, recipe.transforms.init(spec), None)
    plain = isinstance(recipe.aggregator, WeightedSum)
    return Summation(
        aggregator=DoubleSum() if plain and recipe.plan is not None else recipe.aggregator,
        shape=recipe.encoded_shape(broadcast),
        codec=recipe.codec,
        aggregation=recipe.secure_aggregation,
        subtotals=Trait.ALL_UPDATES not in recipe.aggregator.needs,
        losses=recipe.needs_losses or recipe.reweighting is not None,
    )
