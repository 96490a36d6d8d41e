"""A search for good settings: trials chosen by Optuna from what earlier ones came to, each a run of its own.

Akiba et al. 2019, https://arxiv.org/abs/1907.10902; the sampler is its tree-structured Parzen estimator, the pruner
stops a trial whose metric is worse than the median of earlier trials in the same round.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..core.errors import ConfigError, RunStopped
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.reading.compatible import spent
from ..core.reading.defaults import default_runtime
from ..core.reading.directions import Mode, mode_of, require_mode
from ..core.reading.overrides import override
from ..core.runtime import FORGETFUL, Runtime
from ..core.validation import require, require_count, require_real
from .comparison import check_measurable, check_wanted
from .ranges import Choices, Range, check_ranges, read_range
from .trials import Trials

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..server.store import Store

State = Literal["finished", "pruned", "failed"]
WatchersOf = Callable[[int, Mapping[str, str]], Sequence[Watcher]]
LEAST = 2  # trials that a budget has to pay for: with fewer there is nothing to choose from


class SweepTrial(NamedTuple):
    """One trial: its settings, and what came of it."""

    number: int  # 0 for the first
    settings: Mapping[str, str]  # the swept settings, as `override` reads them
    state: State
    value: float | None  # metric where it was measured last; None for a trial that failed
    rounds: int  # rounds that were played
    run: str | None  # id of its run in the store
    reason: str | None = None  # why it failed
    epsilon: float | None = None  # ε of all trials up to this one, under a plan


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """Trials in their order, and how much each setting mattered."""

    metric: str
    mode: Mode
    trials: Sequence[SweepTrial]
    ranges: Mapping[str, Range | Choices]
    importance: Mapping[str, float] = field(default_factory=dict)  # shares of the metric's variance; empty: not known
    delta: float | None = None  # δ at which the trials' ε holds, under a plan
    stopped: str | None = None  # why the sweep ended before all trials were played

    def __repr__(self) -> str:
        best = self.best
        said = "" if best is None else f"; best {self.metric}={best.value:.4g} at {', '.join(self.assignments)}"
        return f"Sweep({len(self.trials)} trials{said})"

    @property
    def best(self) -> SweepTrial | None:
        """The finished trial with the best metric, the earliest of equals; None where none finished."""
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        choose = min if self.mode == "min" else max
        return choose(finished, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def assignments(self) -> list[str]:
        """The settings of the best trial, as `override` and `--set` take them."""
        return [] if self.best is None else [f"{path}={text}" for path, text in self.best.settings.items()]

    @property
    def epsilon(self) -> float | None:
        """ε of all trials together, None without a plan."""
        return self.trials[-1].epsilon if self.trials else None

    def to_frame(self) -> pandas.DataFrame:
        """Return a row per trial, a column for each setting. Needs pandas."""
        from .comparison import frames

        rows = [
            {**trial._asdict(), **{path: self.ranges[path].value(text) for path, text in trial.settings.items()}}
            for trial in self.trials
        ]
        return frames().DataFrame(rows).drop(columns="settings").set_index("number")

    def plot(self, path: str | None = None) -> Figure:
        """Draw each trial as a line over its settings, and how much each setting mattered.

        Saved to path (.png, .svg, .pdf) when given.
        """
        from .sweep_plot import plot_sweep

        return plot_sweep(self, path)


def sweep(
    experiment: Experiment,
    parameters: Mapping[str, str | Range | Choices],
    *,
    trials: int = 20,
    metric: str = "test_accuracy",
    mode: Mode | None = None,
    seed: int = 0,
    epsilon: float | None = None,
    prune: bool = True,
    store: str | Store | None = None,
    runtime: Runtime | None = None,
    watchers: WatchersOf = lambda number, settings: (),
    on_trial: Callable[[SweepTrial], None] = lambda trial: None,
) -> Sweep:
    """Search for the settings with which metric is best.

    Parameters
    ----------
    experiment
        What is searched: each trial is this experiment with other settings.
    parameters
        {dotted path: range}, as in {"local.learning_rate": "0.01:0.5:log", "local.batch_size": "16,32"}.
    trials
        Number of trials, those that the store has already among them.
    metric
        What is to be as good as can be.
    mode
        "min" or "max", for a metric of which nobody knows whether it is to fall or to rise.
    seed
        Seed of the search; the experiment has its own.
    epsilon
        Under a plan, what all trials together may cost, pruned ones too; None: the plan's own. The sweep ends before a
        trial that could exceed it. Each trial then has a seed, and so noise, of its own.
    prune
        Whether a trial that is worse than the median of others is ended early.
    store
        Database URL or an open Store: trials are runs there, and a sweep that is begun again with equal arguments goes
        on where it was, with the trials that it would have chosen. None: in memory.
    runtime
        Where clients are; None: a Simulation.
    watchers
        Called with a trial's number and settings: the watchers of its run.
    on_trial
        Called with each trial once it is over.

    Raises
    ------
    ConfigError
        For a path or a value that the experiment does not take, a metric that nothing measures, a budget that pays for
        less than two trials, settings that change what a round releases under a plan, or Optuna not installed.
    """
    require_count("trials", trials)
    require_count("seed", seed, at_least=0)
    require_mode(mode)
    ranges = {path: read_range(path, one) if isinstance(one, str) else one for path, one in parameters.items()}
    check_ranges(experiment, ranges)
    check_measurable([experiment], (metric,))
    with opened(store) as kept:
        budget = Budget.of(experiment, epsilon, metric, trials, kept)
        runtime = runtime or default_runtime()
        search = _Search(imported(), ranges, _direction(experiment, runtime, metric, mode), metric, seed, prune)
        played = Trials(runtime, kept)
        stopped: str | None = None
        while len(search.trials) < trials and not stopped:
            stopped = None if budget is None else budget.refusal(len(search.trials))
            if not stopped:
                on_trial(_play(experiment, search, played, budget, watchers))
    delta = None if budget is None else budget.delta
    return Sweep(metric, search.mode, search.trials, ranges, search.importance(), delta, stopped)


def _play(
    experiment: Experiment, search: _Search, played: Trials, budget: Budget | None, watchers: WatchersOf
) -> SweepTrial:
    """Play the next trial, and note what it came to and cost."""
    number = len(search.trials)
    trial, settings = search.ask()
    chosen = override(experiment, [f"{path}={text}" for path, text in settings.items()])
    if budget is not None:
        # Equal seeds have equal noise, and the difference of two trials would have none.
        chosen = budget.checked(dataclasses.replace(chosen, seed=experiment.seed + number))
    outcome = search.play(trial, played.records(chosen, watchers(number, settings)), number, settings)
    outcome = outcome._replace(run=played.run)
    if budget is not None:
        outcome = outcome._replace(epsilon=budget.charge(played.ledger()))
    search.tell(trial, outcome)
    return outcome


def _direction(experiment: Experiment, runtime: Runtime, metric: str, mode: Mode | None) -> Mode:
    """Return whether metric is to fall or to rise, by the experiment's model.

    Errors: ConfigError where nobody knows, or where the model does not measure it.
    """
    runtime.open(experiment, FORGETFUL)
    measures = runtime.measures()
    check_wanted(experiment, (metric,), {} if mode is None else {metric: mode}, runtime.is_live, measures)
    return mode_of(metric, measures.directions, mode, "a sweep")


@contextmanager
def opened(store: str | Store | None) -> Iterator[Store | None]:
    """Yield the store that was handed over: opened and closed here if it is a URL."""
    if not isinstance(store, str):
        yield store
        return
    from ..server.store import Store

    with Store.open(store) as kept:
        yield kept


@dataclass(eq=False)
class Budget:
    """One budget for all trials of a sweep. Every round of every trial releases the same event.

    So what earlier trials decide is how often it is released, and never what: the price of a number of releases holds
    whoever chose their settings, up to the most that the sweep may come to.
    """

    experiment: Experiment
    epsilon: float
    ledger: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(
        experiment: Experiment, epsilon: float | None, metric: str, trials: int, store: Store | None
    ) -> Budget | None:
        """Return the budget of a sweep, None without a plan. Errors: ConfigError for one that pays for too little."""
        plan = experiment.plan
        if plan is None:
            require(epsilon is None, f"epsilon={epsilon} is of a plan, and the experiment has none")
            return None
        if epsilon is not None:
            require_real("epsilon", epsilon, above=0)
        require(store is not None, "under a plan a sweep needs a store, which keeps what each trial has released")
        require(
            metric.startswith("test_"),
            f"metric={metric!r} is the clients', and trials chosen by it would release more than the plan pays for; "
            "choose one of the server's own examples, test_…",
        )
        budget = Budget(experiment, plan.promised_epsilon if epsilon is None else epsilon)
        fitting = next((count for count in range(LEAST) if budget.price(count + 1) > budget.epsilon), LEAST)
        if fitting < LEAST:
            rounds, cost = experiment.rounds, budget.price(1)
            raise ConfigError(
                f"a trial of {rounds} rounds costs ε={cost:.4g}, all trials together may cost {budget.epsilon:g}: "
                f"{fitting} of {trials} fit; allow more in all, --epsilon, or calibrate the noise for the rounds "
                f"of all, --set plan.rounds={rounds * trials}"
            )
        return budget

    @property
    def delta(self) -> float:
        """δ at which every ε of this budget holds."""
        assert self.experiment.plan is not None
        return float(self.experiment.plan.delta)

    def checked(self, trial: Experiment) -> Experiment:
        """Return a trial. Errors: ConfigError for one whose rounds release something else than the others'."""
        assert trial.plan is not None
        assert self.experiment.plan is not None
        wanted, found = self.experiment.plan.charge({}), trial.plan.charge({})
        require(
            wanted == found and trial.rounds == self.experiment.rounds and trial.plan.delta == self.delta,
            f"a round of this trial would release {', '.join(found)}, others' release {', '.join(wanted)}; under "
            "a plan a sweep varies what costs nothing (rates, epochs), not the noise, the cohort or the rounds",
        )
        return trial

    def price(self, trials: int) -> float:
        """Return ε of what was released so far, and as many whole trials more."""
        assert self.experiment.plan is not None
        ledger = dict(self.ledger)
        for event, count in self.experiment.plan.charge({}).items():
            ledger[event] = ledger.get(event, 0) + trials * self.experiment.rounds * count
        return spent(self.experiment.resolved, ledger) or 0.0

    def refusal(self, number: int) -> str | None:
        """Return why trial `number` is not begun: it could exceed the budget. None: it could not."""
        price = self.price(1)
        if price <= self.epsilon:
            return None
        return (
            f"{number} trials have cost ε={self.price(0):.4g} at δ={self.delta:g}, and another could make it "
            f"{price:.4g}, above {self.epsilon:g}"
        )

    def charge(self, ledger: Mapping[str, int]) -> float:
        """Add what a trial has released; return ε of all so far."""
        for event, count in ledger.items():
            self.ledger[event] = self.ledger.get(event, 0) + count
        return self.price(0)


class _Search:
    """Optuna's study, in memory: it is built again from the trials, which it asks for in the same order."""

    def __init__(
        self,
        optuna: ModuleType,
        ranges: Mapping[str, Range | Choices],
        mode: Mode,
        metric: str,
        seed: int,
        prune: bool,
    ):
        self.mode = mode
        self.trials: list[SweepTrial] = []
        self._optuna, self._metric = optuna, metric
        self._distributions = {path: _distribution(optuna, one) for path, one in ranges.items()}
        pruner = optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner()
        direction = "minimize" if mode == "min" else "maximize"
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(direction=direction, sampler=sampler, pruner=pruner)

    def ask(self) -> tuple[Any, dict[str, str]]:
        """Return the next trial, and its settings as text."""
        trial = self._study.ask(self._distributions)
        return trial, {path: str(trial.params[path]) for path in self._distributions}

    def play(self, trial: Any, records: Any, number: int, settings: Mapping[str, str]) -> SweepTrial:
        """Take a trial's rounds until it ends, or until it is worse than others were."""
        value, rounds = None, 0
        try:
            with closing(records):
                for record in records:
                    rounds = record.round
                    if (found := record.numbers.get(self._metric)) is None:
                        continue
                    value = found
                    if not math.isfinite(value):
                        return SweepTrial(number, settings, "failed", None, rounds, None, f"{self._metric} is {value}")
                    trial.report(value, rounds)
                    if trial.should_prune():
                        return SweepTrial(number, settings, "pruned", value, rounds, None)
        except RunStopped as stopped:
            return SweepTrial(number, settings, "failed", None, rounds, None, str(stopped))
        if value is None:
            return SweepTrial(number, settings, "failed", None, rounds, None, f"no round measured {self._metric}")
        return SweepTrial(number, settings, "finished", value, rounds, None)

    def tell(self, trial: Any, outcome: SweepTrial) -> None:
        """Note what a trial came to."""
        self.trials.append(outcome)
        states = self._optuna.trial.TrialState
        if outcome.state == "finished":
            self._study.tell(trial, outcome.value)
        else:
            self._study.tell(trial, state=states.PRUNED if outcome.state == "pruned" else states.FAIL)

    def importance(self) -> dict[str, float]:
        """Return each setting's share of the metric's variance; nothing where too few trials have finished to tell."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        if len(self._distributions) < 2 or len({trial.value for trial in finished}) < 2:
            return {}
        importance = self._optuna.importance
        evaluator = importance.FanovaImportanceEvaluator(seed=0)
        shares = importance.get_param_importances(self._study, evaluator=evaluator)
        return {path: float(share) for path, share in shares.items()}


def _distribution(optuna: ModuleType, one: Range | Choices) -> Any:
    kinds = optuna.distributions
    if isinstance(one, Choices):
        return kinds.CategoricalDistribution(one.values)
    kind = kinds.IntDistribution if one.is_whole else kinds.FloatDistribution
    return kind(one.low, one.high, log=one.is_log)


def imported() -> ModuleType:
    """Return Optuna, which says no more than it has to. Errors: ConfigError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # of bars in notebooks, which nothing here draws
            import optuna
    except ImportError as error:
        raise ConfigError("optuna is not installed: pip install 'umbel[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
