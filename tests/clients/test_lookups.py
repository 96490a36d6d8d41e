"""A number without a row in its table is an error, whatever compiles the model: XLA would take another row."""

import keras
import numpy as np
import pytest

from engines import SOONEST
from federations import blobs, federation
from umbel import AllClients, ClientError, ConfigError, Local, Simulation, data, run
from umbel.clients.keras.lookups import Table, fault_of
from umbel.core.examples import Examples

layers = keras.layers


def columns():
    """Each column has a table of its own; the other input has two, the smaller counts."""
    one, other = keras.Input((2,), dtype="int32"), keras.Input((3,), name="other")
    parts = [layers.Embedding(10, 2)(one[:, 0]), layers.Embedding(1000, 2)(one[:, 1])]
    parts += [layers.Flatten()(layers.Embedding(rows, 2)(other)) for rows in (7, 5)]
    return keras.Model([one, other], layers.Dense(1)(layers.Concatenate()(parts)))


def test_tables_are_found_where_an_input_is_looked_up_whole():
    from umbel.clients.tensorflow.lookups import tables_of

    tables = tables_of(columns(), (np.zeros((1, 2), np.int32), np.zeros((1, 3), np.int64)))
    assert {place: table.rows for place, table in tables.items()} == {1: 5}
    assert tables_of(columns(), (np.zeros((1, 2)), np.zeros((1, 3)))) == {}


@pytest.mark.parametrize("compile", [SOONEST, "xla"])
def test_a_label_of_one_client_that_is_no_class_ends_the_run(compile):
    """XLA answers it with NaN, which would only leave the client out."""
    shifted = data.PerClient([blobs(20), (blobs(20)[0], blobs(20)[1] + 1)])
    with pytest.raises(ClientError, match=r"client 1: label 3 is out of range: the model has 3 outputs"):
        run(federation(population=shifted, sampler=AllClients(), rounds=1, test=None), Simulation(1, compile))


def test_a_label_of_one_clients_held_out_examples_that_is_no_class_is_said():
    x, y = blobs(20)
    held_out = data.PerClient([(x, y), (x, y + 1)])
    clients = data.PerClient([(x, y), (x, y)])
    with pytest.raises(ClientError, match=r"^label 3 is out of range: the model has 3 outputs"):
        run(federation(population=clients, validation=held_out, sampler=AllClients(), rounds=1, test=None))


class Batches(keras.utils.PyDataset):
    """Batches that a user makes."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return blobs(4, seed=number)


def test_batches_of_a_users_own_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"x is a .*Batches, which makes batches: put them together, numpy.concat"):
        data.PerClient([Batches()])


@pytest.mark.parametrize(("number", "is_fine"), [(4, True), (-5, True), (5, False), (-6, False)])
def test_negative_numbers_count_from_the_end_as_in_keras(number, is_fine):
    fault = fault_of({0: Table("embedding", 5)}, Examples(np.array([[0, number]]), None, None))
    assert fault is None if is_fine else fault == f"x has the number {number}, and embedding has 5 rows: 0 to 4"


class Words(keras.Model):
    """A subclassed model: no graph of layers shows its table."""

    def __init__(self):
        super().__init__()
        self.table, self.head = layers.Embedding(10, 2), layers.Dense(1)

    def call(self, words):
        return self.head(keras.ops.mean(self.table(words), axis=1))


def words():
    model = Words()
    model.compile("sgd", "mse")
    return model


def examples(largest, count=20):
    x = np.random.default_rng(0).integers(0, 10, (count, 3))
    x[-1, -1] = largest
    return x, np.zeros((count, 1), np.float32)


def alone(clients, **more):
    settings = {"population": clients, "sampler": AllClients(), "local": Local(batch_size=5), "rounds": 1}
    return federation(model=words, **settings, **({"test": None} | more))


def test_the_row_that_is_missing_is_said():
    whole = data.Partitioned(data.Arrays(*examples(10)), by=data.Iid(), clients=2)
    with pytest.raises(ConfigError, match=r"training: x has the number 10, and \S+ has 10 rows: 0 to 9"):
        run(alone(whole), Simulation(1, "xla"))
    fine = data.PerClient([examples(9)])
    with pytest.raises(ConfigError, match=r"test: x has the number 11"):
        run(alone(fine, test=examples(11)), Simulation(1, SOONEST))
    streamed = data.Generated(2, lambda client: examples(9 + 3 * client), 20)
    with pytest.raises(ClientError, match=r"client 1: x has the number 12"):
        run(alone(streamed), Simulation(1, "xla"))
