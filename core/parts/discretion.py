"""Limits that an experiment's promise sets on what may be seen of a client, and of who took part."""

from __future__ import annotations

from typing import Any


def is_discreet(experiment: Any) -> bool:
    """Return whether nothing but a noisy or a masked vector may leave a client.

    True where clients release noise (LocalPlan, DistributedPlan, PerExamplePlan, DP-SGD without a plan) and where an
    aggregation hides their updates. Then a reply is of the same kind and length whatever the examples are: what is not
    finite, and what goes wrong in training, counts as a zero update. A failure in its place would be an answer without
    noise, which a server can ask for by crafting the model that it sends.
    """
    plan = experiment.plan
    releases = (plan is not None and plan.clients_release) or experiment.local.per_example is not None
    return releases or experiment.secure_aggregation is not None


def has_secret_cohort(experiment: Any) -> bool:
    """Return whether the promise counts on nobody knowing who took part: noise is on the sum, the server is trusted.

    Then how many replied, how many failed and how much they sent is no noisy number, and is on no record.
    """
    return experiment.plan is not None and not experiment.plan.clients_release
