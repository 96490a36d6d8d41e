"""What must not change the result: workers, padding, compilation, streaming, the clients before."""

import dataclasses

import numpy as np
import pytest
from rounds import begin, collect

from engines import SOONEST
from federations import adam, blobs, dense, dropped_and_normalised, federation, normalised
from umbel import AllClients, ConfigError, FixedCohort, Local, RunStopped, Simulation, cross_validate, data, derive, run
from umbel.core.examples import Examples
from umbel.core.types import NOTHING, Broadcast


@pytest.fixture(scope="module")
def reference():
    """Dropout and BatchNorm, on one worker."""
    return run(federation(model=dropped_and_normalised), Simulation(workers=1))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_same_bits(reference, workers):
    history = run(federation(model=dropped_and_normalised), Simulation(workers=workers))
    assert history.params_sha256 == reference.params_sha256
    assert [record.metrics for record in history.rounds] == [record.metrics for record in reference.rounds]


def test_seed_decides_everything(reference):
    other = run(federation(model=dropped_and_normalised, seed=2), Simulation(workers=2))
    assert other.params_sha256 != reference.params_sha256


def test_debug_path_equals_compiled_path(reference):
    history = run(federation(model=dropped_and_normalised), Simulation(debug=True))
    np.testing.assert_allclose(history.params, reference.params, rtol=1e-4, atol=1e-6)
    for slow, fast in zip(history.rounds, reference.rounds, strict=True):
        assert slow.metrics == pytest.approx(fast.metrics, rel=1e-4)


@pytest.mark.parametrize("rows", [96, 80])  # 12 a client: a last batch of 2; and 10: none
@pytest.mark.parametrize("model", [adam, normalised], ids=lambda model: model.__name__)
def test_clients_of_one_size_are_one_xla_program_with_the_same_result(model, rows):
    """Then even the last batch's shape is known when XLA compiles."""
    alike = data.Partitioned(data.Arrays(*blobs(rows)), by=data.Iid(), clients=8)
    runs = [run(federation(model=model, population=alike), Simulation(1, compile)) for compile in (SOONEST, "xla")]
    np.testing.assert_allclose(runs[1].params, runs[0].params, rtol=2e-3, atol=2e-5)
    for name in ("train_loss", "train_accuracy"):
        assert runs[1].rounds[0].metrics[name] == pytest.approx(runs[0].rounds[0].metrics[name], rel=1e-4)


def test_the_same_inputs_may_have_other_targets():
    """As where the success of an attack is measured on the test images."""
    x, y = blobs(64, seed=5)
    wrong = data.Partitioned(data.Arrays(x, (y + 1) % 3), by=data.Iid(), clients=8)
    history = run(federation(test=(x, y), validation=wrong, rounds=1), Simulation(1, SOONEST))
    right = run(federation(test=(x, (y + 1) % 3), rounds=1), Simulation(1, SOONEST))
    assert history.rounds[0].metrics["validation_accuracy"] == right.rounds[0].metrics["test_accuracy"]
    assert right.rounds[0].metrics["test_accuracy"] != history.rounds[0].metrics["test_accuracy"]


def test_a_simulation_goes_on_with_clients_of_another_size():
    """Its workers are kept where the data set is the same."""
    source, simulation = data.Arrays(*blobs(96)), Simulation(1, "xla")
    one, other = (
        federation(population=data.Partitioned(source, by=by, clients=8)) for by in (data.Iid(), data.LogNormal(0.7))
    )
    run(one, simulation)
    assert run(other, simulation).params_sha256 == run(other, Simulation(1, "xla")).params_sha256


def test_xla_equals_graph_to_rounding():
    """Clients of many sizes, so row numbers are padded to buckets: padding changes nothing."""
    graph = run(federation(model=adam), Simulation(workers=1, compile=SOONEST))
    xla = run(federation(model=adam), Simulation(workers=1, compile="xla"))
    np.testing.assert_allclose(xla.params, graph.params, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("compile", [SOONEST, "xla"])
def test_streaming_equals_resident(compile):
    experiment = federation()
    streamed = dataclasses.replace(experiment, population=dataclasses.replace(experiment.population, stream=True))
    assert streamed.population.resident() is None
    one, other = (run(each, Simulation(workers=2, compile=compile)) for each in (experiment, streamed))
    assert one.params_sha256 == other.params_sha256


def opened(experiment, **settings):
    simulation = Simulation(**({"workers": 1} | settings))
    begin(simulation, experiment)
    broadcast = Broadcast(1, simulation.initial_params(), NOTHING, (), 0.1)
    return simulation, broadcast


def test_nothing_of_one_client_reaches_the_next():
    """Optimizer, metrics, seeds and statistics start afresh: a client's update does not depend on who went before."""
    simulation, broadcast = opened(federation(model=dropped_and_normalised))
    key = derive(0, "test")
    alone = collect(simulation, broadcast, [3], key).total
    collect(simulation, broadcast, [0, 1, 2], key)
    again = collect(simulation, broadcast, [3], key).total
    np.testing.assert_array_equal(alone.delta, again.delta)
    assert alone.metrics == again.metrics


def test_the_total_is_the_sum_of_its_clients_in_any_order():
    simulation, broadcast = opened(federation(), workers=2)
    key = derive(0, "test")
    parts = [collect(simulation, broadcast, [client], key).total for client in range(5)]
    whole = collect(simulation, broadcast, [4, 2, 0, 1, 3], key).total
    np.testing.assert_allclose(whole.delta, sum(part.delta for part in parts), rtol=1e-4, atol=1e-5)
    assert whole.weight == sum(part.weight for part in parts)
    assert whole.metrics["loss"].count == pytest.approx(sum(part.metrics["loss"].count for part in parts))


def test_learning_rate_zero_steps_nowhere():
    """With a vanishing rate the delta vanishes: delta is local − global, nothing else."""
    simulation, broadcast = opened(federation())
    total = collect(simulation, broadcast._replace(learning_rate=0.0), [0, 1], derive(0)).total
    np.testing.assert_array_equal(total.delta, 0)


def test_uniform_weighting_counts_clients():
    simulation, broadcast = opened(federation(weighting="uniform"))
    assert collect(simulation, broadcast, [0, 5, 7], derive(0)).total.weight == 3


def poisoned(clients: int) -> data.PerClient:
    parts = [blobs(10, seed=client) for client in range(6)]
    for x, _ in parts[:clients]:
        x[0, 0] = np.inf
    return data.PerClient(parts)


def test_a_client_that_is_not_finite_is_left_out():
    experiment = federation(population=poisoned(1), sampler=AllClients())
    history = run(experiment, Simulation(workers=2))
    assert [(record.clients, record.failures) for record in history.rounds] == [(5, 1)] * 3
    assert np.isfinite(history.params).all()


def test_a_round_without_finite_updates_stops_the_run():
    with pytest.raises(RunStopped, match=r"round 1: 0 valid updates.*non_finite.*learning_rate"):
        run(federation(population=poisoned(6), sampler=AllClients()), Simulation(workers=2))


def test_personal_variables_stay_at_home():
    experiment = federation(model=dropped_and_normalised, personal=("batch_normalization",), sampler=AllClients())
    simulation = Simulation(workers=2)
    history = run(experiment, simulation)
    assert not any("batch_normalization" in variable.path for variable in history.spec.shared)
    assert len(history.params) == history.spec.size == (6 * 8 + 8) + (8 * 3 + 3)
    kept = [simulation._memory.read(client) for client in range(8)]
    assert all(len(arrays) == 4 for arrays in kept)
    assert not np.array_equal(kept[0][2], kept[1][2])  # their moving means differ


def test_validation_is_measured_per_client():
    train, held_out = data.split_clients(federation().population, validation=0.3)
    history = run(federation(population=train, validation=held_out, evaluate_every=2), Simulation(workers=2))
    assert "validation_accuracy_p10" not in history.rounds[0].metrics
    last = history.rounds[-1].metrics
    assert last["validation_accuracy_p10"] <= last["validation_accuracy_p50"] <= last["validation_accuracy_p90"]


def mixed():
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return dense()
    finally:
        keras.config.set_dtype_policy("float32")


def test_mixed_precision_keeps_a_float32_vector():
    history = run(federation(model=mixed), Simulation(workers=2))
    plain = run(federation(), Simulation(workers=2))
    assert history.params.dtype == np.float32
    np.testing.assert_allclose(history.params, plain.params, atol=0.05)


def test_workers_are_reused_for_the_same_experiment():
    simulation = Simulation(workers=1)
    first = run(federation(), simulation)
    team = simulation._team
    second = run(federation(rounds=3), simulation)
    assert simulation._team is team
    assert first.params_sha256 == second.params_sha256


def test_workers_are_reused_for_the_same_data_divided_otherwise():
    simulation, source = Simulation(workers=1), data.Arrays(*blobs(64))
    run(federation(population=data.Partitioned(source, clients=8)), simulation)
    team = simulation._team
    run(federation(population=data.Partitioned(source, clients=8, seed=1)), simulation)
    assert simulation._team is team
    run(federation(population=data.Partitioned(data.Arrays(*blobs(48)), clients=8)), simulation)
    assert simulation._team is not team


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, r"workers=0"),
        ({"workers": True}, r"workers=True"),
        ({"compile": "jit"}, r"compile='jit'"),
        ({"devices": ["GPU:7"]}, r"unknown device 'GPU:7'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        run(federation(), Simulation(**settings))


def uncompiled():
    import keras

    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def misshapen():
    import keras

    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": uncompiled}, r"model=uncompiled\(\) is not compiled; call model.compile"),
        ({"model": misshapen}, r"model=misshapen\(\) does not train on an example of x: float32\[6\]"),
        ({"model": lambda: 3}, r"to return a Keras model, got int"),
        ({"personal": ("head",)}, r"personal='head' matches no variable; the model has: .*dense/kernel"),
        (
            {"population": data.PerClient([(blobs(9)[0], np.full(9, 7, np.int32))] * 4)},
            r"label 7 is out of range: .* 3 outputs",
        ),
        ({"population": data.Partitioned(data.Arrays(*blobs(5)), clients=9)}, r"clients=9"),
    ],
)
def test_bad_experiments(changes, message):
    with pytest.raises(ConfigError, match=message):
        run(federation(**changes), Simulation(workers=1))


def test_debug_names_client_round_and_batch():
    from umbel import ClientError

    experiment = federation(population=poisoned(6), sampler=AllClients(), local=Local(epochs=1, batch_size=3))
    with pytest.raises(ClientError, match=r"round 1, client 0, batch \d: the loss is nan"):
        run(experiment, Simulation(debug=True))


def test_examples_must_be_of_one_length():
    with pytest.raises(ConfigError, match="one length"):
        Examples.of((np.zeros((3, 2)), np.zeros(4)))


@pytest.mark.parametrize("folds", [data.kfold_within, data.kfold_clients])
def test_cross_validation_holds_out_every_fold(folds):
    experiment = federation(sampler=FixedCohort(3), test=None, evaluate_every=3, personal=("dense_1",))
    simulation = Simulation(workers=2)
    found = cross_validate(experiment, simulation, folds(experiment.population, 2))
    assert found.scores().shape == (2,)
    assert "over 2 folds" in found.summary()
    train, held_out = next(iter(folds(experiment.population, 2)))
    alone = run(
        dataclasses.replace(experiment, name="small-fold1", population=train, validation=held_out),
        Simulation(workers=1),
    )
    assert found.scores()[0] == alone.column("validation_accuracy")[-1]


def test_parts_of_different_divisions_are_refused():
    population = federation().population
    train, _ = data.split_clients(population, seed=0)
    _, held_out = data.split_clients(population, seed=1)
    with pytest.raises(ConfigError, match="different divisions"):
        federation(population=train, validation=held_out)


UNITS = 4


def of_so_many_units():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(UNITS), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_builder_that_reads_another_value_builds_another_model(monkeypatch):
    simulation, experiment = Simulation(workers=1), federation(model=of_so_many_units, rounds=1, test=None)
    first = run(experiment, simulation)
    monkeypatch.setitem(globals(), "UNITS", 5)
    assert len(run(experiment, simulation).params) == len(first.params) + 6 + 1 + 3


def test_data_changed_in_place_are_other_data_and_what_is_not_named_is_let_go():
    x, y = blobs(48)
    simulation = Simulation(workers=1)

    def play(inputs):
        population = data.Partitioned(data.Arrays(inputs, y), clients=8)
        return run(federation(population=population, test=(inputs, y), rounds=1), simulation).rounds[0].metrics

    play(x)
    x *= 2
    assert play(x) == play(x.copy())
    assert len(simulation._tensors) == 2  # training and test, of the last run alone


def test_a_large_data_set_is_not_held_twice(monkeypatch):
    plain = run(federation(rounds=1), Simulation(1, SOONEST))
    monkeypatch.setattr("umbel.runtimes.simulation.LARGE_BYTES", 0)
    simulation = Simulation(1, SOONEST)
    assert run(federation(rounds=1), simulation).params_sha256 == plain.params_sha256
    assert not simulation._tensors
