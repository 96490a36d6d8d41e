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
        assert exact * (1 - 1e-9) - 1e-12 <= found <= exact * (1 + 2e-4)


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
