"""Simulated devices: what rounds cost on the virtual clock, who is left out of them and why."""

import dataclasses

import numpy as np
import pytest

from federations import blobs, federation
from simulations import play
from umbel import (
    AllClients,
    ConfigError,
    FixedCohort,
    Local,
    RunStopped,
    StopAt,
    WeightedCohort,
    data,
)
from umbel.core.parts.devices import Around, Deadline, Devices, Diurnal, Fleet, Traces, fleet_of
from umbel.core.random import derive
from umbel.server.store import Store

PARAMS = 6 * 8 + 8 + 8 * 3 + 3  # of the model `dense`
PLAIN = Local(epochs=2, batch_size=5, learning_rate=0.1)


def fleet(clients=1000, seed=0, **settings):
    return Fleet(Devices(**settings), clients, derive(seed, "devices"))


def everyone(clients):
    return np.arange(clients)


class Watch:
    """Keeps each round's failures."""

    def __init__(self):
        self.failures = []

    def on_start(self, experiment, runtime, run, records):
        pass

    def on_round(self, record, failures):
        self.failures.append({failure.client: failure for failure in failures})

    def on_end(self, history):
        pass


def test_a_round_lasts_as_long_as_its_slowest_client():
    experiment = federation(devices=Devices(10.0, 100.0, 50.0), sampler=AllClients(), local=PLAIN)
    history = play(experiment)
    slowest = experiment.population.sizes().max()
    each = 4 * PARAMS / 100 + 2 * slowest / 10 + 4 * PARAMS / 50
    np.testing.assert_allclose(history.column("virtual_seconds"), each * np.arange(1, 4))


def test_devices_without_failures_change_no_bit():
    plain, timed = federation(), federation(devices=Devices(Around(10.0, 2.0), 1e3, Around(1e3, 1.0)))
    assert play(timed, 2).params_sha256 == play(plain, 2).params_sha256


def test_the_same_bits_whatever_the_number_of_workers():
    experiment = federation(
        devices=Devices(Around(10.0, 1.0), 1e3, 1e3, dropout=0.3, availability=Diurnal(hours=16, spread_hours=8)),
        sampler=FixedCohort(5),
        deadline=Deadline(seconds=20.0),
        rounds=5,
    )
    histories = [play(experiment, workers) for workers in (1, 2, 4)]
    assert len({history.params_sha256 for history in histories}) == 1
    assert len({str(history.column("virtual_seconds")) for history in histories}) == 1
    assert histories[0].column("failures").sum() > 0


class Stop(Exception):
    pass


def test_resumed_run_has_the_clock_of_the_uninterrupted_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    devices = Devices(Around(10.0, 1.0), dropout=0.2, availability=Diurnal(hours=12, spread_hours=6))
    experiment = federation(devices=devices, rounds=4)
    first = play(dataclasses.replace(experiment, rounds=2), store=url)
    resumed = play(experiment, store=url, resume=first.run)
    whole = play(experiment)
    assert resumed.params_sha256 == whole.params_sha256
    assert resumed.column("virtual_seconds").tolist() == whole.column("virtual_seconds").tolist()


def test_at_the_deadline_the_late_are_left_out():
    """Client k needs k + 1 seconds; four are in time."""
    x, y = blobs(8 * 4)
    experiment = federation(
        population=data.PerClient([(x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4]) for k in range(8)]),
        sampler=AllClients(),
        local=Local(epochs=1, batch_size=4, learning_rate=0.1),
        devices=Devices(examples_per_second=4 / np.arange(1.0, 9.0)),
        deadline=Deadline(seconds=4.5),
        rounds=2,
    )
    watch = Watch()
    history = play(experiment, watchers=[watch])
    assert history.column("clients").tolist() == [4, 4]
    assert history.column("virtual_seconds").tolist() == [4.5, 9.0]
    assert sorted(watch.failures[1]) == [4, 5, 6, 7]
    assert {failure.reason for failure in watch.failures[1].values()} == {"deadline"}
    assert "after 4.5 s" in watch.failures[1][4].detail
    # The late had received the broadcast all the same; they sent nothing.
    assert history.column("bytes_down").tolist() == [8 * 4 * PARAMS] * 2
    assert history.column("bytes_up").tolist() == [4 * 4 * PARAMS] * 2

    over = dataclasses.replace(experiment, deadline=Deadline(over_selection=8 / 3))
    history = play(over)
    assert history.column("clients").tolist() == [3, 3]
    assert history.column("virtual_seconds").tolist() == [3.0, 6.0]

    generous = play(dataclasses.replace(experiment, deadline=Deadline(seconds=100.0)))
    assert generous.column("virtual_seconds").tolist() == [8.0, 16.0]


def test_the_late_are_as_if_they_had_not_been_sampled():
    slow = np.ones(8)
    slow[[1, 4, 6]] = 1e-3
    experiment = federation(
        sampler=AllClients(), devices=Devices(examples_per_second=slow), deadline=Deadline(seconds=1000.0)
    )

    class Others:
        def sample(self, clients, sizes, key):
            return [0, 2, 3, 5, 7]

    expected = play(federation(sampler=Others()))
    assert play(experiment).params_sha256 == expected.params_sha256


def test_a_cohort_that_is_lost_stops_the_run_and_leaves_no_round(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with pytest.raises(RunStopped, match=r"round 1: 0 valid updates, expected at least 1 \(4 failed: dropped_out; "):
        play(federation(devices=Devices(1.0, dropout=1.0)), store=url)
    with Store.open(url) as store:
        assert store.load_run("latest").server_state.round == 0


def test_the_server_waits_until_enough_can_be_reached():
    devices = Devices(100.0, availability=Diurnal(hours=2, start_hour=9, spread_hours=0))
    watch = Watch()
    history = play(federation(devices=devices, rounds=1), watchers=[watch])
    assert 9 * 3600 <= history.column("virtual_seconds")[0] < 9.1 * 3600
    assert watch.failures == [{}]
    short = Traces([0, 1, 2], [0, 0, 0], [50, 50, 50])
    with pytest.raises(RunStopped, match="too few clients can be reached"):
        play(federation(devices=Devices(1.0, availability=short)))


def test_clients_that_go_out_of_reach_while_they_work():
    sizes = federation().population.sizes()
    traces = Traces(np.arange(8), np.zeros(8), np.where(sizes > 10, 5.0, 1e6))
    watch = Watch()
    experiment = federation(devices=Devices(2.0, availability=traces), sampler=AllClients(), rounds=1)
    play(experiment, watchers=[watch])
    assert sorted(watch.failures[0]) == np.flatnonzero(sizes > 10).tolist()
    assert {(one.reason, one.detail) for one in watch.failures[0].values()} == {
        ("unavailable", "it went out of reach after 5 s")
    }


def test_time_to_a_target():
    experiment = federation(devices=Devices(10.0), rounds=20, callbacks=(StopAt("test_accuracy", 0.6),))
    history = play(experiment)
    assert history.time_to(0.6) == history.column("virtual_seconds")[-1]
    assert history.time_to(1.1) is None
    with pytest.raises(ConfigError, match="no round has 'virtual_seconds'"):
        play(federation(rounds=1)).time_to(0.5)


def test_speeds_are_around_the_median():
    seconds = fleet(20_000, examples_per_second=Around(8.0, 0.7)).seconds(everyone(20_000), np.ones(20_000), 0, 0)
    assert np.median(seconds) == pytest.approx(1 / 8, rel=0.03)
    assert np.std(np.log(seconds)) == pytest.approx(0.7, rel=0.03)
    assert np.std(np.log(seconds)) != pytest.approx(1.4, rel=0.3)


def test_a_client_s_device_does_not_depend_on_who_else_is_asked():
    one = fleet(50, examples_per_second=Around(8.0, 0.7), availability=Diurnal())
    all_of_them = one.seconds(everyone(50), np.full(50, 3), 0, 0)
    assert one.seconds(np.array([7, 30]), np.full(2, 3), 0, 0).tolist() == all_of_them[[7, 30]].tolist()
    assert one.until(np.array([7, 30]), 9e4).tolist() == one.until(everyone(50), 9e4)[[7, 30]].tolist()
    other = fleet(50, seed=1, examples_per_second=Around(8.0, 0.7))
    assert other.seconds(everyone(50), np.full(50, 3), 0, 0).tolist() != all_of_them.tolist()


def test_dropouts_have_their_probability():
    fates = fleet(dropout=0.2).fates(everyone(1000), np.ones(1000), 5.0, derive(0, "x"))
    lost = fates.reasons == 1
    assert lost.sum() == pytest.approx(200, abs=50)
    assert (fates.ends[~lost] == 6.0).all()
    assert 5.0 < fates.ends[lost].min() < 5.1 < 5.9 < fates.ends[lost].max() < 6.0


def test_a_day_has_its_hours():
    """Whenever one looks, a client with 6 hours a day is in reach a quarter of the time."""
    days = fleet(400, availability=Diurnal(hours=6, start_hour=20, spread_hours=3))
    looks = np.array([days.until(everyone(400), at) > at for at in np.arange(0, 2 * 86_400, 600.0)])
    assert looks.mean(0) == pytest.approx(np.full(400, 0.25), abs=0.01)
    assert (looks[:144] == looks[144:]).all()
    evening, noon = (len(days.reachable(range(400), hour * 3600.0)) for hour in (23, 12))
    assert evening == pytest.approx(0.68 * 400, abs=40)  # of a normal deviation, within one σ
    assert noon < 10


def test_traces_are_what_the_file_says(tmp_path):
    path = tmp_path / "traces.csv"
    path.write_text("client,start,end\n2,0,10\n0,5,8.5\n0,20,30\n\n2,10,12\n")
    devices = Devices(availability=Traces.read(str(path), period_seconds=100))
    windows = fleet_of(devices, 4, seed=0)
    expected = {  # seconds: until when clients 0 to 3 are in reach
        0: [None, None, 10, None],
        7: [8.5, None, 10, None],
        8.5: [None, None, 10, None],
        11: [None, None, 12, None],
        29.9: [30, None, None, None],
        30: [None, None, None, None],
        125: [130, None, None, None],
    }
    for at, row in expected.items():
        assert [None if until == -np.inf else until for until in windows.until(everyone(4), at)] == row
    assert Traces.read(str(path)) == Traces.read(str(path)) != Traces.read(str(path), period_seconds=99)


def test_many_windows_are_found_by_bisection():
    generator = np.random.default_rng(0)
    edges = np.sort(generator.random((30, 40)), axis=1) * 1000
    traces = Traces(np.repeat(np.arange(30), 20), edges[:, ::2].ravel(), edges[:, 1::2].ravel())
    windows = fleet(31, availability=traces)
    for at in generator.random(50) * 1000:
        inside = (edges[:, ::2] <= at) & (at < edges[:, 1::2])
        expected = [edges[k, 1::2][inside[k]][0] if inside[k].any() else -np.inf for k in range(30)] + [-np.inf]
        assert windows.until(everyone(31), at).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,begin,end\n1,2,3\n", "to begin with client,start,end"),
        ("client,start,end\n", "to hold windows"),
        ("client,start,end\n1,2,3\n1,2\n", "line 3: expected a client's number, start and end, got '1,2'"),
        ("client,start,end\n1.5,2,3\n", "line 2: expected"),
        ("client,start,end\n1,2,nan\n", "client 1's window from 2 s to nan s: expected"),
        ("client,start,end\n1,3,3\n", "client 1's window from 3 s to 3 s: expected client ≥ 0 and 0 ≤ start < end"),
        ("client,start,end\n-1,2,3\n", "expected client ≥ 0"),
        ("client,start,end\n1,2,4\n1,3,5\n", "client 1's window from 3 s to 5 s overlaps the one before it"),
    ],
)
def test_traces_that_are_refused(tmp_path, text, message):
    path = tmp_path / "traces.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Traces.read(str(path))


def test_devices_that_do_not_fit_the_population(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    strangers = Devices(availability=Traces([3, 12], [0, 0], [1, 1]))
    with pytest.raises(ConfigError, match="the traces name client 12; the population has clients 0 to 7"):
        play(federation(devices=strangers), store=url)
    with Store.open(url) as store:
        assert store.runs() == []
    with pytest.raises(ConfigError, match="expected 8 numbers in up_bytes_per_second, got 3"):
        play(federation(devices=Devices(up_bytes_per_second=[1, 2, 3])))
    with pytest.raises(ConfigError, match="cannot read the traces"):
        Traces.read(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Devices(0.0),
        lambda: Devices(up_bytes_per_second=[1.0, -1.0]),
        lambda: Devices(dropout=1.1),
        lambda: Devices(availability="always"),
        lambda: Around(1.0, -1.0),
        lambda: Diurnal(hours=0),
        lambda: Deadline(seconds=0.0),
        lambda: Deadline(over_selection=0.9),
        lambda: Traces([], [], []),
        lambda: Traces([0], [0], [10], period_seconds=9),
        lambda: federation(deadline=Deadline(1.0)),
    ],
)
def test_values_out_of_bounds(make):
    with pytest.raises(ConfigError):
        make()


def test_devices_are_part_of_what_is_compared_and_logged():
    one, other = (federation(devices=Devices([1.0] * 7 + [last])) for last in (1.0, 2.0))
    assert one.digest == federation(devices=Devices(np.ones(8))).digest != other.digest
    assert one.devices == Devices(np.ones(8)) != other.devices
    assert "devices.examples_per_second.values" in one.describe()


def test_weighted_samples_from_some_of_the_clients():
    sizes = np.array([1, 1000, 1, 1000, 1000, 1])
    picks = [WeightedCohort(1).sample([0, 2, 4], lambda: sizes, derive(k))[0] for k in range(50)]
    assert set(picks) <= {0, 2, 4}
    assert picks.count(4) > 45
