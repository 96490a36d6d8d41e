"""Poisoned populations: the attackers' examples, and nobody else's."""

import pickle

import numpy as np
import pytest

from federations import blobs
from umbel import ConfigError, data
from umbel.core.examples import Examples
from umbel.data.attacks import Backdoor, LabelFlip

POPULATION = data.Partitioned(data.Arrays(*blobs(60)), by=data.Iid(), clients=6)
POISONED = (
    LabelFlip(POPULATION, (1, 4), classes=3),
    Backdoor(POPULATION, (1, 4), target=2, pixels=(0, 5), value=9.0, fraction=0.3),
)
each = pytest.mark.parametrize("poisoned", POISONED, ids=lambda one: type(one).__name__)


def same(one, other):
    return np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)


@each
class TestContract:
    def test_honest_clients_keep_their_examples(self, poisoned):
        assert len(poisoned) == 6
        np.testing.assert_array_equal(poisoned.sizes(), POPULATION.sizes())
        for client in range(6):
            assert same(poisoned.examples(client), POPULATION.examples(client)) == (client not in (1, 4))

    def test_numbers_types_and_the_source_stay_as_they_are(self, poisoned):
        before = [POPULATION.examples(client) for client in range(6)]
        for client in range(6):
            found = poisoned.examples(client)
            assert (found.count, found.x.dtype, found.y.dtype) == (10, before[client].x.dtype, before[client].y.dtype)
        assert all(same(POPULATION.examples(client), before[client]) for client in range(6))

    def test_it_is_a_value_and_streams(self, poisoned):
        assert pickle.loads(pickle.dumps(poisoned)) == poisoned
        assert poisoned.resident() is None
        with pytest.raises(ConfigError, match="streams"):
            poisoned.indices(0)


def test_flipped_labels_flipped_again_are_the_labels():
    twice = LabelFlip(POISONED[0], (1, 4), classes=3)
    assert all(same(twice.examples(client), POPULATION.examples(client)) for client in range(6))
    flipped, labels = POISONED[0].examples(1).y, POPULATION.examples(1).y
    np.testing.assert_array_equal(flipped, 2 - labels)


def test_a_backdoor_sits_on_a_fraction_of_an_attackers_examples():
    poisoned, clean = POISONED[1].examples(4), POPULATION.examples(4)
    assert (poisoned.x[:3][:, [0, 5]] == 9.0).all()
    assert (poisoned.y[:3] == 2).all()
    np.testing.assert_array_equal(poisoned.x[:3][:, 1:5], clean.x[:3][:, 1:5])
    assert same(poisoned.take(slice(3, None)), clean.take(slice(3, None)))


def test_its_success_is_measured_on_other_classes():
    x, y = blobs(50)
    found = POISONED[1].success_test((x, y))
    assert found.count == (y != 2).sum()
    assert (found.y == 2).all()
    assert (found.x[:, [0, 5]] == 9.0).all()


def test_images_are_triggered_by_flat_index():
    images = data.PerClient([Examples(np.zeros((4, 3, 3, 1), np.float32), np.zeros(4, np.int64))])
    found = Backdoor(images, (0,), target=1, pixels=(0, 8), fraction=1.0).examples(0)
    assert found.x.shape == (4, 3, 3, 1)
    np.testing.assert_array_equal(np.flatnonzero(found.x[0]), [0, 8])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelFlip(POPULATION, (6,), classes=3), r"client=6"),
        (lambda: LabelFlip(POPULATION, (0,), classes=1), r"classes=1"),
        (lambda: LabelFlip(POPULATION, (0,), classes=2).examples(0), r"below classes=2"),
        (lambda: Backdoor(POPULATION, (0,), target=0, pixels=()), r"pixels"),
        (lambda: Backdoor(POPULATION, (0,), target=0, pixels=(6,)).examples(0), r"pixels=\(6,\)"),
        (lambda: Backdoor(POPULATION, (0,), target=0, pixels=(0,), fraction=0.0), r"fraction=0.0"),
        (
            lambda: LabelFlip(data.PerClient([(np.zeros((2, 3)), np.zeros(2))]), (0,), classes=3).examples(0),
            r"integer labels",
        ),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
