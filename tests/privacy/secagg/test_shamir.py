import itertools
import os
from collections import Counter

import pytest

from umbel.privacy.secagg import shamir

SECRET = bytes(range(32))


def dealt(threshold, count, secret=SECRET):
    return dict(enumerate(shamir.split(secret, threshold, range(1, count + 1), os.urandom), 1))


def is_secret(secret):
    return secret == SECRET


def test_the_modulus_is_the_least_prime_above_2_to_the_256():
    def is_prime(n):  # Fermat, to the bases that leave no doubt at this size
        return all(pow(base, n - 1, n) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23))

    assert is_prime(shamir.PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, shamir.PRIME))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, SECRET])
def test_any_threshold_of_shares_give_the_secret_back(secret):
    shares = dealt(3, 6, secret)
    for chosen in itertools.combinations(shares, 3):
        kept = {point: shares[point] for point in chosen}
        assert shamir.reconstruct(kept, 3, lambda found: found == secret).secret == secret


def test_one_share_fewer_gives_something_else():
    shares = dealt(4, 6)
    for chosen in itertools.combinations(shares, 3):
        assert shamir.interpolate({point: shares[point] for point in chosen}) != int.from_bytes(SECRET, "big")


def test_one_share_fewer_reveals_nothing_in_a_small_field():
    prime, threshold = 7, 3
    for points in itertools.combinations(range(1, prime), threshold - 1):
        views = []
        for secret in range(prime):
            polynomials = itertools.product([secret], range(prime), range(prime))
            views.append(
                Counter(tuple(shamir.evaluate(line, point, prime) for point in points) for line in polynomials)
            )
        assert all(view == views[0] for view in views)  # the same, however often seen, whatever the secret
        assert len(views[0]) == prime ** (threshold - 1)
    three = [shamir.evaluate((5, 1, 2), point, prime) for point in (1, 2, 3)]
    assert shamir.interpolate(dict(zip((1, 2, 3), three, strict=True)), prime=prime) == 5  # and one more tells all


def test_coefficients_are_fresh():
    assert not set(dealt(2, 4).values()) & set(dealt(2, 4).values())


@pytest.mark.parametrize("wrong", [(1,), (9,), (2, 9), (1, 4, 7)])
def test_wrong_shares_are_found_and_the_secret_survives(wrong):
    shares = dealt(5, 9)
    for point in wrong:
        shares[point] = (shares[point] + 3**point) % shamir.PRIME
    found = shamir.reconstruct(shares, 5, is_secret)
    assert (found.secret, found.bad_points) == (SECRET, wrong)


def test_one_share_to_spare_finds_one_wrong_share():
    for point in range(1, 7):
        shares = dealt(5, 6)
        shares[point] ^= 1
        assert shamir.reconstruct(shares, 5, is_secret).bad_points == (point,)


def test_colluders_cannot_frame_others_while_they_are_few():
    # Two shares, moved so that the secret behind the first subset tried that holds both is still right.
    shares = dealt(5, 9)
    subset = tuple(range(5, 10))
    weights = dict(zip(subset, shamir.lagrange(subset, 0), strict=True))
    shares[6] = (shares[6] + weights[7]) % shamir.PRIME
    shares[7] = (shares[7] - weights[6]) % shamir.PRIME
    assert shamir.interpolate({point: shares[point] for point in subset}) == int.from_bytes(SECRET, "big")
    assert shamir.reconstruct(shares, 5, is_secret).bad_points == (6, 7)


def test_no_share_to_spare_never_gives_a_wrong_secret():
    shares = dealt(5, 5)
    shares[3] ^= 1
    assert shamir.reconstruct(shares, 5, is_secret) == (None, (), False)


def test_a_dealer_that_lied_is_told_from_senders_that_did():
    assert shamir.reconstruct(dealt(5, 9, bytes(32)), 5, is_secret) == (None, (), True)
    shares = {point: (value + 3**point) % shamir.PRIME for point, value in dealt(5, 9).items()}
    assert shamir.reconstruct(shares, 5, is_secret) == (None, (), False)


def test_giving_up_is_bounded(monkeypatch):
    monkeypatch.setattr(shamir, "MOST_SUBSETS", 50)
    tried = []
    shamir.reconstruct({point: point**9 for point in range(1, 31)}, 20, lambda secret: tried.append(secret) or False)
    assert len(tried) <= 51


def test_bytes_round_trip_and_have_one_form():
    for share in (0, 1, 2**256, shamir.PRIME - 1):
        assert shamir.from_bytes(shamir.to_bytes(share)) == share
    assert shamir.from_bytes(shamir.to_bytes(shamir.PRIME)) is None
    assert shamir.from_bytes(shamir.to_bytes(5)[1:]) is None
