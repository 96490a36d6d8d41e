"""What parts declare is compared in one place; a plain class, and one that speaks of 0.1.0, declare as well."""

import dataclasses
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from federations import federation
from umbel import FedAdam, FedAvg, FixedCohort, Local, PowerOfChoice
from umbel.core.aggregators import WeightedSum
from umbel.core.bases import Aggregator, Sampler
from umbel.core.errors import ConfigError, IncompatibleError
from umbel.core.parts.algorithms import AsynchronousStrategy, Strategy
from umbel.core.reading.adapted import adapted
from umbel.core.recipe import Recipe
from umbel.core.traits import TEXTS, Declared, Trait, check_compatible
from umbel.data import ClassWeighted, FeatureStatistics, LabelFlip, Selected, Standardised, kfold_clients, split_clients
from umbel.data.splits import SomeClients
from umbel.privacy import PerExample, PrivacyPlan, SecureSum
from umbel.strategies import FedBuff, Proximal, Scaffold

PLAN = PrivacyPlan(epsilon=8.0, delta=1e-4, rounds=2, population=8, sampling_rate=0.5, clip_norm=1.0)


class Plain:
    """A strategy of the user's own, of no base."""

    def __init__(self, rate: float = 1.0):
        self.rate = rate

    def __repr__(self):
        return f"Plain({self.rate})"

    def init(self, params):
        return ()

    def update(self, state, params, mean):
        return state, params + self.rate * mean.delta


def test_every_trait_has_words():
    assert set(TEXTS) == set(Trait)


@pytest.mark.parametrize("trait", Trait, ids=lambda trait: trait.name)
def test_who_needs_what_another_hides_is_refused_with_both_names(trait):
    needing = Declared("sampler", "one", trait, Trait.NONE)
    hiding = Declared("plan", "other", Trait.NONE, trait)
    check_compatible([needing])
    check_compatible([hiding, needing._replace(needs=~trait)])
    with pytest.raises(IncompatibleError, match=r"sampler='one' needs .*, which plan='other' .*: .+"):
        check_compatible([hiding, needing])


def test_a_part_that_needs_what_it_hides_itself_needs_another_to_be_refused():
    both = Declared("codec", "one", Trait.COHORTS, Trait.COHORTS)
    check_compatible([both])
    with pytest.raises(IncompatibleError):
        check_compatible([both, both._replace(part="two")])


def test_a_plain_class_is_adapted_once_and_stands_for_itself():
    experiment = federation(strategy=Plain())
    strategy = experiment.resolved.strategy
    assert isinstance(strategy, Strategy)
    assert experiment.strategy is strategy.plain
    assert (repr(strategy), strategy.rate, strategy.mixes_models, strategy.rule) == ("Plain(1.0)", 1.0, False, None)
    assert len(strategy.broadcast(())) == 0
    assert adapted(strategy, Strategy) is strategy


def test_a_plain_class_without_a_method_is_refused():
    with pytest.raises(ConfigError, match="update"):
        adapted(SimpleNamespace(init=0), Strategy)


def test_a_plain_class_says_what_it_needs_in_the_words_it_has():
    aggregator = SimpleNamespace(needs_individual_updates=True, zero=0, add=0, merge=0, total=0)
    assert adapted(aggregator, Aggregator).needs == Trait.EACH_UPDATE | Trait.ALL_UPDATES
    assert adapted(SimpleNamespace(sample=0, size=7), Sampler).cohort_size == 7


def test_a_subclass_in_the_words_of_before_is_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="needs_individual_updates is needs"):

        class Sees(WeightedSum):
            needs_individual_updates = True

    with pytest.raises(IncompatibleError, match="needs individual updates"):
        federation(aggregator=Sees(), secure_aggregation=SecureSum(limit=1.0), weighting="uniform")


def test_an_experiment_keeps_what_it_was_given():
    experiment = federation(sampler=None, plan=PLAN)
    assert experiment.sampler is None
    assert experiment.resolved.sampler == PLAN.sampler
    assert experiment.resolved.weighting == "uniform"
    assert "PoissonCohort" not in repr(experiment)
    open_one = dataclasses.replace(experiment, plan=None, sampler=FixedCohort(2))
    assert open_one.digest == federation(sampler=FixedCohort(2)).digest


def test_filled_in_without_its_plan_an_experiment_still_clips():
    experiment = dataclasses.replace(federation(sampler=None, plan=PLAN).filled_in, plan=None)
    assert experiment.resolved.transforms.transforms == (PLAN.transform,)
    assert experiment.resolved.sampler == PLAN.sampler


def test_an_experiment_and_its_recipe_pickle_and_describe_alike():
    experiment = federation(strategy=FedAdam(0.01))
    recipe = experiment.resolved
    again = pickle.loads(pickle.dumps(experiment))
    assert again.digest == experiment.digest
    assert isinstance(pickle.loads(pickle.dumps(recipe)), Recipe)
    assert recipe.resolved is recipe
    assert dataclasses.replace(experiment.filled_in).digest == experiment.digest


def test_a_strategy_of_both_halves_brings_its_rule():
    recipe = federation(strategy=Scaffold()).resolved
    assert recipe.rule is recipe.strategy
    with pytest.raises(IncompatibleError, match="rule for clients of its own"):
        federation(strategy=Scaffold(), rule=Scaffold())


def test_per_example_noise_hides_the_loss_that_a_sampler_needs():
    local = Local(per_example=PerExample(clip_norm=1.0, noise_multiplier=1.0))
    with pytest.raises(IncompatibleError, match=r"each client's loss, which local\.per_example"):
        federation(local=local, sampler=PowerOfChoice(2, 4))


class PlainPopulation:
    """Clients of the user's own, of no base."""

    def __init__(self, population):
        self.population = population

    def __len__(self):
        return len(self.population)

    def sizes(self):
        return self.population.sizes()

    def examples(self, client):
        return self.population.examples(client)

    def resident(self):
        return None

    def indices(self, client):
        raise NotImplementedError


def test_views_of_a_plain_population_know_nothing_of_it_that_it_does_not_say():
    population = PlainPopulation(federation().population)
    features = population.examples(0).x.shape[1:]
    statistics = FeatureStatistics(np.zeros(features), np.ones(features))
    for view in (
        LabelFlip(population, (0,), 4),
        Selected(population, np.arange(4)),
        Standardised(population, statistics),
        ClassWeighted(population, {0: 2.0}),
        *split_clients(population),
        *next(kfold_clients(population, 2)),
    ):
        recipe = federation(population=view).resolved
        assert len(recipe.population.sample().x) > 0
        assert recipe.population.released == ((statistics,) if isinstance(view, Standardised) else ())
        assert recipe.population.is_some_clients == isinstance(view, SomeClients)
    held_out = dict(zip(("population", "validation"), split_clients(population), strict=True))
    with pytest.raises(ConfigError, match="different divisions"):
        federation(**held_out | {"validation": split_clients(population, seed=1)[1]})


def test_a_plain_plan_brings_what_it_has():
    class PlainPlan:
        delta, population, clients_release = PLAN.delta, PLAN.population, False
        sampler, transform = PLAN.sampler, PLAN.transform
        charge, spent, check_budget = PLAN.charge, PLAN.spent, PLAN.check_budget

        def check(self, experiment):
            assert experiment.transforms.transforms == (self.transform,)

    recipe = federation(sampler=None, plan=PlainPlan()).resolved
    assert (recipe.sampler, recipe.weighting, recipe.local.per_example) == (PLAN.sampler, "uniform", None)
    with pytest.raises(IncompatibleError, match="each client's loss, which plan"):
        federation(sampler=PowerOfChoice(2, 4), plan=PlainPlan())
    pickle.dumps(federation(strategy=Plain()).resolved)


class Late(FedAvg):
    """A subclass that adds what an asynchronous strategy has."""

    def receive(self, update, staleness, base, params):
        return update


class Held(FedAvg):
    """A subclass that adds what a rule has."""

    proximal = 0.5
    remembers = False


class Learning(FixedCohort):
    """A subclass that adds what a sampler that learns has."""

    needs_losses = True

    def choose(self, clients, sizes, key, knowledge):
        return self.sample(clients, sizes, key)


def test_what_a_subclass_adds_is_not_passed_over():
    assert isinstance(federation(strategy=Late()).resolved.strategy, AsynchronousStrategy)
    with pytest.raises(IncompatibleError, match="rounds with a cohort, which strategy=Late"):
        federation(strategy=Late(), sampler=Learning(2))
    assert federation(strategy=Held()).resolved.rule.proximal == 0.5
    with pytest.raises(IncompatibleError, match="a rule for clients of its own, which strategy=Held"):
        federation(strategy=Held(), rule=Proximal(0.1))
    with pytest.raises(IncompatibleError, match="more than a server's half"):
        FedBuff(server=Held())
    assert federation(sampler=Learning(2)).resolved.needs_losses


def test_a_plain_schedule_and_a_plain_privacy_of_examples_are_adapted():
    noise = SimpleNamespace(clip_norm=1.0, steps=None, noise=None)
    schedule = SimpleNamespace(at=lambda round, records: 0.1 * round, metric="test_loss")
    local = federation(local=Local(learning_rate=schedule, per_example=noise)).resolved.local
    assert (local.learning_rate_at(2, ()), local.learning_rate.watched_metric) == (0.2, "test_loss")
    assert (local.per_example.clip_norm, Trait.EACH_LOSS in local.per_example.hides) == (1.0, True)
