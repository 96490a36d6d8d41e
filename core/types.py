"""The types everything else is written in. Read this first.

An update is a vector: everything federated is one flat float32 vector w ∈ R^d in the order of `model.weights`.
Sums travel; the mean is taken once, by `Total.mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from .examples import Examples
from .random import Key
from .spec import ModelSpec

Vector = np.ndarray  # float32, shape (d,)
State = Any  # nested tuples, named tuples, dicts, numbers and arrays: what `core.serial` can write
NOTHING = np.zeros(0, np.float32)  # the empty vector


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sum and the weight behind it; a mean only when asked for one."""

    sum: float
    count: float

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.sum + other.sum, self.count + other.count)

    def mean(self) -> float:
        """sum / count; NaN when nothing was counted."""
        return self.sum / self.count if self.count else float("nan")


Metrics = Mapping[str, Weighted]


def add_metrics(one: Metrics, other: Metrics) -> dict[str, Weighted]:
    """The sum of two metric mappings, key by key. Commutative; the empty mapping is zero."""
    total = dict(one)
    for name, value in other.items():
        total[name] = total[name] + value if name in total else value
    return total


class ClientUpdate(NamedTuple):
    """One client's contribution to a round."""

    delta: Vector  # local − global, float32, shape (d,)
    extra: Vector  # what an algorithm sends besides the model, of fixed length; empty for most
    weight: float  # the client's say in the mean: its number of examples, or 1.0
    metrics: Metrics  # sums over the client's training


class CodedUpdate(NamedTuple):
    """A ClientUpdate as a codec sends it."""

    payload: bytes  # delta
    extra: Vector  # as it is: in what an algorithm keeps count with, losses would add up
    weight: float
    metrics: Metrics

    @property
    def nbytes(self) -> int:
        """That travel."""
        return len(self.payload) + self.extra.nbytes


class SplitUpdate(NamedTuple):
    """A ClientUpdate where the model is cut in two: delta of the client's half, and of the server's half that it
    trained with."""

    delta: Vector
    extra: Vector
    weight: float
    metrics: Metrics
    bytes_up: int  # of the client's half of the model, and of what it sent in its steps: activations, labels, weights
    bytes_down: int  # of the client's half, and of the gradients that it got in its steps


class Mean(NamedTuple):
    """What a strategy sees of a round."""

    delta: Vector
    extra: Vector
    metrics: Mapping[str, float]
    # The cohort's share of all weight: |S| / N for uniform weights; under differential privacy the expected one.
    participation: float = 1.0


class Total(NamedTuple):
    """A cohort's sum."""

    delta: Vector  # Σ weight·delta
    extra: Vector  # Σ weight·extra
    weight: float  # Σ weight; under differential privacy the public divisor
    clients: int  # number of updates in the sum
    metrics: Metrics  # Σ metrics

    def mean(self) -> Mean:
        """The weighted mean of the cohort. The only division in the project.

        Errors: ZeroDivisionError when the total weight is 0; callers refuse such a round before.
        """
        if not self.weight:
            raise ZeroDivisionError("a total of weight 0 has no mean")
        divisor = np.float32(self.weight)
        means = {name: value.mean() for name, value in self.metrics.items()}
        return Mean(self.delta / divisor, self.extra / divisor, means)


class Shape(NamedTuple):
    """Lengths of an encoded update's vectors."""

    delta: int
    extra: int


class Broadcast(NamedTuple):
    """All that a client receives at the start of its round."""

    round: int  # 1 for the first
    params: Vector
    extra: Vector  # from Strategy.broadcast
    transforms: State  # state of the experiment's transforms
    learning_rate: float | None  # of the clients, this round; None: the model's own optimizer decides


class ServerState(NamedTuple):
    """All that a checkpoint needs. `round` is the number of rounds finished."""

    round: int
    params: Vector
    strategy: State
    transforms: State
    ledger: Mapping[str, int]  # privacy events released so far, {event: count}
    feedback: State = ()  # Heard, for a sampler that needs losses; Reweighed, for a reweighting


class Failure(NamedTuple):
    """A client whose update is not in the total, and why."""

    client: int
    reason: str  # a short code: "non_finite", "timeout", "shape", …
    detail: str


class Heard(NamedTuple):
    """What clients reported when they last took part: arrays of shape (clients,)."""

    losses: np.ndarray  # float32: mean training loss; NaN for a client that was never heard
    rounds: np.ndarray  # int32: in which round; 0 for never


class Reweighed(NamedTuple):
    """What a server keeps where clients are reweighted."""

    heard: State  # Heard, or ()
    weights: State  # of the reweighting


class Knowledge(NamedTuple):
    """What a sampler that learns chooses by: arrays of shape (clients,)."""

    round: int  # that is about to begin
    losses: np.ndarray  # see Heard; empty unless needs_losses
    heard: np.ndarray
    seconds: np.ndarray  # that a round should take each device, on the virtual clock; 0 without devices


class RoundResult(NamedTuple):
    """What a runtime collected from one cohort."""

    total: Total
    failures: Sequence[Failure]
    bytes_up: int | None  # of update payloads, clients to server; None where not measured
    bytes_down: int | None  # of broadcasts, server to clients
    losses: Mapping[int, float] | None = None  # each client's mean training loss, where the sampler needs it


class ClientMetrics(NamedTuple):
    """A federated evaluation: the cohort's sum, and each client's own means."""

    total: Metrics
    per_client: Mapping[str, np.ndarray]  # float64, shape (clients evaluated,)


class RoundRecord(NamedTuple):
    """One finished round, as history, store and `--json` show it."""

    round: int
    clients: int
    failures: int
    metrics: Mapping[str, float]  # train_…, test_…, validation_…: means
    seconds: float  # cohort to new params
    eval_seconds: float | None
    bytes_up: int | None
    bytes_down: int | None
    epsilon: float | None

    def to_json(self) -> dict[str, Any]:
        """One flat object; the contract's names always there, None where not measured."""
        flat = self._asdict() | {"train_loss": None, "test_loss": None, "test_accuracy": None} | dict(self.metrics)
        del flat["metrics"]
        return flat


class Strategy(Protocol):
    """The server's half of an algorithm: a frozen dataclass; state in, state out.

    What it makes of statistics (BatchNorm) is put aside: they follow the clients' mean, see server/statistics. Except
    where it has mixes_models, as the model is a mean of models then, or several are.
    """

    def init(self, params: Vector) -> State: ...
    def broadcast(self, state: State) -> Vector:
        """What clients receive besides params; NOTHING for most."""

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]: ...


class AsynchronousStrategy(Strategy, Protocol):
    """A strategy whose server does not wait for all it has asked: a round is `buffer` updates, or what arrives within
    `round_seconds`, from whenever they started.

    mixes_models: `receive` needs the delta itself, not an encoded one: no transforms.
    """

    mixes_models: bool

    @property
    def buffer(self) -> int | None:
        """Updates per round; None: however many arrive."""

    @property
    def round_seconds(self) -> float | None:
        """A round's length on the virtual clock, with clients that begin when it does; None: whenever there is room."""

    @property
    def max_staleness(self) -> int | None:
        """Older updates are thrown away; None for no bound."""

    def receive(self, update: ClientUpdate, staleness: int, base: Vector, params: Vector) -> ClientUpdate:
        """What an update counts as. staleness: rounds since the client began, 0 for none. base: what it began from."""


class SplitStrategy(Strategy, Protocol):
    """A strategy whose clients hold a model's first layers, and train with a server that holds the others."""

    @property
    def cut(self) -> str:
        """The name of the last layer that lies with clients."""

    @property
    def in_turn(self) -> bool:
        """Whether the server has one half for all, which clients train one after the other, each from `handed_on`."""

    def turns(self, cohort: Sequence[int], key: Key) -> list[int]:
        """The cohort in the order in which it trains."""

    def handed_on(self, params: Vector, moved: Vector, on_client: np.ndarray) -> Vector:
        """What the next client in turn begins with.

        params: of the broadcast. moved: Σ delta of the clients before it. on_client: which numbers lie with clients:
        bool, shape (d,).
        """

    def closed(self, total: Total, moved: Vector, on_client: np.ndarray) -> Total:
        """The round's total. total: as the experiment's fold has it; moved: Σ delta of all that are in it."""


class UpdateTransform(Protocol):
    """Privacy and linear compression: done by the client, undone once on the server.

    Three attributes more where they matter, all False if absent. same_round_only: not for sums of updates that began
    from different broadcasts. by_coordinate, pools_statistics: see core/compatible.
    """

    def init(self, spec: ModelSpec) -> State: ...
    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate: ...
    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]: ...


class Codec(Protocol):
    """How a client's delta travels in fewer bytes, at some loss. The last thing a client does, the first on the server.

    A payload is as long as any other for as many numbers. Decoding trusts nothing.
    """

    @property
    def error_feedback(self) -> bool:
        """Whether the client keeps what got lost, and adds it to its next delta."""

    @property
    def shrinks(self) -> bool:
        """Whether ‖decode(encode(v))‖ ≤ ‖v‖ for every v, what float32 rounds included."""

    def payload_bytes(self, size: int) -> int:
        """Of a payload for a vector of `size` numbers."""

    def encode(self, vector: Vector, key: Key) -> bytes:
        """key: for its randomness, which need not be secret. Errors: ClientError where a number is not finite."""

    def decode(self, payload: bytes, size: int) -> Vector:
        """Finite, float32, shape (size,). Errors: ClientError for what is no payload of `size` numbers."""


class Fold(Protocol):
    """How updates become a Total.

    Two attributes more where they matter, see core/compatible. min_clients: updates that a round needs at least.
    by_coordinate: True where the share that an update has in the mean is another for each of its numbers.
    """

    @property
    def needs_individual_updates(self) -> bool:
        """True for robust folds; they exclude whatever hides single updates."""

    def zero(self, size: int) -> Any: ...
    def add(self, accumulator: Any, update: ClientUpdate) -> Any:
        """Fold one update in; may reuse the accumulator's memory."""

    def merge(self, one: Any, other: Any) -> Any: ...
    def total(self, accumulator: Any) -> Total: ...


class AggregationSession(Protocol):
    """One round's sum. `contribute` may run on any thread, for several clients at once; the rest on one thread."""

    bytes_up: int  # that clients have sent the server so far, all stages together

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> Any:
        """The client's half: what leaves the client. key: for the randomness of its encoding."""

    def add(self, client: int, contribution: Any) -> None:
        """The server's half, in cohort order. A client of the cohort that is never added has dropped out."""

    def total(self) -> Total:
        """The sum of what was added. Errors: RunStopped when it may not be revealed."""


class Aggregation(Protocol):
    """How a cohort's updates become a sum that hides each of them: secure aggregation, homomorphic encryption.

    metrics: names of the clients' metrics that travel in the sum; the others stay with the clients.
    Attributes more where it rounds: limit, the largest magnitude kept of a number; step, how far it may move one.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def session(self, shape: Shape, cohort: Sequence[int], round: int, key: Key, is_real: bool) -> AggregationSession:
        """A round's session, in one process. is_real: run the protocol; else its arithmetic alone, which gives the
        same integers. key: of the round, for what a simulation draws."""


class Plan(Protocol):
    """A privacy budget, and what keeps it: sampler, transform and event made from one set of numbers."""

    delta: float
    population: int

    @property
    def sampler(self) -> Sampler: ...
    @property
    def transform(self) -> UpdateTransform: ...
    @property
    def clients_release(self) -> bool:
        """True when clients send noisy updates, which are released as they are sent; False for noise on the sum."""

    def charge(self, ledger: Mapping[str, int]) -> dict[str, int]:
        """The ledger with one more round in it."""

    def spent(self, ledger: Mapping[str, int]) -> float:
        """ε of everything in the ledger, at the plan's δ. Fast when the ledger grows round by round."""

    def check(self, experiment: Any) -> None:
        """Errors: ConfigError, IncompatibleError for an experiment that would not keep what the plan promises."""

    def check_budget(self, ledger: Mapping[str, int]) -> None:
        """Errors: RunStopped when the ledger, with a round that has not begun yet, is over the budget."""


class LocalRule(Protocol):
    """The client's half of an algorithm, as data that the compiled loop can run without tracing user code.

    In each step: gradient ← gradient + proximal·(w − w_global) + offset.

    One attribute more where it matters; a model that does not fit is refused. sgd_momentum: the rule reckons with
    clients of plain SGD with this momentum. Whatever `finish` makes of them, statistics (BatchNorm) are sent as
    they were trained.

    And two that say what is trained (see core/phases). phases: the parts of a client's round, each a Phase. own: an
    OwnModel, a second model, which is what the client remembers.
    """

    @property
    def proximal(self) -> float:
        """μ ≥ 0; 0 for none."""

    @property
    def remembers(self) -> bool:
        """Whether clients keep a vector between rounds."""

    def extra_size(self, size: int) -> int:
        """Length of what a client sends besides delta; size: d."""

    def offset(self, broadcast: Broadcast, memory: Vector | None) -> Vector | None:
        """What is added to every gradient: float32, shape (d,); None for nothing. memory: None at first."""

    def finish(
        self, broadcast: Broadcast, memory: Vector | None, delta: Vector, steps: int, learning_rate: float
    ) -> tuple[Vector, Vector, Vector | None]:
        """delta and extra as they are sent, and what the client keeps.

        steps: optimizer steps it took. learning_rate: of its optimizer in this round.
        """


class PerExamplePrivacy(Protocol):
    """Keeps single examples private while a client trains (DP-SGD).

    A step's gradient: each example's clipped to clip_norm, their sum plus noise, over the expected batch.
    """

    @property
    def clip_norm(self) -> float:
        """Of one example's gradient, all trainable variables together: L2, > 0."""

    @property
    def steps(self) -> int | None:
        """Of every client in every round; None: as many as its epochs have batches."""

    def noise(self, key: Key, expected_batch: float) -> Callable[[Vector], None]:
        """What overwrites a float32 vector with the next numbers of the noise, already divided by expected_batch.

        key: of one client's round, for this alone.
        """


class Sampler(Protocol):
    """Who takes part in a round."""

    def sample(self, clients: Sequence[int], sizes: Callable[[], np.ndarray], key: Key) -> list[int]:
        """The cohort: distinct members of clients, ascending. `sizes()`: examples of every client, by its number."""


class LearningSampler(Sampler, Protocol):
    """A sampler that also knows how clients did. needs_losses: it needs what each client reported."""

    needs_losses: bool

    def choose(
        self, clients: Sequence[int], sizes: Callable[[], np.ndarray], key: Key, knowledge: Knowledge
    ) -> list[int]:
        """The cohort, as from `sample`."""


class Schedule(Protocol):
    """A client learning rate that changes with the rounds: a pure function of the rounds before."""

    def at(self, round: int, records: Sequence[RoundRecord]) -> float: ...


class Callback(Protocol):
    """Part of an experiment: what may end a run early or choose its best round, from the records alone."""

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """After a committed round: a sentence that ends the run and says why, or None."""

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """The round whose params the run ends with; None for the last."""


class Watcher(Protocol):
    """Sees a run and changes nothing: a progress bar, a logger."""

    def on_start(self, experiment: Any, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """Before the first round; records are those of a resumed run."""

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """After a round was committed."""

    def on_end(self, history: Any) -> None:
        """After the last round."""


@runtime_checkable
class Source(Protocol):
    """A data set: named, loaded when first needed."""

    def load(self) -> Examples: ...


@runtime_checkable
class Population(Protocol):
    """Clients and their examples, lazily: 10⁶ clients are two arrays (offsets, indices)."""

    def __len__(self) -> int: ...
    def sizes(self) -> np.ndarray:
        """Examples per client: int64, shape (clients,)."""

    def examples(self, client: int) -> Examples:
        """This client's own examples."""

    def resident(self) -> Examples | None:
        """The one data set that all clients index into, or None when each client's examples must be streamed."""

    def indices(self, client: int) -> np.ndarray:
        """This client's rows of `resident()`; only where there is one."""


class Memory(Protocol):
    """What clients keep at home between rounds, one list of arrays per client: their personal variables; the vector of
    their rule, if any; with a codec's error feedback what it left out."""

    def read(self, client: int) -> list[np.ndarray] | None: ...
    def write(self, client: int, arrays: list[np.ndarray]) -> None: ...


class Assignment(NamedTuple):
    """A client's work in an asynchronous run."""

    broadcast: Broadcast  # from which it starts
    client: int
    key: Key  # of the clients that started with it


class AsynchronousRuntime(Protocol):
    """A Runtime that also trains clients one by one."""

    def train_each(self, assignments: Sequence[Assignment]) -> Iterator[ClientUpdate | Failure]:
        """Each one's update, in order. The clients are distinct."""


class Runtime(Protocol):
    """Where rounds run. The one seam between what is computed and where."""

    is_live: bool  # real devices: noise and masks come from the operating system's entropy

    def open(self, experiment: Any, memory: Memory, choices: Mapping[str, str] | None = None) -> ModelSpec:
        """Bind to an experiment; returns the spec of its model.

        choices: what `describe` returned when a run began, for one that is resumed.
        """

    def describe(self) -> Mapping[str, str]:
        """What identifies the model ("model.…"), and what was chosen that a resumed run must choose again."""

    def initial_params(self) -> Vector: ...
    def client_ids(self) -> Sequence[int]: ...
    def collect(self, broadcast: Broadcast, cohort: Sequence[int], key: Key) -> RoundResult: ...
    def evaluate(self, params: Vector, examples: Examples) -> Metrics:
        """Central evaluation on the server's own examples."""

    def evaluate_clients(self, params: Vector, clients: Sequence[int]) -> ClientMetrics:
        """Federated evaluation on the clients' validation examples.

        A runtime for strategies of several models takes a third argument, Broadcast.extra.
        """

    def close(self) -> None: ...


@runtime_checkable
class Elsewhere(Protocol):
    """Where whole runs are played, by a server of its own, in place of this process's rounds."""

    def play(self, experiment: Any, *, store: Any, resume: str | None, watchers: Sequence[Watcher]) -> Any:
        """As `server.run`, which hands it all that it was given; the run's History."""
