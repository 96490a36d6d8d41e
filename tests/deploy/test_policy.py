"""A client's policy: what exceeds it is refused with the value and the bound; what does not passes."""

from dataclasses import replace

import pytest

from umbel import ConfigError
from umbel.clients.policy import Policy, Refused
from umbel.core.reading.loading import load_experiment
from umbel.deploy.texts import POLICY_TOML
from umbel.privacy import PrivacyPlan

FILE = """
from umbel.core.reading.loading import load_experiment
experiment = load_experiment("digits_fedavg")
open({canary!r}, "w").close()
"""


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "policy.toml").write_text(POLICY_TOML)
    return Policy.read(tmp_path / "policy.toml")


@pytest.fixture(scope="module")
def plan():
    return PrivacyPlan(
        epsilon=4.0, delta=1e-6, rounds=10, population=100, sampling_rate=0.5, clip_norm=1.0, noise_multiplier=8.0
    )


def private(plan):
    """digits_fedavg under a plan."""
    plain = load_experiment("digits_fedavg")
    return replace(plain, plan=plan, sampler=None, weighting=None)


def test_the_policy_of_a_fresh_kit_allows_what_is_installed(policy):
    experiment = policy.load("digits_fedavg", ["rounds=7"])
    assert experiment.digest == load_experiment("digits_fedavg").digest
    policy.check_round(experiment, 7, 1000)
    with pytest.raises(Refused, match="'nothing' is not installed on this client"):
        policy.load("nothing", [])


def test_no_path_leads_out_of_the_folder_and_nothing_is_run_before_it_is_allowed(policy, tmp_path):
    canary = tmp_path / "canary"
    outside, inside = tmp_path / "mine.py", tmp_path / "experiments" / "mine.py"
    outside.write_text(FILE.format(canary=str(canary)))
    for reference in (str(outside), "../mine.py", "sub/mine.py", "..\\mine.py", ".mine.py", "mine.py"):
        with pytest.raises(Refused):
            policy.load(reference, [])
    inside.write_text(outside.read_text())
    with pytest.raises(Refused, match="'mine' is not allowed; allowed are: digits_fedavg"):
        replace(policy, allow=("digits_fedavg",)).load("mine.py", [])
    assert not canary.exists()
    policy.load("mine.py", [])
    assert canary.exists()


@pytest.mark.parametrize(
    ("bounds", "override", "complaint"),
    [
        ({"max_rounds": 5}, "rounds=6", "rounds=6 is above 5"),
        ({"max_epochs": 2}, "local.epochs=3", "local.epochs=3 is above 2"),
        ({"require_secure_aggregation": True}, "rounds=1", "secure aggregation is required"),
        ({"max_epsilon": 8.0}, "rounds=1", "differential privacy is required"),
        ({"max_delta": 1e-5}, "rounds=1", "differential privacy is required"),
        ({"min_noise_multiplier": 1.0}, "rounds=1", "differential privacy is required"),
        ({"allow": ()}, "rounds=1", "'digits_fedavg' is not allowed; allowed are: none"),
        ({"digests": {"digits_fedavg": "0" * 64}}, "rounds=1", "only 000000000000 is allowed"),
    ],
)
def test_each_bound_refuses_what_exceeds_it(policy, bounds, override, complaint):
    with pytest.raises(Refused, match=complaint):
        replace(policy, **bounds).load("digits_fedavg", [override])


def test_a_digest_allows_one_experiment_and_no_variation_of_it(policy):
    exactly = replace(policy, allow=(), digests={"digits_fedavg": load_experiment("digits_fedavg").digest})
    exactly.load("digits_fedavg", ["rounds=3"])  # the number of rounds has a bound of its own
    with pytest.raises(Refused, match=r"only .* is allowed"):
        exactly.load("digits_fedavg", ["local.epochs=2"])


def test_every_phase_of_a_clients_round_counts_as_epochs(policy, tmp_path):
    """FedRep's head and Ditto's own model are trained on the client's processor, too."""
    text = "import dataclasses\nfrom umbel.core.reading.loading import load_experiment\n"
    text += "from umbel.strategies import Ditto, FedRep\n"
    text += "experiment = dataclasses.replace(load_experiment('digits_fedavg'), {})\n"
    for changes, most in (("strategy=FedRep(3), personal=('dense_1',)", 4), ("strategy=Ditto()", 2)):
        (tmp_path / "experiments" / "mine.py").write_text(text.format(changes))
        replace(policy, max_epochs=most).load("mine.py", ["local.epochs=1"])
        with pytest.raises(Refused, match=f"all phases' epochs={most} is above {most - 1}"):
            replace(policy, max_epochs=most - 1).load("mine.py", ["local.epochs=1"])


def test_a_server_that_goes_on_is_stopped(policy):
    experiment = load_experiment("digits_fedavg", ["rounds=2"])
    bound = replace(policy, max_rounds=2, max_parameters=100)
    bound.check_round(experiment, 2, 100)
    with pytest.raises(Refused, match="round=3 is above 2"):
        bound.check_round(experiment, 3, 100)
    with pytest.raises(Refused, match="the model's parameters=101 is above 100"):
        bound.check_round(experiment, 1, 101)


def test_privacy_is_bounded_by_the_clients_own_accounting(policy, plan):
    experiment = private(plan)
    replace(policy, max_epsilon=4.0, max_delta=1e-6, min_noise_multiplier=8.0)._check_privacy(experiment)
    for bounds, complaint in [
        ({"max_epsilon": 3.9}, "epsilon=4 is above 3.9"),
        ({"max_delta": 1e-7}, "delta=1e-06 is above 1e-07"),
        ({"min_noise_multiplier": 8.1}, "noise_multiplier=8 is below 8.1"),
    ]:
        with pytest.raises(Refused, match=complaint):
            replace(policy, **bounds)._check_privacy(experiment)
    spent = [plan.spent({event: n * count for event, count in plan.charge({}).items()}) for n in (3, 4)]
    assert spent[0] < spent[1]
    bound = replace(policy, max_epsilon=(spent[0] + spent[1]) / 2)
    bound.check_round(experiment, 3, 10)
    with pytest.raises(Refused, match="epsilon after round 4="):
        bound.check_round(experiment, 4, 10)


@pytest.mark.parametrize(
    "text",
    [
        "[limits]\nmax_round = 3",
        "[limit]\nmax_rounds = 3",
        "[limits]\nmax_rounds = 0",
        "[limits]\nmax_rounds = '3'",
        "[privacy]\nmax_epsilon = true",
        "[privacy]\nrequire_secure_aggregation = 1",
        "[experiments]\nallow = 'digits'",
        "[experiments]\ndigests = {a = 'short'}",
        "limits = 3",
        "not toml",
    ],
)
def test_a_misspelt_bound_is_not_no_bound(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy .*policy\.toml"):
        Policy.read(path)


def test_without_a_file_nothing_is_bounded(monkeypatch):
    monkeypatch.delenv("UMBEL_CLIENT_POLICY", raising=False)
    assert Policy.of_this_process() == Policy()


PROMISING = """
from umbel import FixedCohort
from umbel.core.reading.loading import load_experiment
from umbel.privacy import LocalPlan, SecureSum
import dataclasses
plain = load_experiment("digits_fedavg")
plan = LocalPlan(epsilon=1.0, delta=1e-6, rounds=1, population=100, clip_norm=1.0)
experiments = {
    "open": plain,
    "hidden": dataclasses.replace(
        plain, sampler=FixedCohort(10), weighting="uniform", secure_aggregation=SecureSum(1.0)
    ),
    "local": dataclasses.replace(plain, sampler=None, weighting=None, plan=plan),
}
"""


@pytest.fixture
def promising(policy, tmp_path):
    (tmp_path / "experiments" / "mine.py").write_text(PROMISING)
    return policy


@pytest.mark.parametrize(
    "override",
    ["population.source=x", "plan=none", "aggregation=none", "transforms=none", "test=none", "local.per_example=none"],
)
@pytest.mark.parametrize("name", ["open", "hidden", "local"])
def test_a_server_sets_neither_files_nor_protection(promising, name, override):
    with pytest.raises(Refused, match=f"sets '{override.partition('=')[0]}'.*experiments.overrides"):
        promising.load(f"mine.py:{name}", [override])


@pytest.mark.parametrize("override", ["rounds=1", "seed=7", "local.epochs=2", "local.learning_rate=0.5"])
@pytest.mark.parametrize("name", ["open", "hidden", "local"])
def test_a_server_sets_rounds_sizes_and_rates(promising, name, override):
    promising.load(f"mine.py:{name}", [override])


def test_what_a_floor_follows_from_is_not_the_servers(promising):
    promising.load("mine.py:open", ["sampler.size=3"])
    with pytest.raises(Refused, match=r"sampler\.size"):
        promising.load("mine.py:hidden", ["sampler.size=3"])
    named = replace(promising, overrides=("sampler.size",))
    named.load("mine.py:hidden", ["sampler.size=3"])
    with pytest.raises(Refused, match=r"population\.clients=3, and this federation has 100"):
        replace(promising, clients=100).load("mine.py:hidden", ["population.clients=3"])
