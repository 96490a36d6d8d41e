"""Docstrings say by themselves what they are about, and names of public classes stand for one class each."""

import ast

import pytest

from tests.support import words


def test_first_lines_stand_alone():
    assert [str(riddle) for riddle in words.riddles()] == []


def test_no_two_public_classes_share_a_name():
    assert words.doubles() == {}


@pytest.mark.parametrize(
    ("source", "is_riddle"),
    [
        ('def nbytes():\n    """That travel."""', True),
        ('def worth():\n    """1 for staleness 0."""', True),
        ('def most():\n    """Upper bound on the updates\n    in one round."""', True),
        ('def answers() -> str:\n    """Whether the client answers, as text."""', True),
        ('def answers() -> bool:\n    """Whether the client answers."""', False),
        ('class Codec:\n    """What travels."""', True),
        ('"""Federated averaging. McMahan et al. 2017, https://arxiv.org/abs/1602.05629"""', False),
        ('def epsilon():\n    """ε of everything that was released."""', False),
    ],
)
def test_a_riddle_is_told_from_a_sentence(source, is_riddle):
    assert bool(list(words.riddles_in(ast.parse(source)))) == is_riddle
