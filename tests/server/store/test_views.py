"""What whoever looks on reads, on both databases: the same as whoever continues a run."""

import pytest

from umbel.core.errors import StoreError


def test_an_overview_is_the_run_and_its_totals_are_sums_over_its_rounds(store, scenario):
    first, second = scenario.begin(store), scenario.begin(store, "another", 7)
    for round in (1, 2, 3):
        scenario.commit(store, first, round)
    store.finish(first, "stopped", "because")
    newest, oldest = store.views.overviews()
    assert (newest.run, newest.rounds_done, newest.rounds_planned, newest.metrics) == (second, 0, 7, {})
    assert (oldest.run, oldest.state, oldest.reason, oldest.rounds_done) == (first, "stopped", "because", 3)
    records = store.load_run(first, like=scenario.state(0)).records
    assert oldest.epsilon == records[-1].epsilon
    totals = store.views.totals([first, second])
    assert totals.keys() == {first}
    assert totals[first].seconds == pytest.approx(sum(one.seconds for one in records))
    assert totals[first].bytes == sum(one.bytes_up for one in records)
    assert totals[first].failures == sum(one.failures for one in records)
    assert totals[first].metrics == {}  # no round was evaluated


def test_rounds_are_those_after_one(store, scenario):
    run = scenario.begin(store)
    for round in (1, 2, 3):
        scenario.commit(store, run, round)
    assert [one.round for one in store.views.rounds(run, after=1)] == [2, 3]
    assert [one.round for one in store.views.rounds(run)] == [1, 2, 3]
    assert store.views.rounds(run, after=3) == []


def test_a_mark_changes_with_the_run_and_with_no_other(store, scenario):
    first, second = scenario.begin(store), scenario.begin(store)
    before = store.views.marks()
    scenario.commit(store, first, 1)
    after = store.views.marks()
    assert after[first] > before[first]
    assert after[second] == before[second] == store.views.mark(second)
    store.delete_run(first)
    assert store.views.mark(first) is None


def test_details_take_what_any_command_takes_for_a_run(store, scenario):
    run = scenario.begin(store)
    found = store.views.details("latest")
    assert (found.overview.run, found.totals) == (run, None)
    assert found.description == store.load_run(run, like=scenario.state(0)).description
    with pytest.raises(StoreError, match="no run 'nothing'"):
        store.views.details("nothing")
