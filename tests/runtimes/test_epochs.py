"""Clients that make different numbers of epochs: what they compute, who draws the number, what it costs."""

import dataclasses

import numpy as np
import pytest
from rounds import begin, collect

from engines import SOONEST
from federations import dropped_and_normalised, federation
from quadratics import RATE, Quadratics, close
from simulations import play, simulation
from umbel import AllClients, ConfigError, IncompatibleError, Local, PerExample, Simulation, derive, override, run
from umbel.core.parts.devices import Deadline, Devices
from umbel.core.parts.epochs import Epochs, ListedEpochs
from umbel.core.types import NOTHING, Broadcast
from umbel.server.clock import VirtualClock
from umbel.strategies import FedBuff, FedNova, FedProx

POPULATION, TEST = federation().population, federation().test
EACH = [1, 2, 3, 4, 1, 2, 3, 4]


def small(epochs, **changes):
    """The shared federation, with clients that make so many epochs."""
    local = Local(epochs=epochs, batch_size=5, learning_rate=0.1)
    return federation(**{"population": POPULATION, "test": TEST, "local": local} | changes)


@pytest.mark.parametrize("epochs", [Epochs(2, 2), [2] * 8], ids=str)
@pytest.mark.parametrize(
    "changes", [{"model": dropped_and_normalised}, {"strategy": FedNova()}], ids=lambda one: next(iter(one))
)
def test_the_same_number_for_all_changes_no_bit(epochs, changes):
    one, other = play(small(2, **changes)), play(small(epochs, **changes))
    assert other.params_sha256 == one.params_sha256
    assert [record.metrics for record in other.rounds] == [record.metrics for record in one.rounds]


def test_each_client_trains_as_one_of_its_number_of_epochs():
    """Shuffling and Dropout included, bit for bit."""

    def trained(epochs, client):
        experiment = small(epochs, model=dropped_and_normalised)
        runtime = simulation(experiment)
        begin(runtime, experiment)
        broadcast = Broadcast(1, runtime.initial_params(), NOTHING, (), 0.1)
        return collect(runtime, broadcast, [client], derive(0)).total

    for client in (1, 2, 3):
        mixed, plain = trained(EACH, client), trained(EACH[client], client)
        np.testing.assert_array_equal(mixed.delta, plain.delta)
        assert mixed.metrics == plain.metrics


def test_however_it_is_run():
    """The same bits for any number of workers; to rounding eagerly and with XLA."""
    experiment = small(Epochs(1, 4), strategy=FedProx(0.1))
    one = play(experiment)
    assert play(experiment, 2).params_sha256 == play(experiment, 4).params_sha256 == one.params_sha256
    assert one.params_sha256 != play(small(Epochs(1, 3), strategy=FedProx(0.1))).params_sha256
    for other in (run(experiment, Simulation(debug=True)), run(experiment, Simulation(1, "xla"))):
        np.testing.assert_allclose(other.params, one.params, rtol=1e-3, atol=1e-5)
        for slow, fast in zip(other.rounds, one.rounds, strict=True):
            assert slow.metrics == pytest.approx(fast.metrics, rel=1e-3)


def test_fednova_reckons_with_each_clients_steps():
    """In closed form: Σ p·τ times Σ p·Δ/τ."""
    clients, epochs = Quadratics(), [1, 6, 3, 2]
    runtime = Simulation(workers=1, compile=SOONEST)
    local = Local(epochs=epochs, batch_size=8, learning_rate=RATE, shuffle=False)
    history = run(clients.experiment(strategy=FedNova(), local=local, rounds=1), runtime)
    w, deltas = runtime.initial_params().astype(np.float64), []
    for client, steps in enumerate(epochs):
        moved = np.zeros_like(w)
        for _ in range(steps):
            moved = moved - RATE * clients.gradient(client, w + moved)
        deltas.append(moved / steps)
    close(history.params, w + np.mean(epochs) * np.mean(deltas, axis=0))


def test_the_clock_counts_them():
    experiment = small(EACH, devices=Devices(examples_per_second=10.0), sampler=AllClients())
    each = POPULATION.sizes() * np.array(EACH) / 10
    np.testing.assert_allclose(play(experiment).column("virtual_seconds"), each.max() * np.arange(1, 4))
    limit = float(each.mean())
    late = play(dataclasses.replace(experiment, deadline=Deadline(seconds=limit)))
    assert set(late.column("clients")) == {(each < limit).sum()}
    assert (each < limit).sum() != (POPULATION.sizes() / 10 * np.mean(EACH) < limit).sum()
    drawn = dataclasses.replace(experiment, local=dataclasses.replace(experiment.local, epochs=Epochs(1, 9)))
    seconds = np.diff(play(drawn).column("virtual_seconds"), prepend=0)
    for round in (1, 2, 3):
        own = drawn.local.epochs_of(np.arange(8), round, drawn.seed)
        assert seconds[round - 1] == pytest.approx((POPULATION.sizes() * own).max() / 10)


def test_an_asynchronous_client_has_the_epochs_of_the_round_it_began_in():
    experiment = small(Epochs(1, 9), devices=Devices(examples_per_second=10.0), strategy=FedBuff(buffer=2))
    clock = VirtualClock.of(experiment.resolved, Simulation(1), ())
    broadcast = Broadcast(3, np.zeros(83, np.float32), NOTHING, experiment.transforms.init(None), 0.1)
    expected = POPULATION.sizes() * experiment.local.epochs_of(np.arange(8), 3, experiment.seed) / 10
    np.testing.assert_allclose(clock.expected(broadcast), expected)
    assert play(experiment).params_sha256 == play(experiment, 2).params_sha256


def test_drawn_epochs_depend_on_seed_round_and_client_alone():
    epochs, everyone = Epochs(2, 5), np.arange(20_000)
    drawn = epochs.of(everyone, 7, seed=3)
    assert drawn.dtype == np.int64
    for client in (0, 1, 4095, 19_999):
        assert epochs.of(np.array([client]), 7, seed=3) == drawn[client]
    some = np.array([900, 17, 17, 12_345])
    assert epochs.of(some, 7, seed=3).tolist() == drawn[some].tolist()
    assert epochs.of(everyone[:0], 7, seed=3).tolist() == []
    counts = np.bincount(drawn, minlength=6)
    assert counts[:2].sum() == 0
    np.testing.assert_allclose(counts[2:] / len(drawn), 1 / 4, atol=0.015)
    for other in (epochs.of(everyone, 8, seed=3), epochs.of(everyone, 7, seed=4)):
        assert (other == drawn).mean() == pytest.approx(1 / 4, abs=0.015)


def test_they_are_settings_like_any_other():
    experiment = small(Epochs(1, 4))
    assert override(experiment, ["local.epochs.high=6"]).local.epochs == Epochs(1, 6)
    assert override(experiment, ["local.epochs=3"]).local.epochs == 3
    assert experiment.digest != override(experiment, ["local.epochs.high=6"]).digest
    assert small(EACH).digest == small(np.array(EACH)).digest != small(EACH[::-1]).digest
    assert small(EACH).local == small(tuple(EACH)).local
    assert (experiment.local.most_epochs, experiment.local.mean_epochs) == (4, 2.5)
    assert (small(EACH).local.most_epochs, small(EACH).local.steps_of(12, 2)) == (4, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epochs(0, 3), r"low=0"),
        (lambda: Epochs(4, 3), r"high=3 to be an integer ≥ 4"),
        (lambda: ListedEpochs([1, 0, 2]), r"client \[1\]: expected a number > 0, got epochs=\[0\]"),
        (lambda: ListedEpochs([1.5, np.nan]), r"client \[1\]: .* got epochs=\[nan\]"),
        (lambda: Local(epochs=[]), r"one number per client"),
        (lambda: Local(epochs="many"), r"epochs='many'"),
        (lambda: run(small([1, 2, 3]), Simulation(1)), r"expected 8 numbers in local.epochs, one per client, got 3"),
    ],
)
def test_values_out_of_bounds(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_dp_sgd_needs_one_number():
    with pytest.raises(IncompatibleError, match=r"accounts for as many steps .*epochs=Epochs\(low=1, high=2\)"):
        Local(epochs=Epochs(1, 2), per_example=PerExample(1.0, 1.0))
