"""Keys and what they begin."""

import numpy as np

from umbel.core.random import Dealer, derive


def test_a_dealer_has_the_numbers_of_each_keys_own_generator():
    """Also after another was left in the middle of a word."""
    dealer = Dealer()
    for client in range(60):
        key, rows = derive(3, "client", client), np.arange(client % 13, dtype=np.int32)
        own, dealt = key.generator(), dealer.at(key)
        for _ in range(2):
            order = rows.copy()
            dealt.shuffle(order)
            assert np.array_equal(order, own.permutation(rows))
        assert dealt.integers(0, 5, 3, dtype=np.int32).tolist() == own.integers(0, 5, 3, dtype=np.int32).tolist()
        assert dealt.normal() == own.normal()
