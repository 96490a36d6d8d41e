"""The authority is replaced in three steps, each of which may be interrupted and repeated, and none of which a run
notices."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest

import umbel
from deployments import CLIENTS, PARITY, children, wait_for
from umbel import ConfigError, Simulation
from umbel.cli.main import execute
from umbel.core.reading.loading import load_experiment
from umbel.deploy import authority, federation
from umbel.deploy.certificates import Authority, check_dates, fingerprint, host_and_port, load_all, pem, shake_hands
from umbel.deploy.kits import ClientKit, OperatorKit, ServerKit
from umbel.deploy.rotation import rekey, retoken
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.certificates import FollowingContext, trusting
from umbel.runtimes.flower.remote import RemoteFederation
from umbel.runtimes.flower.secured import Operator
from umbel.server import RoundDone

STEPS = ("trust", "switch", "retire")
ROUNDS = 3


def step(fed, name):
    """One step, with both clients connected and aware."""
    if name != "switch":
        return getattr(authority, name)(fed)
    known = frozenset(map(fingerprint, load_all(fed / "operator/ca.crt")))
    return authority.switch(fed, {"north": known, "south": known})


def every_kit_trusts_the_server(fed):
    """By OpenSSL."""
    words = ["openssl", "verify", "-x509_strict", "-CAfile"]
    checks = [subprocess.run([*words, path, fed / "server/server.crt"], capture_output=True) for path in bundles(fed)]
    return all(check.returncode == 0 for check in checks)


def bundles(fed):
    return list(fed.glob("**/ca.crt"))


def test_every_step_leaves_kits_that_load_and_trust_the_server(fed):
    (old,) = load_all(fed / "operator/ca.crt")
    for name, stage in zip(STEPS, ("trusted", "switched", "steady"), strict=True):
        assert step(fed, name)
        assert authority.stage_of(fed / "operator") == stage
        assert step(fed, name) == [] or name == "retire"
        assert len({path.read_bytes() for path in bundles(fed)}) == 1
        authority.renew(fed)
        assert every_kit_trusts_the_server(fed)
        ServerKit.load(fed / "server")
        ClientKit.load(fed / "clients/north")
    (new,) = load_all(fed / "operator/ca.crt")
    assert (new == old, Authority.load(fed / "operator/ca.crt", fed / "operator/ca.key").certificate) == (False, new)
    assert step(fed, "retire") == []
    assert not list(fed.glob("**/*new*"))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_interrupted_locks_nobody_out_and_is_repeated(fed, name, monkeypatch):
    """Before each file that is put in its place, the first to the last."""
    for before in STEPS[: STEPS.index(name)]:
        step(fed, before)
    replace, left = os.replace, []

    def killed(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for files in range(100):
        left[:] = range(files)
        place = fed.with_name(f"fed-{files}")
        shutil.copytree(fed, place)
        try:
            step(place, name)
            break
        except KeyboardInterrupt:
            assert every_kit_trusts_the_server(place)
        left[:] = range(100)
        step(place, name)
        ServerKit.load(place / "server")
        assert every_kit_trusts_the_server(place)
        assert authority.stage_of(place / "operator") == {"trust": "trusted", "switch": "switched"}.get(name, "steady")
    assert files >= 3


def test_steps_out_of_order_and_lockouts_are_refused(fed):
    with pytest.raises(ConfigError, match="no new authority that the kits trust; first: umbel deploy authority trust"):
        step(fed, "switch")
    step(fed, "trust")
    with pytest.raises(ConfigError, match="of the old authority; first: umbel deploy authority switch"):
        step(fed, "retire")
    old, new = map(fingerprint, load_all(fed / "operator/ca.crt"))
    with pytest.raises(ConfigError, match="client south does not trust the new authority, and would be locked out"):
        authority.switch(fed, {"north": frozenset([old, new]), "south": frozenset([old])})
    with pytest.raises(ConfigError, match="client south has not said what it trusts"):
        authority.switch(fed, {"north": frozenset([old, new]), "south": None})
    both = (fed / "clients/south/ca.crt").read_bytes()
    (fed / "clients/south/ca.crt").write_bytes(pem(load_all(fed / "operator/ca.crt")[0]))
    with pytest.raises(
        ConfigError, match="south does not trust the new authority; repeat: umbel deploy authority trust"
    ):
        step(fed, "switch")
    (fed / "clients/south/ca.crt").write_bytes(both)
    step(fed, "switch")
    with pytest.raises(ConfigError, match="still trusted; first: umbel deploy authority retire"):
        step(fed, "trust")


def test_the_old_authority_is_not_retired_while_the_server_shows_its_certificate(fed):
    """Its files were not copied to where it runs, or nginx was not reloaded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fed / "server/server.crt", fed / "server/server.key")
    step(fed, "trust")
    step(fed, "switch")
    with serving(context, ServerKit.load(fed / "server").port), pytest.raises(ConfigError, match="would be locked out"):
        step(fed, "retire")
    assert authority.stage_of(fed / "operator") == "switched"


def test_an_authority_that_expired_is_forgiven_beside_one_that_has_not(fed, tmp_path):
    old, new = Authority.new("a", days=0), Authority.new("a")
    for order in ((old, new), (new, old)):
        (tmp_path / "ca.crt").write_bytes(b"".join(pem(one.certificate) for one in order))
        check_dates(tmp_path / "ca.crt", "mend it")
    (tmp_path / "ca.crt").write_bytes(pem(old.certificate))
    with pytest.raises(ConfigError, match=r"expired on .* mend it"):
        check_dates(tmp_path / "ca.crt", "mend it")


@contextlib.contextmanager
def serving(context, port=0):
    """A TLS server that shakes hands with everybody; its port."""
    listener = socket.create_server(("127.0.0.1", port))

    def answer():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_context_follows_its_files_and_waits_for_the_second_of_a_pair(tmp_path):
    """What a server shows and what a client trusts change between two handshakes, without a new process."""
    old, new = Authority.new("a"), Authority.new("a")
    issued = {one: one.issue(["127.0.0.1"]) for one in (old, new)}

    def make():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
        return context

    def put(name, content):
        authority.put(tmp_path / name, content)

    put("crt", issued[old].certificate)
    put("key", issued[old].key)
    put("ca", pem(old.certificate))
    client = trusting(tmp_path / "ca")
    with serving(FollowingContext([tmp_path / "crt", tmp_path / "key"], make)) as port:
        shake_hands("127.0.0.1", port, client)
        put("key", issued[new].key)
        shake_hands("127.0.0.1", port, client)  # the pair is not whole: the old one
        put("crt", issued[new].certificate)
        with pytest.raises(ConfigError, match="not of this federation's authority"):
            shake_hands("127.0.0.1", port, client)
        put("ca", pem(old.certificate) + pem(new.certificate))
        shake_hands("127.0.0.1", port, client)
        put("ca", b"-----BEGIN CERT")  # being copied
        shake_hands("127.0.0.1", port, client)
        put("ca", pem(old.certificate))
        with pytest.raises(ConfigError, match="not of this federation's authority"):
            shake_hands("127.0.0.1", port, client)


@pytest.fixture
def desk(running, tmp_path):
    """The operator's copy of the kits, on another host than the parties."""
    return shutil.copytree(running, tmp_path / "fed", ignore=shutil.ignore_patterns("state", "data.npz"))


def hand_out(desk, running, *names, kits=("server", *(f"clients/{name}" for name in CLIENTS), "operator")):
    for kit in kits:
        for name in names:
            if (desk / kit / name).is_file():
                authority.put(running / kit / name, (desk / kit / name).read_bytes(), 0o600)


def child(process, words):
    return next(pid for line, pid in children(process).items() if words in line)


@contextlib.contextmanager
def held_back(running):
    """Inside, the process that plays the run stands still: no round ends."""
    process = child(child(process_of(running / "server/state"), "link.executor"), "link.play")
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.deployment
def test_a_run_does_not_notice_that_the_authority_is_replaced(running, desk, capsys):
    """The steps are taken while the run is played; who was not told yet keeps the operator from the next. Afterwards
    the SuperLink is killed, so that whoever takes part has to connect anew, and to trust the new authority alone. Every
    round counts all clients, no other process is started again, and the weights are the simulation's."""
    for place in (running.parent, *(path.parent / "experiments" for path in running.glob("**/ca.crt"))):
        (place / "parity.py").write_text(PARITY)
    overrides = [f"rounds={ROUNDS}", "local.epochs=5"]
    operator, parties = OperatorKit.load(running / "operator"), federation.parties(running)
    logs = {party.name: len(party.log.read_text()) for party in parties}
    (old,) = load_all(running / "operator/ca.crt")
    old_only = ssl.create_default_context(cadata=pem(old).decode())
    records = []

    def take(name, status=0):
        found, said = execute(["deploy", "authority", name, str(desk)]), capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    def trusting_new():
        new = fingerprint(load_all(desk / "operator/ca.crt")[-1])
        return {name for name, found in federation.trusts_of(operator).items() if found and new in found}

    def replace_it():
        assert "next, when every kit has the new ca.crt: umbel deploy authority switch" in take("trust")
        hand_out(desk, running, "ca.crt", kits=("server", "clients/north", "clients/south", "operator"))
        wait_for(lambda: trusting_new() == {"north", "south"})
        assert "client west does not trust the new authority" in take("switch", 2)
        hand_out(desk, running, "ca.crt", kits=["clients/west"])
        wait_for(lambda: trusting_new() == set(CLIENTS))
        take("switch")
        shake_hands(*host_and_port(operator.address), old_only)
        assert "clients would be locked out" in take("retire", 2)
        hand_out(desk, running, "server.key", "server.crt", "ca.key")
        take("retire")
        hand_out(desk, running, "ca.crt")

    with RemoteFederation(operator.address, operator.authority, operator.token, len(CLIENTS)) as remote:
        for event in remote.submit("parity.py:scaffold", overrides):
            if isinstance(event, RoundDone):
                records.append(event.record)
            if isinstance(event, RoundDone) and len(records) == 1:
                with held_back(running):
                    replace_it()
                    os.kill(child(process_of(running / "server/state"), "flower.link "), signal.SIGKILL)
    expected = [(number, 3, 0) for number in range(1, ROUNDS + 1)]
    assert [(one.round, one.clients, one.failures) for one in records] == expected
    experiment = load_experiment(f"{running.parent}/parity.py:scaffold", overrides)
    assert event.final["params_sha256"] == umbel.run(experiment, Simulation(workers=1, compile="graph")).params_sha256
    said = [party.log.read_text()[logs[party.name] :] for party in parties]
    ended = [line for text in said for line in text.splitlines() if "started again" in line]
    assert [line.partition(" ended")[0] for line in ended] == ["superlink"], "\n".join(said)
    with pytest.raises(ConfigError, match="not of this federation's authority"):
        shake_hands(*host_and_port(operator.address), old_only)


def test_a_client_with_new_keys_is_in_every_roster_and_its_old_ones_in_none(fed, tmp_path):
    stale = shutil.copytree(fed / "clients/north", tmp_path / "stale")
    before = ServerKit.load(fed / "server").node_keys
    assert fed / "server/clients/north.pub" in rekey(fed, "north")
    after = ServerKit.load(fed / "server").node_keys
    assert (after["north"] != before["north"], after["south"]) == (True, before["south"])
    kits = [ClientKit.load(fed / "clients" / name) for name in ("north", "south")]
    assert [kit.number for kit in kits] == [0, 1]
    assert kits[0].roster() == kits[1].roster() != ClientKit.load(stale).roster()
    shutil.copy(fed / "clients/north/roster.bin", stale / "roster.bin")
    with pytest.raises(ConfigError, match="is not in its roster"):
        ClientKit.load(stale)
    assert all(path.stat().st_mode & 0o077 == 0 for path in fed.glob("**/*.key"))
    with pytest.raises(ConfigError, match=r"no client 'nord' in .*; did you mean 'north'"):
        rekey(fed, "nord")


def test_a_new_token_is_the_one_that_the_server_knows(fed):
    before, text = OperatorKit.load(fed / "operator").token, (fed / "server/server.toml").read_text()
    retoken(fed)
    token, server = OperatorKit.load(fed / "operator").token, ServerKit.load(fed / "server")
    assert token != before
    assert server.token_sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert len((fed / "server/server.toml").read_text().splitlines()) == len(text.splitlines())


@pytest.mark.deployment
def test_new_keys_and_a_new_token_work_between_two_runs(running):
    """The old token is refused; the client is let in under its new keys, and takes part."""
    before = OperatorKit.load(running / "operator").token
    federation.stop(running, only=list(CLIENTS))  # while there is a server: one that heard no farewell waits for them
    federation.stop(running)
    rekey(running, "north")
    retoken(running)
    federation.up(running, lambda text: None)
    operator = OperatorKit.load(running / "operator")
    with Operator(operator.address, operator.authority, before) as stranger, pytest.raises(ConfigError, match="token"):
        stranger.nodes()
    with RemoteFederation(operator.address, operator.authority, operator.token, len(CLIENTS)) as remote:
        events = list(remote.submit("mine.py"))
    assert [event.record.clients for event in events if isinstance(event, RoundDone)] == [3]
