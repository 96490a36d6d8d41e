"""A client's own account of what it released: nothing is forgotten, and what would be too much is not charged."""

import json
from types import SimpleNamespace

import pytest

from umbel import ConfigError, StoreError
from umbel.clients.policy import Policy, Refused
from umbel.clients.spending import MOST_VARIANTS, Spending, SpendingFile, total
from umbel.core.reading.loading import load_experiment
from umbel.privacy import LocalPlan
from umbel.privacy.per_example import PerExamplePlan


def anything(spending):
    """A policy without bounds."""


@pytest.fixture
def account(tmp_path):
    return SpendingFile.of(tmp_path / "home", 3)


def test_all_that_was_charged_is_there_for_the_next_process(account):
    for variant in ("one", "two", "one"):
        account.charge("mine", variant, Spending(1, {"e": 2, variant: 1}), anything)
    account.charge("other", "one", Spending(1), anything)
    again = SpendingFile(account.path).read()
    assert again["mine"] == {"one": Spending(2, {"e": 4, "one": 2}), "two": Spending(1, {"e": 2, "two": 1})}
    assert total(again["mine"]) == Spending(3, {"e": 6, "one": 2, "two": 1})
    assert total(again["other"]) == Spending(1)
    assert account.path.stat().st_mode & 0o077 == 0


def test_what_is_refused_is_not_charged(account):
    def at_most_two(spending):
        if spending.replies > 2:
            raise Refused("too many")

    for variant in ("one", "another seed"):
        account.charge("mine", variant, Spending(1), at_most_two)
    for variant in ("one", "a third seed"):
        with pytest.raises(Refused):
            account.charge("mine", variant, Spending(1), at_most_two)
    assert total(account.read()["mine"]).replies == 2


def test_many_variants_are_added_up_and_none_is_lost(account):
    for number in range(MOST_VARIANTS + 20):
        account.charge("mine", str(number), Spending(1, {"e": 1}), anything)
    variants = account.read()["mine"]
    assert len(variants) <= MOST_VARIANTS + 1
    assert total(variants) == Spending(MOST_VARIANTS + 20, {"e": MOST_VARIANTS + 20})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mine": {"one": {"replies": -1, "events": {}}}}', '{"mine": 3}'])
def test_an_account_that_cannot_be_read_releases_nothing(account, text):
    account.charge("mine", "one", Spending(1), anything)
    account.path.write_text(text)
    with pytest.raises(StoreError, match=r"cannot be read.*--reset"):
        account.charge("mine", "one", Spending(1), anything)
    assert account.path.read_text() == text


def test_its_owner_resets_it(account):
    for name in ("mine", "other"):
        account.charge(name, "one", Spending(1), anything)
    account.reset("mine")
    assert list(account.read()) == ["other"]
    with pytest.raises(ConfigError, match="'mine'"):
        account.reset("mine")
    account.path.write_text("spoiled")
    account.reset()
    assert account.read() == {}
    assert json.loads(account.path.read_text()) == {}


NUMBERS = {"epsilon": 1.0, "delta": 1e-6, "rounds": 3, "population": 100, "clip_norm": 1.0}
PLANS = {
    "local": LocalPlan(**NUMBERS),
    "examples": PerExamplePlan(**NUMBERS, batch_size=10, smallest_client=50, steps=5),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_may_release_what_it_promised_and_no_reply_more(name, account):
    plan = PLANS[name]
    plain = load_experiment("digits_fedavg")

    fields = SimpleNamespace(population=plain.population, plan=plan)
    fields.resolved = fields
    policy = Policy(max_epsilon=1.0005)

    def reply():
        account.charge("mine", "one", Spending(1, plan.charge({})), lambda all: policy.check_spending(fields, all))

    for _ in range(plan.rounds):
        reply()
    with pytest.raises(Refused, match=r"epsilon after 4 replies=1\.\d+ is above 1"):
        reply()
