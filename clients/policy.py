"""What a client agrees to: read from its own file, checked on its own host, before anything is loaded or trained."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.compatible import price_of
from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.loading import experiment_names, load_experiment
from ..core.phases import passes
from ..core.protocols import Plan
from ..core.validation import require, require_count, require_real, suggest

POLICY_VARIABLE = "UMBEL_CLIENT_POLICY"
FOLDER = "experiments"  # beside the policy's file
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "data": ("source",),
    "experiments": ("allow", "digests"),
    "limits": ("max_rounds", "max_epochs", "max_parameters"),
    "privacy": ("max_epsilon", "max_delta", "min_noise_multiplier", "require_secure_aggregation"),
}


class Refused(ConfigError):
    """The client's policy does not allow what the server asks for. The text is for the operator."""


@dataclass(frozen=True)
class Policy:
    """Bounds that a client keeps, whatever the server asks for; None for no bound.

    folder: where files of experiments are taken from; None: anywhere, as befits a federation inside one machine.
    allow: names of experiments, and of files in folder without .py; "*" for all. digests: {name: SHA-256}: of these
    only the one experiment with that digest. max_epsilon, max_delta: of a run, by this client's own accounting.
    source: where this client's examples are.
    """

    folder: Path | None = None
    allow: tuple[str, ...] = ("*",)
    digests: Mapping[str, str] = field(default_factory=dict)
    max_rounds: int | None = None
    max_epochs: int | None = None
    max_parameters: int | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None
    min_noise_multiplier: float | None = None
    require_secure_aggregation: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_rounds", "max_epochs", "max_parameters"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("max_epsilon", "max_delta", "min_noise_multiplier"):
            if getattr(self, name) is not None:
                require_real(name, getattr(self, name), above=0)
        wanted = self.require_secure_aggregation
        require(isinstance(wanted, bool), f"expected require_secure_aggregation={wanted!r} to be true or false")
        for name, digest in self.digests.items():
            require(isinstance(digest, str) and len(digest) == 64, f"expected digests.{name}={digest!r}: SHA-256, hex")
        require(all(isinstance(name, str) for name in self.allow), f"expected allow={list(self.allow)!r} of names")
        require(self.source is None or isinstance(self.source, str), f"expected source={self.source!r} to be text")

    @staticmethod
    def read(path: Path) -> Policy:
        """The policy in a TOML file. Errors: ConfigError for a file that does not read, and any unknown setting: a
        misspelt bound must not be no bound."""
        try:
            found = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"policy {path} cannot be read: {error}") from error
        fields: dict[str, Any] = {"folder": path.resolve().parent / FOLDER}
        for section, settings in found.items():
            require(section in SECTIONS, f"policy {path}: no section {section!r}; {suggest(section, SECTIONS)}")
            require(isinstance(settings, dict), f"policy {path}: expected [{section}] to be a table")
            for name, value in settings.items():
                known = SECTIONS[section]
                require(name in known, f"policy {path}: no setting {section}.{name}; {suggest(name, known)}")
                fields[name] = tuple(value) if name == "allow" and isinstance(value, list) else value
        require(isinstance(fields.get("allow", ()), tuple), f"policy {path}: expected allow to be a list of names")
        require(isinstance(fields.get("digests", {}), dict), f"policy {path}: expected digests to be a table")
        try:
            return Policy(**fields)
        except ConfigError as error:
            raise ConfigError(f"policy {path}: {error}") from error

    @staticmethod
    def of_this_process() -> Policy:
        """The one that the variable UMBEL_CLIENT_POLICY names; without bounds where it names none."""
        path = os.environ.get(POLICY_VARIABLE)
        return Policy.read(Path(path)) if path else Policy()

    def load(self, reference: str, overrides: Sequence[str]) -> Experiment:
        """The experiment that a server names, as it is on this client. Nothing is imported before it is allowed.

        Errors: Refused; ConfigError for one that is not there.
        """
        experiment = load_experiment(self._place(reference), overrides)
        name = _name(reference)
        wanted = self.digests.get(name)
        if wanted is not None and experiment.digest != wanted:
            raise Refused(f"of experiment {name!r} only {wanted[:12]} is allowed, this is {experiment.digest[:12]}")
        _at_most("rounds", experiment.rounds, self.max_rounds)
        _at_most("local.epochs", experiment.local.most_epochs, self.max_epochs)
        _at_most("all phases' epochs", passes(experiment, experiment.local.most_epochs), self.max_epochs)
        self._check_privacy(experiment)
        return experiment

    def check_round(self, experiment: Experiment, round: int, parameters: int) -> None:
        """Errors: Refused for a model that is too large, and for a round too many, by max_rounds or by max_epsilon.

        A server that goes on beyond the rounds it named is stopped here.
        """
        _at_most("the model's parameters", parameters, self.max_parameters)
        _at_most("round", round, self.max_rounds)
        if self.max_epsilon is not None and experiment.plan is not None and round > 0:
            plan, (before, _) = experiment.plan, price_of(experiment.population)
            ledger = {event: round * count for event, count in plan.charge({}).items()}
            _at_most(f"epsilon after round {round}", plan.spent(ledger) + before, self.max_epsilon)

    def _place(self, reference: str) -> str:
        """Where the reference is loaded from. Errors: Refused."""
        if self.folder is None:
            return reference
        name, is_file = _name(reference), reference.partition(":")[0].endswith(".py")
        if "/" in reference or "\\" in reference or name.startswith("."):
            raise Refused(f"experiment {reference!r} is a path; a client loads files of its own folder only")
        if not {"*", name} & set(self.allow) and name not in self.digests:
            raise Refused(f"experiment {name!r} is not allowed; allowed are: {', '.join(self.allow) or 'none'}")
        if is_file:
            if not (self.folder / f"{name}.py").is_file():
                raise Refused(f"experiment {name!r} is not in this client's folder of experiments")
            return str(self.folder / reference)
        if name not in experiment_names():
            raise Refused(f"experiment {name!r} is not installed on this client")
        return reference

    def _check_privacy(self, experiment: Experiment) -> None:
        bounds = (self.max_epsilon, self.max_delta, self.min_noise_multiplier)
        plan = experiment.plan
        if plan is None and any(bound is not None for bound in bounds):
            raise Refused("differential privacy is required, and the experiment has no plan")
        if plan is not None:
            epsilon, delta = price_of(experiment.population)  # of what was released before the run
            _at_most("epsilon", getattr(plan, "epsilon", float("inf")) + epsilon, self.max_epsilon)
            _at_most("delta", plan.delta + delta, self.max_delta)
            if self.min_noise_multiplier is not None and (noise := _noise(plan)) < self.min_noise_multiplier:
                raise Refused(f"noise_multiplier={noise:g} is below {self.min_noise_multiplier:g}")
        if self.require_secure_aggregation and experiment.aggregation is None:
            raise Refused("secure aggregation is required, and the experiment has no aggregation")


def _name(reference: str) -> str:
    """What a policy knows an experiment by."""
    return reference.partition(":")[0].removesuffix(".py")


def _at_most(name: str, value: float, bound: float | None) -> None:
    if bound is not None and not value <= bound:  # NaN, too
        raise Refused(f"{name}={value:g} is above {bound:g}")


def _noise(plan: Plan) -> float:
    """The plan's noise multiplier; calibrated now if it is not a number yet."""
    for part in (plan.transform, plan):
        value = getattr(part, "noise_multiplier", None)
        if value is not None:
            return float(value)
    return 0.0
