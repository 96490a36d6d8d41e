"""Clusters of several nodes, all on this machine: nodes that die, come, hang or differ, and drivers that are killed."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from clusters import cluster, processes_with, signal_in_mid_round, wait_until
from federations import federation
from seam import experiment, same
from simulations import play
from umbel import ConfigError, Ray, RunStopped, run, strategies
from umbel.cli.main import execute
from umbel.runtimes.ray import cluster as joining
from umbel.runtimes.ray import crew, job_queue, likeness

pytest.importorskip("ray", reason="pip install 'umbel[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def all_are_waited_for():
    """However long it takes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "OTHERS_SECONDS", 90.0)
        yield


def test_nodes_that_die_and_nodes_that_come(monkeypatch, caplog):
    """A raylet is killed in mid-round; another one is there from the next run on."""
    with cluster(2) as made:
        ray = Ray(made.address, compile="graph")
        try:
            asked = experiment(strategy=strategies.Scaffold(), rounds=8)
            begin, hit = crew.Crew.begin, []

            def begin_and_kill(self, member, job, place, queue):
                begin(self, member, job, place, queue)
                if job.method == "train" and not hit and len(self.usual.get("train", ())) > 4:
                    node = next(node for node in made.worker_nodes if node.node_id == member.machine.id)
                    hit.append(node)
                    for process in node.all_processes["raylet"]:
                        os.kill(process.process.pid, signal.SIGKILL)

            monkeypatch.setattr(crew.Crew, "begin", begin_and_kill)
            with caplog.at_level(logging.WARNING):
                same(run(asked, ray, watchers=()), play(asked, watchers=()))
            assert hit
            assert ray.figures["lost"] == 1
            assert len([record for record in caplog.records if "lost a process" in record.getMessage()]) == 1
            made.add_node(num_cpus=2)
            monkeypatch.setattr(crew, "LOOK_SECONDS", 0.0)
            same(run(asked, ray, watchers=()), play(asked, watchers=()))
            assert ray.figures["processes"] == 3
        finally:
            ray.close()


def test_when_nobody_is_left_a_run_stops_and_can_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(job_queue, "PATIENCE_SECONDS", 3.0)
    hire, asked, store = crew.Crew._hire, experiment(rounds=3), f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setattr(crew.Crew, "_hire", lambda self: None if self.figures.lost else hire(self))
    with cluster(1) as made:
        ray = Ray(made.address, compile="graph")
        try:
            with monkeypatch.context() as patch:
                signal_in_mid_round(patch, 3)
                with pytest.raises(RunStopped, match="no process of the Ray cluster is left"):
                    run(asked, ray, store=store, watchers=())
        finally:
            ray.close()
    same(play(asked, store=store, resume="latest", watchers=()), play(asked, watchers=()))


def test_nodes_that_differ(monkeypatch, caplog, tmp_path):
    """As other hardware would, other versions of operations give other last bits; and one node has another Keras."""
    asked = federation(rounds=1)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    with cluster(1) as made:
        compare = crew.Crew._compare
        made.add_node(num_cpus=1)
        ray = Ray(made.address, compile="graph")
        try:
            digests = iter(("a", "b", "c", "d"))
            monkeypatch.setattr(
                crew.Crew, "_compare", lambda self, member, answer: compare(self, member, crew.Probe(next(digests)))
            )
            with caplog.at_level(logging.WARNING):
                run(asked, ray, watchers=())
            assert ray.describe()[likeness.HARDWARE] == likeness.MIXED
            assert "computes other bits than the others" in caplog.text
            store = f"sqlite:///{tmp_path}/runs.db"
            play(asked, store=store, watchers=())
            with pytest.raises(ConfigError, match="resume it on machines of one kind"):
                run(federation(rounds=2), ray, store=store, resume="latest", watchers=())
            monkeypatch.setattr(likeness, "versions", lambda: {"keras": "3.0.0"})
            other = Ray(made.address, compile="graph")
            ray.close()
            with pytest.raises(ConfigError, match=r"node .* has keras 3\.\d+\.\d, and this process keras 3\.0\.0"):
                run(asked, other, watchers=())
            other.close()
        finally:
            ray.close()


def test_a_process_for_each_gpu_that_ray_knows_of(caplog):
    """Pretended ones: TensorFlow sees none of them, and says so."""
    with cluster(1, cpus=2, num_gpus=2) as made:
        for gpus, processes in ((None, 2), (1, 1), (0, 2)):
            caplog.clear()
            ray = Ray(made.address, gpus=gpus, compile="graph")
            try:
                same(run(federation(rounds=1), ray, watchers=()), play(federation(rounds=1), watchers=()))
                assert ray.figures["processes"] == processes
                assert ("pip install 'umbel[gpu]'" in caplog.text) == (gpus != 0)
            finally:
                ray.close()


PROGRAM = """
import dataclasses, sys, time, umbel
from umbel.core.reading.loading import load_experiment

def listen(ray):
    from umbel.runtimes.ray import cluster
    print(cluster._joined.folder, flush=True)

def build():
    import keras
    return load_experiment("digits_fedavg").model() if width else keras.Sequential()

width = 1
settings = ["rounds=3", "population.clients=40", "sampler.size=40"]
experiment = dataclasses.replace(load_experiment("digits_fedavg", settings), model=build)  # of no module that is a file
ray = umbel.Ray(workers=1)
for event in umbel.server.play(experiment, ray):
    if isinstance(event, umbel.server.RoundDone):
        listen(ray)
        assert "tensorflow" not in sys.modules and "keras" not in sys.modules
        if sys.argv[1] == "wait":
            time.sleep(600)
        if sys.argv[1] == "fail":
            raise RuntimeError("stop")
if sys.argv[1] == "close":
    ray.close()
"""


@pytest.mark.parametrize("end", ["close", "leave", "fail", "wait"])
def test_nothing_is_left_however_a_driver_ends(end):
    """It imports no TensorFlow; with SIGKILL, all processes end by themselves, and the folder is taken by the next."""
    before = set(os.listdir("/dev/shm"))
    driver = subprocess.Popen([sys.executable, "-c", PROGRAM, end], stdout=subprocess.PIPE, text=True)
    folder = driver.stdout.readline().strip()
    assert folder.startswith("/tmp/umbel-ray-")
    assert processes_with(folder)
    if end == "wait":
        driver.kill()
    assert driver.wait(120) == {"fail": 1, "wait": -signal.SIGKILL}.get(end, 0)
    assert wait_until(lambda: not processes_with(folder), 30)
    if end == "wait":  # the next one takes it
        joining._sweep()
    assert not os.path.exists(folder)
    time.sleep(1)
    assert set(os.listdir("/dev/shm")) - before == set()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_end_is_paused_and_goes_on(sent, status, tmp_path):
    store = ["--store", f"sqlite:///{tmp_path}/runs.db", "--workers", "1"]
    words = ["run", "digits_fedavg", "--runtime", "ray", "--json", "--set", "rounds=100000", *store]
    command = subprocess.Popen(
        [sys.executable, "-m", "umbel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.readline()
    folder = f"{joining.FOLDER}{command.pid}-"
    assert processes_with(folder)
    command.send_signal(sent)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == status
    assert errors.splitlines()[-1].startswith("umbel: paused")
    assert "--runtime ray --resume" in errors.splitlines()[-1]
    assert wait_until(lambda: not processes_with(folder), 30)
    assert not list(joining.FOLDER.parent.glob(f"{joining.FOLDER.name}{command.pid}-*"))


def test_comparisons_and_several_threads_in_a_process(tmp_path, capsys):
    """Each experiment of a comparison on the same hosts; a host that trains two clients at a time."""
    asked = experiment()
    ray = Ray(workers=2, threads=2, compile="graph")
    try:
        same(run(asked, ray, watchers=()), play(asked, watchers=()))
        assert ray.figures["processes"] == 1
    finally:
        ray.close()
    words = ["compare", "digits_fedavg", "--seeds", "2", "--set", "rounds=2", "--json"]
    words += ["--store", f"sqlite:///{tmp_path}/runs.db"]
    tables = []
    for more in (["--runtime", "ray"], []):
        assert execute([*words, *more, "--workers", "1"]) == 0
        tables.append([json.loads(line)["final"] for line in capsys.readouterr().out.splitlines()])
    assert tables[0] == tables[1]
