"""Laws of the core: keys, specs, aggregators, chains, serialisation, overrides, descriptions."""

import contextlib
import pickle
from operator import attrgetter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from federations import blobs, federation
from umbel import Chain, ConfigError, Examples, IncompatibleError, Local, StoreError, derive, override
from umbel.core import serial
from umbel.core.aggregators import WeightedSum
from umbel.core.examples import leaves, map_arrays
from umbel.core.reading.overrides import paths
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ClientUpdate, Total, Weighted, add_metrics


class TestKeys:
    def test_paths_are_injective(self):
        paths = [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("a1",), (1,), ("1",), (1, 2), (12,)]
        assert len({derive(0, *path) for path in paths}) == len(paths)

    def test_seeds_and_depth_matter(self):
        assert derive(3, "round") != derive(4, "round")
        assert derive(3, "round", 1) != derive(3, "round").derive("client", 1)

    def test_equal_keys_give_equal_numbers(self):
        one, other = derive(1, "x").generator(), derive(1, "x").generator()
        np.testing.assert_array_equal(one.normal(size=9), other.normal(size=9))

    def test_known_value(self):
        """Pinned: a change of the derivation would silently change every published run."""
        assert derive(0, "round", 1).digest.hex() == "43d146a15d4755dd8544408d7b4a6742"

    def test_words_are_uniform_31_bit(self):
        words = derive(5, "w").words(4000)
        assert words.min() >= 0
        assert words.max() < 2**31
        assert abs(words.mean() / 2**30 - 1) < 0.05


def model_of(*variables):
    weights = [
        SimpleNamespace(path=path, shape=shape, dtype=dtype, trainable=trainable)
        for path, shape, dtype, trainable in variables
    ]
    return SimpleNamespace(weights=weights)


MODEL = model_of(
    ("dense/kernel", (3, 4), "float32", True),
    ("counter", (), "int64", False),
    ("bn/moving_mean", (4,), "float32", False),
    ("head/kernel", (4, 2), "bfloat16", True),
)


class TestSpec:
    def test_flatten_and_unflatten_are_inverse(self):
        spec = ModelSpec.of(MODEL)
        arrays = [
            np.random.default_rng(0).normal(size=variable.shape).astype(np.float32) for variable in spec.variables
        ]
        back = spec.unflatten(spec.flatten(arrays))
        assert list(back) == ["dense/kernel", "bn/moving_mean", "head/kernel"]
        for variable, array in zip(spec.variables, arrays, strict=True):
            if variable.offset is not None:
                np.testing.assert_array_equal(back[variable.path], array)

    def test_variables_of_one_path_stay_apart(self):
        """As two layers of one name in a subclassed model have it."""
        same = VariableSpec("model/dense/kernel", (2,), "float32", True, 0)
        spec = ModelSpec((same, same._replace(offset=2)))
        back = spec.unflatten(np.arange(4, dtype=np.float32))
        assert {name: array.tolist() for name, array in back.items()} == {
            "model/dense/kernel": [0, 1],
            "model/dense/kernel (2)": [2, 3],
        }

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ([], "call it on one first"),
            ([(3, 4)], "no more where the params have counter"),
            ([(4, 3)], r"\(4, 3\) where"),
        ],
    )
    def test_a_model_of_other_variables_is_refused(self, shapes, message):
        weights = [SimpleNamespace(path="dense/kernel", shape=shape) for shape in shapes]
        spec = ModelSpec.of(MODEL)
        with pytest.raises(ConfigError, match=message):
            spec.load_into(SimpleNamespace(weights=weights), np.zeros(spec.size, np.float32))

    def test_offsets_tile_the_vector(self):
        spec = ModelSpec.of(MODEL, personal=("bn",))
        covered = np.concatenate([np.arange(v.offset, v.offset + v.size) for v in spec.shared])
        np.testing.assert_array_equal(covered, np.arange(spec.size))
        assert spec.size == 12 + 8

    def test_json_round_trip(self):
        spec = ModelSpec.of(MODEL, personal=("head",))
        assert ModelSpec.from_json(spec.to_json()) == spec
        assert ModelSpec.from_json(spec.to_json()).digest == spec.digest != ModelSpec.of(MODEL).digest

    @pytest.mark.parametrize(
        ("personal", "message"), [(("tail",), "matches no variable"), ((".*",), "no variable of the model is shared")]
    )
    def test_bad_filters(self, personal, message):
        with pytest.raises(ConfigError, match=message):
            ModelSpec.of(MODEL, personal)

    def test_wrong_length(self):
        with pytest.raises(ConfigError, match=r"expected a vector of shape \(24,\), got \(3,\)"):
            ModelSpec.of(MODEL).unflatten(np.zeros(3, np.float32))


def updates(count=5, size=100_003):
    generator = np.random.default_rng(0)
    return [
        ClientUpdate(
            generator.normal(size=size).astype(np.float32),
            generator.normal(size=3).astype(np.float32),
            float(weight),
            {"loss": Weighted(float(weight) * 2, float(weight))},
        )
        for weight in range(1, count + 1)
    ]


def folded(aggregator, members):
    accumulator = aggregator.zero(len(members[0].delta))
    for update in members:
        accumulator = aggregator.add(accumulator, update)
    return accumulator


class TestAggregators:
    def test_total_is_the_weighted_sum(self):
        members = updates()
        total = WeightedSum().total(folded(WeightedSum(), members))
        exact = sum(update.weight * update.delta.astype(np.float64) for update in members)
        np.testing.assert_allclose(total.delta, exact, rtol=1e-4, atol=1e-4)
        assert (total.weight, total.clients, total.metrics["loss"]) == (15.0, 5, Weighted(30.0, 15.0))

    def test_merge_is_add_of_all(self):
        aggregator, members = WeightedSum(), updates()
        merged = aggregator.merge(folded(aggregator, members[:2]), folded(aggregator, members[2:]))
        whole = folded(aggregator, members)
        np.testing.assert_allclose(merged.delta, whole.delta, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(merged.extra, whole.extra, rtol=1e-5)
        assert merged.weight == whole.weight

    def test_zero_is_neutral(self):
        aggregator, members = WeightedSum(), updates(2)
        merged = aggregator.merge(aggregator.zero(len(members[0].delta)), folded(aggregator, members))
        np.testing.assert_array_equal(merged.delta, folded(aggregator, members).delta)

    def test_equal_updates_have_themselves_as_mean(self):
        update = updates(1)[0]
        mean = folded(WeightedSum(), [update, update._replace(weight=3.0)]).mean()
        np.testing.assert_allclose(mean.delta, update.delta, rtol=1e-6)
        assert mean.metrics["loss"] == pytest.approx(2.0)

    def test_weightless_total_has_no_mean(self):
        with pytest.raises(ZeroDivisionError):
            Total(np.zeros(2, np.float32), np.zeros(0, np.float32), 0.0, 0, {}).mean()

    def test_metrics_are_a_commutative_monoid(self):
        a, b = {"x": Weighted(1, 2)}, {"x": Weighted(3, 4), "y": Weighted(5, 6)}
        assert add_metrics(a, b) == add_metrics(b, a) == {"x": Weighted(4, 6), "y": Weighted(5, 6)}
        assert add_metrics(a, {}) == a


class Scale(NamedTuple):
    """A linear transform: c·x on the client, x/c on the server."""

    factor: float

    def init(self, spec):
        return 0

    def encode(self, state, update, key):
        return update._replace(delta=update.delta * np.float32(self.factor))

    def decode(self, state, total, key):
        return state + 1, total._replace(delta=total.delta / np.float32(self.factor))


class Shift(Scale):
    """Addition: does not commute with Scale, so the order of decoding shows."""

    def encode(self, state, update, key):
        return update._replace(delta=update.delta + np.float32(self.factor))

    def decode(self, state, total, key):
        return state + 1, total._replace(delta=total.delta - np.float32(self.factor) * np.float32(total.weight))


class TestChain:
    def test_empty_chain_changes_nothing(self):
        update = updates(1)[0]
        assert Chain().encode((), update, derive(0)) is update

    def test_decoding_undoes_encoding_in_reverse(self):
        chain, members = Chain(Scale(4.0), Shift(0.5), Scale(0.5)), updates(3)
        state = chain.init(None)
        total = folded(WeightedSum(), [chain.encode(state, update, derive(0)) for update in members])
        state, decoded = chain.decode(state, total, derive(0))
        np.testing.assert_allclose(decoded.delta, folded(WeightedSum(), members).delta, rtol=1e-4, atol=1e-4)
        assert state == (1, 1, 1)

    def test_equality_and_repr(self):
        assert Chain(Scale(1.0)) == Chain(Scale(1.0)) != Chain(Scale(2.0))
        assert repr(Chain(Scale(1.0))) == "Chain(Scale(factor=1.0))"


class Momentum(NamedTuple):
    velocity: np.ndarray
    step: int


class TestSerial:
    TREE = (
        Momentum(np.arange(6.0).reshape(2, 3), 3),
        {"a": [1, None, "é"], 5: float("nan")},
        np.float32(0.1),
        True,
        -0.0,
        b"".hex(),
    )

    def test_round_trip_is_exact(self):
        back = serial.loads(serial.dumps(self.TREE), like=self.TREE)
        assert isinstance(back[0], Momentum)
        np.testing.assert_array_equal(back[0].velocity, self.TREE[0].velocity)
        assert back[1]["a"] == [1, None, "é"]
        assert np.isnan(back[1][5])
        assert back[2].dtype == np.float32
        assert back[3] is True
        assert str(back[4]) == "-0.0"
        assert serial.dumps(back) == serial.dumps(self.TREE)

    @pytest.mark.parametrize("value", [np.array([object()]), object(), {1, 2}, 1j, np.array(["a"])])
    def test_only_numbers_are_stored(self, value):
        with pytest.raises(TypeError, match="cannot store"):
            serial.dumps(value)

    @pytest.mark.parametrize(
        "damage",
        [lambda data: data[:-1], lambda data: data[:20], lambda data: b"x" + data, lambda data: b"", pickle.dumps],
    )
    def test_damaged_bytes_are_refused(self, damage):
        with pytest.raises(StoreError):
            serial.loads(damage(serial.dumps(self.TREE)))

    def test_random_bytes_are_refused(self):
        generator = np.random.default_rng(0)
        good = serial.dumps(self.TREE)
        for _ in range(300):
            bad = bytearray(good)
            for position in generator.integers(0, 60, 3):
                bad[position] = generator.integers(0, 256)
            with contextlib.suppress(StoreError):  # any other exception fails the test
                assert serial.loads(bytes(bad)) is not None


class TestOverrides:
    def test_nested_and_typed(self):
        changed = override(
            federation(),
            [
                "strategy.server_lr=1",
                "rounds=7",
                "local.learning_rate=none",
                "local.shuffle=false",
                "personal=('a',)",
                "name=other",
            ],
        )
        assert changed.strategy.server_lr == 1.0
        assert type(changed.strategy.server_lr) is float
        assert (changed.rounds, changed.local.learning_rate, changed.local.shuffle) == (7, None, False)
        assert (changed.personal, changed.name) == (("a",), "other")

    def test_every_listed_path_can_be_set_to_its_own_value(self):
        experiment = federation()
        simple = [
            path for path in paths(experiment) if isinstance(attrgetter(path)(experiment), (int, float, str, bool))
        ]
        assert {"rounds", "local.epochs", "strategy.server_lr", "population.clients", "sampler.size"} <= set(simple)
        same = override(experiment, [f"{path}={attrgetter(path)(experiment)!r}" for path in simple])
        assert same.describe() == experiment.describe()

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("strategy.server_rl=1", r"unknown key 'strategy.server_rl': did you mean 'server_lr'\?.*in strategy"),
            ("round=3", r"unknown key 'round': did you mean 'rounds'\?"),
            ("rounds=many", "expected rounds=many to be int"),
            ("rounds=2.5", "expected rounds=2.5 to be int"),
            ("rounds=true", "expected rounds=true to be int"),
            ("rounds", "expected key=value, got 'rounds'"),
            ("rounds=0", "rounds=0 to be an integer ≥ 1"),
            ("rounds.more=1", "'rounds.more': rounds=3 has no settings"),
            ("weighting=size", "expected weighting=size to be 'examples' or 'uniform'"),
            ("local.learning_rate=-1", "learning_rate=-1"),
        ],
    )
    def test_bad_overrides(self, assignment, message):
        with pytest.raises(ConfigError, match=message):
            override(federation(), [assignment])


class TestExperiment:
    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "a b"},
            {"name": ""},
            {"model": 3},
            {"rounds": 0},
            {"seed": -1},
            {"seed": True},
            {"weighting": "size"},
            {"sampler": 3},
            {"population": [1]},
        ],
    )
    def test_bad_values_are_refused_when_built(self, changes):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            federation(**changes)

    @pytest.mark.parametrize(
        "local",
        [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"epochs": True}],
    )
    def test_bad_local_settings(self, local):
        with pytest.raises(ConfigError, match=next(iter(local))):
            Local(**local)

    def test_robust_fold_with_hidden_updates_is_refused(self):
        aggregator = SimpleNamespace(needs_individual_updates=True, zero=0, add=0, merge=0, total=0)
        with pytest.raises(IncompatibleError, match="needs individual updates"):
            federation(
                aggregator=aggregator,
                secure_aggregation=SimpleNamespace(rehearse=lambda meeting, cohort, is_real: None, metrics=()),
            )

    def test_description_names_what_changed(self):
        experiment = federation()
        assert experiment.digest == federation().digest
        experiment.check_unchanged(federation(rounds=99).describe())
        for changed, path in [
            (federation(seed=9), "seed"),
            (federation(local=Local(learning_rate=0.3)), "local"),
            (federation(test=blobs(64, seed=6)), "test"),
            (override(federation(), ["population.clients=5"]), "population.clients"),
        ]:
            with pytest.raises(ConfigError, match=f"changed since this run began: {path}"):
                changed.check_unchanged(experiment.describe())

    def test_pickles(self):
        assert pickle.loads(pickle.dumps(federation())).digest == federation().digest


class TestExamples:
    def test_structures(self):
        examples = Examples.of(({"a": np.zeros((4, 2)), "b": [np.ones(4), np.ones((4, 3))]}, np.arange(4)))
        assert examples.count == 4
        assert [leaf.shape for leaf in leaves(examples.take(np.array([1, 3])).x)] == [(2, 2), (2,), (2, 3)]
        assert map_arrays(len, (np.zeros(2), None)) == (2, None)

    @pytest.mark.parametrize("bad", [(), (1, 2, 3, 4), (np.float32(1),), (np.zeros(3), np.zeros(4)), ({},)])
    def test_bad_structures(self, bad):
        with pytest.raises(ConfigError):
            Examples.of(bad)
