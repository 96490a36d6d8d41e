"""Policy: bounds of a client, read from its own file and checked on its own host, before anything is loaded or run."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.reading.compatible import price_of
from ..core.reading.loading import experiment_names, load_experiment
from ..core.recipe import Recipe, most_passes
from ..core.validation import fields_of, require, require_count, require_real, suggest
from .spending import Spending

POLICY_VARIABLE = "UMBEL_CLIENT_POLICY"
FOLDER = "experiments"  # name of the folder of experiments, beside the policy's file
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "data": ("source",),
    "experiments": ("allow", "digests", "overrides"),
    "limits": ("max_rounds", "max_epochs", "max_parameters"),
    "privacy": ("max_epsilon", "max_delta", "min_noise_multiplier", "require_secure_aggregation"),
}
# Paths that a server may change in an experiment that a client agreed to, where its policy does not say: how long, how
# fast and on how many. Never which files are read, the plan, or the aggregation.
OVERRIDES = (
    *("rounds", "seed", "evaluate_every", "min_clients", "population.clients", "sampler.*", "strategy.*", "rule.*"),
    *("local.epochs", "local.batch_size", "local.learning_rate", "local.shuffle"),
)
LISTS = ("allow", "overrides")
PROMISED = ("sampler.*",)  # those that a promise reckons with: under a plan or an aggregation only if named


class Refused(ConfigError):
    """The client's policy does not allow what the server asks for. The text is for the operator."""


@dataclass(frozen=True)
class Policy:
    """Bounds that a client keeps, whatever the server asks for; None for no bound.

    Parameters
    ----------
    folder
        Where files of experiments are taken from; None: anywhere, as befits a federation inside one machine.
    allow
        Names of experiments, and of files in folder without .py; "*" for all.
    digests
        {name: SHA-256}: of these only the one experiment with that digest.
    max_rounds, max_epsilon
        The most of all that this client replies for an experiment, whatever runs and rounds a server names, by its own
        account: see `spending`.
    max_delta
        The most of a run.
    overrides
        Dotted paths that a server may set, "*" for any ending; None: OVERRIDES, without PROMISED under a plan or an
        aggregation.
    clients
        The number in the federation, by the client's kit.
    source
        Where this client's examples are.
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
    overrides: tuple[str, ...] | None = None
    clients: int | None = None

    def __post_init__(self) -> None:
        for name, count in fields_of(self, "max_rounds", "max_epochs", "max_parameters").items():
            if count is not None:
                require_count(name, count)
        for name, bound in fields_of(self, "max_epsilon", "max_delta", "min_noise_multiplier").items():
            if bound is not None:
                require_real(name, bound, above=0)
        wanted = self.require_secure_aggregation
        require(isinstance(wanted, bool), f"expected require_secure_aggregation={wanted!r} to be true or false")
        for name, digest in self.digests.items():
            require(isinstance(digest, str) and len(digest) == 64, f"expected digests.{name}={digest!r}: SHA-256, hex")
        for name, listed in fields_of(self, *LISTS).items():
            names = listed or ()
            require(all(isinstance(one, str) for one in names), f"expected {name}={list(names)!r} of names")
        require(self.source is None or isinstance(self.source, str), f"expected source={self.source!r} to be text")

    @staticmethod
    def read(path: Path) -> Policy:
        """Read the policy in a TOML file.

        Errors: ConfigError for a file that does not read, and any unknown setting: a misspelt bound must not be no
        bound.
        """
        try:
            found = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"policy {path} cannot be read: {error}") from error
        fields: dict[str, Any] = {
            "folder": path.resolve().parent / FOLDER,
            "clients": _clients_of(path.resolve().parent),
        }
        for section, settings in found.items():
            require(section in SECTIONS, f"policy {path}: no section {section!r}; {suggest(section, SECTIONS)}")
            require(isinstance(settings, dict), f"policy {path}: expected [{section}] to be a table")
            for name, value in settings.items():
                known = SECTIONS[section]
                require(name in known, f"policy {path}: no setting {section}.{name}; {suggest(name, known)}")
                fields[name] = tuple(value) if name in LISTS and isinstance(value, list) else value
        for name in LISTS:
            require(isinstance(fields.get(name, ()), tuple), f"policy {path}: expected {name} to be a list of names")
        require(isinstance(fields.get("digests", {}), dict), f"policy {path}: expected digests to be a table")
        try:
            return Policy(**fields)
        except ConfigError as error:
            raise ConfigError(f"policy {path}: {error}") from error

    @staticmethod
    def of_this_process() -> Policy:
        """Read the policy that the variable UMBEL_CLIENT_POLICY names; without bounds where it names none."""
        path = os.environ.get(POLICY_VARIABLE)
        return Policy.read(Path(path)) if path else Policy()

    def load(self, reference: str, overrides: Sequence[str]) -> Experiment:
        """Load the experiment that a server names, as it is on this client. Nothing is imported before it is allowed.

        Errors: Refused; ConfigError for one that is not there.
        """
        place = self._place(reference)
        self._check_overrides(overrides, OVERRIDES if self.overrides is None else self.overrides)
        experiment = load_experiment(place, overrides)
        self._check_promised(experiment, overrides)
        name = name_of(reference)
        wanted = self.digests.get(name)
        if wanted is not None and experiment.digest != wanted:
            raise Refused(f"of experiment {name!r} only {wanted[:12]} is allowed, this is {experiment.digest[:12]}")
        _at_most("rounds", experiment.rounds, self.max_rounds)
        local = experiment.local
        if local.steps is None:
            _at_most("local.epochs", local.most_epochs, self.max_epochs)
            _at_most("all phases' epochs", most_passes(experiment.resolved, local.most_epochs), self.max_epochs)
        self._check_privacy(experiment)
        return experiment

    def check_round(self, experiment: Experiment | Recipe, round: int, parameters: int) -> None:
        """Raise Refused for a model that is too large, and for a round too many, by max_rounds or by max_epsilon.

        A server that goes on beyond the rounds it named is stopped here.
        """
        _at_most("the model's parameters", parameters, self.max_parameters)
        _at_most("round", round, self.max_rounds)
        plan = experiment.resolved.plan
        if self.max_epsilon is not None and plan is not None and round > 0:
            before, _ = price_of(experiment.resolved.population)
            ledger = {event: round * count for event, count in plan.charge({}).items()}
            _at_most(f"epsilon after round {round}", plan.spent(ledger) + before, self.max_epsilon)

    def check_spending(self, experiment: Experiment | Recipe, spending: Spending) -> None:
        """Raise Refused for one reply too many, by max_rounds or by max_epsilon, in this client's own account.

        spending: all that was released for the experiment, with the reply that is about to leave.
        """
        remedy = "umbel client budget KIT shows what was released"
        if self.max_rounds is not None and spending.replies > self.max_rounds:
            raise Refused(f"replies={spending.replies} are above max_rounds={self.max_rounds}; {remedy}")
        plan = experiment.resolved.plan
        if self.max_epsilon is None or plan is None:
            return
        before, _ = price_of(experiment.resolved.population)
        try:
            epsilon = plan.spent(spending.events) + before
        except ConfigError as error:
            raise Refused(f"what was released cannot be priced together ({error}); {remedy}") from error
        _at_most(f"epsilon after {spending.replies} replies", epsilon, self.max_epsilon)

    def check_work(self, experiment: Recipe, examples: int) -> None:
        """Raise Refused for a fixed number of steps that is too many passes over this client's own examples."""
        local = experiment.local
        if local.steps is not None and examples:
            batches = -(-examples // (local.batch_size or examples))
            passes = most_passes(experiment, local.steps / batches)
            _at_most(f"local.steps={local.steps} over {examples} examples, as epochs,", passes, self.max_epochs)

    def _place(self, reference: str) -> str:
        """Return where the reference is loaded from. Errors: Refused."""
        if self.folder is None:
            return reference
        name, is_file = name_of(reference), reference.partition(":")[0].endswith(".py")
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

    def _check_overrides(self, overrides: Sequence[str], allowed: Sequence[str]) -> None:
        """Raise Refused for an override that is not allowed. A federation inside one machine allows any."""
        for assignment in overrides if self.folder is not None else ():
            path = assignment.partition("=")[0].strip()
            if not any(fnmatchcase(path, pattern) for pattern in allowed):
                raise Refused(
                    f"the server sets {path!r}, which this client's policy does not allow; allowed are: "
                    f"{', '.join(allowed)}. Name it in experiments.overrides, or change the experiment's file here"
                )

    def _check_promised(self, experiment: Experiment, overrides: Sequence[str]) -> None:
        """Raise Refused where the server changes what a plan, or a hidden sum's floor, reckons with."""
        if self.folder is None or (experiment.plan is None and experiment.secure_aggregation is None):
            return
        if self.overrides is None:
            self._check_overrides(overrides, [path for path in OVERRIDES if path not in PROMISED])
        are_set = any(one.partition("=")[0].strip() == "population.clients" for one in overrides)
        if are_set and self.clients is not None and len(experiment.population) != self.clients:
            said = len(experiment.population)
            raise Refused(f"the server sets population.clients={said}, and this federation has {self.clients}")

    def _check_privacy(self, experiment: Experiment) -> None:
        bounds = (self.max_epsilon, self.max_delta, self.min_noise_multiplier)
        plan = experiment.resolved.plan
        if plan is None and any(bound is not None for bound in bounds):
            raise Refused("differential privacy is required, and the experiment has no plan")
        if plan is not None:
            epsilon, delta = price_of(experiment.resolved.population)  # of what was released before the run
            _at_most("epsilon", plan.promised_epsilon + epsilon, self.max_epsilon)
            _at_most("delta", plan.delta + delta, self.max_delta)
            if self.min_noise_multiplier is not None and (noise := plan.calibrated_noise) < self.min_noise_multiplier:
                raise Refused(f"noise_multiplier={noise:g} is below {self.min_noise_multiplier:g}")
        if self.require_secure_aggregation and experiment.secure_aggregation is None:
            raise Refused("secure aggregation is required, and the experiment has no aggregation")


def name_of(reference: str) -> str:
    """Return the name by which a policy knows an experiment."""
    return reference.partition(":")[0].removesuffix(".py")


def _at_most(name: str, value: float, bound: float | None) -> None:
    if bound is not None and not value <= bound:  # NaN, too
        raise Refused(f"{name}={value:g} is above {bound:g}")


def _clients_of(kit: Path) -> int | None:
    """Return the number of clients of a federation, by a client's kit; None where the folder is none."""
    try:
        found = tomllib.loads((kit / "client.toml").read_text("utf-8"))["clients"]
    except (OSError, ValueError, KeyError):  # no kit, or one that `deploy.kits` refuses
        return None
    return found if type(found) is int else None
