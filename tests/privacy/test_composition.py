import time

import numpy as np
import pytest

from umbel.privacy import accounting, composition
from umbel.privacy.accounting import FixedCohortGaussian, Gaussian, LocalRelease, SkellamSum, TruncatedGaussian, compose

DELTA = 1e-6
GROWING = [
    (Gaussian(1.3, 0.0025), 6000),
    (Gaussian(2.0, 0.1), 100),
    (Gaussian(4.0, 0.05), 40),
    (Gaussian(6.0, 0.9), 30),
    (FixedCohortGaussian(6.0, 100, 1000), 60),
    (TruncatedGaussian(4.0, 0.1, 110, 1000), 60),
    (LocalRelease(40.0), 100),
    (SkellamSum(40.0, 1e4), 100),
]


@pytest.mark.parametrize(("event", "rounds"), GROWING, ids=str)
def test_a_growing_ledger_costs_what_it_does_from_scratch(event, rounds):
    for count in sorted({1, 2, 7, rounds}):
        found = composition.spent({str(event): count}, DELTA, rounds)
        exact = accounting.epsilon({str(event): count}, DELTA).pld
        # Each bounds what the window leaves out in its own way: some 1e-15 of δ, so a few 1e-9 of ε.
        assert exact * (1 - 1e-8) - 1e-12 <= found <= exact * (1 + 2e-4)


def test_more_rounds_than_expected_cost_what_they_do():
    event = Gaussian(4.0, 0.05)
    for count in (41, 64, 65, 100):
        found = composition.spent({str(event): count}, DELTA, 40)
        assert found == pytest.approx(accounting.epsilon({str(event): count}, DELTA).pld, rel=2e-4)


def test_ledgers_of_several_events_and_of_none():
    ledger = compose(compose({}, Gaussian(4.0, 0.05), 3), Gaussian(5.0, 0.05), 2)
    assert composition.spent(ledger, DELTA, 40) == accounting.epsilon(ledger, DELTA).pld
    assert composition.spent({}, DELTA, 40) == 0
    assert composition.spent({str(Gaussian(4.0, 0.05)): 0}, DELTA, 40) == 0


def test_what_is_no_privacy_is_infinite_here_too():
    assert composition.spent({str(Gaussian(0.01, 0.9)): 10**5}, DELTA, 10) == np.inf


@pytest.mark.parametrize("event", [Gaussian(2.0, 0.01), FixedCohortGaussian(6.0, 100, 1000)], ids=str)
def test_after_the_first_call_a_round_takes_milliseconds(event):
    composition.spent({str(event): 1}, DELTA, 500)
    seconds = []
    for count in range(2, 60):
        started = time.perf_counter()
        composition.spent({str(event): count}, DELTA, 500)
        seconds.append(time.perf_counter() - started)
    # Room for a busy machine; from scratch it takes 60 to 400 ms.
    assert np.median(seconds) < 0.02


@pytest.mark.parametrize(("noise", "rate", "count"), [(4.0, 0.01, 10**5), (1.0, 0.001, 3000)])
def test_a_small_delta_never_costs_less_than_a_larger_one_and_never_more_than_rdp(noise, rate, count):
    """Where a transform's rounding could hide δ, no bound comes from it, and RDP's stands."""
    event, spent_at = accounting.Gaussian(noise, rate), []
    ledger = {str(event): count}
    for delta in (1e-5, 1e-8, 1e-10, 1e-12):
        spent_at.append(composition.spent(ledger, delta, count))
        assert spent_at[-1] <= accounting.rdp_epsilon({event: count}, delta) * (1 + 1e-9)
        assert accounting.epsilon(ledger, delta).pld <= accounting.epsilon(ledger, delta).rdp
    assert spent_at == sorted(spent_at)


def test_one_release_is_not_rounded_by_a_transform():
    """A distribution composed once with itself went through one, which left 1e-16 at each loss that is impossible."""
    event, losses = accounting.Gaussian(1.0, 0.001), 1e-4
    removing, _ = composition.directions_of(accounting.loss_distribution(event, 1, losses))
    places = (np.arange(len(removing._probs)) + removing._lower_loss) * losses
    far = places > 2.0  # where a client's presence would have to be 9 standard deviations away
    assert far.any()
    assert np.maximum(removing._probs[far], 0).sum() < 1e-15
