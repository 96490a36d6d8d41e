"""What an experiment is made of, and what it runs on: the seams, as protocols. Their leaves lie in other folders.

Everything here acts on the values of `core/types.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .examples import Examples
from .random import Key
from .spec import ModelSpec
from .types import (
    Assignment,
    Broadcast,
    ClientMetrics,
    ClientUpdate,
    Failure,
    Knowledge,
    Mean,
    Metrics,
    RoundRecord,
    RoundResult,
    Shape,
    State,
    Total,
    Vector,
)


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

    In each step: gradient ← gradient + proximal·(w − w_global).

    Two attributes more say what is trained, where it is not one model at once (see core/phases). phases: the parts of a
    client's round, each a Phase. own: an OwnModel, a second model, which is what the client remembers.
    """

    @property
    def proximal(self) -> float:
        """μ ≥ 0; 0 for none."""

    @property
    def remembers(self) -> bool:
        """Whether clients keep a vector between rounds."""


class Correction(LocalRule, Protocol):
    """A LocalRule that also adds a vector to every gradient, and makes of a delta what is sent.

    One attribute more where it matters; a model that does not fit is refused. sgd_momentum: the rule reckons with
    clients of plain SGD with this momentum. Whatever `finish` makes of them, statistics (BatchNorm) are sent as
    they were trained.
    """

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
