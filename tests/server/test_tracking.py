"""Trackers hold every number of a run by its round, the settings and the model; a resumed run goes on where it was."""

import importlib.util
import json
import logging
import math
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, Simulation, run
from umbel.cli.main import execute
from umbel.core.types import RoundRecord
from umbel.server import History, MLflow, RoundDone, TensorBoard, WeightsAndBiases, play
from umbel.server.events import watched
from umbel.server.history import numbers_of
from umbel.server.tracking import Tracker, tracker_named

STORE, URI = "sqlite:///runs.db", "sqlite:///mlflow.db"
EXPERIMENT = federation(rounds=3)


def installed(name):
    return importlib.util.find_spec(name) is not None


class Paused(NamedTuple):
    """A run that was paused after its second round, and resumed, and what was there meanwhile."""

    folder: Path
    history: History
    live: list[list[int]]  # rounds in TensorBoard after each round
    mlflow: tuple | None


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1, compile="graph")


@pytest.fixture(scope="module")
def paused(simulation, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tracked")
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        own = [lambda: TensorBoard("logs"), *([lambda: MLflow(URI)] if installed("mlflow") else [])]
        live: list[list[int]] = []
        events = watched(play(EXPERIMENT, simulation, store=STORE), [make() for make in own])
        for event in events:
            if isinstance(event, RoundDone):
                live.append(sorted(in_tensorboard(next(folder.glob("logs/*")))[0]))
            if len(live) == 2:
                break
        events.close()
        before = in_mlflow() if installed("mlflow") else None
        late = [WeightsAndBiases()] if installed("wandb") else []
        watchers = [*(make() for make in own), *late]
        history = run(EXPERIMENT, simulation, store=STORE, resume="latest", watchers=watchers)
        yield Paused(folder, history, live, before)


def in_tensorboard(folder):
    """Read {round: {name: number}} as TensorBoard itself does, and the texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    read.Reload()
    rounds, texts = {}, {}
    for tag in read.Tags()["tensors"]:
        for event in read.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.dtype == np.float32:
                rounds.setdefault(event.step, []).append((tag, float(value)))
            else:
                texts[tag] = value.item() if value.ndim == 0 else value[0]
    return rounds, texts


def in_mlflow():
    """Read {round: {name: number}} of the one run, and the run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(URI)
    found = client.get_experiment_by_name(EXPERIMENT.name)
    (one,) = client.search_runs([found.experiment_id])
    rounds = {}
    for name in one.data.metrics:
        for metric in client.get_metric_history(one.info.run_id, name):
            rounds.setdefault(metric.step, []).append((name, metric.value))
    files = {file.path for file in client.list_artifacts(one.info.run_id, "model")}
    return rounds, one, files


def wandb_records(content):
    """Yield the records of W&B's own file: LevelDB's log, in blocks of 32 KiB, after seven bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def in_wandb(folder):
    """Read what an offline run would send: {round: {name: number}}, configuration, summary, artifacts, exit codes."""

    def named(items):
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rounds, config, summary, artifacts, exits = {}, {}, {}, [], []
    for record in wandb_records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = named(record.history.item)
            rounds[row.pop("_step")] = row
        elif kind == "run":
            config |= named(record.run.config.update)
        elif kind == "summary":
            summary |= named(record.summary.update)
        elif kind == "artifact":
            artifacts.append([entry.path for entry in record.artifact.manifest.contents])
        elif kind == "exit":
            exits.append(record.exit.exit_code)
    return rounds, config, summary, artifacts, exits


def expected(history):
    return {record.round: numbers_of(record) for record in history.rounds}


def same(found, history):
    """Return whether each round's numbers are there once, to float32."""
    wanted = expected(history)
    assert found.keys() == wanted.keys()
    for round, pairs in found.items():
        assert len(pairs) == len(dict(pairs))
        assert dict(pairs) == pytest.approx(wanted[round], nan_ok=True)
    return True


def test_tensorboard_is_live_and_goes_on_where_a_resumed_run_was(paused):
    assert paused.live == [[1], [1, 2]]  # each round is there before the next one begins
    (place,) = paused.folder.glob("logs/*")
    rounds, texts = in_tensorboard(place)
    assert place.name == paused.history.run
    assert same(rounds, paused.history)
    assert f"| local.batch_size | {EXPERIMENT.local.batch_size} |".encode() in texts["settings"]
    assert paused.history.params_sha256.encode() in texts["ending"]
    with np.load(place / "model.npz") as arrays:
        flat = np.concatenate([one.ravel() for one in arrays.values()])
    np.testing.assert_array_equal(flat, paused.history.params)
    assert (place / "model.keras").is_file()


def test_mlflow_holds_a_run_that_was_paused_and_resumed_once(paused, monkeypatch):
    pytest.importorskip("mlflow")
    rounds, one, _ = paused.mlflow
    assert (sorted(rounds), one.info.status) == ([1, 2], "KILLED")
    monkeypatch.chdir(paused.folder)
    rounds, one, files = in_mlflow()
    assert same(rounds, paused.history)
    assert one.info.status == "FINISHED"
    assert one.data.tags["umbel.params_sha256"] == paused.history.params_sha256
    assert one.data.params["local.batch_size"] == EXPERIMENT.describe()["local.batch_size"]
    assert files == {"model/model.npz", "model/model.keras"}


def test_wandb_offline_holds_rounds_settings_and_the_model(paused):
    pytest.importorskip("wandb")
    rounds, config, summary, artifacts, exits = in_wandb(paused.folder)
    wanted = {round: numbers | {"round": round} for round, numbers in expected(paused.history).items()}
    for round, row in rounds.items():
        assert {name: row[name] for name in wanted[round]} == pytest.approx(wanted[round], nan_ok=True)
    assert rounds.keys() == wanted.keys()  # also those from before it was told of the run
    assert config["local.batch_size"] == EXPERIMENT.describe()["local.batch_size"]
    assert summary["params_sha256"] == paused.history.params_sha256
    assert [sorted(files) for files in artifacts] == [["model.keras", "model.npz"]]
    assert exits == [0]


def test_the_command_takes_several_and_refuses_unknown_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run", "digits_fedavg", "--set", "rounds=1", "--clients", "10", "--quiet", "--store", STORE]
    assert execute([*words, "--track", "tensorboard=a", "--track", "tensorboard=b"]) == 0
    first, second = (in_tensorboard(place)[0] for place in (*tmp_path.glob("a/*"), *tmp_path.glob("b/*")))
    assert list(first) == [1]
    assert first == second
    capsys.readouterr()
    assert execute([*words, "--track", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'?" in capsys.readouterr().err


class Unreliable(Tracker):
    """Cannot be reached in round 2."""

    def __init__(self):
        self.rounds, self.endings, self.is_reached = [], [], True

    def begin(self, tracked):
        if not self.is_reached:
            raise OSError("no route\nto host")
        return 0

    def log(self, round, numbers):
        if round == 2 and self.is_reached:
            self.is_reached = False
            raise OSError("no route to host")
        self.rounds.append(round)

    def keep(self, files, ending):
        self.files = [file.name for file in files]

    def end(self, ending):
        self.endings.append(ending)


def test_a_tracker_that_cannot_be_reached_meanwhile_ends_no_run_and_loses_no_round(simulation, caplog):
    tracker = Unreliable()
    with caplog.at_level(logging.WARNING):
        run(EXPERIMENT, simulation, watchers=[tracker])
    assert tracker.rounds == [1, 2, 3]
    assert tracker.endings == ["finished"]
    assert [record.getMessage() for record in caplog.records if "Unreliable" in record.getMessage()] == [
        "cannot write into Unreliable: OSError: no route to host"
    ]
    tracker.is_reached = False
    with pytest.raises(ConfigError, match="cannot write into Unreliable: OSError: no route to host"):
        run(EXPERIMENT, simulation, watchers=[tracker])


class Fails:
    def on_start(self, *_):
        pass

    def on_round(self, *_):
        raise ValueError("of the user's own")

    on_end = on_start


def test_a_run_that_an_error_ends_is_noted_as_failed(simulation):
    tracker = Unreliable()
    with pytest.raises(ValueError, match="of the user's own"):
        run(EXPERIMENT, simulation, watchers=[tracker, Fails()])
    assert tracker.endings == ["failed"]


def test_numbers_are_named_by_the_examples_they_were_measured_on():
    record = RoundRecord(1, 4, 0, {"test_f1": (0.5, math.nan), "train_loss": 2.0}, 0.5, None, 10, None, 1.5)
    found = numbers_of(record)
    assert {
        name: found[name] for name in ("test/f1_0", "train/loss", "run/bytes_up", "run/epsilon", "run/clients")
    } == {
        "test/f1_0": 0.5,
        "train/loss": 2.0,
        "run/bytes_up": 10.0,
        "run/epsilon": 1.5,
        "run/clients": 4.0,
    }
    assert math.isnan(found["test/f1_1"])
    assert "run/bytes_down" not in found


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed: pip install 'umbel\[mlflow\]'"):
        tracker_named("mlflow")
