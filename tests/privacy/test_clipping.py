import numpy as np
import pytest

from federations import federation
from umbel import Chain, Clip, ConfigError, Simulation, run
from umbel.core.errors import ClientError
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import ClientUpdate
from umbel.privacy import ClipPerLayer, FixedCohortPlan, clip
from umbel.privacy.clipping import norm_of


def vector(scale=1.0, size=1000):
    return (np.random.default_rng(0).normal(size=size) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e10, 1e30])
def test_norm_is_bounded_and_direction_kept(scale):
    delta = vector(scale)
    clipped, norm = clip(delta, 2.0)
    assert np.linalg.norm(clipped.astype(np.float64)) <= 2.0
    assert norm == pytest.approx(np.linalg.norm(delta.astype(np.float64)), rel=1e-5)
    cosine = clipped.astype(np.float64) @ delta.astype(np.float64) / (np.linalg.norm(clipped.astype(np.float64)) * norm)
    assert cosine == pytest.approx(1.0)


def test_small_and_zero_updates_are_unchanged():
    for delta in (vector(1e-3), np.zeros(5, np.float32)):
        assert clip(delta, 1.0)[0] is delta


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_zero_and_is_told(bad):
    delta = vector()
    delta[3] = bad
    clipped, norm = clip(delta, 1.0)
    assert not clipped.any()
    assert not np.isfinite(norm)


def test_extra_counts_towards_the_norm():
    update = ClientUpdate(np.array([3.0], np.float32), np.array([4.0], np.float32), 1.0, {})
    clipped = Clip(1.0).encode((), update, None)
    np.testing.assert_allclose([*clipped.delta, *clipped.extra], [0.6, 0.8], rtol=2e-5)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 100_003])
@pytest.mark.parametrize("scale", [1e-40, 1e-22, 1.0, 1e20, 3e37])
def test_norms_of_every_length_and_size(size, scale):
    delta = vector(scale, size)
    delta[::7] *= 1e-3
    assert norm_of(delta[: size // 3], delta[size // 3 :]) == pytest.approx(
        np.linalg.norm(delta.astype(np.float64)), rel=1e-5
    )


@pytest.mark.parametrize("norm", [1 - 1e-7, 1.0, 1 + 1e-7, 1 + 1e-4])
def test_no_norm_is_over_the_bound_by_rounding(norm):
    for seed in range(20):
        delta = np.random.default_rng(seed).normal(size=997)
        clipped, _ = clip((delta * norm / np.linalg.norm(delta)).astype(np.float32), 1.0)
        assert np.linalg.norm(clipped.astype(np.float64)) <= 1.0


@pytest.mark.parametrize("bound", [1e-2, 1e-4, 3e-5])
def test_no_update_is_so_large_that_its_factor_loses_its_digits(bound):
    """Below 2⁻¹²⁶ float32 has few of them: rounded up, 10⁻⁴² would let an update through that is 0.1 % too long."""
    huge = vector(size=300) * np.float32(1e37)
    clipped, _ = clip(huge, bound)
    assert 0.999 * bound < np.linalg.norm(clipped.astype(np.float64)) <= bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["delta", "extra"])
def test_an_update_that_is_not_finite_has_no_clipped_form(bad, part):
    update = ClientUpdate(vector(size=300), vector(size=300), 1.0, {})
    getattr(update, part)[17] = bad
    with pytest.raises(ClientError, match="not finite"):
        Clip(1.0).encode((), update, None)


def test_a_bound_nobody_reaches_is_fedavg():
    plain = run(federation(), Simulation(workers=1))
    clipped = run(federation(transforms=Chain(Clip(1e6))), Simulation(workers=1))
    assert clipped.params_sha256 == plain.params_sha256


def test_a_tight_bound_bounds_the_round():
    simulation = Simulation(workers=1)
    history = run(federation(transforms=Chain(Clip(0.01)), rounds=1), simulation)
    assert np.linalg.norm(history.params - simulation.initial_params()) <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), True])
def test_bad_bounds(bound):
    with pytest.raises(ConfigError, match="clip_norm"):
        Clip(bound)


LAYERS = ModelSpec(
    tuple(VariableSpec(f"v{size}", (size,), "float32", True, start) for size, start in ((300, 0), (1, 300), (99, 301)))
)


@pytest.mark.parametrize("extra", [0, 7])
def test_per_layer_clipping_bounds_each_part_and_the_whole(extra):
    clipping = ClipPerLayer(2.0)
    delta = np.concatenate([vector(10.0, 300), vector(1e-3, 1), vector(0.5, 99)])
    update = ClientUpdate(delta, vector(1.0, extra), 1.0, {})
    found = clipping.encode(clipping.init(LAYERS), update, None)
    share = 2.0 / np.sqrt(4 if extra else 3)
    parts = [part for part in (found.delta[:300], found.delta[300:301], found.delta[301:], found.extra) if len(part)]
    assert max(norm_of(part) for part in parts) <= share * (1 + 1e-6)
    assert norm_of(found.delta, found.extra) <= 2.0
    np.testing.assert_array_equal(found.delta[300:301], delta[300:301])  # a small part keeps its size
    again, _ = clip(found.delta, 2.0)
    np.testing.assert_allclose(again, found.delta, rtol=1e-4)


def test_per_layer_clipping_of_one_layer_is_clipping():
    alone = ModelSpec((VariableSpec("v", (1000,), "float32", True, 0),))
    update, clipping = ClientUpdate(vector(), np.zeros(0, np.float32), 1.0, {}), ClipPerLayer(0.5)
    found = clipping.encode(clipping.init(alone), update, None)
    np.testing.assert_array_equal(found.delta, clip(update.delta, 0.5)[0])


def test_per_layer_clipping_refuses_what_is_not_finite():
    delta, clipping = vector(1.0, 400), ClipPerLayer(1.0)
    delta[300] = np.nan
    with pytest.raises(ClientError, match="not finite"):
        clipping.encode(clipping.init(LAYERS), ClientUpdate(delta, np.zeros(0, np.float32), 1.0, {}), None)


def test_per_layer_clipping_runs_before_a_plan():
    plan = FixedCohortPlan(epsilon=50.0, delta=1e-3, rounds=3, population=8, cohort=4, clip_norm=0.1)
    chain = Chain(ClipPerLayer(0.1))
    private = federation(transforms=chain, plan=plan, sampler=None, weighting="uniform")
    assert run(private, Simulation(workers=1)).privacy["epsilon"] <= 50
