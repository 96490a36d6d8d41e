"""A federation of real processes with TLS and node authentication: runs, refusals, strangers, deaths."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from ssl import create_default_context

import pytest

import umbel
from deployments import CLIENTS, EXPERIMENT, children, wait_for
from umbel import ConfigError, UmbelError, override
from umbel.core.reading.loading import load_experiment
from umbel.deploy import federation, kits
from umbel.deploy.federated import Flower
from umbel.deploy.kits import OperatorKit, ServerKit
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.link.patience import RESTART_SECONDS
from umbel.runtimes.flower.link.tokens import TokenAuthenticator
from umbel.runtimes.flower.processes import free_ports
from umbel.runtimes.flower.secured import Operator
from umbel.server.store import Store

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def fed(running):
    return running


@pytest.fixture(scope="module")
def folder(running):
    return running.parent


@pytest.fixture(scope="module")
def operator(fed):
    return OperatorKit.load(fed / "operator")


def opened(operator, token=None):
    return Operator(operator.address, operator.authority.read_bytes(), token or operator.token)


def post(address, authority, path, kind="application/protobuf", body=b"", **headers):
    """The status of a call by a stranger with nothing but the address and the public certificate."""
    scheme = "http" if authority is None else "https"
    headers |= {"Content-Type": kind}
    request = urllib.request.Request(f"{scheme}://{address}{path}", body, headers, method="POST")
    https = urllib.request.HTTPSHandler(context=create_default_context(cafile=authority and str(authority)))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({}), https).open(request, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_run_on_own_data_shows_what_a_simulation_shows_and_is_kept(fed, folder, command):
    words = ("run", "mine.py", "--runtime", "flower", "--federation", fed / "operator")
    done = command(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["round"], line["clients"], line["failures"]) for line in lines[:-1]] == [(1, 3, 0)]
    stored = command(folder, "runs", "--json", "--store", OperatorKit.load(fed / "operator").store)
    run = json.loads(stored.stdout.splitlines()[0])  # the newest
    assert (run["run"], run["state"], run["rounds"]) == (lines[-1]["final"]["run"], "finished", 1)
    assert not (folder / "umbel.db").exists()
    # From Python it is the same run: by the folder of all kits, and by the operator's.
    seen, experiment = Seen(), load_experiment(str(folder / "mine.py"))
    history = umbel.run(experiment, Flower(fed, quiet=True), watchers=[seen])
    assert history.params_sha256 == lines[-1]["final"]["params_sha256"]
    assert history.run != run["run"]
    assert (seen.started, seen.records, seen.ended) == (history.run, list(history.rounds), history)
    with Store.open(OperatorKit.load(fed / "operator").store, create=False) as store:
        assert store.load_run(history.run).state == "finished"
        assert store.models.get("mine", history.model_version)[0].run == history.run
    (fed / "server/experiments/mine.py").write_text(EXPERIMENT.replace("batch_size=10", "batch_size=20"))
    with pytest.raises(ConfigError, match="copy the same file into the folder experiments of every kit"):
        umbel.run(experiment, Flower(fed, quiet=True))
    (fed / "server/experiments/mine.py").write_text(EXPERIMENT)
    # It is resumed, with one round more than west agrees to: the others go on, and the operator reads why.
    more = umbel.run(
        override(experiment, ["rounds=17"]), Flower(fed / "operator", quiet=True), watchers=[seen], resume=history.run
    )
    assert (more.run, more.rounds[0]) == (history.run, history.rounds[0])
    assert [record.clients for record in more.rounds] == [3] + [2] * 16
    assert seen.failures == [(2, "policy", "rounds=17 is above 16")] * 16
    with Store.open(OperatorKit.load(fed / "operator").store, create=False) as store:
        entries = [(entry.action, entry.subject) for entry in store.audit.entries()]
    assert [name for action, name in entries if action == "client.added"] == list(CLIENTS)
    assert [about for action, about in entries if action == "deploy.up"] == [ServerKit.load(fed / "server").address]
    assert [about for action, about in entries if action == "policy.refused"] == ["client 2: rounds=17 is above 16"]


class Seen:
    """A watcher that keeps what it sees."""

    def on_start(self, experiment, runtime, run, records):
        self.started, self.records, self.failures = run, list(records), []

    def on_round(self, record, failures):
        self.records.append(record)
        self.failures += [(one.client, one.reason, one.detail) for one in failures]

    def on_end(self, history):
        self.ended = history


def test_status_says_who_is_connected_and_until_when(fed, command):
    done = command(fed, "deploy", "status", ".", "--json")
    found = json.loads(done.stdout)
    assert found["server"]["connected"] is True
    assert [(one["name"], one["state"]) for one in found["clients"]] == [(name, "online") for name in CLIENTS]
    assert {Path(one["file"]).name: round(one["days"]) for one in found["certificates"]} == {
        "ca.crt": 3650,
        "server.crt": 397,
    }
    assert found["runs"] == []


def test_a_stranger_is_refused_by_the_control_api(operator):
    for path in ("list-runs", "start-run", "register-node", "list-nodes", "stop-run", "stream-run-events"):
        assert post(operator.address, operator.authority, f"/v1/control/{path}") == 401, path
        assert post(operator.address, operator.authority, f"/v1/control/{path}", Authorization="Bearer x") == 401, path
    with opened(operator, "wrong") as stranger, pytest.raises(ConfigError, match="refuses this operator's token"):
        stranger.nodes()
    with opened(operator) as known:
        assert {node.name for node in known.nodes()} == set(CLIENTS)


def test_a_thief_gets_no_task(fed, operator):
    """Of the server, over TLS; and on a client's own host there is no port to ask at."""
    assert post(operator.address, operator.authority, "/v1/runtime/acquire-task") == 401
    party = next(party for party in federation.parties(fed) if party.name == "south")
    (node,) = children(process_of(party.state)).values()
    assert listening(node) == listening(process_of(party.state)) == set()
    assert listening(children(process_of(fed / "server/state"))[superlink(fed)])


def superlink(fed):
    """The command line of the SuperLink's process."""
    return next(line for line in children(process_of(fed / "server/state")) if "flower.link " in line)


def listening(process):
    """The sockets that a process takes connections at."""
    tables = [Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    inodes = {row.split()[9] for table in tables for row in table if row.split()[3] == "0A"}
    own = {
        os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir() if entry.exists() or entry.is_symlink()
    }
    return own & {f"socket:[{inode}]" for inode in inodes}


def test_a_client_of_the_wrong_federation_is_told(fed, folder, command):
    kits.make(folder / "other", "127.0.0.1", None, ["thief"])
    address = OperatorKit.load(fed / "operator").address
    done = command(folder, "client", "start", "other/clients/thief", "--address", address)
    assert done.returncode == 2
    assert "is refused: its certificate is not of this federation's authority" in done.stderr


def test_an_unregistered_key_is_refused_and_sigterm_ends_the_client(fed, folder):
    """It has the right authority and a key of its own, which the server's kit does not list."""
    kits.make(folder / "unknown", "127.0.0.1", None, ["thief"])
    kit = folder / "unknown/clients/thief"
    shutil.copy(fed / "operator/ca.crt", kit / "ca.crt")
    address = OperatorKit.load(fed / "operator").address
    words = [sys.executable, "-m", "umbel", "client", "start", str(kit), "--address", address]
    client = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        said = iter(client.stderr.readline, "")
        assert any("the server does not let this node in: it does not know its key" in line for line in said)
        began = time.monotonic()
        client.send_signal(signal.SIGTERM)
        client.communicate(timeout=30)
        assert client.returncode == 0
        assert time.monotonic() - began < 30
    finally:
        client.kill()


def since(operator, name):
    """Since when the server takes a client for connected; None while it does not."""
    return next((one.since for one in federation.nodes(operator) if (one.name, one.status) == (name, "online")), None)


def test_a_process_that_dies_is_started_again_and_let_in(fed, operator):
    """At once, though the server has not missed the one before."""
    party = next(party for party in federation.parties(fed) if party.name == "north")
    process, before, said = process_of(party.state), since(operator, "north"), len(party.log.read_text())
    victim = next(pid for line, pid in children(process).items() if "flower.node" in line)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: since(operator, "north") not in (None, before), RESTART_SECONDS - 5)
    assert process_of(party.state) == process
    ended = [line for line in party.log.read_text()[said:].splitlines() if "ended" in line]
    assert ended == ["node ended with status -9; started again in 1 seconds"]


def test_a_key_is_not_used_by_two(fed, operator, folder):
    """A copy of a kit is refused while its client is connected, and does not disturb it."""
    shutil.copytree(fed / "clients/north", folder / "copy", ignore=shutil.ignore_patterns("state"))
    words = [sys.executable, "-m", "umbel", "client", "start", folder / "copy", "--address"]
    before = since(operator, "north")
    client = subprocess.Popen([*words, operator.address], stderr=subprocess.PIPE, text=True)
    try:
        said = iter(client.stderr.readline, "")
        assert any("or another process that has this key is connected" in line for line in said)
    finally:
        client.send_signal(signal.SIGTERM)
        client.communicate(timeout=30)
    assert since(operator, "north") == before


def test_up_waits_for_those_that_it_starts(fed, operator):
    """The server takes clients that were killed for connected until it misses them."""
    party = next(party for party in federation.parties(fed) if party.name == "north")
    before, process = since(operator, "north"), process_of(party.state)
    for victim in (process, *children(process).values()):
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: process_of(party.state) is None)
    assert since(operator, "north") == before
    federation.up(fed, lambda text: None)
    assert since(operator, "north") not in (None, before)


def test_a_superlink_that_dies_comes_back_and_knows_its_clients(fed, operator):
    """Its nodes are in its database: the same ones are let in again, and no one registers them anew."""
    server = process_of(fed / "server/state")
    with opened(operator) as control:
        before = {node.name: node.node for node in control.nodes()}
    (victim,) = (process for line, process in children(server).items() if "flower.link " in line)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: any("flower.link " in line and pid != victim for line, pid in children(server).items()))
    wait_for(lambda: federation.nodes(operator) is not None)
    assert {node.name: node.node for node in federation.nodes(operator)} == before
    wait_for(lambda: {node.status for node in federation.nodes(operator) or []} == {"online"})
    assert process_of(fed / "server/state") == server


def test_a_kit_runs_once(fed, command):
    done = command(fed, "server", "start", "server")
    assert done.returncode == 2
    assert re.search(r"runs already, as process \d+", done.stderr)


def test_secrets_are_not_on_command_lines_nor_in_logs(fed, operator):
    secrets = [operator.token, *(path.read_text() for path in fed.rglob("runtime.secret"))]

    def processes():
        return [line for party in federation.parties(fed) for line in children(process_of(party.state))]

    wait_for(lambda: len(processes()) == 2 + len(CLIENTS))  # one may be on its way back
    lines = processes()
    logs = [party.log.read_text() for party in federation.parties(fed)]
    assert not [secret for secret in secrets for text in (*lines, *logs) if secret in text]


def test_an_authenticator_without_tokens_is_not_to_be_had(monkeypatch):
    monkeypatch.delenv("UMBEL_CONTROL_TOKENS", raising=False)
    with pytest.raises(ConfigError, match="SHA-256 of each token"):
        TokenAuthenticator()
    with pytest.raises(ConfigError, match="SHA-256 of each token"):
        TokenAuthenticator([""])


def test_options_that_exclude_one_another_are_refused(fed, command, tmp_path):
    words = ("run", "--federation", fed / "operator")
    for more, complaint in [
        ((), "add --runtime flower"),
        (("--runtime", "flower", "--clients", 2), "has the clients it has"),
        (("--runtime", "flower", "--store", "sqlite:///mine.db"), "keeps its runs in its server's store"),
    ]:
        done = command(tmp_path, *words, *more)
        assert (done.returncode, complaint in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_named(fed, tmp_path):
    shutil.copytree(fed / "operator", tmp_path / "operator")
    path = tmp_path / "operator/operator.toml"
    path.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_ports(1)[0]}", path.read_text()))
    kit = OperatorKit.load(tmp_path / "operator")
    assert federation.status(tmp_path / "operator")["server"]["connected"] is False
    with opened(kit) as operator, pytest.raises(UmbelError, match="does not answer"):
        operator.nodes()


@pytest.fixture(scope="module")
def proxy(fed, tmp_path_factory):
    """The nginx.conf of the kit before the real SuperLink: its address, and the file of the authority."""
    if shutil.which("nginx") is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    (port,) = free_ports(1)
    kit, server = tmp_path_factory.mktemp("proxy") / "kit", ServerKit.load(fed / "server")
    shutil.copytree(fed / "server", kit, ignore=shutil.ignore_patterns("state"))
    (kit / "state").mkdir()
    conf = (kit / "nginx.conf").read_text()
    (kit / "nginx.conf").write_text(conf.replace(f"listen {server.public_port} ssl", f"listen {port} ssl"))
    words = ["nginx", "-e", "stderr", "-c", kit / "nginx.conf", "-p", kit / "state", "-g", "daemon off;"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    address, authority = f"127.0.0.1:{port}", kit / "ca.crt"
    try:
        wait_for(lambda: _health(address, authority) == 200, 20)
        yield address, authority
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_the_proxy_publishes_what_clients_need_and_nothing_else(proxy):
    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/register-node", "/openapi.json"):
        assert post(*proxy, path) == 404, path
    assert post(*proxy, "/v1/fleet/%2e%2e/control/list-runs") == 404
    assert post(*proxy, "/v1/fleet/push-object", body=bytes(9 << 20)) == 413
    assert post(*proxy, "/v1/fleet/pull-messages") == 401  # the SuperLink's own: who is it?
    statuses = {post(*proxy, "/health", body=None) for _ in range(3)}
    assert statuses == {403}  # only GET


def test_slow_connections_delay_nobody_and_are_cut(proxy):
    """Fifty that send a byte a second, from one address: another's calls are answered at once."""
    host, port = proxy[0].split(":")
    source, slow = ("127.0.0.2", 0), []
    try:
        for _ in range(50):
            slow.append(socket.create_connection((host, int(port)), 5, source))
        for _ in range(3):
            for one in slow:
                with contextlib.suppress(OSError):
                    one.send(b"\x16")
            began = time.monotonic()
            assert _health(*proxy) == 200
            assert time.monotonic() - began < 1
            time.sleep(1)
        wait_for(lambda: all(map(_is_cut, slow)), 30)
    finally:
        for one in slow:
            one.close()


def _is_cut(one):
    one.setblocking(False)
    try:
        return one.recv(64) == b"" or _is_cut(one)  # what TLS says before it hangs up
    except BlockingIOError:
        return False
    except OSError:
        return True


def _health(address, authority):
    https = urllib.request.HTTPSHandler(context=create_default_context(cafile=str(authority)))
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
        with opener.open(f"https://{address}/health", timeout=5) as reply:
            return reply.status
    except OSError:
        return None
