"""Codecs over a grid inside this process: the simulation's bits, on fewer bytes, and payloads that nobody encoded."""

import numpy as np
import pytest
import rounds
from flwr.app import ArrayRecord
from rounds import begin

from federations import Nowhere
from grids import ProcessGrid
from umbel import Simulation, derive, run
from umbel.core.reading.loading import load_experiment
from umbel.core.types import NOTHING, Broadcast
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.memory import Disk
from umbel.runtimes.flower.runtime import FlowerRuntime

SIZE = (6 * 8 + 8) + (8 * 3 + 3)
CODECS = {
    "top_k": "codec=TopK(0.2)",  # with error feedback: a residual in the client's memory
    "sign": "codec=Sign(), strategy=Scaffold(), weighting='uniform'",  # beside what the rule remembers
    "quantised": "codec=Quantised(4), model=federations.normalised, personal=('batch_normalization',)",
    "random_k": "codec=RandomK(0.3)",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file for each codec."""
    place = tmp_path_factory.mktemp("codecs")
    for name, arguments in CODECS.items():
        (place / f"{name}.py").write_text(
            "import federations\nfrom umbel.strategies.codecs import *\n"
            "from umbel.strategies.scaffold import Scaffold\n"
            f"experiment = federations.federation({arguments})\n"
        )
    return place


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The clients' disk."""
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    return tmp_path / "clients"


def play(path, *overrides, **settings):
    return run(load_experiment(str(path), overrides), FlowerRuntime(ProcessGrid(path, 8)), **settings)


@pytest.mark.parametrize("name", CODECS)
def test_flower_equals_simulation(place, tmp_path, name):
    """Bit for bit; resumed after the first round, too, from what lies on the clients' disks."""
    path, store = place / f"{name}.py", f"sqlite:///{tmp_path}/runs.db"
    simulated = run(load_experiment(str(path)), Simulation(workers=1, compile="graph"))
    history = play(path)
    assert history.params_sha256 == simulated.params_sha256
    assert [record.metrics for record in history.rounds] == [record.metrics for record in simulated.rounds]
    play(path, "rounds=1", store=store)
    assert play(path, store=store, resume="latest").params_sha256 == simulated.params_sha256


def test_what_a_codec_left_out_is_on_the_clients_disk_and_travels_nowhere(place, home):
    path = place / "top_k.py"
    grid = ProcessGrid(path, 8)
    runtime = FlowerRuntime(grid)
    begin(runtime, load_experiment(str(path)), Nowhere())
    result = collect(runtime, [0, 1, 2])
    (run,) = [one.name for one in home.iterdir() if one.is_dir()]  # beside the accounts of what was released
    for client in range(3):
        nothing, residual = Disk(home).read(run, client, 1)
        assert (len(nothing), residual.shape) == (0, (SIZE,))
        assert residual.any()
    payload = load_experiment(str(path)).codec.payload_bytes(SIZE)
    assert 3 * payload < result.bytes_up < 3 * (payload + 2048)


def collect(runtime, cohort):
    return rounds.collect(runtime, Broadcast(1, runtime.initial_params(), NOTHING, (), 0.1), cohort, derive(1))


def payload(change):
    """Replace the payload by a changed one."""

    def on(content):
        sent = wire.unpack_array(content["vectors"]["payload"]).copy()
        content["vectors"]["payload"] = wire.pack_array(change(sent))
        return content

    return on


def plain(content):
    """An update without a codec."""
    content["vectors"] = ArrayRecord({})
    content["vectors"]["delta"] = wire.pack_array(np.zeros(SIZE, np.float32))
    content["vectors"]["extra"] = wire.pack_array(NOTHING)
    return content


def scaled(sent):
    """A scale of infinity."""
    sent[:4] = np.frombuffer(np.float32(np.inf).tobytes(), np.uint8)
    return sent


HOSTILE = {
    "cut short": (payload(lambda sent: sent[1:]), "codec"),
    "too long": (payload(lambda sent: np.append(sent, sent)), "codec"),
    "empty": (payload(lambda sent: sent[:0]), "codec"),
    "an infinite scale": (payload(scaled), "codec"),
    "words": (payload(lambda sent: sent.astype(np.int64)), "dtype"),
    "a matrix": (payload(lambda sent: sent.reshape(1, -1)), "shape"),
    "no codec at all": (plain, "schema"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_payload_that_nobody_encoded_is_a_failure_and_the_rest_is_summed(place, case):
    change, reason = HOSTILE[case]
    path = place / "quantised.py"
    totals = []
    for tamper in ({2: change}, {}):
        runtime = FlowerRuntime(ProcessGrid(path, 8, tamper=tamper), timeout_seconds=20)
        begin(runtime, load_experiment(str(path)), Nowhere())
        result = collect(runtime, [0, 1, 2, 3] if tamper else [0, 1, 3])
        totals.append(result.total)
        assert [(one.client, one.reason) for one in result.failures] == ([(2, reason)] if tamper else [])
    assert totals[0].delta.tobytes() == totals[1].delta.tobytes()
    assert totals[0][2:] == totals[1][2:]


def test_a_plain_experiment_takes_no_payload(place, tmp_path):
    """Whoever encodes where nothing was to be encoded is refused."""
    path = tmp_path / "plain.py"
    path.write_text("from federations import federation\nexperiment = federation()\n")

    def coded(content):
        content["vectors"] = ArrayRecord({})
        content["vectors"]["payload"] = wire.pack_array(np.zeros(SIZE, np.uint8))
        content["vectors"]["extra"] = wire.pack_array(NOTHING)
        return content

    runtime = FlowerRuntime(ProcessGrid(path, 8, tamper={2: coded}), timeout_seconds=20)
    begin(runtime, load_experiment(str(path)), Nowhere())
    assert [(one.client, one.reason) for one in collect(runtime, [0, 2]).failures] == [(2, "schema")]
