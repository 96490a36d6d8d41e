"""A cohort's sum has the same bits whoever adds up which aligned part of it; clients that fail keep their places."""

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError
from umbel.core.aggregators import WeightedSum
from umbel.core.parts.clusters import membership
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.summation import summation_of
from umbel.core.tree import LEAF, Tree, room_for, summed_rows
from umbel.core.types import ClientUpdate, Weighted
from umbel.privacy.plan import FixedCohortPlan
from umbel.strategies import Median, NormBound, QFair
from umbel.strategies.ifca import PerCluster

SIZE = 5
AGGREGATORS = [WeightedSum(), Median(), NormBound(1.0), QFair(1.0, 0.1), PerCluster(WeightedSum(), 3)]


def cohort(places, share_failed=0.2, seed=0):
    """So many updates, None for a client that failed."""
    generator = np.random.default_rng(seed)
    updates = []
    for place in range(places):
        vectors = generator.normal(size=(2, SIZE)).astype(np.float32)
        metrics = {"loss": Weighted(float(generator.uniform(0.1, 5)), 3.0), **membership(place % 3, 3)}
        update = ClientUpdate(*vectors, float(generator.integers(1, 9)), metrics)
        updates.append(None if generator.random() < share_failed else update)
    return updates


def added(aggregator, updates):
    tree = Tree(aggregator, SIZE)
    for update in updates:
        tree.add(update)
    return tree


def divided(aggregator, updates, seed):
    """As `added`, with runs of random aligned widths added up elsewhere."""
    generator, tree, start = np.random.default_rng(seed), Tree(aggregator, SIZE), 0
    while start < len(updates):
        widths = [1, *(width for width in (LEAF * 2**level for level in range(6)) if start % width == 0)]
        width = int(generator.choice(widths))
        if width == 1:  # one by one, to the end of the leaf
            for update in updates[start : (start // LEAF + 1) * LEAF]:
                tree.add(update)
            start = (start // LEAF + 1) * LEAF
            continue
        run = updates[start : start + width]
        tree.add_run(added(aggregator, run).accumulator(), len(run))
        start += width
    return tree


def same(one, other):
    assert one.delta.tobytes() == other.delta.tobytes()
    assert one.extra.tobytes() == other.extra.tobytes()
    assert one[2:] == other[2:]


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)
@pytest.mark.parametrize("share_failed", [0.0, 0.2, 0.9])
def test_every_division_into_aligned_runs_gives_the_same_bits(aggregator, share_failed):
    for places in (0, 1, 7, 8, 9, 15, 16, 17, 24, 40, 63, 64, 65, 100):
        updates = cohort(places, share_failed, seed=places)
        expected = added(aggregator, updates).total()
        for seed in range(3):
            same(divided(aggregator, updates, seed).total(), expected)


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)
def test_up_to_a_leaf_is_one_after_another(aggregator):
    updates = cohort(LEAF)
    accumulator = aggregator.zero(SIZE)
    for update in updates:
        accumulator = accumulator if update is None else aggregator.add(accumulator, update)
    same(added(aggregator, updates).total(), aggregator.total(accumulator))


def test_it_is_the_sum_and_rounds_less_than_one_after_another():
    updates = cohort(4096, share_failed=0)
    exact = sum(update.weight * update.delta.astype(np.float64) for update in updates)
    found = added(WeightedSum(), updates).total()
    line = WeightedSum().zero(SIZE)
    for update in updates:
        line = WeightedSum().add(line, update)
    errors = [np.abs(total.delta - exact).max() for total in (found, line)]
    assert errors[0] < errors[1] / 3
    assert found.weight == sum(update.weight for update in updates)


def test_under_a_plan_rounding_moves_no_sum():
    """What the plan's price reckons with: one client's update changes the sum by that update, in each number."""
    plan = FixedCohortPlan(epsilon=50.0, delta=1e-3, rounds=3, population=8, cohort=4, clip_norm=0.5)
    recipe = federation(plan=plan, sampler=None, weighting=None).resolved
    aggregator = summation_of(recipe, ModelSpec((VariableSpec("all", (SIZE,), "float32", True, 0),))).aggregator
    updates = cohort(2000, share_failed=0)
    whole, without = (added(aggregator, some).total().delta for some in (updates, [*updates[:-1], None]))
    last = updates[-1].weight * updates[-1].delta.astype(np.float64)
    np.testing.assert_allclose(whole - without, last, rtol=0, atol=1e-10)
    total = added(WeightedSum(), updates).total().delta - added(WeightedSum(), [*updates[:-1], None]).total().delta
    assert np.abs(total - last).max() > 1e-6  # in float32 it does


@pytest.mark.parametrize("places", [0, 1, 13, 64, 1000])
def test_memory_is_an_accumulator_for_each_level(places):
    tree, most = Tree(WeightedSum(), SIZE), 0
    for update in cohort(places, share_failed=0):
        tree.add(update)
        most = max(most, len(tree._runs) + 1)
    assert most <= max(0, np.log2(max(places, 1) / LEAF)) + 2


def test_runs_that_are_not_aligned_are_refused():
    """Each would have other bits than its clients one by one."""
    part = added(WeightedSum(), cohort(8)).accumulator
    for before, width in ((1, 8), (8, 16), (8, 12), (16, 24)):
        tree = added(WeightedSum(), cohort(before))
        with pytest.raises(ConfigError, match=f"a run of {width} clients cannot begin at place {before}"):
            tree.add_run(part(), width)
    tree = Tree(WeightedSum(), SIZE)
    tree.add_run(part(), 5)
    for more in (lambda: tree.add(None), lambda: tree.add_run(None, 8)):
        with pytest.raises(ConfigError, match="has to be the last"):
            more()


@pytest.mark.parametrize("places", [1, 7, 8, 9, 16, 23, 64, 91, 128])
def test_rows_that_are_summed_at_once_have_the_bits_of_a_tree(places):
    updates = cohort(places)
    rows = np.zeros((room_for(places), SIZE), np.float32)
    for place, update in enumerate(updates):
        if update is not None:
            rows[place] = update.delta * np.float32(update.weight)
    tree = added(WeightedSum(), updates).accumulator()
    expected = np.zeros(SIZE, np.float32) if tree is None else tree.delta
    assert summed_rows(rows).tobytes() == expected.tobytes()
