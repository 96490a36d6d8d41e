"""Runs and rounds: what is committed is what is read, to the bit; what cannot follow is refused."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from umbel.core.errors import ConfigError, StoreError
from umbel.server.store import Store, blobs


def test_a_state_comes_back_bit_for_bit(store, scenario):
    run = scenario.begin(store)
    scenario.commit(store, run, 1)
    loaded = store.load_run(run, like=scenario.state(0))
    assert scenario.bits(loaded.server_state) == scenario.bits(scenario.state(1))
    assert scenario.bits(store.checkpoint(run, 0, scenario.state(0))) == scenario.bits(scenario.state(0))


def test_named_tuples_come_from_a_function_of_the_spec(store, scenario):
    run = scenario.begin(store)
    like = store.load_run(run, like=lambda spec: scenario.state(0) if spec == scenario.SPEC else None)
    assert type(like.server_state.strategy[0]).__name__ == "Momentum"
    assert type(store.load_run(run).server_state.strategy[0]) is tuple


@pytest.mark.usefixtures("at_rest")
def test_a_resumed_run_reads_what_was_committed(url, scenario):
    with Store.open(url) as store:
        run = scenario.begin(store)
        for round in range(1, 4):
            scenario.commit(store, run, round)
    with Store.open(url, create=False) as store:
        loaded = store.load_run("latest")
        assert (loaded.run, loaded.name, loaded.state, loaded.reason) == (run, "scenario", "running", None)
        assert (loaded.rounds, loaded.seed, loaded.spec) == (50, 2**70, scenario.SPEC)
        assert (loaded.description, loaded.choices) == ({"strategy": "FedAvg()"}, {"compile": "xla"})
        assert scenario.bits(loaded.records) == scenario.bits([scenario.record(round) for round in range(1, 4)])
        assert loaded.ledger == {"gaussian": 3}
        memory = store.memory(run)
        for client in range(12):
            last = scenario.remembered(3, client)
            expected = None if last is None else scenario.memory(last)[client]
            assert scenario.bits(memory.read(client)) == scenario.bits(expected)
        assert store.check() == []


@pytest.mark.parametrize("round", [1, 2, 4])
def test_a_round_that_does_not_follow_is_refused_whole(store, scenario, round):
    run = scenario.begin(store)
    for done in (1, 2):
        scenario.commit(store, run, done)
    with pytest.raises(StoreError, match=f"round {round} cannot be committed after round 2; another process"):
        store.commit_round(run, scenario.state(round), scenario.record(round), {99: [np.ones(1)]})
    assert store.memory(run).read(99) is None
    assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(scenario.state(2))


def test_of_two_processes_on_one_run_each_round_has_one_winner(url, scenario):
    with Store.open(url) as store:
        run = scenario.begin(store)
    wins, refusals, barrier = [], [], threading.Barrier(2)

    def resume(who):
        with Store.open(url) as own:
            for round in range(1, 9):
                barrier.wait(30)
                try:
                    scenario.commit(own, run, round)
                    wins.append((round, who))
                except StoreError as error:
                    refusals.append(str(error))

    threads = [threading.Thread(target=resume, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(round for round, _ in wins) == list(range(1, 9))
    assert len(refusals) == 8
    assert all("another process" in refusal for refusal in refusals)
    with Store.open(url) as store:
        assert [record.round for record in store.load_run(run).records] == list(range(1, 9))
        assert store.check() == []


@pytest.mark.usefixtures("at_rest")
def test_pruning_keeps_the_last_and_the_best_and_no_orphan(url, scenario, sql):
    with Store.open(url) as store:
        run, other = scenario.begin(store), scenario.begin(store)
        for round in range(1, 8):
            scenario.commit(store, run, round, keep=2, best=round in (2, 4))
        kept = [row.round for row in sql(url, "SELECT round FROM checkpoints WHERE run = :r ORDER BY round", r=run)]
        assert kept == [4, 6, 7]
        assert scenario.bits(store.checkpoint(run, "best", scenario.state(0))) == scenario.bits(scenario.state(4))
        with pytest.raises(StoreError, match="no checkpoint 5; it keeps rounds 4, 6, 7"):
            store.checkpoint(run, 5)
        with pytest.raises(StoreError, match="no checkpoint 'best'; it keeps rounds 0"):
            store.checkpoint(other, "best")
        assert store.check() == []
        store.delete_run(run)
        assert store.check() == []
        assert store.checkpoint(other).round == 0
        store.delete_run(other)
        assert sql(url, "SELECT (SELECT count(*) FROM blobs) + (SELECT count(*) FROM blob_parts)") == [(0,)]


def test_an_unchanged_array_is_not_written_again(url, scenario, sql):
    total = "SELECT sum(size) FROM blobs"
    with Store.open(url) as store:
        run = scenario.begin(store)
        before = sql(url, total)[0][0]
        store.commit_round(run, scenario.state(0)._replace(round=1), scenario.record(1), {}, keep=5)
        assert sql(url, total)[0][0] - before < blobs.SMALL_BYTES
        assert store.checkpoint(run, 0).params.tobytes() == store.checkpoint(run, 1).params.tobytes()


def test_a_large_blob_is_stored_in_parts(store, url, scenario, sql, monkeypatch):
    monkeypatch.setattr(blobs, "PART_BYTES", 30_000)
    run = scenario.begin(store)
    assert sql(url, "SELECT count(*) FROM blob_parts WHERE part > 0")[0][0] >= 4
    assert sql(url, "SELECT max(length(bytes)) FROM blob_parts") == [(30_000,)]
    assert scenario.bits(store.checkpoint(run, like=scenario.state(0))) == scenario.bits(scenario.state(0))


def test_the_ledger_is_kept_before_the_round_and_never_goes_down(store, scenario):
    run = scenario.begin(store)
    store.write_ledger(run, {"gaussian": 5, "laplace": 2**40})
    scenario.commit(store, run, 1)  # its state has gaussian: 1
    loaded = store.load_run(run)
    assert loaded.ledger == {"gaussian": 5, "laplace": 2**40}
    assert loaded.server_state.ledger == {"gaussian": 1}
    with pytest.raises(StoreError, match="no run 'nobody'"):
        store.write_ledger("nobody", {})


def test_memory_is_read_one_client_at_a_time(url, scenario):
    with Store.open(url) as store:
        run = scenario.begin(store)
        arrays = {client: [np.full(1000, client, np.float32)] for client in range(2000)}  # 8 MB
        store.commit_round(run, scenario.state(1), scenario.record(1), arrays)
    with Store.open(url) as store:
        memory = store.memory(run)
        memory.read(0)
        tracemalloc.start()
        assert memory.read(1234)[0].tolist() == [1234] * 1000
        assert 2000 not in memory
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(memory) == 2000
        assert peak < 1_000_000


def test_memory_written_is_read_at_once_and_committed_with_the_round(store, scenario):
    run = scenario.begin(store)
    memory = store.memory(run)
    memory.write(7, [np.ones(2)])
    memory.write(np.int64(3), [])
    assert memory.read(7)[0].tolist() == [1, 1]
    assert store.memory(run).read(7) is None
    store.commit_round(run, scenario.state(1), scenario.record(1), memory.take())
    assert memory.take() == {}
    assert store.memory(run).read(7)[0].tolist() == memory.read(7)[0].tolist() == [1, 1]
    assert memory.read(3) == []


def test_runs_are_listed_newest_first_and_found_by_prefix(store, scenario):
    assert store.runs() == []
    with pytest.raises(StoreError, match="no run 'latest': the store holds no runs yet"):
        store.load_run("latest")
    ids = [scenario.begin(store, name) for name in ("one", "two", "three")]
    assert len(set(ids)) == 3
    moments = [run[:13] for run in ids]  # the last two characters are chance
    assert moments == sorted(moments)
    scenario.commit(store, ids[0], 1)
    summaries = store.runs()
    assert [summary.experiment for summary in summaries] == ["three", "two", "one"]
    last = summaries[-1]
    assert (last.run, last.state, last.rounds_done, last.rounds_planned) == (ids[0], "running", 1, 50)
    assert scenario.bits(last.metrics) == scenario.bits(scenario.record(1).metrics)
    assert summaries[0].metrics == {}
    assert store.load_run("latest").run == ids[2]
    with pytest.raises(StoreError, match="beginning of several ids"):
        store.load_run(ids[0][:3])
    for wrong in ("2099%", f"{ids[1][:-1]}!"):
        with pytest.raises(StoreError, match=f"no run '{wrong}'; the nearest: .*{ids[1]}"):
            store.load_run(wrong)
    for run in ids[1:]:
        store.delete_run(run)
    assert store.load_run(ids[0][:9]).run == ids[0]


def test_a_run_ends_and_goes_on(store, scenario):
    run = scenario.begin(store, rounds=1)
    scenario.commit(store, run, 1)
    store.finish(run, "stopped", "too few clients")
    assert (store.load_run(run).state, store.load_run(run).reason) == ("stopped", "too few clients")
    store.reopen(run)
    assert (store.load_run(run).state, store.load_run(run).reason) == ("running", None)
    store.finish(run, "finished", None)
    store.set_rounds(run, 2)
    scenario.commit(store, run, 2)
    loaded = store.load_run(run)
    assert (loaded.state, loaded.rounds) == ("running", 2)
    with pytest.raises(ConfigError, match="rounds=1 ≥ 2, the rounds already done"):
        store.set_rounds(run, 1)
    with pytest.raises(ConfigError, match="state='done'"):
        store.finish(run, "done")
    for change in (
        lambda: store.finish("x", "failed"),
        lambda: store.set_rounds("x", 3),
        lambda: store.delete_run("x"),
    ):
        with pytest.raises(StoreError, match="no run 'x'"):
            change()


def test_an_impossible_commit_is_refused_before_the_database(store, scenario):
    run = scenario.begin(store)
    with pytest.raises(ConfigError, match="keep=0"):
        scenario.commit(store, run, 1, keep=0)
    with pytest.raises(ConfigError, match=r"record\.round=2"):
        store.commit_round(run, scenario.state(1), scenario.record(2), {})
    with pytest.raises(TypeError, match=r"cannot store a \w*Path"):
        store.commit_round(run, scenario.state(1)._replace(transforms=Path()), scenario.record(1), {})
    assert store.load_run(run).server_state.round == 0
