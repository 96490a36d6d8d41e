"""The table of what excludes what, in docs/algorithms.md: `python -m tests.support.exclusions` writes it anew.

It is made of what parts declare (core/traits.py): one of each kind that Umbel has.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from umbel import strategies
from umbel.core.parts.sampling import AllClients, FixedCohort, PoissonCohort
from umbel.core.recipe import declared
from umbel.core.traits import TEXTS, Declared

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
BEGIN = "<!-- written by python -m tests.support.exclusions -->\n"
END = "<!-- end -->\n"


def parts() -> list[Declared]:
    """List one of each part that declares something, as an experiment's recipe declares it."""
    from umbel import Deadline, Devices, FineTune, InTime, Oort, PowerOfChoice
    from umbel.core.aggregators import WeightedSum
    from umbel.privacy import (
        CentralGaussian,
        Clip,
        ClipPerLayer,
        DistributedPlan,
        DistributedSkellam,
        FixedCohortPlan,
        Homomorphic,
        LocalGaussian,
        LocalPlan,
        PerExample,
        PerExamplePlan,
        PrivacyPlan,
        SecureSum,
        grid_limit,
    )

    numbers = {"epsilon": 8.0, "delta": 1e-6, "rounds": 10, "population": 1000}
    limit = grid_limit(10.0)
    fields = {
        "strategy": [
            *(kind() for kind in (*strategies.ALL_STRATEGIES, *strategies.ALL_ASYNCHRONOUS)),
            strategies.SplitFed("dense"),
        ],
        "sampler": [FixedCohort(2), PoissonCohort(0.1), PowerOfChoice(2, 4), Oort(2), InTime(1.0, FixedCohort(2))],
        "aggregator": [WeightedSum(), *strategies.ALL_AGGREGATORS],
        "codec": list(strategies.ALL_CODECS),
        "transforms": [
            strategies.RandomMask(0.1),
            strategies.PooledVariance(),
            Clip(1.0),
            ClipPerLayer(1.0),
            CentralGaussian(1.0, 1.0, 10.0),
            LocalGaussian(1.0, 1.0),
            DistributedSkellam(1.0, 1.0, 3, limit),
        ],
        "plan": [
            PrivacyPlan(**numbers, sampling_rate=0.1, clip_norm=1.0),
            FixedCohortPlan(**numbers, cohort=10, clip_norm=1.0),
            LocalPlan(**numbers, clip_norm=1.0),
            DistributedPlan(**numbers, cohort=10, survivors_floor=3, clip_norm=1.0, limit=limit),
            PerExamplePlan(**numbers, clip_norm=1.0, batch_size=8, smallest_client=100, steps=10),
        ],
        "secure_aggregation": [SecureSum(limit=1.0), Homomorphic(limit=1.0, clients=10)],
        "local.per_example": [PerExample(1.0, 1.0)],
        "reweighting": [strategies.Agnostic()],
        "rule": [strategies.Proximal(), strategies.FedRep(), strategies.Ditto()],
        "fine_tune": [FineTune()],
        "devices": [Devices()],
        "deadline": [Deadline(seconds=1.0), Deadline(over_selection=1.3)],
        "personal": [("head",)],
        "validation": [SimpleNamespace(is_some_clients=False), SimpleNamespace(is_some_clients=True)],
    }
    return [one for name, values in fields.items() for value in values for one in _declared(name, value)]


def _declared(field: str, value: object) -> list[Declared]:
    """List what a recipe with that part, and else with nothing that declares anything, says of it."""
    bare = dict.fromkeys(
        ("plan", "secure_aggregation", "reweighting", "codec", "fine_tune", "deadline", "devices", "validation", "rule")
    )
    bare |= {
        "strategy": strategies.FedAvg(),
        "sampler": AllClients(),
        "transforms": strategies.RandomMask(0.1),
        "aggregator": strategies.Median(),
        "personal": (),
        "is_rule_own": field == "strategy",
        "local": SimpleNamespace(per_example=value if field == "local.per_example" else None),
    }
    if field != "local.per_example":
        bare[field] = value
    if field == "strategy":
        bare["rule"] = value.rule
    return [one for one in declared(SimpleNamespace(**bare)) if one.name == field]


def table() -> str:
    """Make the table, in Markdown: a row for each trait that something needs and something hides."""
    rows = ["| what is needed | needed by | taken away by |", "|---|---|---|"]
    everything = parts()
    for trait, text in TEXTS.items():
        needing = _names(one for one in everything if trait in one.needs)
        hiding = _names(one for one in everything if trait in one.hides)
        if needing and hiding:
            rows.append(f"| {text.needed} | {needing} | {hiding} |")
    return "\n".join(rows) + "\n"


def _names(found) -> str:
    """List the parts by field, each class once."""
    by_field: dict[str, list[str]] = {}
    for one in found:
        name = "" if one.name in ("validation", "personal") else type(one.part).__name__
        if name not in by_field.setdefault(one.name, []):
            by_field[one.name].append(name)
    return "; ".join(f"`{field}` {', '.join(names)}".strip() for field, names in by_field.items())


def page() -> str:
    """Return docs/algorithms.md with the table as it should be."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
