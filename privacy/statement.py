"""Words for what a run promises of whom: the rows of `docs/threat-model.md`, which a test compares with these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PARTIES: Mapping[str, str] = {
    "server": "whoever runs it, lies and modifies its code",
    "clients": "other participants, also together",
    "readers": "whoever has the models of a run",
    "network": "whoever sees or changes what travels",
    "insider": "whoever reads and writes the database, without the operator's key",
}
NOT_PROMISED = (
    "how long a client takes, or a round, to who watches it",
    "that a client takes part, where it sends by itself",
    "that honest clients' updates outweigh a hostile one (`limit` and clipping bound it)",
    "anything where the client's own host is hostile",
)
CENTRAL = {
    "server": "trusted with every update, the noise and the cohort's secrecy",
    "clients": "(ε, δ) of any one client",
    "readers": "the same",
    "network": "the cohort shows: who sends is not hidden",
    "insider": "records tell what is public",
}
ROWS: Mapping[str, Mapping[str, str]] = {  # what holds against each of PARTIES, by plan and aggregation
    "no plan, no aggregation": {
        "server": "trusted with every update; sees no examples",
        "clients": "see the models",
        "readers": "nothing is promised",
        "network": "TLS, signed messages",
        "insider": "updates are not stored",
    },
    "PrivacyPlan": CENTRAL,
    "FixedCohortPlan": CENTRAL,
    "LocalPlan": {
        "server": "(ε, δ) of a client's data, over all its replies",
        "clients": "the same",
        "readers": "the same",
        "network": "the same; that it takes part is not hidden",
        "insider": "the same",
    },
    "PerExamplePlan": {
        "server": "(ε, δ) of an example; its number of examples is public",
        "clients": "the same",
        "readers": "the same",
        "network": "the same",
        "insider": "the same",
    },
    "DistributedPlan with SecureSum": {
        "server": "(ε, δ), while `survivors_floor` honest clients stay",
        "clients": "the same, less what they know of their own noise",
        "readers": "(ε, δ)",
        "network": "sees who takes part",
        "insider": "the same",
    },
    "SecureSum": {
        "server": "each round's sum, of no fewer than the client's floor; one failure is like any other update",
        "clients": "as many as the table says may side with the server",
        "readers": "what the sums tell: add a plan",
        "network": "masks; shares sealed client to client",
        "insider": "sums",
    },
    "Homomorphic": {
        "server": "each round's sum, if no client sides with it and it shows the three that decrypt the same; "
        "with BFV nothing of another round, with CKKS nothing of another run",
        "clients": "any one with the server reads every update; three decrypt each sum",
        "readers": "what the sums tell",
        "network": "ciphertexts",
        "insider": "sums",
    },
}
REPLACED = "two federations that differ in one client's data, which is replaced by any other"
UNITS: Mapping[str, tuple[str, str]] = {  # unit that ε is of and difference between neighbours, by plan
    "PrivacyPlan": ("a client, with all its examples", "two federations of which one lacks one client"),
    "FixedCohortPlan": ("a client, with all its examples", REPLACED),
    "LocalPlan": ("a client, with all its examples", REPLACED),
    "DistributedPlan": ("a client, with all its examples", REPLACED),
    "PerExamplePlan": ("an example; not a client that has several", "two data sets of which one lacks one example"),
}


class Statement(NamedTuple):
    """Rows, each readable alone, that say what holds of a run."""

    unit: str | None  # unit that ε is of; None without a plan
    neighbours: str | None  # difference between the data sets that ε compares; None without a plan
    promises: Mapping[str, Mapping[str, str]]  # what holds, by plan or aggregation and party; "the same" is spelt out


def statement_of(plan: str | None, aggregation: str | None) -> Statement:
    """Return the statement for a plan and an aggregation, named by their classes; None for none.

    A plan or aggregation of a user's own, which this page cannot speak of, has no promises.
    """
    names = [name for name in (plan, aggregation) if name is not None] or ["no plan, no aggregation"]
    if plan == "DistributedPlan":
        names = ["DistributedPlan with SecureSum"]
    unit, neighbours = UNITS.get(plan or "", (None, None))
    return Statement(unit, neighbours, {name: _spelt_out(ROWS[name]) for name in names if name in ROWS})


def _spelt_out(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row in which no cell needs the one before it."""
    found: dict[str, str] = {}
    before = ""
    for party, said in row.items():
        alone = f"{before}{said.removeprefix('the same')}" if said.startswith("the same") else said
        found[party] = alone
        before = before if said.startswith("the same") else said
    return found
