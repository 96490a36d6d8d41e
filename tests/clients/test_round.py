"""A client's round asks an engine, whatever computes: here least squares in NumPy, without any backend."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from umbel import IFCA, AllClients, Ditto, Experiment, FedAvg, Local, Scaffold
from umbel.clients.engine import EvaluateTask, Trained, TrainTask, play, play_together
from umbel.clients.memory import ClientMemory
from umbel.clients.personal import evaluation
from umbel.clients.round import client_round, train_client
from umbel.core.errors import ClientError
from umbel.core.random import derive
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import NOTHING, Broadcast, Failure, Weighted
from umbel.data import PerClient

RATE, EXAMPLES = 0.1, 6
generator = np.random.default_rng(0)
POPULATION = PerClient(
    [(generator.normal(size=(EXAMPLES, 2)).astype("f4"), generator.normal(size=EXAMPLES).astype("f4"))]
)
DATA, ROWS, START = POPULATION.examples(0), np.arange(EXAMPLES, dtype=np.int32), np.array([1.0, -2.0], np.float32)


class LeastSquares:
    """An engine: w minimises the mean of (x·w − y)²."""

    def __init__(self, strategy, **changes):
        experiment = Experiment(
            name="least-squares", model=dict, population=POPULATION, strategy=strategy, sampler=AllClients(),
            local=Local(batch_size=3, learning_rate=RATE), **changes,
        )  # fmt: skip
        self.experiment, self.spec = experiment.resolved, ModelSpec((VariableSpec("w", (2,), "float32", True, 0),))
        self.is_live, self.is_debugged, self.initial_memory = False, False, []
        self.default_rate, self.fixed_batch, self.evaluation_batch = 0.5, None, 512
        self.asked = []

    def train(self, tasks):
        return [self.trained(task) for task in tasks]

    def evaluate(self, tasks):
        return [self.evaluated(task) for task in tasks]

    def trained(self, task):
        self.asked.append(task)
        w = start = task.params.copy()
        for epoch in task.order:
            for begin in range(0, task.examples, 3):
                w = w - np.float32(task.learning_rate) * self.slope(w, start, task, epoch[begin : begin + 3])
        return Trained(w - start, [], {"loss": Weighted(1.0, 1.0)})

    def slope(self, w, start, task, rows):
        x, y = task.data.x[rows], task.data.y[rows]
        slope = 2 * x.T @ (x @ w - y) / len(rows)
        proximal, towards, offset = task.course.correction(start, task.offset if len(task.offset) else None)
        slope = slope + np.float32(proximal) * (w - towards) if proximal else slope
        return slope if offset is None else slope + offset

    def evaluated(self, task):
        self.asked.append(task)
        x, y = task.data.x[task.rows], task.data.y[task.rows]
        return {"loss": Weighted(float(np.square(x @ task.params - y).sum()), float(len(y)))}


def broadcast(extra=NOTHING):
    return Broadcast(1, START, extra, (), RATE)


def kinds(engine):
    return [type(task) for task in engine.asked]


def test_a_round_is_one_training_of_what_was_broadcast():
    engine = LeastSquares(FedAvg())
    played = train_client(engine, broadcast(), 0, derive(7), DATA, ROWS)
    (task,) = engine.asked
    assert np.array_equal(task.params, START)
    assert task.learning_rate == np.float32(RATE)
    assert sorted(task.order[0]) == list(range(EXAMPLES))
    assert task.order.shape == (1, EXAMPLES)
    assert np.array_equal(played.content.delta, LeastSquares(FedAvg()).trained(task).delta)
    assert played.content.weight == EXAMPLES
    assert played.memory == []


def test_ditto_trains_twice_and_keeps_the_second_model():
    engine = LeastSquares(Ditto(1.0))
    played = train_client(engine, broadcast(), 0, derive(7), DATA, ROWS)
    plain = train_client(LeastSquares(FedAvg()), broadcast(), 0, derive(7), DATA, ROWS)
    assert kinds(engine) == [TrainTask, TrainTask]
    assert np.array_equal(played.content.delta, plain.content.delta)
    (own,) = played.memory
    again = train_client(engine, broadcast(), 0, derive(8), DATA, ROWS, played.memory)
    assert np.array_equal(engine.asked[-1].params, own)
    assert not np.array_equal(again.memory[0], own)


def test_ifca_evaluates_each_candidate_first_and_trains_the_best():
    other = np.linalg.lstsq(DATA.x, DATA.y, rcond=None)[0].astype(np.float32)
    engine = LeastSquares(IFCA(2))
    played = train_client(engine, broadcast(np.append(np.float32(0), other)), 0, derive(7), DATA, ROWS)
    assert kinds(engine) == [EvaluateTask, EvaluateTask, TrainTask]
    assert np.array_equal(engine.asked[2].params, other)
    assert isinstance(played.content.metrics, dict)
    assert len(played.content.metrics) > 1


def test_a_correction_is_finished_outside_of_the_engine():
    engine = LeastSquares(Scaffold())
    state = Scaffold().init(START)
    played = train_client(engine, broadcast(Scaffold().broadcast(state)), 0, derive(7), DATA, ROWS)
    (variate,) = played.memory
    np.testing.assert_allclose(variate, -played.content.delta / (2 * RATE), rtol=1e-5)


def test_an_error_of_the_engine_is_raised_where_the_round_waits():
    class Broken(LeastSquares):
        def trained(self, task):
            raise ClientError("no")

    with pytest.raises(ClientError, match="no"):
        train_client(Broken(FedAvg()), broadcast(), 0, derive(7), DATA, ROWS)
    engine = Broken(FedAvg())
    work = client_round(engine, broadcast(), 0, derive(7), DATA, ROWS, None)
    assert isinstance(next(work), TrainTask)
    with pytest.raises(ValueError, match="later"):
        work.throw(ValueError("later"))


def test_a_delta_that_is_not_finite_is_a_failure_and_keeps_the_memory_as_it_was():
    class Diverging(LeastSquares):
        def trained(self, task):
            return super().trained(task)._replace(delta=np.full(2, np.nan, np.float32))

    before = [np.ones(2, np.float32)]
    played = train_client(Diverging(Ditto(1.0)), broadcast(), 0, derive(7), DATA, ROWS, before)
    assert isinstance(played.content, Failure)
    assert played.content.reason == "non_finite"
    assert len(played.memory) == 1
    assert np.array_equal(played.memory[0], before[0])


def test_an_evaluation_of_two_models_asks_twice():
    engine, own = LeastSquares(Ditto(1.0)), np.zeros(2, np.float32)
    metrics = play(engine, evaluation(engine, broadcast(), 0, (DATA, ROWS), [own], lambda: (DATA, ROWS)))
    assert kinds(engine) == [EvaluateTask, EvaluateTask]
    assert metrics["personal_loss"].mean() == pytest.approx(float(np.square(DATA.y).mean()))
    assert metrics["loss"].mean() != metrics["personal_loss"].mean()


def test_rounds_side_by_side_ask_at_once_and_answer_as_each_alone():
    engine, keys = LeastSquares(Ditto(1.0)), [derive(7), derive(8), derive(9)]
    calls, train = [], engine.train
    engine.train = lambda tasks: calls.append(len(tasks)) or train(tasks)
    together = play_together(engine, [client_round(engine, broadcast(), 0, key, DATA, ROWS, None) for key in keys])
    assert calls == [3, 3]
    for played, key in zip(together, keys, strict=True):
        alone = train_client(LeastSquares(Ditto(1.0)), broadcast(), 0, key, DATA, ROWS)
        assert np.array_equal(played.content.delta, alone.content.delta)
        assert np.array_equal(played.memory[0], alone.memory[0])


@pytest.mark.parametrize("remembered", [None, np.ones(3, np.float32)])
@pytest.mark.parametrize("residual", [None, np.ones(2, np.float32)])
def test_memory_reads_back_what_it_wrote(remembered, residual):
    memory = ClientMemory([np.zeros(1), np.ones((2, 2))], remembered, residual)
    back = ClientMemory.read(memory.arrays, memory.personal)
    for before, after in zip(dataclasses.astuple(Both(*memory)), dataclasses.astuple(Both(*back)), strict=True):
        np.testing.assert_equal(after, before)


@dataclasses.dataclass
class Both:
    personal: list
    remembered: object
    residual: object


def test_a_round_imports_no_backend():
    code = "import sys, umbel.clients.round, umbel.clients.personal; print(*{'tensorflow', 'keras'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
