"""Runs over a federation of real processes that go on as if nothing had happened, and are the simulation's."""

import contextlib
import os
import signal
import threading
import time

import pytest

import umbel
from deployments import CLIENTS, PARITY, children, connection, has_begun, wait_for, write_kits
from umbel import ConfigError, Simulation, UmbelError
from umbel.core.reading.loading import load_experiment
from umbel.deploy import federation, kits
from umbel.deploy.federated import Flower
from umbel.deploy.kits import OperatorKit, ServerKit
from umbel.deploy.parties import register
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.processes import free_ports
from umbel.runtimes.flower.remote import RemoteFederation
from umbel.runtimes.flower.secured import Operator
from umbel.server import RoundDone
from umbel.server.store import Store
from umbel.studies.replay import replay_run

pytestmark = pytest.mark.deployment

STILL_SECONDS = 20
PARTIES = ("server", *(f"clients/{name}" for name in CLIENTS))


@pytest.fixture(scope="module")
def fed(running):
    for place in (running.parent, *(running / party / "experiments" for party in PARTIES)):
        (place / "parity.py").write_text(PARITY)
    return running


def simulated(folder, name, overrides=()):
    """The hash of the run that nothing happens to."""
    experiment = load_experiment(f"{folder}/parity.py:{name}", overrides)
    return umbel.run(experiment, Simulation(workers=1, compile="graph")).params_sha256


def test_a_run_survives_its_superlink(fed):
    """It is killed between two rounds, and again while clients train, and then stands still for 20 seconds: nobody is
    left out, and nothing is lost."""
    overrides = ["rounds=4", "local.epochs=100", "local.batch_size=1"]  # half a second of work

    def superlinks():
        return [pid for line, pid in children(process_of(fed / "server/state")).items() if "flower.link " in line]

    def signal_superlink(number):
        wait_for(superlinks)  # one that was killed is being started again
        os.kill(*superlinks(), number)

    log = fed / "clients/north/state/log"

    def kill_when_at_work(since):
        until = time.monotonic() + 2  # news of the round before may come late, and must not kill in the one after
        wait_for(lambda: has_begun(log, since) or time.monotonic() > until, every=0.01)
        signal_superlink(signal.SIGKILL)

    def let_go_on():
        time.sleep(STILL_SECONDS)
        signal_superlink(signal.SIGCONT)

    began, records, later = time.monotonic(), [], []
    with RemoteFederation(*connection(fed)) as remote:
        for event in remote.submit("parity.py:scaffold", overrides):
            if not isinstance(event, RoundDone):
                continue
            records.append(event.record)
            if len(records) == 1:
                signal_superlink(signal.SIGKILL)
            if len(records) == 2:
                later.append(threading.Thread(target=kill_when_at_work, args=(log.stat().st_size,)))
                later[-1].start()
            if len(records) == 3:
                signal_superlink(signal.SIGSTOP)  # at once: the last round has begun
                later.append(threading.Thread(target=let_go_on))
                later[-1].start()
        seconds = time.monotonic() - began
        for thread in later:
            thread.join(1)
    assert [(record.round, record.clients, record.failures) for record in records] == [
        (number, 3, 0) for number in (1, 2, 3, 4)
    ]
    assert event.final["params_sha256"] == simulated(fed.parent, "scaffold", overrides)
    assert records[3].seconds > STILL_SECONDS
    assert seconds < 180


def test_an_asynchronous_run_survives_its_superlink(fed):
    """Killed while clients are at work, twice: nobody fails, nothing counts twice, and a simulation has the bits in the
    order of arrival."""
    for place in (fed.parent, *(fed / party / "experiments" for party in PARTIES)):
        (place / "buffered.py").write_text(PARITY)
    overrides = ["rounds=8", "local.epochs=100", "local.batch_size=1"]

    def superlinks():
        return [pid for line, pid in children(process_of(fed / "server/state")).items() if "flower.link " in line]

    records = []
    with RemoteFederation(*connection(fed)) as remote:
        for event in remote.submit("buffered.py:fedbuff", overrides):
            if isinstance(event, RoundDone):
                records.append(event.record)
                if event.record.round in (2, 5):
                    wait_for(superlinks)
                    os.kill(*superlinks(), signal.SIGKILL)
    assert [(record.clients, record.failures) for record in records] == [(2, 0)] * 8
    landed = [landing.number for record in records for landing in record.landings]
    assert len(landed) == len(set(landed)) == 16
    experiment = load_experiment(f"{fed.parent}/buffered.py:fedbuff", overrides)
    with Store.open(OperatorKit.load(fed / "operator").store) as store:
        assert replay_run(experiment, store, "latest", workers=1).history.params_sha256 == event.final["params_sha256"]


def test_over_tls_runs_at_once_are_the_simulations_bit_for_bit(fed):
    """SCAFFOLD, and FedBN with a codec, what clients keep between rounds included, which is sealed on their disks."""
    names, histories = [("scaffold", 0), ("fedbn", 1)], {}
    before = versions(fed)

    def play(name, seed):
        experiment = load_experiment(f"{fed.parent}/parity.py:{name}", [f"seed={seed}"])
        histories[name, seed] = umbel.run(experiment, Flower(fed, quiet=True))

    threads = [threading.Thread(target=play, args=name) for name in names]
    for thread in threads:
        thread.start()
    for (name, seed), thread in zip(names, threads, strict=True):
        expected = simulated(fed.parent, name, [f"seed={seed}"])
        thread.join(240)
        assert histories[name, seed].params_sha256 == expected
        assert [record.clients for record in histories[name, seed].rounds] == [3] * 3
    kept = versions(fed) - before
    assert len(kept) == len(names) * len(CLIENTS)
    assert not [path for path in kept if b"UMBEL1" in path.read_bytes()]


def versions(fed):
    """The files of what clients kept after their third round."""
    return set((fed / "clients").glob("*/state/memory/*/*.3"))


@pytest.fixture(scope="module")
def movable(tmp_path_factory):
    """A federation of its own, which may be stopped, killed, moved and cut down; ended afterwards. Where it was."""
    folder = tmp_path_factory.mktemp("movable") / "here"
    folder.mkdir()
    kits.make(folder / "fed", "127.0.0.1", None, CLIENTS, free_ports(1)[0])
    write_kits(folder / "fed", {"parity.py": PARITY.replace("rounds=3", "rounds=5").replace("epochs=2", "epochs=40")})
    places = [folder]
    yield places
    with contextlib.suppress(ConfigError):
        federation.stop(places[-1] / "fed")


def play(folder, resume=None):
    """Submit the run, and follow it; what it said last."""
    with RemoteFederation(*connection(folder / "fed")) as remote:
        return list(remote.submit("parity.py:scaffold", resume=resume))[-1].final


def begin(folder, resume=None):
    """The same in the background, whatever comes of it. Returns once a round more is committed: the run."""

    def follow():
        with contextlib.suppress(UmbelError):
            play(folder, resume)

    store = Store.open(OperatorKit.load(folder / "fed/operator").store)
    done = store.runs()[0].rounds_done if resume else 0
    threading.Thread(target=follow, daemon=True).start()
    wait_for(lambda: store.runs() and store.runs()[0].rounds_done > done, 180)
    return store


def test_a_run_survives_that_all_is_stopped_and_all_is_killed_and_moved(movable):
    """Stopped by SIGTERM it is paused; killed, it goes on in another folder, with what clients kept, to its bits."""
    here = movable[0]
    expected = simulated(here, "scaffold")
    federation.up(here / "fed", lambda text: None)
    with begin(here) as store:
        began = time.monotonic()
        assert federation.stop(here / "fed") == ["server", "north", "south", "west"]
        assert time.monotonic() - began < 30
        (run,) = store.runs()
    assert (run.state, run.rounds_done < 5) == ("paused", True)
    federation.up(here / "fed", lambda text: None)
    with begin(here, run.run) as store:
        for party in federation.parties(here / "fed"):
            parent = process_of(party.state)
            for process in (*children(parent).values(), parent):
                os.kill(process, signal.SIGKILL)
        assert store.runs()[0].rounds_done < 5
    wait_for(lambda: not any(process_of(party.state) for party in federation.parties(here / "fed")))
    there = here.rename(here.with_name("there"))
    movable.append(there)
    for policy in there.glob("fed/clients/*/policy.toml"):
        policy.write_text(policy.read_text().replace(str(here), str(there)))
    federation.up(there / "fed", lambda text: None)
    final = play(there, run.run)
    with Store.open(OperatorKit.load(there / "fed/operator").store) as store:
        assert [(one.clients, one.failures) for one in store.load_run(run.run).records] == [(3, 0)] * 5
    assert (final["run"], final["params_sha256"]) == (run.run, expected)


def test_a_client_that_is_let_go_in_mid_run_is_left_out(movable):
    """South's key is revoked while it trains: the round ends without it, soon, and so does the run."""
    fed = movable[-1] / "fed"
    federation.up(fed, lambda text: None)
    kit, rounds = OperatorKit.load(fed / "operator"), []

    log = fed / "clients/south/state/log"

    with Operator(kit.address, kit.authority.read_bytes(), kit.token) as operator:
        (south,) = (node for node in operator.nodes() if node.name == "south")

        def unregister_at_work():
            wait_for(lambda: has_begun(log, armed), 120)
            operator.unregister(south.node)

        revoke = threading.Thread(target=unregister_at_work)
        with RemoteFederation(*connection(fed)) as remote:
            for event in remote.submit("parity.py:fedbn", ["rounds=4", "local.epochs=100", "local.batch_size=1"]):
                if isinstance(event, RoundDone):
                    rounds.append((event.record.clients, [one[:2] for one in event.failures]))
                    armed = log.stat().st_size
                    if len(rounds) == 1:
                        revoke.start()
        revoke.join(1)
        with pytest.raises(ConfigError, match="the key of south was revoked before, and is never taken again"):
            register(operator, ServerKit.load(fed / "server").node_keys, lambda text: None)
    assert rounds[0] == (3, [])
    assert rounds[-2:] == [(2, [(1, "unreachable")])] * 2
