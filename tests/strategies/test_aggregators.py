"""The contract of every aggregator, and what each one's paper promises."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from engines import SOONEST
from federations import blobs, federation
from umbel import (
    AllClients,
    ConfigError,
    FedBuff,
    FixedCohort,
    IncompatibleError,
    InTime,
    PoissonCohort,
    RunStopped,
    Simulation,
    data,
    run,
)
from umbel.core.aggregators import WeightedSum
from umbel.core.traits import Trait
from umbel.core.types import NOTHING, ClientUpdate, Weighted
from umbel.privacy.secure_sum import SecureSum
from umbel.strategies import (
    ALL_AGGREGATORS,
    Bulyan,
    CentredClipping,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    QFair,
    TrimmedMean,
)
from umbel.strategies import aggregators as package
from umbel.strategies.aggregators.robust import RobustAggregator

SIZE, COHORT, ATTACKERS = 30, 11, 2
ROBUST = [aggregator for aggregator in ALL_AGGREGATORS if not isinstance(aggregator, QFair)]
PER_COORDINATE = [aggregator for aggregator in ALL_AGGREGATORS if isinstance(aggregator, (Median, TrimmedMean))]
INSIDE = [
    aggregator
    for aggregator in ALL_AGGREGATORS
    if isinstance(aggregator, (Median, TrimmedMean, Krum, MultiKrum, Bulyan))
]


def named(aggregator):
    return type(aggregator).__name__


def honest(count=COHORT, seed=0):
    """Deltas of length about 0.5 around a common direction, each with an extra, a weight and metrics."""
    generator = np.random.default_rng(seed)
    rows = (0.06 + 0.07 * generator.normal(size=(count, SIZE))).astype(np.float32)
    extras = generator.normal(size=(count, 4)).astype(np.float32) / 10
    return [
        ClientUpdate(row, extra, float(client % 3 + 1), {"loss": Weighted(0.5 * (client + 1), 1.0)})
        for client, (row, extra) in enumerate(zip(rows, extras, strict=True))
    ]


def folded(aggregator, updates):
    accumulator = aggregator.zero(SIZE)
    for update in updates:
        accumulator = aggregator.add(accumulator, update)
    return aggregator.total(accumulator)


def centre(aggregator, updates):
    return folded(aggregator, updates).mean().delta


def attacked(vector):
    """Honest updates, the first ATTACKERS of them replaced by vector."""
    return [one._replace(delta=vector) if i < ATTACKERS else one for i, one in enumerate(honest())]


def test_every_fold_is_in_the_list():
    public = {getattr(package, name) for name in package.__all__} - {RobustAggregator}
    assert {type(aggregator) for aggregator in ALL_AGGREGATORS} == {one for one in public if isinstance(one, type)}


@pytest.mark.parametrize("aggregator", ALL_AGGREGATORS, ids=named)
class TestContract:
    def test_it_needs_to_see_updates(self, aggregator):
        assert Trait.EACH_UPDATE in aggregator.needs
        assert (Trait.ALL_UPDATES in aggregator.needs) == isinstance(aggregator, RobustAggregator)

    def test_no_update_sums_to_nothing(self, aggregator):
        total = aggregator.total(aggregator.zero(SIZE))
        assert (total.weight, total.clients, total.metrics) == (0.0, 0, {})
        np.testing.assert_array_equal(total.delta, np.zeros(SIZE, np.float32))
        assert total.extra.shape == (0,)

    def test_a_total_counts_what_a_sum_counts(self, aggregator):
        total, plain = folded(aggregator, honest()), folded(WeightedSum(), honest())
        assert (total.clients, total.metrics) == (plain.clients, plain.metrics)
        assert total.weight == plain.weight or isinstance(aggregator, QFair)
        assert (total.delta.dtype, total.delta.shape) == (np.float32, (SIZE,))
        assert (total.extra.dtype, total.extra.shape) == (np.float32, (4,))

    def test_merged_parts_equal_the_whole(self, aggregator):
        """With empty parts among them, in any grouping: threads, actors, edge servers."""
        updates, whole = honest(), folded(aggregator, honest())
        for cuts in ((0, 3, 11), (4, 4, 9)):
            parts = []
            for start, stop in itertools.pairwise((0, *cuts, COHORT)):
                accumulator = aggregator.zero(SIZE)
                for update in updates[start:stop]:
                    accumulator = aggregator.add(accumulator, update)
                parts.append(accumulator)
            merged = aggregator.merge(aggregator.merge(parts[0], parts[1]), aggregator.merge(parts[2], parts[3]))
            total = aggregator.total(merged)
            exact = isinstance(aggregator, RobustAggregator)
            same = np.testing.assert_array_equal if exact else np.testing.assert_allclose
            same(total.delta, whole.delta, **({} if exact else {"rtol": 1e-5}))
            same(total.extra, whole.extra, **({} if exact else {"rtol": 1e-5}))
            assert total.weight == pytest.approx(whole.weight)

    def test_the_order_of_updates_does_not_matter(self, aggregator):
        updates = honest()
        shuffled = [updates[i] for i in np.random.default_rng(1).permutation(COHORT)]
        np.testing.assert_allclose(centre(aggregator, shuffled), centre(aggregator, updates), rtol=1e-5, atol=1e-7)

    def test_updates_are_left_as_they_were(self, aggregator):
        updates = honest()
        total = folded(aggregator, updates)
        total.delta[:] = 9.0  # what a transform may do
        for update, before in zip(updates, honest(), strict=True):
            np.testing.assert_array_equal(update.delta, before.delta)
            np.testing.assert_array_equal(update.extra, before.extra)

    def test_it_is_a_value(self, aggregator):
        assert eval(repr(aggregator), vars(package)) == aggregator
        assert pickle.loads(pickle.dumps(aggregator)) == aggregator
        assert hash(dataclasses.replace(aggregator)) == hash(aggregator)


class TestRobustness:
    @pytest.mark.parametrize("aggregator", ROBUST, ids=named)
    def test_extra_goes_through_the_same_rule(self, aggregator):
        """Of (delta, extra) an aggregator makes of extra what it makes of the delta of (extra, nothing)."""
        alone = [one._replace(delta=one.extra, extra=NOTHING) for one in honest()]
        accumulator = aggregator.zero(4)
        for update in alone:
            accumulator = aggregator.add(accumulator, update)
        np.testing.assert_array_equal(folded(aggregator, honest()).extra, aggregator.total(accumulator).delta)

    @pytest.mark.parametrize("aggregator", ROBUST, ids=named)
    def test_equal_updates_fold_to_that_update(self, aggregator):
        """Of a length within the bounds of those that bound it."""
        update = honest(1)[0]
        np.testing.assert_allclose(centre(aggregator, [update] * COHORT), update.delta, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("aggregator", PER_COORDINATE, ids=named)
    def test_equal_sets_give_equal_bits(self, aggregator):
        updates = honest()
        for seed in range(3):
            shuffled = [updates[i] for i in np.random.default_rng(seed).permutation(COHORT)]
            np.testing.assert_array_equal(centre(aggregator, shuffled), centre(aggregator, updates))

    @pytest.mark.parametrize("aggregator", INSIDE, ids=named)
    @pytest.mark.parametrize("sent", [1e12, -1e30, 5.0])
    def test_every_coordinate_lies_between_honest_ones(self, aggregator, sent):
        rows = np.stack([update.delta for update in honest()[ATTACKERS:]])
        found = centre(aggregator, attacked(np.full(SIZE, sent, np.float32)))
        assert (found >= rows.min(0) - 1e-6).all()
        assert (found <= rows.max(0) + 1e-6).all()

    @pytest.mark.parametrize("aggregator", [*ROBUST, WeightedSum()], ids=named)
    @pytest.mark.parametrize("sent", [1e3, 1e12, 1e30])
    def test_one_wild_coordinate_does_not_carry_it_away(self, aggregator, sent):
        """Beyond the honest updates' own length, however wild; a plain sum follows it anywhere."""
        wild = honest()[0].delta.copy()
        wild[3] = sent
        moved = np.linalg.norm((centre(aggregator, attacked(wild)) - centre(aggregator, honest())).astype(np.float64))
        longest = max(np.linalg.norm(update.delta) for update in honest())
        assert (moved > 10 * longest) if isinstance(aggregator, WeightedSum) else (moved < longest)

    @pytest.mark.parametrize("aggregator", ROBUST, ids=named)
    def test_a_wild_extra_beside_an_honest_delta_does_not_carry_extra_away(self, aggregator):
        wild = np.array([1e12, 0, 0, 0], np.float32)
        updates = [one._replace(extra=wild) if i < ATTACKERS else one for i, one in enumerate(honest())]
        moved = np.linalg.norm(folded(aggregator, updates).mean().extra - folded(aggregator, honest()).mean().extra)
        assert moved < 0.5

    @pytest.mark.parametrize("aggregator", [Median(), TrimmedMean(0.45), Krum(2), MultiKrum(2), Bulyan(2)], ids=named)
    def test_a_claimed_weight_buys_nothing(self, aggregator):
        greedy = [one._replace(weight=1e9) if i < ATTACKERS else one for i, one in enumerate(honest())]
        np.testing.assert_allclose(centre(aggregator, greedy), centre(aggregator, honest()), rtol=1e-5, atol=1e-7)


class TestRules:
    def test_nothing_trimmed_is_fedavg_with_one_vote_each(self):
        votes = [update._replace(weight=1.0) for update in honest()]
        np.testing.assert_allclose(centre(TrimmedMean(0.0), votes), centre(WeightedSum(), votes), rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("count", [1, 2, 7, 10])
    def test_median_is_numpys(self, count):
        rows = np.stack([update.delta for update in honest(count)])
        one_vote = [update._replace(weight=1.0) for update in honest(count)]
        np.testing.assert_array_equal(folded(Median(), one_vote).delta / count, centre(Median(), one_vote))
        np.testing.assert_allclose(centre(Median(), one_vote), np.median(rows, axis=0), rtol=1e-6)

    def test_long_vectors_are_worked_through_in_blocks(self):
        """Where a block ends, nothing shows."""
        rows = np.random.default_rng(0).normal(size=(7, 50_001)).astype(np.float32)
        for aggregator in (Median(), TrimmedMean(0.2), Bulyan(1)):
            whole = aggregator.centre(rows, np.ones(7))
            if not isinstance(aggregator, Bulyan):
                np.testing.assert_array_equal(whole[-5:], aggregator.centre(rows[:, -5:], np.ones(7)))
        np.testing.assert_array_equal(Median().centre(rows, np.ones(7)), np.median(rows, axis=0))

    def test_krum_by_its_definition(self):
        rows = np.stack([update.delta for update in honest()]).astype(np.float64)
        scores = [sorted(((rows - row) ** 2).sum(1))[1 : COHORT - ATTACKERS - 2 + 1] for row in rows]
        best = int(np.argmin([sum(score) for score in scores]))
        np.testing.assert_allclose(centre(Krum(2), honest()), honest()[best].delta, rtol=1e-6)
        np.testing.assert_allclose(centre(MultiKrum(2, keep=1), honest()), honest()[best].delta, rtol=1e-6)

    def test_krum_tells_close_updates_from_each_other_far_from_0(self):
        """Distances of 1e-3 between updates of length 1e3: lost if inner products were float32."""
        generator = np.random.default_rng(0)
        base = generator.normal(size=SIZE) * 200
        rows = [(base + 1e-3 * generator.normal(size=SIZE)).astype(np.float32) for _ in range(6)]
        rows[2] = np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(Krum(1).centre(rows, np.ones(6)), rows[2])

    def test_everybody_kept_is_the_mean(self):
        votes = [update._replace(weight=1.0) for update in honest()]
        np.testing.assert_allclose(centre(MultiKrum(2, COHORT), votes), centre(WeightedSum(), votes), rtol=1e-5)

    def test_bulyan_by_its_definition(self):
        found = centre(Bulyan(2), attacked(np.full(SIZE, 50.0, np.float32)))
        left, rows = list(range(COHORT)), np.stack([u.delta for u in attacked(np.full(SIZE, 50.0, np.float32))])
        distances = ((rows[:, None].astype(np.float64) - rows) ** 2).sum(2)
        chosen = []
        for _ in range(COHORT - 4):
            near = {i: sorted(distances[i, left])[1 : 1 + max(1, len(left) - 4)] for i in left}
            best = min(left, key=lambda i: (round(sum(near[i]), 9), np.median(distances[i])))
            chosen.append(best)
            left.remove(best)
        kept = rows[chosen]
        nearest = np.argsort(np.abs(kept - np.median(kept, axis=0)), axis=0)[:3]
        np.testing.assert_allclose(found, np.take_along_axis(kept, nearest, axis=0).mean(0), rtol=1e-4, atol=1e-6)

    def test_geometric_median_minimises_the_weighted_distances(self):
        rows, weights = [u.delta.astype(np.float64) for u in honest()], [u.weight for u in honest()]

        def cost(v):
            return sum(weight * np.linalg.norm(row - v) for row, weight in zip(rows, weights, strict=True))

        found = centre(GeometricMedian(), honest()).astype(np.float64)
        generator = np.random.default_rng(0)
        for scale in (1e-3, 1e-2, 1e-1):
            for _ in range(20):
                assert cost(found) < cost(found + scale * generator.normal(size=SIZE) / np.sqrt(SIZE))

    def test_geometric_median_follows_more_than_half_of_the_weight(self):
        updates = [update._replace(weight=100.0) if i == 5 else update for i, update in enumerate(honest())]
        np.testing.assert_allclose(centre(GeometricMedian(), updates), updates[5].delta, atol=1e-4)

    @pytest.mark.parametrize("iterations", [1, 3])
    def test_centred_clipping_by_its_definition(self, iterations):
        rows, v = [update.delta.astype(np.float64) for update in honest()], np.zeros(SIZE)
        for _ in range(iterations):
            v = v + sum((row - v) * min(1, 0.2 / np.linalg.norm(row - v)) for row in rows) / len(rows)
        np.testing.assert_allclose(centre(CentredClipping(0.2, iterations), honest()), v, rtol=1e-4, atol=1e-7)

    def test_one_attacker_pulls_centred_clipping_by_its_radius(self):
        """By clip_radius/n in an iteration, from where it would have been with a delta of 0."""
        still, pulled = honest(), honest()
        still[0] = still[0]._replace(delta=np.zeros(SIZE, np.float32))
        pulled[0] = pulled[0]._replace(delta=np.full(SIZE, 1e9, np.float32))
        moved = np.linalg.norm(centre(CentredClipping(0.5, 1), pulled) - centre(CentredClipping(0.5, 1), still))
        assert moved == pytest.approx(0.5 / COHORT, rel=1e-3)

    def test_norm_bound_scales_down_and_never_up(self):
        short, long = np.full(SIZE, 0.01, np.float32), np.full(SIZE, 1e25, np.float32)
        np.testing.assert_array_equal(centre(NormBound(1.0), [ClientUpdate(short, NOTHING, 1.0, {})]), short)
        bounded = centre(NormBound(2.0), [ClientUpdate(long, NOTHING, 1.0, {})])
        np.testing.assert_allclose(bounded, np.full(SIZE, 2 / np.sqrt(SIZE)), rtol=1e-5)

    def test_a_wide_norm_bound_is_fedavg(self):
        total, plain = folded(NormBound(1e9), honest()), folded(WeightedSum(), honest())
        np.testing.assert_array_equal(total.delta, plain.delta)


class TestFairness:
    def test_q_0_is_fedavg(self):
        total, plain = folded(QFair(0.0, 0.1), honest()), folded(WeightedSum(), honest())
        np.testing.assert_array_equal(total.delta, plain.delta)
        assert total.weight == plain.weight

    def test_a_step_is_the_papers(self):
        """w − ΣΔ_k/Σh_k with Δ_k = L·F^q·(w − w_k), h_k = q·F^(q−1)·‖L(w − w_k)‖² + L·F^q: Algorithm 2."""
        q, big_l = 2.0, 1 / 0.1
        votes = [update._replace(weight=1.0) for update in honest()]
        steps, curvatures = np.zeros(SIZE), 0.0
        for client, update in enumerate(votes):
            loss, gradient = 0.5 * (client + 1), -big_l * update.delta.astype(np.float64)
            steps += loss**q * gradient
            curvatures += q * loss ** (q - 1) * (gradient @ gradient) + big_l * loss**q
        np.testing.assert_allclose(centre(QFair(q, 0.1), votes), -steps / curvatures, rtol=1e-4)

    def test_the_larger_q_the_larger_the_say_of_the_worst_off(self):
        """Clients pull along axes of their own, by the same length: client 10 has the largest loss."""
        votes = [
            update._replace(weight=1.0, delta=np.eye(SIZE, dtype=np.float32)[i]) for i, update in enumerate(honest())
        ]
        shares = [(found := centre(QFair(q, 0.1), votes))[COHORT - 1] / found.sum() for q in (0.0, 1.0, 5.0)]
        assert shares == sorted(shares)
        assert shares[0] == pytest.approx(1 / COHORT, rel=1e-5)
        assert shares[2] > 0.3

    def test_a_missing_or_negative_loss_is_refused(self):
        aggregator, update = QFair(1.0, 0.1, loss="nll"), honest(1)[0]
        with pytest.raises(ConfigError, match=r"'nll'.*'loss'"):
            aggregator.add(aggregator.zero(SIZE), update)
        with pytest.raises(ConfigError, match="at least 0, got -2"):
            aggregator.add(aggregator.zero(SIZE), update._replace(metrics={"nll": Weighted(-2.0, 1.0)}))

    def test_a_loss_of_0_has_next_to_no_say(self):
        calm = [one._replace(metrics={"loss": Weighted(0.0, 1.0)}) if i < 2 else one for i, one in enumerate(honest())]
        np.testing.assert_allclose(
            centre(QFair(2.0, 0.1), calm), centre(QFair(2.0, 0.1), calm[2:]), rtol=1e-4, atol=1e-7
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: TrimmedMean(0.5), r"trim=0.5 < 0.5"),
            (lambda: TrimmedMean(-0.1), r"trim=-0.1"),
            (lambda: TrimmedMean(float("nan")), r"trim=nan"),
            (lambda: Krum(-1), r"byzantine=-1"),
            (lambda: MultiKrum(1, keep=0), r"keep=0"),
            (lambda: Bulyan(1.5), r"byzantine=1.5"),
            (lambda: GeometricMedian(smoothing=0.0), r"smoothing=0.0"),
            (lambda: GeometricMedian(iterations=0), r"iterations=0"),
            (lambda: CentredClipping(0.0), r"clip_radius=0.0"),
            (lambda: NormBound(float("inf")), r"max_norm=inf"),
            (lambda: QFair(-1.0, 0.1), r"q=-1.0"),
            (lambda: QFair(1.0, 0.0), r"learning_rate=0.0"),
        ],
    )
    def test_values_out_of_bounds(self, make, message):
        with pytest.raises(ConfigError, match=message):
            make()

    @pytest.mark.parametrize(
        ("aggregator", "least"), [(Krum(2), 7), (MultiKrum(2), 7), (MultiKrum(0, keep=9), 9), (Bulyan(2), 11)], ids=str
    )
    def test_too_few_updates(self, aggregator, least):
        assert aggregator.min_clients == least
        folded(aggregator, honest(least))
        with pytest.raises(RunStopped, match=f"needs {least} updates, got {least - 1}"):
            folded(aggregator, honest(least - 1))

    def test_a_run_stops_before_the_round_is_applied(self):
        seen = []

        class Watch:
            on_start = on_end = staticmethod(lambda *arguments: None)
            on_round = staticmethod(lambda record, failures: seen.append(record.round))

        x, y = blobs(6)
        clients = data.PerClient([(x, y)] * 4 + [(np.full_like(x, np.nan), y)])  # the fifth's update is not finite
        with pytest.raises(RunStopped, match=r"Krum.* needs 5 updates, got 4"):
            run(
                federation(aggregator=Krum(1), sampler=AllClients(), population=clients),
                Simulation(workers=1, compile=SOONEST),
                watchers=[Watch()],
            )
        assert seen == []

    @pytest.mark.parametrize("aggregator", ALL_AGGREGATORS, ids=named)
    def test_what_hides_updates_excludes_what_looks_at_them(self, aggregator):
        with pytest.raises(IncompatibleError, match="needs individual updates"):
            federation(aggregator=aggregator, secure_aggregation=SecureSum(limit=0.5), weighting="uniform")


def test_a_run_with_nothing_trimmed_equals_fedavg():
    setting = {"weighting": "uniform", "sampler": AllClients()}
    plain, trimmed = (
        run(federation(aggregator=aggregator, **setting), Simulation(workers=2, compile=SOONEST))
        for aggregator in (WeightedSum(), TrimmedMean(0.0))
    )
    np.testing.assert_allclose(trimmed.params, plain.params, rtol=1e-4, atol=1e-6)


class TestCohortsThatCanNeverSuffice:
    """Refused when the experiment is built where its cohort is known then, else before a run begins."""

    @pytest.mark.parametrize(
        ("aggregator", "size", "needed"), [(Krum(1), 4, 5), (MultiKrum(0, keep=5), 4, 5), (Bulyan(1), 6, 7)]
    )
    def test_by_the_samplers_size(self, aggregator, size, needed):
        with pytest.raises(ConfigError, match=rf"needs {needed} updates.*FixedCohort\(size={size}\) gives {size}"):
            federation(aggregator=aggregator, sampler=FixedCohort(size))
        assert federation(aggregator=aggregator, sampler=FixedCohort(size + 1)).aggregator == aggregator
        with pytest.raises(ConfigError, match=rf"needs {needed} updates"):
            federation(aggregator=aggregator, sampler=InTime(60.0, FixedCohort(size)))

    def test_by_the_population(self):
        for sampler in (AllClients(), PoissonCohort(0.9), InTime(60.0, AllClients()), FixedCohort(100)):
            with pytest.raises(ConfigError, match=r"needs 9 updates.* gives 8"):
                federation(aggregator=Krum(3), sampler=sampler)

    def test_by_the_buffer(self):
        with pytest.raises(ConfigError, match=r"needs 5 updates.*FedBuff.* gives 4"):
            federation(aggregator=Krum(1), strategy=FedBuff(4), sampler=FixedCohort(8))
        federation(aggregator=Krum(1), strategy=FedBuff(5), sampler=FixedCohort(2))

    def test_a_population_that_is_counted_by_loading_is_not_loaded(self):
        class Unread:
            """A source that must not be read."""

            def load(self):
                raise AssertionError("loaded")

        keyed = data.Partitioned(Unread(), by=data.ByKey(np.arange(6)))
        assert federation(aggregator=Krum(3), sampler=AllClients(), population=keyed, test=None).aggregator == Krum(3)
        counted = data.Partitioned(data.Arrays(*blobs(6)), by=data.ByKey(np.arange(6)))
        experiment = federation(aggregator=Krum(3), sampler=AllClients(), population=counted, test=None)
        with pytest.raises(ConfigError, match=r"needs 9 updates.* gives 6"):
            run(experiment, Simulation(workers=1))
