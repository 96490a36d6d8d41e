import math

import numpy as np
import pytest

from umbel import ConfigError
from umbel.core.errors import ClientError
from umbel.core.random import derive
from umbel.core.types import NOTHING, ClientUpdate, Total, Weighted
from umbel.privacy import accounting
from umbel.privacy.accounting import LocalRelease, local_noise
from umbel.privacy.local import LocalGaussian

SIZE = 50_000
LOCAL = LocalGaussian(0.5, 4.0)


def update(value=0.0, weight=1.0):
    return ClientUpdate(np.full(SIZE, value, np.float32), np.zeros(7, np.float32), weight, {"loss": Weighted(1.0, 2.0)})


def test_each_client_sends_noise_of_its_own_and_no_metrics():
    one, other = (LOCAL.encode((), update(), derive(0, "client", client)) for client in (1, 2))
    assert abs(np.corrcoef(one.delta, other.delta)[0, 1]) < 0.03
    for sent in (one, other):
        assert sent.delta.std() == pytest.approx(4.0 * 0.5, rel=0.02)
        assert (len(sent.extra), sent.weight, sent.metrics) == (7, 1.0, {})
        assert (sent.extra != 0).all()


def test_what_is_under_the_noise_is_clipped():
    mean = np.mean([LOCAL.encode((), update(1.0), derive(0, n)).delta for n in range(40)], axis=0)
    # Each of the numbers is 1 before, and 0.5/√SIZE after.
    assert abs(mean.mean() - 0.5 / math.sqrt(SIZE)) < 5 * 2.0 / math.sqrt(40 * SIZE)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("releases", [1, 25])
def test_local_noise_keeps_its_budget_and_two_thirds_of_it_do_not(epsilon, releases):
    noise = local_noise(epsilon, 1e-6, releases)
    cost = [accounting.epsilon({str(LocalRelease(z)): releases}, 1e-6) for z in (noise, 2 / 3 * noise)]
    assert cost[0].pld <= epsilon < cost[1].pld
    assert cost[0].pld == pytest.approx(epsilon, rel=1e-5)
    assert cost[0].rdp > cost[0].pld


def test_a_release_is_a_gaussian_of_twice_the_clip_norm():
    release, plain = (
        accounting.epsilon({str(one): 3}, 1e-5).pld for one in (LocalRelease(6.0), accounting.Gaussian(3, 1))
    )
    assert release == pytest.approx(plain)
    assert LOCAL.event == LocalRelease(4.0)


def test_the_mean_is_over_those_who_sent_and_of_nobody_it_is_zero():
    total = Total(np.ones(3, np.float32), NOTHING, 5.0, 5, {"loss": Weighted(1.0, 1.0)})
    assert LOCAL.decode((), total, derive(0))[1] == total._replace(metrics={})
    empty = Total(np.zeros(3, np.float32), NOTHING, 0.0, 0, {})
    assert not LOCAL.decode((), empty, derive(0))[1].mean().delta.any()


def test_bad_updates_and_numbers():
    with pytest.raises(ClientError, match="not finite"):
        LOCAL.encode((), update(np.nan), derive(0))
    with pytest.raises(ConfigError, match="weight=3"):
        LOCAL.encode((), update(weight=3.0), derive(0))
    for clip_norm, noise, name in (
        (0, 1.0, "clip_norm"),
        (1.0, 0.0, "noise_multiplier"),
        (1.0, None, "noise_multiplier"),
    ):
        with pytest.raises(ConfigError, match=name):
            LocalGaussian(clip_norm, noise)
    for numbers in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1e-5, 0), (1e-9, 1e-9), (1e9, 1e-5)):
        with pytest.raises(ConfigError):
            local_noise(*numbers)
