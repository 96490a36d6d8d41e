"""Hidden sums over a grid inside this process: every stage, who drops out at it, and what is refused."""

import functools
import os
import shutil
import zlib

import numpy as np
import pytest
import rounds
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from rounds import begin

from federations import Nowhere
from grids import FIRST_NODE, ProcessGrid
from optional import HAS_TENSEAL, needs_tenseal
from umbel import ConfigError, IncompatibleError, RunStopped, Simulation, derive, run
from umbel.core.random import Key
from umbel.core.reading.loading import load_experiment
from umbel.core.runtime import Assignment
from umbel.core.sums import Meeting
from umbel.core.types import NOTHING, Broadcast, ClientUpdate, Shape
from umbel.privacy.contexts import ClientContext
from umbel.privacy.homomorphic import Homomorphic
from umbel.privacy.secure_sum import SecureSum
from umbel.runtimes.flower import secure_tasks, wire
from umbel.runtimes.flower.runtime import FlowerRuntime
from umbel.runtimes.flower.secure import LOCAL_KIT_VARIABLE

KEY, COHORT = derive(1, "round", 1), [0, 2, 3, 5, 6]
ADVERTISE, SHARE, MASK, CONSISTENCY, UNMASK = range(5)
SECURE = "weighting='uniform', secure_aggregation=SecureSum(2.0), sampler=FixedCohort(5)"
WEIGHTED = "secure_aggregation=SecureSum(2.0, metrics=('loss', 'accuracy'), max_weight=200), sampler=FixedCohort(5)"
ENCRYPTED = "weighting='uniform', secure_aggregation=Homomorphic(2.0, clients=8), sampler=FixedCohort(5)"
PERSONAL = SECURE + ", model=federations.dropped_and_normalised, personal=('batch_normalization',)"


class HiddenGrid(ProcessGrid):
    """A ProcessGrid whose clients each have a kit.

    to, back: {(stage, client): content → content}, done to a message on its way, and to its reply; a reply of None
    never arrives. lost: {(stage, client)}: that client's process is another one from then on.
    """

    def __init__(self, path, kits, clients=8, to=None, back=None, lost=()):
        super().__init__(path, clients)
        self.kits, self.to, self.back, self.lost = kits, to or {}, back or {}, set(lost)
        self.log = []  # (stage, client, message, reply)

    def _answer(self, identifier, message, is_training, client):
        if "stage" not in message.content:
            return super()._answer(identifier, message, is_training, client)
        place = message.content["stage"]["number"], client
        if place in self.lost:
            secure_tasks._parts.pop((1, client), None)
        if place in self.to:
            message.content = self.to[place](RecordDict(dict(message.content)))
        before = os.environ[LOCAL_KIT_VARIABLE]
        os.environ[LOCAL_KIT_VARIABLE] = str(self.kits / f"client-{client}")
        try:
            super()._answer(identifier, message, False, client)
        finally:
            os.environ[LOCAL_KIT_VARIABLE] = before
        reply = self._replies[identifier]
        self.log.append((*place, message, reply))
        if place in self.back:
            content = self.back[place](self._replies.pop(identifier).content)
            if content is not None:
                self._replies[identifier] = Message(content, reply_to=message)

    def stages(self, client):
        """The stages at which a client said anything but that it failed."""
        return [stage for stage, one, _, reply in self.log if one == client and "failure" not in reply.content]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where this module's experiments and kits lie: each is made once, and its models are."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(autouse=True)
def kits(place, tmp_path, monkeypatch):
    """The parties' kits; the server's is this process's."""
    monkeypatch.setenv("UMBEL_CLIENT_HOME", str(tmp_path / "clients"))
    monkeypatch.setenv(LOCAL_KIT_VARIABLE, str(place / "kits" / "server"))
    yield place / "kits"
    secure_tasks._parts.clear()


@pytest.fixture
def written(place, kits):
    """Writes a file that defines federation(…), once, and completes the kits for it."""

    def write(arguments=SECURE):
        path = place / f"hidden_{zlib.crc32(arguments.encode())}.py"
        if not path.exists():
            path.write_text(
                "import federations\nfrom federations import federation\nfrom umbel import FixedCohort, data\n"
                "from umbel.privacy import *\nfrom umbel.privacy.budget import step_of\n"
                f"experiment = federation({arguments})\n"
            )
            provide(load_experiment(str(path)).secure_aggregation, kits)
        return path

    return write


def provide(aggregation, kits):
    aggregation.provision(kits / "server", {client: kits / f"client-{client}" for client in range(8)})


@pytest.fixture
def own_kits(written, kits, tmp_path, monkeypatch):
    """Kits that a test may change."""
    written()
    if HAS_TENSEAL:
        written(ENCRYPTED)
    shutil.copytree(kits, tmp_path / "kits")
    monkeypatch.setenv(LOCAL_KIT_VARIABLE, str(tmp_path / "kits" / "server"))
    return tmp_path / "kits"


@pytest.fixture
def as_simulated(monkeypatch):
    """Clients round with the key that a simulation gives them; live, it is fresh."""
    train, enter = FlowerRuntime.train, secure_tasks.enter

    def noted(self, work, summation):
        def watched():
            for assignment in work:
                KEYS["cohort"] = assignment.key
                yield assignment

        return train(self, watched(), summation)

    def entered(run, part, update):
        KEYS["client"] = KEYS["cohort"].derive("client", part.client)
        return enter(run, part, update)

    class Given(Key):
        @staticmethod
        def fresh():
            return KEYS["client"].derive("aggregation")

    monkeypatch.setattr(FlowerRuntime, "train", noted)
    monkeypatch.setattr(secure_tasks, "enter", entered)
    monkeypatch.setattr(secure_tasks, "Key", Given)


KEYS = {}


def collect(runtime, cohort=COHORT, round=1):
    return rounds.collect(runtime, Broadcast(round, runtime.initial_params(), NOTHING, (), 0.1), cohort, KEY)


@functools.cache
def runtime_of(path):
    """One for all tests of an experiment: its model is built once."""
    return FlowerRuntime(None)


def opened(path, kits, timeout_seconds=20, **settings):
    runtime, grid = runtime_of(path), HiddenGrid(path, kits, **settings)
    runtime.grid, runtime.timeout_seconds = grid, timeout_seconds
    begin(runtime, load_experiment(str(path)), Nowhere())
    return runtime, grid


@functools.cache
def simulation_of(path):
    return Simulation(workers=1, compile="graph")


def simulated(path, cohort=COHORT):
    """A round's result in a simulation, by the arithmetic."""
    runtime = simulation_of(path)
    begin(runtime, load_experiment(str(path)), Nowhere())
    return collect(runtime, cohort)


def same(one, other):
    """Two Totals, bit for bit."""
    assert one.delta.tobytes() == other.delta.tobytes()
    assert one.extra.tobytes() == other.extra.tobytes()
    assert one[2:] == other[2:]


@pytest.mark.parametrize(
    "arguments",
    [SECURE, WEIGHTED, PERSONAL, pytest.param(ENCRYPTED, marks=needs_tenseal)],
    ids=["uniform", "weighted", "personal", "encrypted"],
)
def test_flower_equals_simulation(written, kits, as_simulated, arguments):
    """Bit for bit over three rounds, given the same rounding: the masks, or ciphertexts, leave nothing behind."""
    path = written(arguments)
    simulation = run(load_experiment(str(path)), Simulation(workers=2, compile="graph", aggregation="protocol"))
    history = run(load_experiment(str(path)), FlowerRuntime(HiddenGrid(path, kits)))
    assert history.params_sha256 == simulation.params_sha256
    assert [record.metrics for record in history.rounds] == [record.metrics for record in simulation.rounds]
    assert [(record.clients, record.failures) for record in history.rounds] == [(5, 0)] * 3
    assert history.final()["privacy"] == {"aggregation": "protocol"}


def test_rounding_is_fresh_on_real_devices(written, kits):
    """Within a step of the grid for each client of what a simulation has, and never the same twice."""
    path = written()
    expected = simulated(path).total
    step = load_experiment(str(path)).secure_aggregation.encoding(5).step
    first, second = (collect(opened(path, kits)[0]).total for _ in range(2))
    assert first.delta.tobytes() != second.delta.tobytes()
    for total in (first, second):
        assert np.abs(total.delta - expected.delta).max() <= 5 * step * 1.01
        assert total[2:4] == expected[2:4]


@pytest.mark.parametrize("stage", range(5))
def test_who_drops_out_at_a_stage_costs_its_own_update_at_most(written, kits, as_simulated, stage):
    """Once masked, it is in the sum even if its process ends; before that, its masks are taken out."""
    path = written()
    failing = {"lost": {(stage, 3)}} if stage else {"back": {(0, 3): failed}}
    runtime, grid = opened(path, kits, **failing)
    result = collect(runtime)
    inside = [client for client in COHORT if client != 3 or stage > MASK]
    same(result.total, simulated(path, inside).total)
    assert [(one.client, one.reason) for one in result.failures] == [(3, "no_session" if stage else "client_error")]
    assert grid.stages(2) == [0, 1, 2, 3, 4]


def failed(content):
    return RecordDict({"failure": ConfigRecord({"round": 1, "reason": "client_error", "detail": "out of memory"})})


def test_who_is_silent_at_a_stage_is_late(written, kits, as_simulated):
    path = written()
    runtime, _ = opened(path, kits, timeout_seconds=0.5, back={(MASK, 6): lambda content: None})
    result = collect(runtime)
    same(result.total, simulated(path, [0, 2, 3, 5]).total)
    assert [(one.client, one.reason) for one in result.failures] == [(6, "timeout")]


@pytest.mark.parametrize("stage", range(5))
def test_below_the_threshold_no_share_leaves_a_client(written, kits, stage):
    """Four of five are needed. The run stops, and says at what and for whom; what was revealed before is no sum."""
    path = written()
    failing = (
        {"lost": {(stage, 3), (stage, 5)}} if stage else {"back": {(0, 3): failed, (0, 5): failed, (0, 0): failed}}
    )
    runtime, grid = opened(path, kits, **failing)
    with pytest.raises(
        RunStopped, match=r"round 1: no secure sum was formed: \d clients .*at least \d.*failed"
    ) as raised:
        collect(runtime)
    assert "client 3: " in str(raised.value) or "client 0: " in str(raised.value)
    revealed = [client for number, client, *_ in grid.log if number == UNMASK and client not in (3, 5)]
    assert revealed == ([] if stage < UNMASK else [0, 2, 6])


def put(name, value, record="stage"):
    def change(content):
        content = RecordDict(dict(content))
        if isinstance(value, np.ndarray):
            content["message"] = ArrayRecord({})
            content["message"][name] = wire.pack_array(value)
        else:
            content[record] = ConfigRecord({**content[record], name: value})
        return content

    return change


def noise(size):
    return put("message", np.random.default_rng(0).integers(0, 256, size).astype(np.uint8))


def flipped(content):
    """One bit of the message."""
    message = np.frombuffer(wire.unpack_stage(content).message, np.uint8).copy()
    message[-1] ^= 1
    return put("message", message)(content)


GARBAGE = {
    "nothing": (ADVERTISE, lambda content: RecordDict(), "schema"),
    "a plain update": (ADVERTISE, lambda content: RecordDict({"update": ConfigRecord({"round": 1})}), "schema"),
    "noise for an advert": (ADVERTISE, noise(232), "malformed"),
    "a forged advert": (ADVERTISE, flipped, "wrong_signature"),
    "nothing for an advert": (ADVERTISE, noise(0), "malformed"),
    "noise for shares": (SHARE, noise(999), "malformed"),
    "forged shares": (SHARE, flipped, "wrong_signature"),
    "a vector that is cut short": (MASK, noise(64), "malformed"),
    "floats for a vector": (MASK, put("message", np.zeros(80, np.float32)), "dtype"),
    "a matrix": (MASK, put("message", np.zeros((2, 40), np.uint8)), "shape"),
    "a vector more": (MASK, put("more", np.zeros(3, np.uint8)), "schema"),
    "a reply to the round before": (MASK, put("round", 0), "stale"),
    "a reply to the stage before": (MASK, put("number", SHARE), "stale"),
    "a reply in another run": (SHARE, put("run", "another"), "stale"),
    "a round that is no number": (SHARE, put("round", "1"), "schema"),
    "a forged consent": (CONSISTENCY, flipped, "wrong_signature"),
    "noise for shares that are revealed": (UNMASK, noise(80), "malformed"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_a_bad_reply_is_a_failure_and_the_rest_is_summed(written, kits, as_simulated, case):
    stage, change, reason = GARBAGE[case]
    path = written()
    runtime, _ = opened(path, kits, back={(stage, 3): change})
    result = collect(runtime)
    assert [(one.client, one.reason) for one in result.failures] == [(3, reason)]
    assert result.failures[0].detail
    same(result.total, simulated(path, [one for one in COHORT if one != 3 or stage > MASK]).total)


def test_a_bad_share_is_found_and_nobody_is_blamed_without_proof(written, kits, as_simulated, caplog):
    """It does not hurt: its dealer is still here. Of as many shares as it takes, each may be the wrong one."""

    def change(content):
        message = bytearray(wire.unpack_stage(content).message)
        message[-30] ^= 1  # inside the last share's value
        return put("message", np.frombuffer(bytes(message), np.uint8))(content)

    path = written()
    result = collect(opened(path, kits, back={(UNMASK, 3): change})[0])
    same(result.total, simulated(path).total)
    assert "a client that cannot be told revealed a wrong share of client 6's secret" in caplog.text


def other_params(content):
    """The server shows one client another model than the others."""
    params = wire.unpack_array(content["vectors"]["params"]).copy()
    params[0] += 1
    content["vectors"] = ArrayRecord({})
    content["vectors"]["params"], content["vectors"]["extra"] = wire.pack_array(params), wire.pack_array(NOTHING)
    return content


LIES = {
    "another model": (ADVERTISE, other_params, "other_model"),
    "a larger cohort": (ADVERTISE, put("cohort", 6), "other_parameters"),
    "a cohort that could overflow": (ADVERTISE, put("cohort", 2**20), "experiment"),
    "another session's name": (ADVERTISE, put("run", "another"), "other_session"),
    "no stage": (
        ADVERTISE,
        lambda content: RecordDict({k: v for k, v in content.items() if k != "stage"}),
        "experiment",
    ),
    "noise": (SHARE, noise(300), "malformed"),
    "a roll with a forged key": (SHARE, flipped, "wrong_signature"),
    "a round that is over": (MASK, put("round", 0), "no_session"),
    "no message": (MASK, put("more", np.zeros(3, np.uint8)), "schema"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_client_refuses_what_its_server_should_not_say(written, kits, as_simulated, case):
    """And is left out; an honest server goes on with the others."""
    stage, change, reason = LIES[case]
    path = written()
    runtime, grid = opened(path, kits, to={(stage, 3): change})
    result = collect(runtime)
    assert [(one.client, one.reason) for one in result.failures] == [(3, reason)]
    assert max(grid.stages(3), default=-1) < stage
    same(result.total, simulated(path, [one for one in COHORT if one != 3]).total)


def again(grid, stage, client, change=lambda content: content):
    """A client's reply to a message that it had before."""
    message = next(message for number, one, message, _ in grid.log if (number, one) == (stage, client))
    identifier = message.metadata.__dict__["_message_id"] = f"9{stage}{client}"
    before, message.content = message.content, change(message.content)
    grid._answer(identifier, message, False, client)
    message.content = before
    return grid._replies.pop(identifier).content


def test_a_message_that_comes_again_has_the_same_reply_and_an_older_one_none(written, kits):
    """The last message may have been lost on its way back. What came before it is a replay; so is a whole session,
    whatever process the client is in by then."""
    runtime, grid = opened(written(), kits)
    collect(runtime)
    last = next(reply for number, one, _, reply in grid.log if (number, one) == (UNMASK, 2)).content
    assert wire.unpack_stage(again(grid, UNMASK, 2)) == wire.unpack_stage(last)
    assert again(grid, CONSISTENCY, 2)["failure"]["reason"] == "stale"
    assert again(grid, ADVERTISE, 2)["failure"]["reason"] == "stale"
    assert wire.unpack_stage(again(grid, UNMASK, 2)) == wire.unpack_stage(last)
    assert again(grid, CONSISTENCY, 2, put("number", UNMASK + 1))["failure"]["reason"] == "second_unmask"
    assert again(grid, UNMASK, 2)["failure"]["reason"] == "no_session"
    secure_tasks._parts.clear()
    assert again(grid, ADVERTISE, 0)["failure"]["reason"] == "replayed_session"
    assert again(grid, ADVERTISE, 2)["failure"]["reason"] == "replayed_session"
    assert again(grid, SHARE, 2)["failure"]["reason"] == "no_session"


def test_a_client_that_trained_answers_its_first_message_again(written, kits, as_simulated):
    """Its reply was lost with a SuperLink: it neither trains nor advertises anew."""
    path = written()

    def lose(content):
        return None if next(losses, False) else content

    losses = iter([True])
    runtime, grid = opened(path, kits, back={(ADVERTISE, 3): lose})
    push = grid.push_messages

    def twice(messages):
        identifiers = push(messages)
        for message in messages:
            place = message.content.get("stage", {}).get("number"), message.metadata.dst_node_id - FIRST_NODE
            if place == (ADVERTISE, 3):
                grid._answer(message.metadata.message_id, message, False, 3)
        return identifiers

    grid.push_messages = twice
    result = collect(runtime)
    assert not result.failures
    same(result.total, simulated(path).total)
    first, second = (wire.unpack_stage(reply.content) for stage, one, _, reply in grid.log if (stage, one) == (0, 3))
    assert first == second


def test_a_member_of_no_roster_has_no_part(written, own_kits, tmp_path):
    """A client with a kit of another federation: its roster is another, and it trains for nobody."""
    path = written()
    provide(load_experiment(str(path)).secure_aggregation, tmp_path / "others")
    (own_kits / "client-3").rename(tmp_path / "gone")
    (tmp_path / "others" / "client-3").rename(own_kits / "client-3")
    result = collect(opened(path, own_kits)[0])
    assert [(one.client, one.reason) for one in result.failures] == [(3, "other_roster")]


def test_a_client_evaluates_for_nobody_to_see(written, kits):
    """Its own metrics are what an aggregation is to hide; a server that asks is refused, and an honest one cannot."""
    path = written()
    runtime, _ = opened(path, kits)
    contents = runtime._contents([Assignment(Broadcast(1, runtime.initial_params(), NOTHING, (), None), 2, KEY)])
    with runtime._exchange("evaluate") as exchange:
        exchange.ask(contents, 4096, "a question")
        ((_, reply),) = exchange.replies()
    assert reply.content["failure"]["reason"] == "policy"
    validated = written(SECURE + ", validation=data.Partitioned(data.Arrays(*federations.blobs(80, 3)), clients=8)")
    with pytest.raises(IncompatibleError, match="validation has each client report"):
        opened(validated, kits)


def test_what_cannot_be_hidden_is_refused_when_a_run_begins(written, kits, monkeypatch):
    path = written()
    runtime = FlowerRuntime(HiddenGrid(path, kits), over_selection=1.5)
    with pytest.raises(IncompatibleError, match=r"over_selection=1\.5 lets the slower updates go"):
        begin(runtime, load_experiment(str(path)), Nowhere())
    monkeypatch.setenv(LOCAL_KIT_VARIABLE, "")
    with pytest.raises(ConfigError, match="between parties that have kits"):
        opened(path, kits)
    monkeypatch.setenv(LOCAL_KIT_VARIABLE, str(kits / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere has no roster\.bin"):
        collect(opened(path, kits)[0])


def test_a_cohort_of_two_is_not_summed(written, kits):
    with pytest.raises(RunStopped, match="a cohort of 2; a secure sum is formed of at least 3"):
        collect(opened(written(), kits)[0], [1, 2])


def test_bytes_are_those_of_the_messages(written, kits):
    """The masked vectors and little more."""
    result = collect(opened(written(), kits)[0])
    vector = 4 * (len(result.total.delta) + 2)
    assert 5 * vector < result.bytes_up < 5 * (vector + 8192)
    assert 5 * vector < result.bytes_down < 5 * (vector + 8192)


@needs_tenseal
def test_a_lying_decrypter_is_out_voted(written, kits, as_simulated, caplog):
    def lie(content):
        message = np.frombuffer(wire.unpack_stage(content).message, np.uint8).copy()
        message[0] ^= 1
        return put("message", message)(content)

    path = written(ENCRYPTED)
    result = collect(opened(path, kits, back={(1, 2): lie})[0])
    same(result.total, simulated(path).total)
    assert "client 2 decrypted another sum than the others" in caplog.text
    assert not result.failures


@needs_tenseal
def test_others_decrypt_when_the_first_are_gone(written, kits, as_simulated):
    """And the sum is that of all whose updates arrived, with nobody who decrypts twice."""
    path = written(ENCRYPTED)
    runtime, grid = opened(path, kits, lost={(stage, client) for stage in (1, 2) for client in COHORT})
    with pytest.raises(RunStopped, match=r"0 clients decrypted the sum, and no 2 to the same integers.*no_session"):
        collect(runtime)
    asked = [client for stage, client, *_ in grid.log if stage]
    assert sorted(asked) == COHORT
    runtime, grid = opened(path, kits, lost={(1, client) for client in asked[:3]})
    result = collect(runtime)
    same(result.total, simulated(path).total)
    assert {one.reason for one in result.failures} == {"no_session"}


@needs_tenseal
def test_a_client_of_another_key_is_refused_before_it_trains(written, own_kits, as_simulated):
    path = written(ENCRYPTED)
    other = ClientContext.create(Homomorphic(2.0, clients=8).parameters)
    (own_kits / "client-3" / "homomorphic.key").write_bytes(other.to_bytes())
    result = collect(opened(path, own_kits)[0])
    assert [(one.client, one.reason) for one in result.failures] == [(3, "other_key")]
    same(result.total, simulated(path, [0, 2, 5, 6]).total)


@needs_tenseal
def test_the_server_has_no_key(written, own_kits):
    """Neither in its kit nor on the wire; and a client whose key others can read has no part."""
    path = written(ENCRYPTED)
    files = {(own_kits / f"client-{client}" / "homomorphic.key").read_bytes() for client in range(8)}
    (secret,) = files
    runtime, grid = opened(path, own_kits)
    collect(runtime)
    contents = [content for *_, sent, got in grid.log for content in (sent.content, got.content)]
    told = [wire.unpack_stage(content).message for content in contents]
    told += [one.read_bytes() for one in (own_kits / "server").iterdir()]
    middle = secret[len(secret) // 2 :][:64]
    assert not [one for one in told if middle in one]
    (own_kits / "client-2" / "homomorphic.key").chmod(0o644)
    result = collect(opened(path, own_kits)[0])
    assert [(one.client, one.reason) for one in result.failures] == [(2, "experiment")]
    assert "open to others" in result.failures[0].detail


def test_a_client_of_more_examples_than_a_weight_may_be_answers_as_any_other():
    """A failure would tell that it has so many; it weighs 0, and its own log says why."""
    meeting = Meeting("run", 1, 3, Shape(4, 0), bytes(32))
    server, half_of = SecureSum(1.0, metrics=(), max_weight=5).rehearse(meeting, range(3), True)
    offers, forms = server.advance(), set()
    for client, weight in enumerate((5.0, 7.0)):
        half, seen = half_of(client), wire.SumMessage("run", 1, 0, 3, offers[client])
        assert half.check(offers[client]) is None
        update = ClientUpdate(np.ones(4, np.float32), NOTHING, weight, {})
        reply = secure_tasks.enter(1, secure_tasks.SumPart(client, meeting, half, seen), update)
        forms.add((tuple(reply), len(wire.unpack_stage(reply).message)))
    assert len(forms) == 1
