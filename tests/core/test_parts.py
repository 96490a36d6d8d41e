"""What is not a part that an Experiment takes is refused when it is built, in a line that shows it and the remedy."""

import numpy as np
import pytest

from federations import blobs, federation
from umbel import ConfigError, EarlyStopping, FedAvg, FixedCohort, Local, StopAt
from umbel.core.examples import Examples


class Dataset:
    """As much of a tf.data.Dataset as can be told apart: its `load` reads something else."""

    element_spec = ()

    def load(self, path):
        raise AssertionError


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"model": "cnn"}, "a function that builds one"),
        ({"strategy": FedAvg}, "a value, not a class: FedAvg"),
        ({"strategy": "fedavg"}, r"such as FedAvg\(\)"),
        ({"population": blobs()}, r"such as data\.Partitioned"),
        ({"population": [blobs(), blobs()]}, r"data\.PerClient"),
        ({"sampler": 3}, r"such as FixedCohort\(10\)"),
        ({"transforms": [FedAvg()]}, r"such as Chain\("),
        ({"validation": 0.2}, "split_clients"),
        ({"callbacks": StopAt("test_accuracy", 0.9)}, "to be a tuple"),
        ({"callbacks": ("early",)}, r"to have decide, best_round\(\)"),
        ({"personal": "dense/kernel"}, "to be a tuple"),
        ({"test": blobs()[0]}, r"\(x, y\)"),
        ({"test": Dataset()}, r"data\.TfDataset"),
        ({"test": tuple(array[:0] for array in blobs())}, "got none"),
    ],
)
def test_what_is_no_part_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(ConfigError, match=remedy) as caught:
        federation(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numpy_numbers_and_lists_are_those_of_python():
    plain = federation(
        rounds=2,
        seed=3,
        sampler=FixedCohort(4),
        local=Local(epochs=2, batch_size=8, learning_rate=0.5),
        callbacks=(EarlyStopping(),),
    )
    numbers = federation(
        rounds=np.int64(2),
        seed=np.uint8(3),
        sampler=FixedCohort(np.int32(4)),
        local=Local(epochs=np.int64(2), batch_size=np.int64(8), learning_rate=np.float32(0.5)),
        callbacks=[EarlyStopping()],
    )
    assert numbers.describe() == plain.describe()
    assert type(numbers.rounds) is int
    assert type(numbers.local.learning_rate) is float


def test_experiments_show_what_they_hold_not_all_of_it():
    experiment = federation()
    assert repr(experiment.test) == "Examples(x=float32[64, 6], y=int32[64])"
    assert repr(Examples({"a": np.zeros((2, 1))})) == "Examples(x={a: float64[2, 1]})"
    assert len(repr(experiment)) < 1000
