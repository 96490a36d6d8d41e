"""What comes after the page: rounds and runs as the store gets them, whichever process writes."""

import json
import re
import urllib.error
import urllib.request

import pytest

from shown import begin, go_on, record
from umbel.core.errors import ConfigError
from umbel.server.store import Store
from umbel.server.ui import Page, PageAddress
from umbel.server.ui.live import ChangedRuns, NewRounds


def test_rounds_are_told_once_and_only_those_that_are_new(store):
    run = begin(store)
    go_on(store, run, range(1, 4))
    poll = NewRounds(store, run, after=1)
    assert poll()["rounds"]["round"] == [2, 3]
    assert poll() is None
    go_on(store, run, [4])
    told = poll()
    assert told["rounds"]["round"] == [4]
    assert told["rounds"]["metrics"]["test_loss"] == [record(4).metrics["test_loss"]]
    store.finish(run, "failed", "because")
    told = poll()
    assert (told["run"]["state"], told["run"]["reason"], told["rounds"]["round"]) == ("failed", "because", [])


def test_runs_that_begin_go_on_end_and_go_are_told(store, tmp_path):
    first = begin(store)
    poll = ChangedRuns(store, store.views.mark(first))
    assert poll() is None
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as elsewhere:
        second = begin(elsewhere)
        assert [one["run"] for one in poll()["runs"]] == [second]
        go_on(elsewhere, first, [1])
    (told,) = poll()["runs"]
    assert (told["run"], told["rounds_done"], told["bytes"]) == (first, 1, 17000)
    store.delete_run(second)
    assert poll() == {"runs": [], "gone": [second]}
    assert poll() is None


def test_what_changed_before_the_first_poll_is_told(store):
    first = begin(store)
    mark = store.views.mark(first)
    go_on(store, first, [1])
    assert [one["run"] for one in ChangedRuns(store, mark)()["runs"]] == [first]


def test_events_reach_a_browser_and_the_page_ends(store):
    run = begin(store)
    with Page(store, PageAddress(port=0)) as page:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
        assert b"<html" in opener.open(page.url(), timeout=20).read()
        with opener.open(page.url(f"/events/{run}").split("?")[0], timeout=20) as events:
            assert next(told(events))["rounds"]["round"] == []
            go_on(store, run, [1])
            assert next(told(events))["rounds"]["round"] == [1]
    with pytest.raises(urllib.error.URLError):
        opener.open(page.url(), timeout=5)


def told(events):
    """The content of each event."""
    return (json.loads(line[6:]) for line in events if line.startswith(b"data: "))


def test_a_taken_port_is_refused_and_by_default_the_next_one_is_used(store):
    with Page(store, PageAddress(port=0)) as page:
        port = int(re.search(r":(\d+)/", page.url()).group(1))
        with pytest.raises(ConfigError, match=f"port={port}: Address already in use; choose another --host or --port"):
            Page(store, PageAddress(port=port))
    with Page(store, PageAddress()) as one, Page(store, PageAddress()) as other:
        assert one.url().split("?")[0] != other.url().split("?")[0]


def test_a_token_is_new_each_time_and_not_in_the_repr():
    one, other = PageAddress(), PageAddress()
    assert one.token != other.token
    assert one.token not in repr(one)
