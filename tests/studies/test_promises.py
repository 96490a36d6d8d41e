"""An attack per promise: it succeeds where nothing protects, fails where something does, and finds what is broken."""

import dataclasses

import numpy as np
import pytest

from federations import dense, federation
from optional import needs_tenseal
from umbel import FixedCohort, Homomorphic, Local, PerExamplePlan, PrivacyPlan, SecureSum, derive
from umbel.clients.spending import SpendingFile
from umbel.data import FeatureStatistics, Standardised
from umbel.privacy import DistributedPlan, LocalPlan, grid_limit
from umbel.privacy.noise import NoiseStream
from umbel.privacy.secagg import Terms
from umbel.studies import promises
from umbel.studies.audit import Audit, unprotected

NUMBERS = {"delta": 1e-3, "rounds": 3, "population": 8, "clip_norm": 0.5}
LIMIT, KEY, SIZE = grid_limit(64.0), derive("promises"), 2000
BARE = federation(model=dense)
PROTECTED = {
    "local": {"plan": LocalPlan(epsilon=2.0, **NUMBERS), "sampler": None},
    "examples": {
        "plan": PerExamplePlan(epsilon=4.0, batch_size=5, smallest_client=3, steps=2, **NUMBERS),
        "local": Local(batch_size=5, learning_rate=0.1),
    },
    "central": {"plan": PrivacyPlan(epsilon=2.0, sampling_rate=0.7, **NUMBERS), "sampler": None},
    "distributed": {
        "plan": DistributedPlan(epsilon=6.0, cohort=6, survivors_floor=4, limit=LIMIT, **NUMBERS),
        "secure_aggregation": SecureSum(LIMIT, metrics=(), minimum_clients=4),
        "sampler": None,
    },
    "hidden": {"secure_aggregation": SecureSum(4.0, metrics=()), "weighting": "uniform", "sampler": FixedCohort(8)},
    "encrypted": {
        "plan": LocalPlan(epsilon=2.0, **NUMBERS),
        "secure_aggregation": Homomorphic(limit=400.0, metrics=(), clients=8),
        "sampler": None,
    },
}


def protected(name, **changes):
    settings = {"weighting": None, "test": None} | PROTECTED[name] | changes
    return dataclasses.replace(BARE, **settings)


def failure_oracle(experiment):
    return promises.failure_oracle(experiment, unprotected(experiment), KEY)


def repeated_rounds(experiment):
    return promises.repeated_rounds(experiment, KEY)


def low_bits(experiment):
    return promises.low_bits(experiment, SIZE, KEY)


def roll_of_three(experiment):
    return promises.roll_of_three(experiment, KEY)


def decrypting_clients(experiment):
    return promises.decrypting_clients(experiment, KEY)


ATTACKS = {
    failure_oracle: ("local", "examples", "distributed", "hidden"),
    repeated_rounds: ("local", "examples", "distributed"),
    low_bits: ("local", "examples", "central", "distributed"),
    roll_of_three: ("hidden",),
}
EACH = [(attack, name) for attack, names in ATTACKS.items() for name in names]


@pytest.mark.parametrize(("attack", "name"), EACH, ids=lambda value: getattr(value, "__name__", value))
def test_an_attack_succeeds_without_protection_and_fails_with_it(attack, name):
    attacked = attack(protected(name))
    assert not attacked.why_not
    assert attacked.is_shown, attacked.control
    assert attacked.is_kept, attacked.found


@needs_tenseal
def test_what_clients_decrypt_of_noisy_updates_is_noisy():
    attacked = decrypting_clients(protected("encrypted"))
    assert attacked.is_shown
    assert attacked.is_kept


def test_a_client_that_answers_openly_is_found_out(monkeypatch):
    monkeypatch.setattr("umbel.clients.round.is_discreet", lambda experiment: False)
    assert not failure_oracle(protected("local")).is_kept


def test_a_client_that_keeps_no_account_is_found_out(monkeypatch):
    monkeypatch.setattr(SpendingFile, "charge", lambda self, name, variant, spent, check: check(spent))
    attacked = repeated_rounds(protected("local"))
    assert not attacked.is_kept
    assert attacked.found == attacked.control


def test_noise_in_float32_is_found_out(monkeypatch):
    monkeypatch.setattr(NoiseStream, "add_to", lambda self, vector, scale: vector + self.draw(len(vector), scale))
    for name in ("local", "central"):
        assert not low_bits(protected(name)).is_kept
    monkeypatch.setattr("umbel.clients.tensorflow.per_example.released", lambda mean, noise, grid: Plain(mean + noise))
    assert not low_bits(protected("examples")).is_kept


class Plain(np.ndarray):
    """An array that gives itself away as a tensor."""

    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def numpy(self):
        return np.asarray(self)


def test_a_client_without_a_floor_is_found_out(monkeypatch):
    def lax(encoder, roster, minimum_clients, meeting, least):
        return Terms(roster, encoder.encoding, encoder.layout.size, meeting.model, 3, 3)

    monkeypatch.setattr("umbel.privacy.remote.terms_of", lax)
    assert not roll_of_three(protected("hidden")).is_kept


def test_what_is_not_promised_is_not_attacked():
    for attack in ATTACKS:
        assert attack(BARE).why_not
    assert decrypting_clients(protected("hidden")).why_not
    assert repeated_rounds(protected("central")).why_not
    few = protected("hidden", sampler=FixedCohort(3))
    assert "three" in roll_of_three(few).why_not


def test_an_audits_claim_is_the_records(stored_run):
    """With the ε and δ of the statistics that standardise the inputs, which it forgot."""
    shape = BARE.population.sample().x.shape[1:]
    statistics = FeatureStatistics(np.zeros(shape), np.ones(shape), 100.0, 0.5, 1e-4, "LocalPlan")
    experiment = protected("local", population=Standardised(BARE.population, statistics))
    stored, history = stored_run(experiment)
    auditing = Audit(experiment, stored, canaries=10)
    assert auditing.claimed == history.privacy["epsilon"] == history.rounds[-1].epsilon
    assert auditing.claimed > 0.5
    assert auditing.delta == history.privacy["delta"] == 1e-3 + 1e-4
    verdicts = {found.attack: found.verdict for found in auditing.promised()}
    assert verdicts == {
        "failure oracle": "resisted",
        "repeated rounds": "resisted",
        "low bits": "resisted",
        "decrypting clients": "not applicable",
        "roll of three": "not applicable",
    }


@pytest.fixture
def stored_run(tmp_path):
    import umbel
    from umbel.server.store import Store

    def play(experiment):
        with Store.open(f"sqlite:///{tmp_path}/runs.db") as store:
            history = umbel.run(experiment, umbel.Simulation(workers=1, compile="graph"), store=store)
            return store.load_run(history.run), history

    return play
