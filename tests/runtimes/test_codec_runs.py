"""Runs whose updates travel through a codec: what must not change, what is kept, what is counted, what is refused."""

import dataclasses

import numpy as np
import pytest
from rounds import begin, collect

from engines import SOONEST
from federations import Nowhere, dropped_and_normalised, federation
from simulations import play
from umbel import AllClients, Chain, ConfigError, IncompatibleError, Simulation, derive, run
from umbel.core.experiment import Experiment
from umbel.core.parts.devices import Deadline, Devices
from umbel.core.types import NOTHING, Broadcast, ClientUpdate, CodedUpdate
from umbel.privacy.central import CentralGaussian
from umbel.privacy.clipping import Clip
from umbel.privacy.plan import LocalPlan, PrivacyPlan
from umbel.privacy.secure_sum import SecureSum
from umbel.server.store import Store
from umbel.strategies import ALL_AGGREGATORS, FedAsync, FedBuff, FedDyn, FedNova, Scaffold
from umbel.strategies.codecs import ALL_CODECS, Quantised, RandomK, RandomMask, Sign, TopK

SIZE = (6 * 8 + 8) + (8 * 3 + 3)
POPULATION, TEST = federation().population, federation().test
WITH_MEMORY = [TopK(0.1), Quantised(4, error_feedback=True), Sign()]
every_codec = pytest.mark.parametrize("codec", ALL_CODECS, ids=repr)


def small(**changes) -> Experiment:
    """The shared federation with its examples made once, so that experiments take turns with the same workers."""
    return federation(**{"population": POPULATION, "test": TEST} | changes)


@pytest.mark.parametrize("changes", [{"codec": TopK(1.0)}, {"codec": RandomK(1.0)}, {"transforms": RandomMask(1.0)}])
def test_all_of_every_update_is_fedavg(changes):
    """Bit for bit."""
    plain, coded = play(small()), play(small(**changes))
    np.testing.assert_array_equal(coded.params, plain.params)
    assert [record.metrics for record in coded.rounds] == [record.metrics for record in plain.rounds]


@pytest.mark.parametrize("codec", [*WITH_MEMORY, RandomK(0.1)], ids=repr)
def test_workers_give_the_same_bits(codec):
    assert len({play(small(codec=codec, rounds=2, test=None), workers).params_sha256 for workers in (1, 2, 4)}) == 1


def test_transforms_give_the_same_bits_too():
    assert len({play(small(transforms=RandomMask(0.2)), workers).params_sha256 for workers in (1, 2)}) == 1


@every_codec
def test_bytes_are_those_of_the_payloads(codec):
    history = play(small(codec=codec, rounds=2, test=None))
    assert {record.bytes_up for record in history.rounds} == {4 * codec.payload_bytes(SIZE)}
    assert {record.bytes_down for record in history.rounds} == {4 * 4 * SIZE}


def test_a_codec_shortens_uploads_on_the_virtual_clock():
    """By the bytes it saves, and nothing else: the model is that of a run without devices."""
    timed = {"devices": Devices(None, None, up_bytes_per_second=50.0), "sampler": AllClients(), "test": None}
    for codec, size in ((None, 4 * SIZE), (Sign(), Sign().payload_bytes(SIZE))):
        history = play(small(codec=codec, **timed))
        assert set(history.column("bytes_up")) == {8 * size}
        np.testing.assert_allclose(history.column("virtual_seconds"), size / 50 * np.arange(1, 4))
        untimed = play(small(codec=codec, **timed | {"devices": None}))
        assert history.params_sha256 == untimed.params_sha256


def test_with_a_codec_more_clients_are_in_time():
    devices = Devices(up_bytes_per_second=np.arange(1.0, 9.0))
    deadline = Deadline(4 * SIZE / 8)  # the fastest alone sends so many bytes
    histories = [
        play(small(codec=codec, devices=devices, deadline=deadline, sampler=AllClients(), test=None))
        for codec in (None, TopK(0.05))
    ]
    assert [set(history.column("clients")) for history in histories] == [{1}, {8}]


def test_bytes_are_as_an_experiment_says():
    for changes in ({}, {"codec": Sign()}, {"strategy": FedNova(), "codec": Sign()}, {"transforms": RandomMask(0.2)}):
        experiment = small(**changes)
        simulation = Simulation(workers=1)
        spec = begin(simulation, experiment)
        state = experiment.transforms.init(spec)
        broadcast = Broadcast(1, simulation.initial_params(), NOTHING, state, 0.1)
        found = collect(simulation, broadcast, [0, 1, 2], derive(0))
        assert found.bytes_up == 3 * experiment.resolved.upload_bytes(broadcast)
        simulation.close()


def test_what_leaves_a_client_is_the_payload():
    """Also where a client works on a real device: nothing of delta but what the codec says."""
    from umbel.clients.round import train_client
    from umbel.clients.tensorflow.engine import TensorFlowEngine

    experiment = small(codec=Sign())
    worker = TensorFlowEngine(experiment, is_live=True)
    broadcast = Broadcast(1, worker.initial_params, NOTHING, (), 0.1)
    update, kept, _ = train_client(worker, broadcast, 0, derive(0), experiment.population.resident(), np.arange(20))
    assert isinstance(update, CodedUpdate)
    assert (type(update.payload), len(update.payload)) == (bytes, Sign().payload_bytes(SIZE))
    assert [len(array) for array in kept] == [0, SIZE]


class Interrupted(Exception):
    pass


class InterruptAfter:
    """A watcher that fails like a killed notebook."""

    def __init__(self, round):
        self.round = round

    def on_start(self, experiment, runtime, run, records):
        self.run = run

    def on_round(self, record, failures):
        if record.round == self.round:
            raise Interrupted

    def on_end(self, history):
        pass


VARIANTS = [{"codec": codec} for codec in WITH_MEMORY]
VARIANTS += [{"codec": TopK(0.1), "strategy": Scaffold()}, {"codec": TopK(0.1), "personal": ("dense_1",)}]
VARIANTS += [{"codec": Sign(), "strategy": FedDyn(0.1), "personal": ("dense_1",)}, {"transforms": RandomMask(0.2)}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_resumed_run_equals_uninterrupted_run(changes, tmp_path):
    """The residual lies in the store, after what is personal and what the rule remembers."""
    url, watcher = f"sqlite:///{tmp_path / 'runs.db'}", InterruptAfter(2)
    experiment = small(**changes, rounds=4, test=None)
    uninterrupted = play(experiment)
    with pytest.raises(Interrupted):
        play(experiment, store=url, watchers=[watcher])
    if "codec" in changes:
        with Store.open(url) as store:
            memory = store.memory(watcher.run)
            kept = [arrays for client in range(8) if (arrays := memory.read(client)) is not None]
        personal = 2 * ("personal" in changes)
        assert kept
        for arrays in kept:
            assert len(arrays) == personal + 2
            assert len(arrays[-2]) == ("strategy" in changes) * len(arrays[-1])
            assert len(arrays[-1]) == len(uninterrupted.params)
            assert arrays[-1].any()
    resumed = play(experiment, store=url, resume=watcher.run)
    assert resumed.params_sha256 == uninterrupted.params_sha256


def test_another_codec_is_another_experiment(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    first = play(small(codec=TopK(0.1), rounds=1), store=url)
    with pytest.raises(ConfigError, match=r"codec.fraction was 0.1, is now 0.2"):
        play(small(codec=TopK(0.2), rounds=2), store=url, resume=first.run)


def longer(**changes) -> Experiment:
    return small(**changes, rounds=25, evaluate_every=25, sampler=AllClients())


@pytest.fixture(scope="module")
def whole():
    """What is reached with whole updates."""
    return play(longer()).rounds[-1].metrics


@pytest.mark.parametrize(
    "changes",
    [{"codec": codec} for codec in (TopK(0.05), Sign(), Quantised(4), Quantised(8), RandomK(0.5))]
    + [{"codec": RandomK(0.05, error_feedback=True)}, {"transforms": RandomMask(0.5)}],
    ids=str,
)
def test_it_learns(whole, changes):
    """Nearly as well as with whole updates."""
    coded = play(longer(**changes)).rounds[-1].metrics
    assert whole["test_accuracy"] > 0.75
    assert coded["test_accuracy"] > whole["test_accuracy"] - 0.08


def test_error_feedback_is_what_makes_it_learn():
    losses = [play(longer(codec=TopK(0.02, feedback))).rounds[-1].metrics["test_loss"] for feedback in (True, False)]
    assert losses[0] < losses[1] - 0.05


def test_a_failed_client_keeps_what_it_had():
    """Its update is not finite; the residual of the round before is still there."""

    class Remembers(Nowhere):
        def __init__(self):
            self.kept = {}

        def read(self, client):
            return self.kept.get(client)

        def write(self, client, arrays):
            self.kept[client] = arrays

    memory, simulation = Remembers(), Simulation(workers=1)
    begin(simulation, small(codec=Sign()), memory)
    broadcast = Broadcast(1, simulation.initial_params(), NOTHING, (), 0.1)
    collect(simulation, broadcast, [2], derive(0))
    before = memory.kept[2]
    result = collect(simulation, broadcast._replace(learning_rate=float("inf")), [2], derive(1))
    assert [failure.reason for failure in result.failures] == ["non_finite"]
    assert memory.kept[2] is before


def test_folds_see_what_arrives():
    aggregator = next(aggregator for aggregator in ALL_AGGREGATORS if type(aggregator).__name__ == "Median")
    assert np.isfinite(play(small(codec=TopK(0.3), aggregator=aggregator)).params).all()


def test_it_goes_with_everything_inside():
    history = play(small(model=dropped_and_normalised, strategy=Scaffold(), codec=Quantised(4), personal=("norm",)))
    assert np.isfinite(history.params).all()


def secure(**changes) -> Experiment:
    return small(secure_aggregation=SecureSum(limit=4.0, max_weight=64, metrics=()), weighting="uniform", **changes)


def test_a_mask_works_where_only_sums_are_seen():
    """To the aggregation's rounding; the protocol itself gives the bits of its arithmetic."""
    plain = play(small(transforms=RandomMask(0.3), weighting="uniform"))
    hidden = play(secure(transforms=RandomMask(0.3)))
    np.testing.assert_allclose(hidden.params, plain.params, atol=1e-3)
    real = run(secure(transforms=RandomMask(0.3)), Simulation(workers=1, compile=SOONEST, aggregation="protocol"))
    assert real.params_sha256 == hidden.params_sha256
    assert hidden.rounds[0].bytes_up < play(secure()).rounds[0].bytes_up


def private(**changes) -> Experiment:
    plan = PrivacyPlan(
        epsilon=50.0, delta=1e-3, rounds=3, population=8, sampling_rate=0.5, clip_norm=0.5, noise_multiplier=1.0
    )
    return dataclasses.replace(small(), **{"plan": plan, "sampler": None, "weighting": None} | changes)


def local(**changes) -> Experiment:
    plan = LocalPlan(epsilon=50.0, delta=1e-3, rounds=3, population=8, clip_norm=0.5, noise_multiplier=1.0)
    return dataclasses.replace(small(), **{"plan": plan, "sampler": None, "weighting": None} | changes)


def test_a_mask_goes_before_a_plan():
    history = play(private(transforms=RandomMask(0.3)))
    moved = np.flatnonzero(history.params - play(private(transforms=RandomMask(0.3), rounds=2)).params)
    assert 0 < len(moved) <= int(np.ceil(0.3 * SIZE))  # noise, too, is only where the round's mask is


@pytest.mark.parametrize(
    "codec", [codec for codec in ALL_CODECS if codec.shrinks and not codec.error_feedback], ids=repr
)
def test_a_codec_that_shrinks_keeps_a_central_plan(codec):
    """What arrives of a clipped update is within the clip norm."""
    experiment = private(codec=codec)
    assert np.isfinite(play(experiment).params).all()
    transform = CentralGaussian(0.5, 1.0, 4.0)
    generator = np.random.default_rng(0)
    for scale in (0.01, 0.05, 1.0, 100.0):
        update = ClientUpdate((generator.normal(size=SIZE) * scale).astype(np.float32), NOTHING, 1.0, {})
        clipped = transform.encode((), update, derive(0)).delta
        arrived = codec.decode(codec.encode(clipped, derive(1)), SIZE)
        assert np.linalg.norm(arrived.astype(np.float64)) <= 0.5


@pytest.mark.parametrize("codec", [TopK(0.1), RandomK(0.1, error_feedback=True), Sign()], ids=repr)
@pytest.mark.parametrize("build", [private, lambda **own: small(transforms=Chain(Chain(Clip(1.0))), **own)])
def test_error_feedback_breaks_a_clip_norm(codec, build):
    with pytest.raises(
        IncompatibleError, match=r"which codec=.* may lengthen after they were clipped: .*error_feedback=False"
    ):
        build(codec=codec)


@pytest.mark.parametrize("codec", [RandomK(0.1), Quantised(8), Quantised(4)], ids=repr)
@pytest.mark.parametrize("build", [private, lambda **own: small(transforms=Clip(1.0), **own)])
def test_what_lengthens_breaks_a_clip_norm(codec, build):
    with pytest.raises(IncompatibleError, match=r"which codec=.* may lengthen after they were clipped"):
        build(codec=codec)


@pytest.mark.parametrize("codec", WITH_MEMORY, ids=repr)
def test_after_the_clients_own_noise_nothing_is_left_to_break(codec):
    assert np.isfinite(play(local(codec=codec, rounds=1)).params).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"secure_aggregation": SecureSum(limit=4.0, max_weight=64)},
            r"needs updates that can be summed .*Sign.*RandomMask",
        ),
        ({"strategy": FedBuff(buffer=2)}, r"Sign.* needs rounds with a cohort, which strategy=FedBuff"),
        ({"strategy": FedAsync()}, r"Sign.* needs rounds with a cohort, which strategy=FedAsync"),
        ({"codec": "top_k"}, r"expected codec='top_k' to have decode, payload_bytes\(\)"),
        (
            {"codec": None, "strategy": FedBuff(buffer=2), "transforms": Chain(RandomMask(0.1))},
            r"Mask.* other rounds",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**{"codec": Sign()} | changes)


def test_a_mask_that_fits_another_model_is_refused():
    transform = RandomMask(0.1)
    simulation = Simulation(workers=1)
    spec = begin(simulation, small(transforms=transform))
    state = transform.init(spec)._replace(size=5)
    with pytest.raises(ConfigError, match=f"expected a delta of 5 numbers, got {SIZE}"):
        collect(simulation, Broadcast(1, simulation.initial_params(), NOTHING, state, 0.1), [0], derive(0))
