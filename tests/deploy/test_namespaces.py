"""Server and clients on hosts of their own, as far as the kernel can tell: network namespaces, joined by a bridge.

What a client does not reach over its one address, it does not reach at all: this machine's loopback is not shared.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from deployments import EXPERIMENT, wait_for
from umbel.deploy import kits

pytestmark = pytest.mark.deployment

SERVER, NORTH, SOUTH = "10.77.91.1", "10.77.91.2", "10.77.91.3"
CUT_SECONDS = 20
DEADLINE_SECONDS = 12  # of a round whose model, both ways, takes a link of 1 Mbit/s more than 20

# What nginx does on a real host: connections to the public address go to the SuperLink, which listens on loopback.
FORWARD = """
import asyncio, sys
async def main(host, port, to):
    async def pipe(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
    async def serve(reader, writer):
        try:
            far = await asyncio.open_connection("127.0.0.1", to)
        except OSError:
            return writer.close()
        await asyncio.gather(pipe(reader, far[1]), pipe(far[0], writer))
    await (await asyncio.start_server(serve, host, port)).serve_forever()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    """{party: namespace}, with an address each; deleted afterwards, with all that runs in them."""
    if shutil.which("ip") is None:
        pytest.skip("no ip on this machine: apt-get install iproute2")
    mark = f"umbel{os.getpid()}"
    names = {party: f"{mark}{party}" for party in ("server", "north", "south")}
    try:
        try:
            for name in names.values():
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            _join(names)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine lets nobody make network namespaces: {error.stderr.strip()}")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _join(names):
    """A bridge on the server's host, and a cable to it from each client's."""
    server = names["server"]
    ip("-n", server, "link", "add", "bridge", "type", "bridge")
    ip("-n", server, "address", "add", f"{SERVER}/24", "dev", "bridge")
    ip("-n", server, "link", "set", "bridge", "up")
    for party, address in (("north", NORTH), ("south", SOUTH)):
        ip("-n", server, "link", "add", f"to-{party}", "type", "veth", "peer", "name", "uplink", "netns", names[party])
        ip("-n", server, "link", "set", f"to-{party}", "master", "bridge", "up")
        ip("-n", names[party], "address", "add", f"{address}/24", "dev", "uplink")
        ip("-n", names[party], "link", "set", "uplink", "up")


@pytest.fixture(scope="module")
def started(hosts, tmp_path_factory):
    """Kits for the bridge's address; each party's process on its own host."""
    folder = tmp_path_factory.mktemp("hosts")
    kits.make(folder / "fed", SERVER, 443, ["north", "south"])
    for party in ("server", "clients/north", "clients/south"):
        text = EXPERIMENT.replace("OnDevice(3,", "OnDevice(2,").replace("FixedCohort(3)", "FixedCohort(2)")
        (folder / "fed" / party / "experiments/mine.py").write_text(text)
        (folder / "mine.py").write_text(text)
    processes = []

    def start(party, *words):
        log = open(folder / f"{party}-{len(processes)}.log", "wb")  # noqa: SIM115  the process keeps it
        command = ["ip", "netns", "exec", hosts[party], sys.executable, *words]
        processes.append(subprocess.Popen(command, env=clean(), stdout=log, stderr=log))

    make_data(folder)
    start("server", "-m", "umbel", "server", "start", str(folder / "fed/server"))
    start("server", "-c", FORWARD, SERVER, "443", "8443")
    for party in ("north", "south"):
        kit = folder / "fed/clients" / party
        start(party, "-m", "umbel", "client", "start", str(kit), "--data", str(folder / "data.npz"))
    try:
        yield folder
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def make_data(folder):
    import numpy as np

    random = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=random.normal(size=(60, 4)).astype("f4"), y=random.integers(0, 2, 60))


def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith("UMBEL_")} | {
        "PYTHONDONTWRITEBYTECODE": ""
    }


def run_on(hosts, folder, *words):
    """An `umbel` command on the server's host, where the operator is."""
    command = ["ip", "netns", "exec", hosts["server"], sys.executable, "-m", "umbel", *map(str, words)]
    return subprocess.Popen(command, cwd=folder, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def all_online(hosts, folder):
    done = run_on(hosts, folder, "deploy", "status", folder / "fed/operator", "--json")
    output, _ = done.communicate(timeout=60)
    return done.returncode == 0 and {one["state"] for one in json.loads(output)["clients"]} == {"online"}


def test_a_link_that_is_cut_delays_a_round_and_no_more(hosts, started):
    """North's cable is out for 20 seconds while a run goes on: it is waited for, and takes part in what follows."""
    wait_for(lambda: all_online(hosts, started), 120)
    assert _cannot_reach(hosts["north"], SERVER, 8443)  # the SuperLink itself is not published
    settings = ("--set", "rounds=5", "--set", "local.epochs=60")
    words = ("run", "mine.py", "--runtime", "flower", "--federation", started / "fed/operator", *settings, "--json")
    done, lines, cut = run_on(hosts, started, *words), [], None

    def cut_the_link():
        ip("-n", hosts["north"], "link", "set", "uplink", "down")
        time.sleep(CUT_SECONDS)
        ip("-n", hosts["north"], "link", "set", "uplink", "up")

    for line in done.stdout:
        lines.append(json.loads(line))
        if len(lines) == 1:
            cut = threading.Thread(target=cut_the_link)
            cut.start()
    cut.join(CUT_SECONDS + 10)
    _, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    *rounds, final = lines
    assert [(one["round"], one["clients"], one["failures"]) for one in rounds] == [(n, 2, 0) for n in range(1, 6)]
    assert max(one["seconds"] for one in rounds) > CUT_SECONDS / 2
    assert final["final"]["rounds"] == 5


@contextlib.contextmanager
def one_megabit(hosts, party):
    """Inside, a client's cable carries a million bits a second, either way."""
    ends = ((hosts[party], "uplink"), (hosts["server"], f"to-{party}"))
    rate = ("root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms")
    for namespace, device in ends:
        words = ["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, *rate]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine slows no link down: {done.stderr.strip()}")
    try:
        yield
    finally:
        for namespace, device in ends:
            subprocess.run(["ip", "netns", "exec", namespace, "tc", "qdisc", "del", "dev", device, "root"], check=True)


def test_a_link_of_a_megabit_is_waited_for_until_the_deadline(hosts, started):
    """North takes part where it can. A model that it cannot move in time is trained without it; nobody waits longer.

    What it sends of the first round arrives while the second is played, and counts in neither."""
    wait_for(lambda: all_online(hosts, started), 120)
    last = "keras.layers.Dense(2)"
    wide = (started / "mine.py").read_text().replace(last, f"keras.layers.Dense(51_200), {last}")
    for place in ("", "fed/server/experiments", "fed/clients/north/experiments", "fed/clients/south/experiments"):
        (started / place / "wide.py").write_text(wide)
    settings = started / "fed/operator/operator.toml"

    def play(name, seconds):
        settings.write_text(re.sub(r"timeout_seconds = \d+", f"timeout_seconds = {seconds}", settings.read_text()))
        words = ("run", name, "--runtime", "flower", "--federation", started / "fed/operator", "--json")
        done = run_on(hosts, started, *words, "--set", "rounds=2")
        output, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        return [json.loads(line) for line in output.splitlines()][:-1], errors

    with one_megabit(hosts, "north"):
        (small, _), (large, errors) = play("mine.py", 60), play("wide.py", DEADLINE_SECONDS)
    assert [(one["clients"], one["failures"]) for one in small] == [(2, 0)] * 2
    assert [(one["clients"], one["failures"]) for one in large] == [(1, 1)] * 2
    assert all(one["seconds"] < DEADLINE_SECONDS + 5 for one in large)
    for round in (1, 2):
        assert f"round {round}: client 0 left out (timeout): " in errors  # no reply, or one that is not whole yet


def _cannot_reach(namespace, host, port):
    probe = f"import socket; socket.create_connection(('{host}', {port}), 2)"
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", probe]
    return subprocess.run(command, capture_output=True).returncode != 0
