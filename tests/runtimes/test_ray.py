"""A cluster of one machine has the bits of a simulation, whatever happens. More machines: test_ray_clusters."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import umbel
from clusters import embedded, processes_with, signal_in_mid_round, wait_until, words
from federations import blobs, federation
from interruptions import Killed, kill_at
from seam import CASES, experiment, same
from simulations import play
from umbel import AllClients, ClientError, ConfigError, Experiment, Ray, Simulation, data, run, strategies, sweep
from umbel.cli.main import execute
from umbel.core.aggregators import WeightedSum
from umbel.core.bases import Aggregator
from umbel.core.reading.loading import load_experiment
from umbel.core.tree import LEAF, Tree
from umbel.core.types import ClientUpdate
from umbel.runtimes.ray import cluster, division, job_queue, likeness
from umbel.runtimes.ray.cluster import Machine, Places
from umbel.runtimes.ray.crew import is_of_ray
from umbel.server.store import Store

pytest.importorskip("ray", reason="pip install 'umbel[ray]'")
SMALL = ("FedAvg", "Scaffold", "Median", "Agnostic", "IFCA, Median", "SecureSum", "FedBuff", "SplitFed 2")


@pytest.fixture(scope="module")
def ray():
    """Two processes on a cluster of this machine; sums travel from 16 clients on, so that small rounds have some."""
    patch = pytest.MonkeyPatch()
    patch.setattr(division, "FEW", LEAF)
    patch.setenv("RAY_ADDRESS", "198.51.100.7:6379")  # of somebody else's: it is not looked at
    made = Ray(workers=2, compile="graph")
    yield made
    folder = cluster._joined.folder
    assert os.path.isdir(folder)
    assert processes_with(folder)
    made.close()
    assert not os.path.exists(folder)
    assert wait_until(lambda: not processes_with(folder), 10)
    patch.undo()


@pytest.fixture
def on(ray):
    def play_on_ray(asked, **settings):
        return run(asked, ray, **{"watchers": ()} | settings)

    return play_on_ray


@pytest.mark.parametrize("name", SMALL)
def test_it_has_the_bits_of_a_simulation(on, name):
    asked = experiment(**CASES[name])
    same(on(asked), play(asked))


def test_a_sweep_has_the_trials_of_a_simulation(ray):
    pytest.importorskip("optuna")
    asked, ranges = experiment(rounds=1, test=blobs(60, seed=5)), {"local.learning_rate": "0.01:0.5:log"}
    there, here = (
        sweep(asked, ranges, trials=2, metric="test_loss", runtime=where) for where in (ray, Simulation(1, "graph"))
    )
    assert [trial.value for trial in there.trials] == [trial.value for trial in here.trials]


class Largest(Aggregator):
    """Sum of a user's own, in a file that no other machine has."""

    def zero(self, size):
        return WeightedSum().zero(size)

    def add(self, accumulator, update):
        return WeightedSum().add(accumulator, update._replace(delta=np.maximum(update.delta, 0)))

    def merge(self, one, other):
        return WeightedSum().merge(one, other)

    def total(self, accumulator):
        return accumulator


def test_sums_travel_and_not_updates(on, ray):
    """Of 96 clients in runs of 24 or fewer sums: at most a sixteenth of what the updates take."""
    clients = data.Partitioned(data.Arrays(*blobs(200)), by=data.Iid(), clients=96)
    asked = experiment(population=clients, rounds=1, aggregator=Largest())
    before = dict(ray.figures)
    history = on(asked)
    same(history, play(asked))
    assert ray.figures["bytes"] - before["bytes"] <= history.rounds[0].bytes_up / 6


def test_evaluations(on):
    """Central ones over chunks, and federated ones of models that clients keep a part of."""
    train, validation = data.split_clients(federation().population, 0.3)
    changes = {"population": train, "validation": validation, "test": blobs(9000, seed=5)}
    asked = experiment(**CASES["FedRep"] | changes)
    same(on(asked), play(asked))


def test_a_client_that_fails_is_told_and_not_tried_again(on, ray):
    asked = Experiment(
        name="words",
        model=embedded,
        population=words(unknown_to=4),
        strategy=strategies.FedAvg(),
        sampler=AllClients(),
        rounds=1,
    )
    with pytest.raises(ClientError) as caught:
        on(asked)
    assert (caught.value.client, caught.value.round) == (4, 1)
    assert ray.figures["again"] == ray.figures["lost"] == 0


def test_what_a_host_warns_of_is_in_the_log(on, caplog):
    with caplog.at_level(logging.WARNING):
        on(experiment(**CASES["SecureSum"], rounds=1))
    assert [record for record in caplog.records if "adds nothing to the sum" in record.getMessage()]


def test_a_process_that_is_killed_in_mid_round(on, ray, monkeypatch, caplog, capfd):
    asked = experiment(**CASES["Scaffold"], rounds=3)
    hit = signal_in_mid_round(monkeypatch, 3)
    with caplog.at_level(logging.WARNING):
        history = on(asked)
    same(history, play(asked))
    assert hit
    assert ray.figures["lost"] == 1
    assert ray.figures["again"] >= 1
    assert len([record for record in caplog.records if "lost a process" in record.getMessage()]) == 1
    assert capfd.readouterr().out == ""


def test_a_process_that_hangs_is_not_waited_for(on, ray, monkeypatch):
    asked = experiment(rounds=2)
    monkeypatch.setattr(job_queue, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(job_queue, "UNKNOWN_SECONDS", 3.0)
    hit = signal_in_mid_round(monkeypatch, 2, signal.SIGSTOP)
    try:
        same(on(asked), play(asked))
        assert ray.figures["twice"] >= 1
    finally:
        os.kill(hit[0], signal.SIGCONT)


def test_a_driver_that_is_killed_and_resumed_elsewhere(on, ray, monkeypatch, tmp_path):
    asked = experiment(strategy=strategies.Scaffold(), rounds=3)
    store = f"sqlite:///{tmp_path}/runs.db"
    with monkeypatch.context() as patch:
        kill_at(patch, "mid-training", 2)
        with pytest.raises(Killed):
            on(asked, store=store)
    ended = play(asked, store=store, resume="latest", watchers=())  # in process
    same(ended, play(asked))
    with monkeypatch.context() as patch:
        kill_at(patch, "before-commit", 2)
        with pytest.raises(Killed):
            play(asked, store=store, watchers=())
    same(on(asked, store=store, resume="latest"), ended)


def test_memory_in_a_folder_of_the_cluster(on, ray, monkeypatch, tmp_path):
    """The same bits, also killed and resumed; the store has notes, which nothing else takes for memory."""
    asked = experiment(strategy=strategies.Scaffold(), rounds=3)
    store, folder = f"sqlite:///{tmp_path}/runs.db", tmp_path / "shared"
    monkeypatch.setattr(ray, "memory", folder)
    with monkeypatch.context() as patch:
        kill_at(patch, "before-commit", 2)
        with pytest.raises(Killed):
            on(asked, store=store)
    with pytest.raises(ConfigError, match="is not in the store, but with them, or in a folder of the cluster"):
        play(asked, store=store, resume="latest", watchers=())
    monkeypatch.setattr(ray, "memory", tmp_path / "another")
    with pytest.raises(ConfigError, match="another has none of that name; give memory= the folder that the run began"):
        on(asked, store=store, resume="latest")
    monkeypatch.setattr(ray, "memory", folder)
    same(on(asked, store=store, resume="latest"), play(asked))
    (run_folder,) = folder.iterdir()
    with Store.open(store) as opened:
        (stored,) = opened.runs()
        memory = opened.memory(stored.run)
        assert all(sum(array.nbytes for array in memory.read(client)) == 40 for client in range(3))
    assert len(list(run_folder.rglob("0.*.*"))) <= 2  # what is committed, and what was before


def test_memory_in_a_folder_is_not_a_choice_to_change(on, ray, monkeypatch, tmp_path):
    asked = experiment(strategy=strategies.Scaffold(), rounds=2)
    store, folder = f"sqlite:///{tmp_path}/runs.db", tmp_path / "shared"
    with monkeypatch.context() as patch:
        kill_at(patch, "before-commit", 2)
        with pytest.raises(Killed):
            play(asked, store=store, watchers=())
    monkeypatch.setattr(ray, "memory", folder)
    with pytest.raises(ConfigError, match='is in the store; resume it with memory="driver", or start a new run'):
        on(asked, store=store, resume="latest")
    same(on(experiment(rounds=1)), play(experiment(rounds=1)))  # nobody keeps anything: there is nothing to see
    assert list(folder.iterdir()) == []


FILE = """
import umbel

width = 4

def model():
    import keras
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

from beside import examples
population = umbel.data.Partitioned(umbel.data.Arrays(*examples()), clients=6)
experiment = umbel.Experiment(name="mine", model=model, population=population, rounds=2)
"""
BESIDE = """
import numpy as np

def examples():
    generator = np.random.default_rng(0)
    return generator.normal(size=(60, 6)).astype("f4"), generator.integers(0, 3, 60).astype("i4")
"""


def test_an_experiment_of_a_file_and_of_modules_beside_it(on, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text(BESIDE)
    asked = load_experiment(str(tmp_path / "mine.py"))
    same(on(asked), play(asked, watchers=()))


def test_the_programs_of_the_page(ray, on, tmp_path, monkeypatch, capfd):
    """docs/ray.md: its command, and its program for a round, on the cluster that is there."""
    monkeypatch.chdir(tmp_path)
    page = (Path(umbel.__file__).parent / "docs" / "ray.md").read_text("utf-8")
    (command, program) = (text for _, text in re.findall(r"^```(sh|python)\n(.*?)^```$", page, re.S | re.M))
    on(experiment(rounds=1))
    assert execute([*command.split()[1:], "--workers", "1", "--json"]) == 0
    *rounds, final = map(json.loads, capfd.readouterr().out.splitlines())
    history = play(load_experiment("digits_fedavg", ["rounds=3"]), watchers=())
    assert final["final"]["params_sha256"] == history.params_sha256
    assert [record["test_loss"] for record in rounds] == history.column("test_loss").tolist()
    for change in (("Ray()", "theirs"), ("ray.close()", ""), ('("digits_fedavg")', '("digits_fedavg", ["rounds=1"])')):
        assert change[0] in program
        program = program.replace(*change)
    names = {"theirs": ray}
    exec(compile(program, "docs/ray.md", "exec"), names)
    assert names["history"].params_sha256 == play(load_experiment("digits_fedavg", ["rounds=1"])).params_sha256


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "--address", "10.0.0.1:6379"], "--address is of a cluster; add --runtime ray"),
        (["run", "--gpus", "1"], "--gpus is of a cluster; add --runtime ray"),
        (["run", "--memory", "/tmp"], "--memory is of a cluster; add --runtime ray"),
        (["run", "--runtime", "ray", "--debug"], "--debug is of one process; drop --runtime ray"),
        (["run", "--runtime", "ray", "--dry-run"], "--dry-run is of a new simulation; drop --runtime ray"),
        (["run", "--runtime", "ray", "--address", "here"], "expected address='here' to be HOST:PORT"),
        (["compare", "digits_fedavg", "--runtime", "ray", "--address", "ray://a:1"], "is not used: start this program"),
        (["sweep", "digits_fedavg", "--param", "seed=1,2", "--gpus", "1"], "--gpus is of a cluster; add --runtime ray"),
    ],
)
def test_refusals_on_the_command_line(words, complaint, capsys, tmp_path):
    assert execute([*words, "--store", f"sqlite:///{tmp_path}/runs.db"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_cluster_that_is_not_there_and_a_ray_that_is_not_installed(monkeypatch):
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 .* ray start --head starts one"):
        cluster._connect("127.0.0.1:9")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'umbel\[ray\]'"):
        run(federation(), Ray())


def test_it_is_part_of_one_cluster_at_a_time(ray, on):
    on(experiment(rounds=1))
    with pytest.raises(ConfigError, match=r"is part of a Ray cluster of its own, and not of the Ray cluster at 10\.0"):
        run(federation(), Ray("10.0.0.1:6379"))


def test_who_else_reaches_a_cluster(caplog, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for address in ("127.0.0.1:6379", "localhost:6379", "[::1]:6379"):
        cluster._warn_of_strangers(address)
    assert not caplog.records
    cluster._warn_of_strangers("10.0.0.1:6379")
    assert "no authentication" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster._warn_of_strangers("10.0.0.1:6379")
    assert not caplog.records


def test_nobody_else_joins_a_cluster_of_ones_own(ray, on):
    """It listens on every interface of the machine; whoever has not its token is sent away."""
    from ray import get_runtime_context

    on(experiment(rounds=1))
    address = get_runtime_context().gcs_address
    program = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_gcs_server_request_timeout_seconds": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "InvalidAuthToken" in done.stderr


def test_nodes_have_one_software():
    alike = likeness.Greeting(likeness.versions(), 1, 0)
    likeness.check_alike(alike, "b")
    other = alike._replace(versions={**alike.versions, "keras": "3.0", "umbel": "0.0.1"})
    with pytest.raises(ConfigError, match=r"node b has umbel 0\.0\.1, keras 3\.0, and this process umbel "):
        likeness.check_alike(other, "b")


def test_errors_of_ray_are_told_from_those_of_code():
    from ray.exceptions import RaySystemError

    assert all(map(is_of_ray, (OSError("Broken pipe"), RaySystemError("gone"))))
    assert not any(map(is_of_ray, (FileNotFoundError(2, "no such file"), BrokenPipeError(32, "x"), ClientError("x"))))


def test_nice_processes_are_told_of(caplog):
    likeness.warn_of_niceness(likeness.Greeting({}, 1, 4), "b", 0)
    assert not caplog.records
    likeness.warn_of_niceness(likeness.Greeting({}, 1, 15), "b", 0)
    assert "RAY_worker_niceness=0" in caplog.text


def test_hardware_is_a_choice_of_a_run():
    same, mixed = likeness.SAME, likeness.MIXED
    assert likeness.check_hardware(mixed, None) == mixed
    assert likeness.check_hardware(same, {likeness.HARDWARE: mixed}) == mixed
    for before in ({}, {likeness.HARDWARE: same}):
        assert likeness.check_hardware(same, before) == same
        with pytest.raises(ConfigError, match="resume it on machines of one kind"):
            likeness.check_hardware(mixed, before)


def test_places():
    nodes = [Machine("a", "a", 8, 0), Machine("b", "b", 4, 2), Machine("c", "c", 1, 0)]
    assert Places(1, None, None, None).on_gpus(nodes)
    assert not Places(1, None, 0, None).on_gpus(nodes)
    assert Places(1, None, None, None).shared_out(nodes, True) == [(nodes[1], 2)]  # one for each GPU
    assert Places(1, None, 0, None).shared_out(nodes, False) == [(nodes[0], 8), (nodes[1], 4), (nodes[2], 1)]
    assert Places(4, None, 0, None).shared_out(nodes, False) == [(nodes[0], 2), (nodes[1], 1)]
    assert (Places(4, 6, 0, None).most, Places(1, None, None, None).most, Places(1, 9, 1, None).most) == (2, None, 1)
    with pytest.raises(ConfigError, match="gpus=1, and Ray knows of no GPU"):
        Places(1, None, 1, None).on_gpus(nodes[:1])


class Counted(Aggregator):
    """The clients in the order and the pairs in which they were added up."""

    def zero(self, size):
        return []

    def add(self, accumulator, update):
        return [*accumulator, update.weight]

    def merge(self, one, other):
        return [one, other]

    def total(self, accumulator):
        return accumulator


@pytest.mark.parametrize("slots", [1, 2, 7, 64])
def test_runs_are_aligned_wherever_a_cohort_begins(slots):
    updates = [ClientUpdate(np.zeros(1), np.zeros(0), float(number), {}) for number in range(700)]
    for first in (0, 8, 40):
        for count in (1, 7, 8, 9, 33, 100, 500, 657):
            whole, divided = Tree(Counted(), 1), Tree(Counted(), 1)
            for update in updates[:first]:
                whole.add(update), divided.add(update)
            start = first
            for width in division.aligned_widths(first, count, slots):
                part = Tree(Counted(), 1)
                for update in updates[start : start + width]:
                    part.add(update)
                divided.add_run(part.accumulator(), width)
                start += width
            for update in updates[first : first + count]:
                whole.add(update)
            assert start == first + count
            assert divided.total() == whole.total()
            assert sum(division.small_widths(count, slots)) == count
