"""FlowerRuntime over a grid inside this process: parity with the simulation, and what the edge keeps out."""

import math
import re

import numpy as np
import pytest
import rounds
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, MetricRecord, RecordDict
from rounds import begin

from federations import Nowhere, federation
from grids import FIRST_NODE, ProcessGrid
from umbel import AllClients, ConfigError, IncompatibleError, RunStopped, Simulation, derive, run
from umbel.core.reading.loading import load_experiment
from umbel.core.types import NOTHING, Broadcast
from umbel.privacy.plan import PrivacyPlan
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.memory import Disk
from umbel.runtimes.flower.runtime import FlowerRuntime


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where clients keep their memory: their disk, which outlives a grid."""
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    return tmp_path / "clients"


@pytest.fixture
def written(tmp_path):
    """Writes a file that defines federation(…); returns its path."""

    def write(arguments="", name="small.py"):
        path = tmp_path / name
        path.write_text(
            "import federations\n"
            "from federations import federation\n"
            "from umbel import *\n"
            "from umbel import data\n"
            "from umbel.strategies import *\n"
            f"experiment = federation({arguments})\n"
        )
        return path

    return write


PERSONAL = (
    "model=federations.dropped_and_normalised, personal=('batch_normalization',), "
    "validation=data.Partitioned(data.Arrays(*federations.blobs(80, 3)), clients=8)"
)


ADAPTED = "model=federations.adapted, strategy=Scaffold(), weighting='uniform'"
SCAFFOLD = "strategy=Scaffold(), weighting='uniform'"


HELD_OUT = "validation=data.Partitioned(data.Arrays(*federations.blobs(80, 3)), clients=8)"
FEDREP = "strategy=FedRep(2), personal=('dense_1',), fine_tune=FineTune(2), " + HELD_OUT
DITTO = "strategy=Ditto(0.5), " + HELD_OUT


EPOCHS = "local=Local(epochs=Epochs(1, 3), batch_size=5, learning_rate=0.1)"


POOLED = "model=federations.normalised, strategy=FedAdam(), transforms=PooledVariance()"
UNIFORM = "weighting='uniform', model=federations.measured, " + HELD_OUT


CLUSTERED = "strategy=IFCA(2), " + HELD_OUT
LEARNING = "sampler=PowerOfChoice(4, candidates=6), reweighting=Agnostic(0.2)"


@pytest.mark.parametrize(
    "arguments",
    ["", PERSONAL, ADAPTED, SCAFFOLD, EPOCHS, POOLED, UNIFORM, FEDREP, DITTO, CLUSTERED, LEARNING, "sampler=Oort(4)"],
)
def test_flower_equals_simulation(written, arguments):
    """Bit for bit: weights, metrics, and what clients keep at home between rounds."""
    path = written(arguments)
    simulated = run(load_experiment(str(path)), Simulation(workers=2, compile="graph"))
    history = run(load_experiment(str(path)), FlowerRuntime(ProcessGrid(path, 8)))
    assert history.params_sha256 == simulated.params_sha256
    assert [record.metrics for record in history.rounds] == [record.metrics for record in simulated.rounds]
    assert [record.clients for record in history.rounds] == [4, 4, 4]


@pytest.mark.parametrize("arguments", ["strategy=SemiSynchronous()"])
def test_what_only_a_simulation_does_is_refused(written, arguments):
    path = written(arguments)
    with pytest.raises(ConfigError, match=r"simulation|Simulation"):
        run(load_experiment(str(path)), FlowerRuntime(ProcessGrid(path, 8)))


class Noted(Nowhere):
    """The server's memory of clients, as a run without a store has it."""

    def __init__(self):
        self.of = {}

    def read(self, client):
        return self.of.get(client)

    def write(self, client, arrays):
        self.of[client] = arrays


def test_what_a_client_keeps_never_travels(written, home):
    """It is on the client's disk; the server notes the round, and nothing else."""
    path = written(PERSONAL)
    grid, noted = ProcessGrid(path, 8), Noted()
    runtime = FlowerRuntime(grid)
    spec = begin(runtime, load_experiment(str(path)), noted)
    result = collect(runtime, range(8))
    assert result.total.clients == 8
    assert [(client, *map(np.ndarray.tolist, arrays)) for client, arrays in noted.of.items()] == [
        (one, [1]) for one in range(8)
    ]
    disk, (name,) = Disk(home), [folder.name for folder in home.iterdir() if folder.is_dir()]
    for client in range(8):
        shapes = [array.shape for array in disk.read(name, client, 1)]
        assert shapes == [variable.shape for variable in spec.variables if variable.offset is None]
    vectors = [array for message in grid.sent for array in arrays_of(message.content)]
    assert {array.shape for array in vectors} == {(spec.size,), (0,)}


def arrays_of(content):
    return [array for record in content.values() if isinstance(record, ArrayRecord) for array in record.values()]


def collect(runtime, cohort, round=1, transforms=()):
    return rounds.collect(
        runtime, Broadcast(round, runtime.initial_params(), NOTHING, transforms, 0.1), cohort, derive(1)
    )


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("edge") / "edge.py"
    path.write_text("from federations import federation\nexperiment = federation()\n")
    return path


def opened(path, **settings):
    runtime = FlowerRuntime(ProcessGrid(path, 8, **settings), timeout_seconds=20)
    begin(runtime, load_experiment(str(path)), Nowhere())
    return runtime


def put(name, value, record="update"):
    """Replace one value of one record of a reply."""

    def change(content):
        content[record][name] = value
        return content

    return change


def without(*names):
    """Leave records out."""
    return lambda content: RecordDict({name: record for name, record in content.items() if name not in names})


def delta(change):
    """Replace the delta by a changed one."""

    def on(content):
        vector = wire.unpack_array(content["vectors"]["delta"]).copy()
        return put("delta", wire.pack_array(change(vector)), "vectors")(content)

    return on


def setting(position, value):
    def change(vector):
        vector[position] = value
        return vector

    return delta(change)


def first(content):
    return content["vectors"]["delta"]


HOSTILE = {
    "NaN": (setting(0, np.nan), "non_finite"),
    "infinity": (setting(-1, -np.inf), "non_finite"),
    "norm beyond float32": (setting(3, 1e38), "non_finite"),
    "too short": (delta(lambda vector: vector[1:]), "shape"),
    "too long": (delta(lambda vector: np.append(vector, np.float32(0))), "shape"),
    "a matrix": (delta(lambda vector: vector.reshape(1, -1)), "shape"),
    "empty": (delta(lambda vector: vector[:0]), "shape"),
    "float64": (delta(lambda vector: vector.astype(np.float64)), "dtype"),
    "float16": (delta(lambda vector: vector.astype(np.float16)), "dtype"),
    "objects": (lambda c: put("delta", Array("object", (1,), wire.RAW, b"12345678"), "vectors")(c), "dtype"),
    "fewer bytes than its shape": (
        lambda c: put("delta", Array("float32", first(c).shape, wire.RAW, b"abcd"), "vectors")(c),
        "shape",
    ),
    "more numbers than memory": (
        lambda c: put("delta", Array("float32", (10**15,), wire.RAW, b"abcd"), "vectors")(c),
        "shape",
    ),
    "NumPy's format": (lambda c: put("delta", Array(np.zeros(first(c).shape, np.float32)), "vectors")(c), "schema"),
    "an extra that nobody asked for": (put("extra", wire.pack_array(np.ones(3, np.float32)), "vectors"), "shape"),
    "a vector more": (put("more", wire.pack_array(np.ones(3, np.float32)), "vectors"), "schema"),
    "no vectors": (without("vectors"), "schema"),
    "no weight": (without("update"), "schema"),
    "no metrics": (without("metrics"), "schema"),
    "nothing": (lambda content: RecordDict(), "schema"),
    "records of another kind": (
        lambda c: RecordDict({**c, "update": MetricRecord({"round": 1, "weight": 3})}),
        "schema",
    ),
    "a round before": (put("round", 0), "round"),
    "a round to come": (put("round", 2), "round"),
    "a round that is no number": (put("round", "1"), "schema"),
    "weight −19": (put("weight", -19.0), "weight"),
    "weight 0": (put("weight", 0.0), "weight"),
    "weight NaN": (put("weight", math.nan), "weight"),
    "weight infinite": (put("weight", math.inf), "weight"),
    "weight 1e12": (put("weight", 1e12), "weight"),
    "weight True": (put("weight", True), "weight"),
    "weight of text": (put("weight", "12"), "weight"),
    "weights": (put("weight", [1.0, 2.0]), "weight"),
    "metric NaN": (put("loss", [math.nan, 1.0], "metrics"), "metrics"),
    "metric without count": (put("loss", [1.0], "metrics"), "metrics"),
    "metric of negative count": (put("loss", [1.0, -1.0], "metrics"), "metrics"),
    "metric of counts that cancel": (put("loss", [1.0, 0.0], "metrics"), "metrics"),
    "many metrics": (
        lambda c: RecordDict({**c, "metrics": MetricRecord({str(i): [0.0, 1.0] for i in range(10_000)})}),
        "metrics",
    ),
    "its own failure": (lambda c: RecordDict({"failure": failure("non_finite", "loss")}), "non_finite"),
    "a failure that is an essay": (lambda c: RecordDict({"failure": failure("x" * 99, "loss")}), "schema"),
}


def failure(reason, detail):
    return ConfigRecord({"round": 1, "reason": reason, "detail": detail})


@pytest.fixture(scope="module")
def honest(experiment_file):
    return collect(opened(experiment_file), [0, 1, 3])


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_reply_is_a_failure_and_the_rest_is_aggregated(experiment_file, honest, case):
    change, reason = HOSTILE[case]
    result = collect(opened(experiment_file, tamper={2: change}), [0, 1, 2, 3])
    assert [(one.client, one.reason) for one in result.failures] == [(2, reason)]
    assert result.failures[0].detail
    assert_same_total(result.total, honest.total)


def assert_same_total(one, other):
    assert one.delta.tobytes() == other.delta.tobytes()
    assert (one.weight, one.clients, one.metrics) == (other.weight, other.clients, other.metrics)


def test_a_weight_within_bounds_is_taken(experiment_file, honest):
    """The edge does not reject what is merely unusual: a whole number, or less than the client has."""
    result = collect(opened(experiment_file, tamper={1: put("weight", 1)}), [0, 1, 3])
    assert not result.failures
    assert result.total.weight < honest.total.weight


def test_a_client_that_raises_is_a_failure(experiment_file, honest):
    def broken(content):
        raise ZeroDivisionError("no batches")

    result = collect(opened(experiment_file, tamper={2: broken}), [0, 1, 2, 3])
    assert [one[:2] for one in result.failures] == [(2, "client_error")]
    assert "ZeroDivisionError" in result.failures[0].detail
    assert_same_total(result.total, honest.total)


@pytest.mark.parametrize(("code", "reason"), [(3, "timeout"), (5, "unreachable"), (8, "client_error")])
def test_what_flower_answers_for_a_client_is_a_failure(experiment_file, honest, code, reason):
    grid = ProcessGrid(experiment_file, 8, answers={2: Error(code, "as Flower says")})
    runtime = FlowerRuntime(grid)
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    result = collect(runtime, [0, 1, 2, 3])
    assert result.failures == [(2, reason, f"Flower error {code}: as Flower says")]
    assert_same_total(result.total, honest.total)


def test_a_silent_client_is_a_failure(experiment_file, honest):
    runtime = opened(experiment_file, silent={2})
    runtime.timeout_seconds = 0.3
    result = collect(runtime, [0, 1, 2, 3])
    assert [one[:2] for one in result.failures] == [(2, "timeout")]
    assert_same_total(result.total, honest.total)


def test_a_client_with_another_experiment_is_a_failure(written, experiment_file):
    other = written("seed=9", "other.py")
    runtime = FlowerRuntime(ProcessGrid(other, 8))
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    result = collect(runtime, [0, 5])
    assert [one[:2] for one in result.failures] == [(0, "experiment"), (5, "experiment")]
    assert load_experiment(str(other)).digest[:12] in result.failures[0].detail


def test_a_client_whose_frozen_values_are_others_is_a_failure(written, tmp_path):
    """They do not travel: the client's body is another than the one that the server's adapters are for."""
    path, body = tmp_path / "frozen.py", tmp_path / "body.npy"
    path.write_text(
        "import numpy, federations\n"
        "def build_model():\n"
        "    model = federations.adapted()\n"
        f"    model.layers[0].weights[0].assign(numpy.load({str(body)!r}))\n"
        "    return model\n"
        "experiment = federations.federation(model=build_model)\n"
    )
    np.save(body, np.ones((6, 8), np.float32))
    runtime = FlowerRuntime(ProcessGrid(path, 8))
    begin(runtime, load_experiment(str(path)), Nowhere())
    np.save(body, np.zeros((6, 8), np.float32))
    result = collect(runtime, [0, 5])
    assert [one[:2] for one in result.failures] == [(0, "experiment"), (5, "experiment")]
    said = result.failures[0].detail
    assert re.search(r"1 variables\) has the hash \w{12}, in the server's \w{12}; frozen values do not travel", said)


def test_a_round_without_a_valid_update_stops_the_run(experiment_file):
    tamper = {client: setting(0, np.nan) for client in range(8)}
    with pytest.raises(RunStopped, match=r"round 1: 0 valid updates.*non_finite"):
        run(load_experiment(str(experiment_file)), FlowerRuntime(ProcessGrid(experiment_file, 8, tamper=tamper)))


def test_bytes_are_those_of_the_messages(experiment_file):
    """Vectors and a little more; what is sent grows with the cohort, what is received with those who answered."""
    runtime = opened(experiment_file, tamper={3: without("vectors")})
    one, four = collect(runtime, [0]), collect(runtime, [0, 1, 2, 3])
    vector = len(one.total.delta) * 4
    assert vector < one.bytes_up < vector + 4096
    assert vector < one.bytes_down < vector + 4096
    assert four.bytes_down == 4 * one.bytes_down
    assert 3 * vector < four.bytes_up < 4 * one.bytes_up


def test_clients_that_do_not_appear_are_named(experiment_file):
    runtime = FlowerRuntime(ProcessGrid(experiment_file, 5), join_seconds=0.3)
    with pytest.raises(RunStopped, match=re.escape("5 of 8 clients appeared in 0.3 seconds")):
        begin(runtime, load_experiment(str(experiment_file)), Nowhere())


def test_two_nodes_cannot_be_one_client(experiment_file):
    runtime = FlowerRuntime(ProcessGrid(experiment_file, 8, partition=lambda node: node // 2))
    with pytest.raises(ConfigError, match=r"nodes 100\d and 100\d both have partition-id=\d"):
        begin(runtime, load_experiment(str(experiment_file)), Nowhere())


def test_a_node_outside_the_population_is_left_out(experiment_file):
    runtime = FlowerRuntime(ProcessGrid(experiment_file, 9))
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    assert runtime.client_ids() == list(range(8))


@pytest.mark.parametrize("arguments", ["", PERSONAL, SCAFFOLD])
def test_a_resumed_run_equals_an_uninterrupted_one(written, tmp_path, arguments):
    path, store = written(arguments), f"sqlite:///{tmp_path}/runs.db"

    def play(*overrides, **settings):
        experiment = load_experiment(str(path), overrides)
        return run(experiment, FlowerRuntime(ProcessGrid(path, 8)), **settings)

    play("rounds=1", store=store)
    assert play(store=store, resume="latest").params_sha256 == play().params_sha256


@pytest.mark.parametrize("arguments", [PERSONAL, SCAFFOLD])
def test_a_round_that_was_redone_counts_once(written, tmp_path, monkeypatch, arguments):
    """The server dies after every client trained, before the commit: they start again from what they had before."""
    path, store = written(arguments), f"sqlite:///{tmp_path}/runs.db"

    def play(*overrides, **settings):
        return run(load_experiment(str(path), overrides), FlowerRuntime(ProcessGrid(path, 8)), **settings)

    def die(name, round):
        if (name, round) == ("before-commit", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("umbel.server.journal.crash_point", die)
        with pytest.raises(KeyboardInterrupt):
            play(store=store)
    assert play(store=store, resume="latest").params_sha256 == play().params_sha256


def test_a_client_that_lost_its_memory_says_so(written, home):
    """It neither starts anew in silence nor ends the run: what it would send is not what the others reckon with."""
    path, noted = written(SCAFFOLD), Noted()
    runtime = FlowerRuntime(ProcessGrid(path, 8))
    begin(runtime, load_experiment(str(path)), noted)
    control = np.zeros_like(runtime.initial_params())

    def play(round):
        return rounds.collect(runtime, Broadcast(round, runtime.initial_params(), control, (), 0.1), [2, 5], derive(1))

    assert not play(1).failures
    for version in home.glob("*/5.*"):
        version.unlink()
    result = play(2)
    assert [one[:2] for one in result.failures] == [(5, "memory")]
    assert "client 5 has no memory of round 1" in result.failures[0].detail
    assert (result.total.clients, noted.of[2][0].item(), noted.of[5][0].item()) == (1, 2, 1)


def test_a_round_may_end_with_the_fastest(written, home):
    """Two of four are needed. The others' updates are refused, and they keep nothing of the round."""
    path, noted = written(SCAFFOLD), Noted()
    grid = ProcessGrid(path, 8, silent={0, 3})
    runtime = FlowerRuntime(grid, over_selection=2, timeout_seconds=20)
    begin(runtime, load_experiment(str(path)), noted)
    control = np.zeros_like(runtime.initial_params())

    def play(round, cohort):
        return rounds.collect(runtime, Broadcast(round, runtime.initial_params(), control, (), 0.1), cohort, derive(1))

    result = play(1, [0, 1, 2, 3])
    assert result.total.clients == 2
    assert [one[:2] for one in result.failures] == [(0, "round_closed"), (3, "round_closed")]
    assert sorted(noted.of) == [1, 2]
    grid.silent = ()
    for identifier in grid.late:  # the others answer after all
        grid.answer(identifier)
    assert play(2, [0, 3]).total.clients == 1
    assert runtime._connected.late.refused == 2


def test_over_selection_and_a_privacy_plan_exclude_one_another(experiment_file):
    runtime = FlowerRuntime(ProcessGrid(experiment_file, 8), over_selection=1.3)
    plan = PrivacyPlan.calibrate(epsilon=8.0, delta=1e-3, rounds=3, population=8, sampling_rate=0.5, clip_norm=1.0)
    with pytest.raises(IncompatibleError, match="counts the fastest"):
        begin(runtime, federation(plan=plan, sampler=None, weighting=None), Nowhere())


def test_a_client_that_is_started_again_is_asked_again(experiment_file, honest):
    """Its process died at work; its node was started again; it came back as another node: each time, once."""
    died = ProcessGrid(experiment_file, 8, once={2: Error(8, "its process died")})
    runtime = FlowerRuntime(died, timeout_seconds=20)
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    result = collect(runtime, [0, 1, 2, 3])
    assert not result.failures
    assert len([one for one in died.sent if one.metadata.message_type == "train"]) == 5

    moved = ProcessGrid(experiment_file, 8, silent={2})
    runtime = FlowerRuntime(moved, timeout_seconds=20)
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    moved.contexts[FIRST_NODE + 50] = Context(
        1, FIRST_NODE + 50, {"partition-id": 2}, RecordDict(), moved.contexts[FIRST_NODE].run_config
    )
    again = collect(runtime, [0, 1, 2, 3])
    assert not again.failures
    assert_same_total(again.total, result.total)


def test_clients_are_those_that_appeared(experiment_file):
    """Fewer nodes than the population has clients, on purpose: the others are not sampled."""
    runtime = FlowerRuntime(ProcessGrid(experiment_file, 5), clients=5)
    begin(runtime, load_experiment(str(experiment_file)), Nowhere())
    assert AllClients().sample(runtime.client_ids(), lambda: None, derive(0)) == [0, 1, 2, 3, 4]


def test_settings_are_checked():
    for settings in (
        {"timeout_seconds": 0},
        {"over_selection": 0.5},
        {"join_seconds": math.nan},
        {"clients": 0},
        {"compile": "fast"},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            FlowerRuntime(None, **settings)


def test_federation_file_is_the_small_one(experiment_file):
    """The file that clients load is the federation that other tests use."""
    assert load_experiment(str(experiment_file)).digest == federation().digest
