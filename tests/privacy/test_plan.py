import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from sums import Rehearsal

from federations import blobs, federation
from umbel import Chain, Clip, ConfigError, data
from umbel.core.errors import IncompatibleError, RunStopped
from umbel.core.parts.sampling import AllClients, FixedCohort, PoissonCohort
from umbel.core.random import derive
from umbel.core.spec import ModelSpec, VariableSpec
from umbel.core.types import NOTHING, ClientUpdate, Shape, Total
from umbel.privacy import (
    AdaptiveClip,
    DistributedPlan,
    FixedCohortPlan,
    LocalGaussian,
    LocalPlan,
    PrivacyPlan,
    accounting,
    grid_limit,
)
from umbel.privacy.budget import step_of
from umbel.privacy.homomorphic import Homomorphic
from umbel.privacy.secure_sum import SecureSum

NUMBERS = {"epsilon": 2.0, "delta": 1e-5, "rounds": 20, "population": 8, "clip_norm": 0.5}
LIMIT = grid_limit(120.0)
PLANS = {
    "poisson": PrivacyPlan(**NUMBERS, sampling_rate=0.5),
    "fixed": FixedCohortPlan(**NUMBERS, cohort=4),
    "local": LocalPlan(**NUMBERS),
    "distributed": DistributedPlan(**NUMBERS, cohort=6, survivors_floor=4, limit=LIMIT),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def spec(size=5):
    return ModelSpec((VariableSpec("dense/kernel", (size,), "float32", True, 0),))


def aggregation_of(plan):
    if isinstance(plan, DistributedPlan):
        return SecureSum(limit=LIMIT, metrics=(), minimum_clients=4)
    return None


def planned(plan, **changes):
    return federation(
        **{
            "plan": plan,
            "sampler": plan.sampler,
            "transforms": Chain(plan.transform),
            "weighting": "uniform",
            "secure_aggregation": aggregation_of(plan),
        }
        | changes
    )


@every_plan
def test_the_noise_keeps_the_budget_for_all_rounds_and_less_would_not(plan):
    noise = plan.round_event.noise_multiplier
    cheaper = dataclasses.replace(plan, noise_multiplier=0.98 * noise)
    costs = [accounting.epsilon({str(one.round_event): one.rounds}, one.delta).pld for one in (plan, cheaper)]
    assert 0.99 * plan.epsilon < costs[0] <= plan.epsilon < costs[1]


@every_plan
def test_ledger_price_and_stop(plan):
    ledger = {}
    for number in range(plan.rounds):
        ledger = plan.charge(ledger)
        plan.check_budget(ledger)
        assert sum(ledger.values()) == number + 1
    assert plan.spent(ledger) == pytest.approx(accounting.epsilon(ledger, plan.delta).pld, rel=5e-4)
    over = {text: 2 * count for text, count in ledger.items()}
    with pytest.raises(RunStopped, match=r"39 rounds cost ε=.* above epsilon=2 at delta=1e-05.* more rounds"):
        plan.check_budget(over)


@every_plan
def test_a_plan_calibrated_now_is_the_plan_calibrated_later(plan):
    numbers = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    again = type(plan).calibrate(**numbers)
    assert again == plan
    assert again.transform == plan.transform
    assert again.round_event == plan.round_event
    assert accounting.parse_event(str(plan.round_event)) == plan.round_event
    explicit = dataclasses.replace(plan, noise_multiplier=plan.round_event.noise_multiplier)
    assert explicit.round_event == plan.round_event


@every_plan
def test_sampler_and_divisor_come_from_the_same_numbers(plan):
    expected = {
        "poisson": (PoissonCohort(0.5), 4.0),
        "fixed": (FixedCohort(4), 4.0),
        "local": (AllClients(), 7.0),
        "distributed": (FixedCohort(6), 7.0),
    }
    sampler, divisor = next(expected[name] for name, one in PLANS.items() if one is plan)
    assert plan.sampler == sampler
    plan.transform.init(spec())
    total = Total(np.zeros(5, np.float32), NOTHING, 7.0, 7, {})
    assert plan.transform.decode(plan.transform.init(spec()), total, derive(0))[1].weight == divisor


@pytest.mark.parametrize("name", ["poisson", "fixed"])
def test_the_noise_on_the_sum_is_that_of_the_event(name):
    plan = PLANS[name]
    total = Total(np.zeros(100_000, np.float32), NOTHING, 0.0, 0, {})
    noise = plan.transform.decode((), total, derive(0))[1].delta
    assert noise.std() == pytest.approx(plan.round_event.noise_multiplier * 0.5, rel=0.015)


def test_the_noise_of_clients_is_that_of_the_event():
    update = ClientUpdate(np.zeros(100_000, np.float32), NOTHING, 1.0, {})
    local, distributed = PLANS["local"], PLANS["distributed"]
    sent = local.transform.encode((), update, derive(0)).delta
    assert sent.std() == pytest.approx(local.round_event.noise_multiplier * 0.5, rel=0.015)
    shares = sum(distributed.transform.encode((), update, derive(client)).delta for client in range(4))
    assert shares.std() == pytest.approx(distributed.round_event.noise_multiplier * 0.5, rel=0.015)


@every_plan
def test_an_experiment_that_keeps_the_promise_is_accepted(plan):
    experiment = planned(plan)
    assert experiment.transforms == Chain(plan.transform)
    plan.check(planned(plan, transforms=Chain(Clip(1.0), plan.transform)))


@every_plan
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sampler": FixedCohort(3)}, "accounts for"),
        ({"weighting": "examples"}, "uniform"),
        (
            {"validation": data.Partitioned(data.Arrays(*blobs()), by=data.LogNormal(sigma=0.5), clients=8)},
            "validation needs metrics of single clients",
        ),
        (
            {"population": data.Partitioned(data.Arrays(*blobs()), by=data.LogNormal(sigma=0.5), clients=9)},
            "population=8 to be the 9 clients",
        ),
    ],
)
def test_an_experiment_that_would_break_it_is_refused(plan, change, part):
    with pytest.raises(ConfigError, match=part):
        plan.check(planned(plan, **change))


@every_plan
@pytest.mark.parametrize("order", ["nothing", "twice", "not last", "inside, not last", "another"])
def test_the_transform_is_there_once_and_last(plan, order):
    own, other = plan.transform, Clip(1.0)
    chains = {
        "nothing": Chain(),
        "twice": Chain(own, own),
        "not last": Chain(own, other),
        "inside, not last": Chain(Chain(own), other),
        "another": Chain(LocalGaussian(1.0, 1.0), own),
    }
    experiment = planned(plan)
    # What is built has the plan's transform added; a check looks at what it is given.
    object.__setattr__(experiment, "transforms", chains[order])
    with pytest.raises(IncompatibleError, match="transforms"):
        plan.check(experiment)


def test_what_aggregation_does_to_a_sum_is_allowed_for():
    plan = PLANS["poisson"]
    plain = SecureSum(limit=2.0, metrics=())
    with pytest.raises(IncompatibleError, match="metrics"):
        planned(plan, secure_aggregation=SecureSum(limit=2.0))
    with pytest.raises(ConfigError, match=r"rounding=0\.0 of the plan"):
        planned(plan, secure_aggregation=plain)
    step = plain.encoding(3).step
    allowing = dataclasses.replace(plan, rounding=step, secret_cohort=False)
    assert planned(allowing, secure_aggregation=plain).transforms.transforms[-1].rounding == step
    adaptive = PrivacyPlan(**NUMBERS | {"clip_norm": AdaptiveClip()}, sampling_rate=0.5, rounding=step)
    adaptive = dataclasses.replace(adaptive, secret_cohort=False)
    planned(adaptive, secure_aggregation=plain)
    with pytest.raises(ConfigError, match=r"limit=0\.25 of SecureSum ≥ 0\.5"):
        planned(adaptive, secure_aggregation=SecureSum(limit=0.25, metrics=()))


@pytest.mark.parametrize("name", ["poisson", "fixed"])
def test_a_roll_that_clients_are_told_amplifies_nothing(name):
    """Clients of a secure sum know who else is in it, and the plan's promise is towards clients."""
    hidden = SecureSum(limit=2.0, metrics=())
    told = dataclasses.replace(PLANS[name], rounding=step_of(hidden))
    with pytest.raises(IncompatibleError, match=r"tells each client of a round who else is in it.*secret_cohort=False"):
        planned(told, secure_aggregation=hidden)
    priced = dataclasses.replace(told, secret_cohort=False)
    planned(priced, secure_aggregation=hidden)
    everybody = {"sampling_rate": 1.0} if name == "poisson" else {"cohort": 8}
    assert priced.calibrated_noise == dataclasses.replace(told, **everybody).calibrated_noise > told.calibrated_noise
    assert priced.sampler == told.sampler
    assert priced.transform.expected_cohort == told.transform.expected_cohort
    ledger = told.charge({})
    noise = told.calibrated_noise
    with_told_noise = dataclasses.replace(priced, noise_multiplier=noise)
    assert with_told_noise.spent(with_told_noise.charge({})) > told.spent(ledger)
    planned(dataclasses.replace(told, **everybody), secure_aggregation=hidden)  # counts on nothing


@pytest.mark.parametrize("name", ["poisson", "fixed"])
def test_clients_that_decrypt_a_sum_before_its_noise_are_refused(name):
    """The promise is to whoever sees the models, clients too: three of them would see a sum without noise."""
    sums = Homomorphic(limit=2.0, metrics=())
    allowing = dataclasses.replace(PLANS[name], rounding=2.0 / sums.parameters.levels)
    with pytest.raises(IncompatibleError, match="some clients decrypt a round's sum before the plan's noise"):
        planned(allowing, secure_aggregation=sums)


def test_an_aggregation_that_does_not_say_how_it_rounds_is_refused():
    class Silent:
        metrics = ()
        limit = 1.0

        def rehearse(self, meeting, cohort, is_real):
            """Never begun."""

    with pytest.raises(IncompatibleError, match="Silent does not say how far it rounds"):
        planned(PLANS["poisson"], secure_aggregation=Silent())


def test_shares_of_noise_need_secure_aggregation_on_their_grid():
    plan = PLANS["distributed"]
    for aggregation, part in (
        (None, "hides nothing alone"),
        (SecureSum(limit=2.0, metrics=(), minimum_clients=4), "on whose grid"),
        (SecureSum(limit=LIMIT, metrics=(), max_weight=9, minimum_clients=4), "max_weight=9"),
        (SecureSum(limit=LIMIT, metrics=(), minimum_clients=3), "survivors_floor=4"),
        (SecureSum(limit=LIMIT, minimum_clients=4), "metrics"),
    ):
        with pytest.raises(ConfigError, match=part):
            planned(plan, secure_aggregation=aggregation)


def test_secure_sums_of_noisy_shares_are_exact():
    plan, size, expected = PLANS["distributed"], 400, np.zeros(400)
    rehearsal = Rehearsal(aggregation_of(plan), Shape(size, 0), range(6))
    for client in range(6):
        update = ClientUpdate(np.full(size, 0.01 * client, np.float32), NOTHING, 1.0, {})
        sent = plan.transform.encode((), update, derive(client))
        expected += sent.delta
        rehearsal.add(client, rehearsal.contribute(client, sent, derive(9, client)))
    np.testing.assert_array_equal(rehearsal.total().delta, expected.astype(np.float32))


@every_plan
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 0.2}, "1/population"),
        ({"rounds": 0}, "rounds"),
        ({"population": 0}, "population"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
    ],
)
def test_bad_numbers(plan, change, name):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(plan, **change)


@pytest.mark.parametrize("plan", [PLANS["poisson"], PLANS["local"]], ids=["poisson", "local"])
def test_a_budget_that_no_noise_keeps_is_refused(plan):
    with pytest.raises(ConfigError, match=r"allow a"):
        type(plan).calibrate(**(vars(plan) | {"epsilon": 1e-7, "delta": 1e-12}))


def test_adaptive_clipping_of_too_few_is_refused_when_the_noise_is_known():
    numbers = NUMBERS | {"population": 1000, "clip_norm": AdaptiveClip(), "epsilon": 0.3}
    few = PrivacyPlan(**numbers, sampling_rate=0.01)
    with pytest.raises(ConfigError, match="use a cohort above"):
        few.transform.init(spec())
    with pytest.raises(ConfigError, match="use a cohort above 20 clients"):
        _ = dataclasses.replace(few, noise_multiplier=2.0).transform


def test_a_plan_in_an_experiment_loads_no_accounting():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_plan; "
        "[test_plan.planned(plan) for plan in test_plan.PLANS.values()]; "
        "assert 'dp_accounting' not in sys.modules; assert 'scipy' not in sys.modules; "
        "repr(test_plan.PLANS['poisson'].transform); assert 'dp_accounting' not in sys.modules"
    )
    folder = __file__.rpartition("/")[0]
    tests = folder.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r}); {program}", folder], check=True)
