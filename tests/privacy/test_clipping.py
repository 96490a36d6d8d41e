import numpy as np
import pytest

from federations import federation
from umbel import Chain, Clip, ConfigError, Simulation, run
from umbel.core.errors import ClientError
from umbel.core.types import ClientUpdate
from umbel.privacy import clip
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
