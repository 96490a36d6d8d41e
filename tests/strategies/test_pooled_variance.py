"""Pooled statistics of clients are the statistics of the union of their examples, however they are summed."""

import numpy as np
import pytest
from sums import total_of

from federations import dense, federation
from normalised import far_apart, normalised, statistics_of
from simulations import play
from umbel import (
    AllClients,
    Chain,
    Clip,
    ClipPerLayer,
    ConfigError,
    FedAdam,
    FedBuff,
    IncompatibleError,
    SecureSum,
    TopK,
    derive,
)
from umbel.core.aggregators import WeightedSum
from umbel.core.parts.chain import flattened
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.tree import Tree
from umbel.core.types import NOTHING, ClientUpdate
from umbel.privacy import LocalPlan
from umbel.strategies import IFCA, Bulyan, Krum, Median, PooledVariance, RandomMask, TrimmedMean
from umbel.strategies.aggregators.norm_bound import NormBound

SIZE = 4
SPEC = ModelSpec(
    (
        VariableSpec("kernel", (3,), "float32", True, 0),
        VariableSpec("one/moving_mean", (SIZE,), "float32", False, 3),
        VariableSpec("one/moving_variance", (SIZE,), "float32", False, 3 + SIZE),
        VariableSpec("two/moving_variance", (SIZE,), "float32", False, 3 + 2 * SIZE),
        VariableSpec("two/moving_mean", (SIZE,), "float32", False, 3 + 3 * SIZE),
    )
)
PLACES = [(slice(3, 7), slice(7, 11)), (slice(15, 19), slice(11, 15))]
EXAMPLES = (40, 40, 7, 25)


def measured(sizes=EXAMPLES, centre=0.0):
    """Each client's examples for the two layers, and its params; client k's mean is about `centre` + k."""
    generator = np.random.default_rng(1)
    examples = [[generator.normal(centre + k, 0.3, (size, SIZE)) for _ in PLACES] for k, size in enumerate(sizes)]
    return examples, [vector_of(own) for own in examples]


def vector_of(layers):
    vector = np.full(SPEC.size, 0.25, np.float32)
    for (mean, variance), x in zip(PLACES, layers, strict=True):
        vector[mean], vector[variance] = x.mean(0), x.var(0)
    return vector


def pooled(add_up, clients, base, weights, transform=PooledVariance()):  # noqa: B008  frozen, without state
    """The new params after a round. add_up: makes a Total of updates."""
    state = transform.init(SPEC)
    updates = [
        transform.encode(state, ClientUpdate(own - base, NOTHING, float(weight), {}), derive(0, number))
        for number, (own, weight) in enumerate(zip(clients, weights, strict=True))
    ]
    _, total = transform.decode(state, add_up(updates), derive(2))
    return base + total.mean().delta


def in_the_open(updates):
    tree = Tree(WeightedSum(), SPEC.size)
    for update in updates:
        tree.add(update)
    return tree.total()


def assert_pooled(params, examples, tolerance):
    for layer, (mean, variance) in enumerate(PLACES):
        union = np.concatenate([own[layer] for own in examples])
        np.testing.assert_allclose(params[mean], union.mean(0), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(params[variance], union.var(0), rtol=tolerance, atol=tolerance)


def start(centre=0.0):
    base = np.ones(SPEC.size, np.float32)
    for mean, _ in PLACES:
        base[mean] = centre
    return base


@pytest.mark.parametrize("centre", [0.0, 1e4])
def test_the_weighted_mean_is_the_union(centre):
    """From params anywhere near: a mean of 10,000 deviations would leave nothing of v + m² in float32."""
    examples, clients = measured(centre=centre)
    params = pooled(in_the_open, clients, start(centre), EXAMPLES)
    assert_pooled(params, examples, 2e-3 if centre else 1e-5)
    np.testing.assert_allclose(params[:3], 0.25, rtol=1e-6)


def test_a_secure_sum_gives_the_same_to_its_rounding():
    sizes = (20,) * 5
    examples, clients = measured(sizes)
    aggregation = SecureSum(limit=20.0, metrics=())

    def add_up(updates):
        return total_of(aggregation, range(5), updates, derive(3), is_real=True)[0]

    assert_pooled(pooled(add_up, clients, start(), [1] * 5), examples, 5 * aggregation.encoding(5).step)


def test_clipped_updates_are_mixed_with_the_statistics_before():
    """An update scaled by c is that of a client with a share of c, the rest being the model as it was: never < 0."""
    _, clients = measured()
    base, transform = start(), Chain(PooledVariance(), Clip(0.5))
    params = pooled(in_the_open, clients[2:3], base, [1.0], transform)
    for mean, variance in PLACES:
        way = clients[2][mean] - base[mean]
        share = (params[mean] - base[mean]) / way
        np.testing.assert_allclose(share, share[0], rtol=1e-4)
        mixture = (1 - share) * base[variance] + share * clients[2][variance] + share * (1 - share) * way**2
        np.testing.assert_allclose(params[variance], mixture, rtol=1e-4, atol=1e-5)
    assert share[0] < 0.5


def test_runs_have_the_statistics_of_all_examples():
    """Through every part of a round, under a server optimizer too; unpooled, the variance is far too small."""
    x = np.concatenate([x for x, _ in far_apart()]).astype(np.float64)
    expected = np.concatenate([x.mean(0), x.var(0)])
    for strategy in ({}, {"strategy": FedAdam()}):
        history = play(normalised(transforms=PooledVariance(), rounds=2, **strategy))
        np.testing.assert_allclose(statistics_of(history), expected, rtol=1e-4)
    plain = statistics_of(play(normalised(rounds=2)))
    assert (plain[len(plain) // 2 :] < 0.1 * x.var(0)).all()


FIRST = {"transforms": PooledVariance()}
PLAN = LocalPlan(epsilon=8.0, delta=1e-4, rounds=1, population=8, clip_norm=1.0, noise_multiplier=3.0)
REFUSED = {
    "median": (FIRST | {"aggregator": Median()}, "whole .* number by number"),
    "trimmed mean": (FIRST | {"aggregator": TrimmedMean(0.1)}, "whole .* number by number"),
    "bulyan": (FIRST | {"aggregator": Bulyan(0)}, "whole .* number by number"),
    "codec": (FIRST | {"codec": TopK(0.5, error_feedback=False)}, "whole updates, .*TopK.* loses in part"),
    "mask": ({"transforms": Chain(PooledVariance(), RandomMask(0.5))}, "whole .* number by number"),
    "per layer": (
        {"transforms": Chain(PooledVariance(), Chain(ClipPerLayer(1.0)))},
        "whole .* number by number",
    ),
    "after clipping": ({"transforms": Chain(Clip(1.0), PooledVariance())}, "put it first"),
    "twice": ({"transforms": Chain(PooledVariance(), PooledVariance())}, "and once"),
    "asynchronous": (FIRST | {"strategy": FedBuff(2)}, "which strategy=FedBuff.* other rounds"),
    "clusters": (FIRST | {"strategy": IFCA(2)}, "one sum of all updates, which strategy=IFCA"),
}


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED)
def test_refused_where_it_would_not_hold(changes, why):
    with pytest.raises(IncompatibleError, match=why):
        federation(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregator": Krum(0)},
        {"aggregator": NormBound(1.0)},
        {"secure_aggregation": SecureSum(limit=1.0), "weighting": "uniform"},
        {"plan": PLAN, "sampler": AllClients(), "weighting": "uniform"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_welcome_with_what_mixes_whole_updates(changes):
    assert next(flattened(federation(**FIRST | changes).transforms)) == PooledVariance()


def test_a_model_without_shared_statistics_is_refused():
    for changes in ({"model": dense}, {"personal": ("moving_",)}):
        experiment = normalised(transforms=PooledVariance(), **changes)
        with pytest.raises(ConfigError, match="shares moving_mean and moving_variance"):
            play(experiment)
