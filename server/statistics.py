"""Statistics (BatchNorm's moving means and variances) on the server: what a model counts is not what it learns.

A server optimizer goes on along what it accumulates of gradients. A statistic is a value that clients measured:
carried on beyond what any of them found, a variance becomes negative, and the model NaN. So statistics follow the plain
weighted mean of the clients' own, whatever the strategy does with the weights.
"""

from __future__ import annotations

import numpy as np

from ..core.spec import ModelSpec
from ..core.types import ClientUpdate, Vector


def followed(params: Vector, before: Vector, delta: Vector, spec: ModelSpec) -> Vector:
    """Return a strategy's new params, with the clients' mean, `before` + `delta`, in place of its statistics.

    A variance is at least 0.

    Guarantees: params itself for a model without statistics. Statistics frozen on all clients stay as they were.
    """
    if not spec.statistics:
        return params
    params = params.copy()  # a strategy may keep what it returned
    for place in spec.statistics:
        params[place] = before[place] + delta[place]
    for _, place in spec.moments:
        # Variances are not negative, nor is their mean, but noise, a codec or rounding may have made it so.
        np.maximum(params[place], 0, out=params[place])
    return params


def rebased(update: ClientUpdate, base: Vector, params: Vector, spec: ModelSpec) -> ClientUpdate:
    """Return a late update, its statistics counted as changes of `params`, of now, not of `base`, where it began.

    The change of a variance may be less than −1 times the variance of now, were it counted from another.
    """
    if not spec.statistics:
        return update
    delta = update.delta.copy()
    for place in spec.statistics:
        delta[place] += base[place] - params[place]
    return update._replace(delta=delta)
