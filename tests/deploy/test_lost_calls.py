"""Calls that are cut on their way, by a proxy before one client: what was done counts once, and what was not is done
again. Each coordinate belongs to one client, which sends 1 there: what is lost, partial or twice shows in the sum."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from deployments import CLIENTS, wait_for
from umbel.deploy import federation
from umbel.deploy.kits import OperatorKit, ServerKit
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.remote import RemoteFederation
from umbel.server import RoundDone
from umbel.server.store import Store

pytestmark = pytest.mark.deployment

SIZE = 3_000_000  # of float32: three chunks
LARGE = 1 << 20  # bytes without an answer: a chunk is on its way
NOTHING = 400  # bytes of an answer that there is no message
ONE_HOT = f"""
import numpy as np
from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import PerClient


def minus(y, prediction):
    return -prediction


def build_model():
    import keras
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input(({SIZE},)), dense])
    model.compile(keras.optimizers.SGD(), minus)
    return model


whose = np.random.default_rng(0).integers(0, 3, (1, {SIZE}))
clients = [((whose == client).astype("f4"), np.zeros((1, 1), "f4")) for client in range(3)]
experiment = Experiment(
    name="one-hot", model=build_model, population=PerClient(clients), strategy=FedAvg(server_lr=3.0), rounds=4,
    weighting="uniform", local=Local(epochs=1, batch_size=1, learning_rate=1.0), sampler=FixedCohort(3),
)
"""


class Proxy:
    """Passes connections on to a port of loopback, and cuts those that it is told to, once each.

    faults: (mode, number) of large requests to come, from 1. "request lost": the server sees the beginning of it alone;
    "reply lost": the server has done it and answers, and the caller hears nothing.
    """

    def __init__(self, port):
        self.cuts, self._to, self._faults, self._large = [], port, {}, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1"), self._loop).result(10)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def expect(self, *faults):
        """From now on: these, and no others."""
        self._faults, self._large = {number: mode for mode, number in faults}, 0

    def lose_an_answer(self):
        """Cut the next answer that is more than that there is nothing to do."""
        self._faults[0] = "reply lost"

    def close(self):
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self):
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, near, back):
        try:
            far, onward = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            return back.close()
        unanswered, number = 0, 0

        def is_cut_up(data):
            nonlocal unanswered, number
            before, unanswered = unanswered, unanswered + len(data)
            if before <= LARGE < unanswered:
                self._large += 1
                number = self._large
                return self._faults.get(number) == "request lost"
            return False

        def is_cut_down(data):
            nonlocal unanswered, number
            was, unanswered = unanswered, 0
            if 0 in self._faults and len(data) > NOTHING:
                number = 0
                return True
            return was > LARGE and self._faults.get(number) == "reply lost"

        async def pipe(reader, writer, is_cut):
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    if is_cut(data):
                        self.cuts.append(self._faults.pop(number))
                        back.transport.abort()
                        onward.transport.abort()
                    writer.write(data)
                    await writer.drain()
            writer.close()

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(pipe(near, onward, is_cut_up), pipe(far, back, is_cut_down))


@pytest.fixture(scope="module")
def proxy(running):
    """The federation, with a proxy between west and the SuperLink; as it was afterwards."""
    for place in (running.parent, *(path.parent / "experiments" for path in running.glob("**/ca.crt"))):
        (place / "one_hot.py").write_text(ONE_HOT)
    (west,) = (party for party in federation.parties(running) if party.name == "west")
    os.kill(process_of(west.state), signal.SIGTERM)
    wait_for(lambda: process_of(west.state) is None)
    proxy = Proxy(ServerKit.load(running / "server").port)
    words = [sys.executable, "-m", "umbel", "client", "start", str(west.kit), "--address", proxy.address]
    with open(west.log, "ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_for(lambda: {one.status for one in federation.nodes(OperatorKit.load(running / "operator"))} == {"online"})
        yield proxy
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        proxy.close()
        federation.up(running, lambda text: None)


def test_an_update_that_is_cut_in_mid_upload_counts_once_and_whole(running, proxy):
    """Before its bytes are there; after they are, and before the answer is; both, in one round. And a message that is
    lost on its way to the client is handed out again."""
    kit, records = OperatorKit.load(running / "operator"), []
    # Of the large requests of four rounds, three in each and what is sent again.
    faults = [("request lost", 4), ("reply lost", 6), ("reply lost", 8), ("request lost", 10)]
    proxy.expect(*faults)
    with RemoteFederation(kit.address, kit.authority, kit.token, len(CLIENTS)) as remote:
        for event in remote.submit("one_hot.py"):
            if isinstance(event, RoundDone):
                records.append((event.record.clients, event.failures))
                if len(records) == 1:
                    proxy.lose_an_answer()
    expected = ["reply lost", *(mode for mode, _ in faults)]
    assert sorted(proxy.cuts) == sorted(expected)  # two chunks are on their way at a time
    assert records == [(3, [])] * 4
    with Store.open(kit.store, create=False) as store:
        _, params = store.models.get("one-hot", event.final["model_version"])
        np.testing.assert_allclose(params, np.full(SIZE, 4.0), rtol=1e-6)  # each of four sums is 1 everywhere
        assert store.check() == []
    for database in ("umbel.db", "superlink.db"):
        with contextlib.closing(sqlite3.connect(running / "server/state" / database)) as opened:
            assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
