import dataclasses
import math

import numpy as np
import pytest

from umbel import ConfigError
from umbel.core import serial
from umbel.core.random import derive
from umbel.core.types import NOTHING, ClientUpdate, Total
from umbel.privacy.adaptive import AdaptiveClip, ClipState
from umbel.privacy.central import CentralGaussian

COHORT, MEDIAN = 100, 1.02
NORMS = np.random.default_rng(3).lognormal(math.log(MEDIAN), 0.5, size=1000)


class Reversed(AdaptiveClip):
    """The update rule with its sign the other way round."""

    def next(self, state, unclipped):
        return AdaptiveClip.next(self, state, 2 * self.quantile - unclipped)


def train(clip, rounds=100, cohort=COHORT, noise=1.0):
    """The clip norms of a federation whose clients send updates of the norms above."""
    transform = CentralGaussian(clip, noise, cohort)
    state, norms = ClipState(clip.initial), []
    for number in range(rounds):
        key = derive(1, "round", number)
        delta, extra = np.zeros(2, np.float32), np.zeros(1, np.float32)
        for client in key.generator().choice(len(NORMS), cohort, replace=False):
            update = ClientUpdate(np.array([0.0, NORMS[client]], np.float32), NOTHING, 1.0, {})
            sent = transform.encode(state, update, key)
            delta, extra = delta + sent.delta, extra + sent.extra
        state, total = transform.decode(state, Total(delta, extra, cohort, cohort, {}), key)
        assert len(total.extra) == 0
        norms.append(state.clip_norm)
    return norms


@pytest.mark.parametrize("initial", [0.1, 0.5, 2.0])
def test_the_clip_norm_finds_the_median(initial):
    found = train(AdaptiveClip(initial=initial))
    assert np.mean(found[-40:]) == pytest.approx(np.median(NORMS), rel=0.1)


@pytest.mark.parametrize("quantile", [0.2, 0.8])
def test_or_another_quantile(quantile):
    found = train(AdaptiveClip(initial=0.5, quantile=quantile))
    assert np.mean(found[-40:]) == pytest.approx(np.quantile(NORMS, quantile), rel=0.1)


@pytest.mark.parametrize(("initial", "runs_off"), [(0.5, lambda last: last < 0.05), (2.0, lambda last: last > 20)])
def test_the_reversed_sign_runs_away_from_it(initial, runs_off):
    assert runs_off(train(Reversed(initial=initial))[-1])


def test_the_indicator_is_a_number_of_its_own():
    transform = CentralGaussian(AdaptiveClip(), 1.0, COHORT)
    for norm, indicator in ((0.9, 0.5), (1.1, -0.5), (0.0, 0.5)):
        update = ClientUpdate(np.array([norm], np.float32), np.zeros(3, np.float32), 1.0, {})
        sent = transform.encode(ClipState(1.0), update, derive(0))
        assert len(sent.extra) == 4
        assert sent.extra[-1] == indicator
        assert abs(sent.delta[0]) <= 1.0


def test_noise_on_updates_and_count_together_cost_what_was_asked():
    clip, noise = AdaptiveClip(), 1.0
    for cohort in (100, 1000):
        updates = clip.update_noise(noise, cohort)
        # One client moves the updates by 1 (in clip norms) and the count by 1/2, each beside its own noise.
        moved = math.hypot(1 / updates, 0.5 / clip.count_scale(cohort))
        assert moved == pytest.approx(1 / noise)
    assert clip.update_noise(1.0, 100) == pytest.approx(1.005, abs=1e-3)


def test_the_noise_drawn_is_that_noise():
    clip, size = AdaptiveClip(initial=0.5), 40_000
    transform = CentralGaussian(clip, 1.0, COHORT)
    total = Total(np.zeros(size, np.float32), np.zeros(1, np.float32), 0.0, 0, {})
    _, noisy = transform.decode(ClipState(0.25), total, derive(0))
    expected = 0.25 * clip.update_noise(1.0, COHORT)
    assert noisy.delta.std() == pytest.approx(expected, rel=0.015)
    # Twice the learning rate per logarithm moved: what the count's noise did to the clip norm.
    moved = [transform.decode(ClipState(1.0), total, derive(0, n))[0].clip_norm for n in range(2000)]
    assert np.std(np.log(moved) / clip.learning_rate) * COHORT == pytest.approx(clip.count_scale(COHORT), rel=0.08)


def test_a_cohort_of_ten_is_refused_with_what_would_do():
    for act in (lambda: AdaptiveClip().update_noise(1.0, 10), lambda: CentralGaussian(AdaptiveClip(), 1.0, 10)):
        with pytest.raises(ConfigError, match="above 10 clients, or a fixed clip norm"):
            act()
    CentralGaussian(AdaptiveClip(), 1.0, 11)
    with pytest.raises(ConfigError, match="raise it"):
        CentralGaussian(AdaptiveClip(count_noise=0.4), 1.0, 100)


def test_the_clip_norm_survives_a_checkpoint():
    transform = CentralGaussian(AdaptiveClip(), 1.0, COHORT)
    state = ClipState(0.3)
    assert serial.loads(serial.dumps((state,)), like=(ClipState(0.1),)) == (state,)
    assert dataclasses.replace(transform) == transform


def test_the_indicator_outlasts_rounding():
    transform = CentralGaussian(AdaptiveClip(), 1.0, COHORT, rounding=1e-3)
    small = ClientUpdate(np.array([0.01], np.float32), NOTHING, 1.0, {})
    sent = transform.encode(ClipState(1.0), small, derive(0))
    assert abs(float(sent.extra[0])) + 1e-3 <= 0.5 + 1e-7
    # Everybody unclipped is still a share of 1.
    total = Total(np.zeros(1, np.float32), COHORT * sent.extra, COHORT, COHORT, {})
    shares = [
        math.log(transform.decode(ClipState(1.0), total, derive(0, n))[0].clip_norm) / -0.2 + 0.5 for n in range(200)
    ]
    assert np.median(shares) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"initial": 0}, "initial"),
        ({"quantile": 1.1}, "quantile"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"count_noise": 0}, "count_noise"),
    ],
)
def test_bad_numbers(change, name):
    with pytest.raises(ConfigError, match=name):
        AdaptiveClip(**change)
