"""A run as a stream: what is told is committed, and a consumer that leaves pauses the run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from federations import federation
from umbel import ConfigError, Simulation, run
from umbel.core.types import Failure
from umbel.runtimes.flower.events import packed, unpacked
from umbel.server import Finished, Progress, RoundDone, Started, play
from umbel.server.events import told, watched
from umbel.server.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'runs.db'}") as opened:
        yield opened


@pytest.fixture(scope="module")
def simulation():
    return Simulation(workers=1)


def test_a_stream_is_the_run(simulation, store):
    first, *rounds, last = play(federation(), simulation, store=store)
    assert (type(first), {type(event) for event in rounds}, type(last)) == (Started, {RoundDone}, Finished)
    assert (first.run, first.records, first.experiment.name) == (last.history.run, (), "small")
    assert tuple(event.record for event in rounds) == last.history.rounds
    assert last.final == last.history.final()
    assert last.history.params_sha256 == run(federation(), simulation, watchers=()).params_sha256


def test_what_is_told_is_committed(simulation, store):
    for event in play(federation(), simulation, store=store):
        stored = store.runs()[0]
        if isinstance(event, RoundDone):
            assert (stored.rounds_done, stored.state) == (event.record.round, "running")
    assert stored.state == "finished"


class Left(Exception):
    pass


def close(stream):
    stream.close()


def interrupt(stream):
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())


def fail(stream):
    with pytest.raises(Left):
        stream.throw(Left())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("leave", "state"), [(close, "paused"), (interrupt, "paused"), (fail, "failed")], ids=["close", "Ctrl-C", "error"]
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_run_whose_consumer_leaves_is_resumed_with_its_bits(simulation, store, wrapped, leave, state, after):
    stream = play(federation(), simulation, store=store)
    stream = watched(told(stream, lambda event: None), [Progress()]) if wrapped else stream
    started, *_ = [next(stream) for _ in range(1 + after)]
    leave(stream)
    (stored,) = store.runs()
    assert (stored.run, stored.state, stored.rounds_done) == (started.run, state, after)
    resumed, *rounds, finished = play(federation(), simulation, store=store, resume=started.run)
    assert ([record.round for record in resumed.records], len(rounds)) == ([1, 2][:after], 3 - after)
    assert finished.final["params_sha256"] == run(federation(), simulation, watchers=()).params_sha256


def test_a_loop_that_is_left_pauses_the_run(simulation, store):
    for event in play(federation(), simulation, store=store):
        if isinstance(event, RoundDone):
            break
    assert [(one.state, one.rounds_done) for one in store.runs()] == [("paused", 1)]


def test_a_bad_argument_is_said_before_the_first_event_and_nothing_is_begun_by_asking(simulation, store):
    with pytest.raises(ConfigError, match="without a store"):
        play(federation(), simulation, resume="latest")
    play(federation(), simulation, store=store)
    assert store.runs() == []


def test_what_a_listener_raises_ends_the_run_as_an_error_of_its_own(simulation, store):
    def refuse(event):
        raise ConfigError("it is not to begin")

    with pytest.raises(ConfigError, match="not to begin"):
        list(told(play(federation(), simulation, store=store), refuse))
    assert store.runs() == []  # a mistake, before there was a round


def test_events_travel_as_json_each_round_once(simulation, store):
    events = list(play(federation(), simulation, store=store))
    events[2] = replace(events[2], failures=[Failure(3, "timeout", "late")])
    messages = [json.loads(json.dumps(packed(event))) for event in events]
    started, *rounds, finished = unpacked([*messages[:3], messages[2], *messages[3:]])
    assert (started.run, started.experiment, started.runtime) == (events[0].run, None, None)
    assert [one.record for one in rounds] == [one.record for one in events[1:-1]]
    assert [list(one.failures) for one in rounds] == [[], [Failure(3, "timeout", "late")], []]
    assert (finished.final, finished.history) == (events[-1].final, None)
    assert np.isfinite(finished.final["seconds"])
