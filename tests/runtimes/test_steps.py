"""Local steps in place of epochs, and parts of an epoch: what clients compute, and what reckons with it."""

import dataclasses

import numpy as np
import pytest
from rounds import begin, collect

from engines import SOONEST
from federations import blobs, dense, dropped_and_normalised, federation
from quadratics import RATE, Quadratics, close
from simulations import play, simulation
from umbel import (
    AllClients,
    ConfigError,
    Local,
    PerExample,
    PoissonCohort,
    Simulation,
    data,
    derive,
    override,
    run,
)
from umbel.core.parts.devices import Devices
from umbel.core.parts.local import Passes
from umbel.core.types import Broadcast
from umbel.strategies import Ditto, FedNova, FedRep, Scaffold

POPULATION, TEST = federation().population, federation().test
BATCH = 5


def small(local, **changes):
    """The shared federation, whose clients hold different numbers of examples."""
    local = dataclasses.replace(local, batch_size=BATCH, learning_rate=0.1)
    return federation(**{"population": POPULATION, "test": TEST, "local": local} | changes)


def trained(local, client, **changes):
    """One client's round, as a sum of one."""
    experiment = small(local, **changes)
    runtime = simulation(experiment)
    begin(runtime, experiment)
    params, strategy = runtime.initial_params(), experiment.strategy
    broadcast = Broadcast(1, params, strategy.broadcast(strategy.init(params)), (), 0.1)
    return collect(runtime, broadcast, [client], derive(0)).total


def batches(client):
    return -(-int(POPULATION.sizes()[client]) // BATCH)


@pytest.mark.parametrize(
    "changes",
    [{"model": dropped_and_normalised}, {"strategy": FedNova()}, {"strategy": Scaffold()}],
    ids=["random", "FedNova", "Scaffold"],
)
def test_epochs_are_as_many_steps_as_they_have_batches(changes):
    """Bit for bit, shuffling, Dropout and what is sent besides included."""
    for client in (0, 1, 2):
        whole = trained(Local(epochs=2), client, **changes)
        counted = trained(Local(steps=2 * batches(client)), client, **changes)
        fewer = trained(Local(steps=2 * batches(client) - 1), client, **changes)
        np.testing.assert_array_equal(counted.delta, whole.delta)
        np.testing.assert_array_equal(counted.extra, whole.extra)
        assert counted.metrics == whole.metrics
        assert (fewer.delta != whole.delta).any()


@pytest.mark.parametrize(("client", "steps"), [(0, 1), (0, 7), (3, 2), (3, 11)])
def test_steps_of_one_client_are_steps_per_epoch_of_keras(client, steps):
    import tensorflow as tf

    own = POPULATION.examples(client)
    model, total = dense(), trained(Local(steps=steps, shuffle=False), client)
    runtime = simulation(small(Local(steps=steps, shuffle=False)))
    runtime._team[0].spec.load_into(model, runtime.initial_params())
    repeated = tf.data.Dataset.from_tensor_slices((own.x, own.y)).batch(BATCH).repeat()
    logs = model.fit(repeated, steps_per_epoch=steps, verbose=0).history
    after = np.concatenate([weight.ravel() for weight in model.get_weights()])
    close(runtime.initial_params() + total.delta / total.weight, after)
    for name in ("loss", "accuracy"):
        assert total.metrics[name].mean() == pytest.approx(logs[name][0], rel=1e-5)


@pytest.mark.parametrize("local", [Local(steps=7), Local(epochs=0.5), Local(epochs=[0.4, 1, 1.5, 2, 0.1, 1, 1, 3])])
def test_however_it_is_run(local):
    """The same bits for any number of workers; to rounding eagerly and with XLA."""
    experiment = small(local, strategy=FedNova(), rounds=2)
    one = play(experiment)
    assert play(experiment, 2).params_sha256 == one.params_sha256
    for other in (run(experiment, Simulation(debug=True)), run(experiment, Simulation(1, "xla"))):
        np.testing.assert_allclose(other.params, one.params, rtol=1e-3, atol=1e-5)
        for slow, fast in zip(other.rounds, one.rounds, strict=True):
            assert slow.metrics == pytest.approx(fast.metrics, rel=1e-3)


def test_passes_and_steps_in_closed_form():
    """Over all sizes, batches and parts of an epoch: steps are counted as they are taken, and no batch is cut."""
    for size in (1, 4, 5, 6, 10, 11):
        for local, epochs in [
            *((Local(steps=steps, batch_size=batch), 1) for steps in (1, 2, 3, 9) for batch in (1, 5, None)),
            *((Local(epochs=part, batch_size=batch), part) for part in (0.1, 0.5, 0.7, 1, 2, 2.5) for batch in (1, 5)),
        ]:
            batch = local.batch_size or size
            begun, last = local.passes(size, epochs)
            per_pass = [size] * (begun - 1) + [last]
            assert sum(-(-each // batch) for each in per_pass) == local.steps_of(size, epochs)
            assert last == size or last % batch == 0
            wanted = local.steps or epochs * -(-size // batch)
            assert wanted <= local.steps_of(size, epochs) + 1e-9 < wanted + 1 + 1e-9
            visited = local.visited(np.array([size, 0]), np.array([epochs, epochs]))
            assert visited.tolist() == [sum(per_pass), 0]
    assert Local(epochs=0.7, batch_size=1).steps_of(10, 0.7) == 7
    assert Local(epochs=2.0) == Local(epochs=2)
    assert Local(steps=4).steps_of(0) == 0


def test_fednova_reckons_with_the_steps_that_were_taken():
    clients = Quadratics()
    local = Local(steps=3, batch_size=8, learning_rate=RATE, shuffle=False)
    fixed, runtime = run(clients.experiment(strategy=FedNova(), local=local, rounds=2), Simulation(1, SOONEST)), None
    whole = dataclasses.replace(local, steps=None, epochs=3)  # a quadratic's client has one batch
    runtime = Simulation(1, SOONEST)
    assert (
        fixed.params_sha256 == run(clients.experiment(strategy=FedNova(), local=whole, rounds=2), runtime).params_sha256
    )


@pytest.mark.parametrize(
    "changes", [{"strategy": FedRep(head_epochs=2), "personal": ("dense_1",)}, {"strategy": Ditto()}]
)
def test_other_phases_keep_their_own_epochs(changes):
    population = data.PerClient([tuple(part[:20] for part in blobs())] * 3)
    same = {"population": population, "sampler": AllClients()} | changes
    assert play(small(Local(steps=8), **same)).params_sha256 == play(small(Local(epochs=2), **same)).params_sha256
    assert play(small(Local(steps=7), **same)).params_sha256 != play(small(Local(epochs=2), **same)).params_sha256


def test_the_clock_counts_them():
    experiment = small(Local(steps=7), devices=Devices(examples_per_second=10.0), sampler=AllClients(), rounds=1)
    sizes = POPULATION.sizes()
    seen = [experiment.local.passes(int(size), 1) for size in sizes]
    longest = max((begun - 1) * size + last for size, (begun, last) in zip(sizes, seen, strict=True))
    assert play(experiment).column("virtual_seconds")[-1] == pytest.approx(longest / 10)


def test_dp_sgd_takes_as_many_steps_as_it_accounts_for():
    private = Local(batch_size=5, learning_rate=0.1, per_example=PerExample(1.0, 0.5, steps=6))
    assert private.steps_of(40) == dataclasses.replace(private, steps=6).steps_of(40) == 6
    free = Local(batch_size=5, learning_rate=0.1, per_example=PerExample(1.0, 0.5), steps=6)
    assert free.steps_of(40) == 6
    assert free.passes(40, 1) == Passes(1, 40)
    with pytest.raises(ConfigError, match=r"expected steps=7 to be those that PerExample.* accounts for"):
        dataclasses.replace(private, steps=7)
    one, other = (play(federation(population=POPULATION, local=local, rounds=2)) for local in (private, free))
    assert one.params_sha256 == other.params_sha256


def test_under_a_poisson_cohort():
    experiment = small(Local(steps=3), sampler=PoissonCohort(0.5), rounds=3)
    assert play(experiment).params_sha256 == play(experiment, 2).params_sha256


def test_they_are_settings_like_any_other():
    experiment = small(Local())
    assert override(experiment, ["local.steps=7"]).local.steps == 7
    assert override(experiment, ["local.epochs=0.5"]).local.epochs == 0.5
    assert override(experiment, ["local.epochs=2"]).local.epochs == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Local(steps=0), r"steps=0 to be an integer ≥ 1"),
        (lambda: Local(steps=2.5), r"steps=2.5 to be an integer"),
        (lambda: Local(epochs=0.0), r"epochs=0"),
        (lambda: Local(epochs=-0.5), r"epochs=-0.5 to be a finite number > 0"),
        (lambda: Local(epochs=float("nan")), r"epochs=nan"),
        (lambda: Local(epochs=2, steps=5), r"steps=5 stand in place of epochs=2"),
        (lambda: Local(epochs=0.5, batch_size=None), r"batch_size=None makes it one batch"),
    ],
)
def test_values_out_of_bounds(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
