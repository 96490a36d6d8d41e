"""`umbel audit`'s attacks end to end: they succeed where nothing protects, and fail where something does."""

import dataclasses

import pytest

import umbel
from federations import CLASSES, FEATURES, dense, federation
from umbel import Chain, Local, PrivacyPlan, SecureSum
from umbel.core.errors import ConfigError
from umbel.privacy import DistributedPlan, LocalGaussian, LocalPlan, grid_limit
from umbel.privacy.budget import step_of
from umbel.privacy.noise import NoiseStream
from umbel.privacy.per_example import PerExamplePlan
from umbel.server.store import Store
from umbel.studies.audit import ALIKE, Audit, unprotected

NUMBERS = {"delta": 1e-3, "rounds": 3, "population": 8, "clip_norm": 0.5}
LIMIT = grid_limit(64.0)
SUMS = {
    "secure sum": SecureSum(4.0, metrics=()),
    "large secure sum": SecureSum(4.0, metrics=(), minimum_clients=12),
}
POISSON = PrivacyPlan(epsilon=2.0, sampling_rate=0.7, **NUMBERS)
PLANS = {
    "central": {"plan": POISSON},
    "secure": {
        "plan": dataclasses.replace(POISSON, rounding=step_of(SUMS["secure sum"]), secret_cohort=False),
        "secure_aggregation": SUMS["secure sum"],
    },
    "distributed": {
        "plan": DistributedPlan(epsilon=6.0, cohort=6, survivors_floor=4, limit=LIMIT, **NUMBERS),
        "secure_aggregation": SecureSum(LIMIT, metrics=(), minimum_clients=4),
    },
    "local": {"plan": LocalPlan(epsilon=2.0, **NUMBERS)},
}


def wide():
    """A model of 2,563 numbers, among which canaries hardly meet one another."""
    import keras

    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


BASE = dataclasses.replace(federation(), model=wide)


def private(name, **changes):
    return dataclasses.replace(BASE, sampler=None, weighting=None, **PLANS[name] | changes)


def audited(experiment, path):
    """The attacks on a run of the experiment; always the same ones."""
    with Store.open(f"sqlite:///{path}/runs.db") as store:
        history = umbel.run(experiment, umbel.Simulation(workers=1, compile="graph"), store=store)
        return Audit(experiment, dataclasses.replace(store.load_run(history.run), run="one"), canaries=60)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The attacks on a run without protection."""
    return audited(dataclasses.replace(BASE, test=None), tmp_path_factory.mktemp("bare"))


@pytest.mark.parametrize("name", PLANS)
def test_canaries_show_no_more_than_a_plan_claims(name, tmp_path):
    auditing = audited(private(name), tmp_path)
    found = auditing.canary()
    assert found.verdict == "holds"
    assert found.found["epsilon_at_least"] <= auditing.claimed <= private(name).plan.epsilon
    assert found.control["epsilon"] > auditing.claimed  # without the plan they would have shown more


@pytest.mark.parametrize("name", ["central", "secure", "local"])
def test_a_plan_whose_noise_is_left_out_is_found_out(name, tmp_path, monkeypatch):
    """What only an attack can tell: sampler, clip norm, ledger and claim are as they should be."""
    monkeypatch.setattr(NoiseStream, "add_to", lambda self, vector, scale: vector)
    auditing = audited(private(name), tmp_path)
    found = auditing.canary()
    assert found.verdict == "exceeds the claim"
    assert found.found["epsilon_at_least"] > auditing.claimed > 0


def test_a_tenth_of_the_noise_is_found_out_too(tmp_path, monkeypatch):
    add = NoiseStream.add_to
    monkeypatch.setattr(NoiseStream, "add_to", lambda self, vector, scale: add(self, vector, scale / 10))
    assert audited(private("central"), tmp_path).canary().verdict == "exceeds the claim"


HIDING = {
    "secure sum": {"secure_aggregation": SUMS["secure sum"], "weighting": "uniform"},
    "large secure sum": {
        "secure_aggregation": SUMS["large secure sum"],
        "weighting": "uniform",
        "sampler": umbel.AllClients(),
    },
    "local noise": {"transforms": Chain(LocalGaussian(0.5, 2.0)), "weighting": "uniform"},
}


@pytest.mark.parametrize("name", HIDING)
def test_what_hides_an_update_hides_its_example(name, bare):
    auditing = Audit(dataclasses.replace(bare.experiment, **HIDING[name]), bare.stored, canaries=60)
    found = auditing.inversion()
    assert found.verdict == "resisted"
    assert found.found["correlation"] < ALIKE <= found.control["correlation"]


def test_a_server_that_adds_the_noise_is_trusted_with_what_it_sees(bare):
    """Central noise is for those who get the model. The audit does not say that it hides anything from the server."""
    central = dataclasses.replace(bare.experiment, sampler=None, weighting=None, plan=POISSON)
    assert Audit(central, bare.stored, canaries=60).inversion().verdict == "succeeded"


def test_a_plan_for_examples_promises_nothing_of_clients(bare):
    """Its noise is dropped from the control like any other's, which would fail for a reason of its own."""
    plan = PerExamplePlan(
        epsilon=4.0, delta=1e-3, rounds=3, population=8, clip_norm=1.0, batch_size=5, smallest_client=3, steps=2
    )
    local = Local(batch_size=5, learning_rate=0.1)
    experiment = dataclasses.replace(BASE, sampler=None, weighting=None, local=local, plan=plan)
    assert experiment.resolved.local.per_example is not None
    assert unprotected(experiment).local.per_example is None
    assert Audit(experiment, bare.stored, canaries=60).canary().verdict == "not applicable"


def test_canaries_show_in_an_unprotected_model(bare):
    found = bare.canary()
    assert found.verdict == "succeeded"
    assert found.found["epsilon_at_least"] > 1


def test_an_unprotected_update_gives_its_example_away(bare):
    found = bare.inversion()
    assert found.verdict == "succeeded"
    assert found.found == found.control


def test_membership_needs_examples_that_were_not_trained_on(bare):
    assert bare.membership().verdict == "not applicable"


def test_membership_is_measured_against_a_model_that_knows_its_examples(tmp_path):
    found = audited(federation(model=dense), tmp_path).membership()
    assert found.control["auc"] > 0.6
    assert found.found["members"] <= 103


def test_a_run_without_rounds_is_refused(tmp_path):
    experiment = federation(model=dense)
    with Store.open(f"sqlite:///{tmp_path}/runs.db") as store:
        stored = store.load_run(umbel.run(experiment, umbel.Simulation(workers=1), store=store).run)
    with pytest.raises(ConfigError, match="no round yet"):
        Audit(experiment, dataclasses.replace(stored, records=[]))
