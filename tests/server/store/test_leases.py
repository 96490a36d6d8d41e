"""Who plays a run: one process at a time, and nobody waits for one that died."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from umbel import StoreError
from umbel.server.store import Store, leases

HOLD = (
    "import sys; from umbel.server.store import Store; s = Store.open(sys.argv[1]); print(s.hold(sys.argv[2])); input()"
)


@pytest.fixture
def run(url, scenario):
    with Store.open(url) as store:
        return scenario.begin(store)


@pytest.fixture
def other(url, run):
    """Another process that plays the run."""
    words = [sys.executable, "-c", HOLD, url, run]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == run
        yield process
        process.kill()


def test_one_plays_until_it_ends_or_dies(url, run, other, scenario):
    with Store.open(url) as store:
        for _ in range(2):
            with pytest.raises(StoreError, match=f"run {run} is being played by process {other.pid}; wait until it"):
                store.hold("latest")
        with pytest.raises(StoreError, match="is being played by"):
            store.delete_run(run)
        os.kill(other.pid, signal.SIGSTOP)  # it may go on
        with pytest.raises(StoreError, match="is being played by"):
            store.hold(run)
        other.kill()
        other.wait()
        assert store.hold(run) == run
        scenario.commit(store, run, 1)
        with Store.open(url) as second, pytest.raises(StoreError, match=f"by process {os.getpid()}"):
            second.hold(run)  # within one process, too
        store.release(run)
        assert store.hold(run) == run
        store.release(run)
        store.delete_run(run)


def test_a_number_that_is_given_out_again_is_another_process(url, run, sql):
    with Store.open(url) as store, Store.open(url) as first:
        first.hold(run)
        sql(url, "UPDATE leases SET born = '1'")
        store.hold(run)
        first.release(run)
        with pytest.raises(StoreError, match="is being played"):
            first.hold(run)
        store.release(run)


def test_of_another_machine_signs_of_life_count_and_clocks_do_not(url, run, sql, monkeypatch):
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.0)

    def renew():
        time.sleep(0.3)
        sql(url, "UPDATE leases SET beats = beats + 1")

    renewing = threading.Thread(target=renew)
    with Store.open(url) as store, Store.open(url) as first:
        first.hold(run)
        sql(url, "UPDATE leases SET place = 'elsewhere 1 2'")
        renewing.start()
        with pytest.raises(StoreError, match=f"by process {os.getpid()} on elsewhere"):
            store.hold(run)
        renewing.join()
        store.hold(run)  # silent for long enough
        store.release(run)


def test_who_lost_its_lease_commits_and_releases_nothing(url, run, sql, scenario):
    """It was suspended for longer than another waits for signs of life."""
    with Store.open(url) as store:
        store.hold(run)
        sql(url, "UPDATE leases SET token = 'x', place = 'elsewhere', process = 7")
        for write in (
            lambda: scenario.commit(store, run, 1),
            lambda: store.write_ledger(run, {"gaussian": 5}),
            lambda: store.finish(run, "failed", "it lost"),
        ):
            with pytest.raises(StoreError, match="is being played by process 7 on elsewhere"):
                write()
        store.release(run)
        loaded = store.load_run(run)
        assert (loaded.state, loaded.records, loaded.ledger["gaussian"]) == ("running", [], 0)
        with pytest.raises(StoreError, match="process 7"):  # what another holds is not given back
            store.delete_run(run)


def test_it_is_renewed(url, run, sql, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    with Store.open(url) as store:
        store.hold(run)
        until = time.monotonic() + 20
        while sql(url, "SELECT beats FROM leases")[0][0] < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        store.release(run)
        assert sql(url, "SELECT count(*) FROM leases")[0][0] == 0


def test_a_run_whose_process_died_is_not_left_running(url, run, other, sql, scenario):
    """Whoever looks sees it, and the next who may write notes it, once; what was committed and charged stays."""
    with Store.open(url) as store:
        scenario.commit(store, run, 1)
        store.write_ledger(run, {"gaussian": 2})
        assert (store.settle(), store.find(run).state) == ([], "running")
        other.kill()
        other.wait()
        assert (store.find(run).state, store.load_run(run).state) == ("paused", "running")
        assert (store.settle(), store.settle()) == ([run], [])
        loaded = store.load_run(run)
        assert (loaded.state, loaded.reason) == ("paused", "its process ended without a word in round 2")
        assert (loaded.ledger, len(loaded.records)) == ({"gaussian": 2}, 1)
        assert [entry.action for entry in store.audit.entries()][-1] == "run.paused"
        assert (store.has(run), store.has(run[:-1])) == (True, False)
