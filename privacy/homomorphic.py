"""Homomorphic encryption: the server adds ciphertexts that it cannot read. Needs the extra `he` (TenSEAL).

Clients share one secret key. The server has the parameters and the id of the key, and no key at all: encryption is
symmetric, which is faster and less noisy than under a public key, and clients have the secret key anyway.

What it does not protect from, and secure aggregation does: one client together with the server reads every update,
since any client can decrypt any ciphertext; and a server that deviates can ask the clients that decrypt for sums of
different clients. With BFV it has no single update decrypted as if it were a sum, and nothing of another round or run:
see `bound`. With CKKS a key serves one run, of which a server that deviates can have anything decrypted. Ciphertexts
are malleable besides: whoever carries one can change the numbers in it without knowing them. So they travel signed, in
envelopes.

Both schemes carry integers, numbers in ±limit stochastically rounded to a grid, and give their exact sum. So what is
decrypted depends on the updates alone. For CKKS this is more than convenience: its approximation errors, once published
with a result, give the secret key away (Li, Micciancio 2021: On the security of homomorphic encryption on approximate
numbers, https://eprint.iacr.org/2020/1533); they are rounded away before a sum leaves `decrypt`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..core.errors import ConfigError, RunStopped
from ..core.parts.private import RemoteAggregation
from ..core.sums import ClientSum, Joins, Meeting, ServerSum
from ..core.types import Shape
from ..core.validation import require, require_count
from .contexts import ClientContext, ServerContext, load_tenseal
from .encrypted import EncryptedClient, EncryptedServer, keep_contexts, public_in, rehearsed, secret_in
from .gridded import Gridded
from .layout import Layout
from .remote import kept_log
from .schemes import BFV, CKKS, SCHEMES, Scheme
from .secagg.session import MINIMUM_CLIENTS
from .states import check_names, states_to_sum, warn_of_limit


@dataclass(frozen=True)
class Homomorphic(RemoteAggregation):
    """Sums by homomorphic encryption.

    Parameters
    ----------
    limit
        The largest magnitude kept of a number in an update; what lies outside is moved to it, and the round's
        "saturated" metric says how much that was.
    scheme
        "bfv" (numbers of 16 bits, few bytes) or "ckks" (24 bits, 7.5 times the bytes of float32), with parameters for
        so many clients and such weights; or a BFV or CKKS of your own.
    clients
        The most that a cohort may have; up to 32 weighing 1, "bfv" takes half the bytes that it takes above.
    max_weight
        The largest weight of a client. 1: every client weighs 1 (weighting="uniform"). Above: weights are numbers of
        examples.
    metrics
        What the clients report in the sum, as states (see `states`): their values are those of all the cohort's
        examples, counts exact. So the server learns how many examples the cohort has together, whatever weighting says.
        The clients that decrypt see besides how the numbers' digits add up.
    metric_limit
        Has no effect any more, since states have no limit that has to be guessed.

    Raises
    ------
    ConfigError
        Where the sum of so many numbers does not fit; it says what would.
    """

    limit: float
    scheme: Literal["bfv", "ckks"] | BFV | CKKS = "bfv"
    clients: int = 32
    max_weight: int = 1
    metrics: tuple[str, ...] = ("loss",)
    metric_limit: float | None = None

    clients_decrypt: ClassVar[bool] = True  # a few of them see a round's sum as it was encrypted

    def __post_init__(self) -> None:
        require_count("clients", self.clients, at_least=MINIMUM_CLIENTS)  # a sum of two tells each the other's update
        require_count("max_weight", self.max_weight)
        check_names(self.metrics)
        warn_of_limit(self, self.metric_limit)
        Layout(Shape(1, 0), self.limit)  # its own checks, before a round begins
        known = isinstance(self.scheme, (BFV, CKKS)) or self.scheme in SCHEMES
        require(known, f"expected scheme={self.scheme!r} to be 'bfv', 'ckks', or a BFV or CKKS")
        scheme = self.parameters
        if scheme.capacity < self.clients or scheme.max_weight < self.max_weight:
            wanted = type(scheme).for_clients(self.clients, scheme.bits, self.max_weight)
            raise ConfigError(
                f"{scheme!r} sums at most {scheme.capacity} clients of weight {scheme.max_weight}; "
                f"for clients={self.clients} of max_weight={self.max_weight} use {wanted!r}"
            )

    @property
    def parameters(self) -> Scheme:
        """Scheme with its parameters."""
        if isinstance(self.scheme, (BFV, CKKS)):
            return self.scheme
        return _chosen(self.scheme, self.clients, self.max_weight)

    @property
    def step(self) -> float:
        """Largest distance by which rounding may move a number."""
        return self.limit / self.parameters.levels

    @staticmethod
    def prepare() -> None:
        """Load TenSEAL, before TensorFlow, whose C++ symbols it shares. Errors: ConfigError where it is missing."""
        load_tenseal()

    def rehearse(
        self, meeting: Meeting, cohort: Sequence[int], is_real: bool
    ) -> tuple[ServerSum, Callable[[int], ClientSum]]:
        """Make both halves of a round's sum in one process, whose secret key lives as long as the process.

        is_real: with ciphertexts; else with the integers that are in them, which have the same sum.
        Errors: ConfigError for a cohort of more than `clients`, or without TenSEAL; RunStopped for fewer than 3.
        """
        self._check_cohort(cohort, meeting.round)
        return rehearsed(self, meeting, cohort, _context_of_this_process(self.parameters), is_real)

    @property
    def magnitude_limit(self) -> float:
        """Largest magnitude kept of a number: limit."""
        return self.limit

    @property
    def cohort_bounds(self) -> tuple[int, int | None]:
        """The fewest and the most clients of a sum: 3, and clients."""
        return MINIMUM_CLIENTS, self.clients

    def check_joins(self, joins: Joins) -> None:
        """Raise ConfigError for a metric that the model does not report, or whose state is no sum."""
        states_to_sum(self.metrics, joins)

    def gridded(self, meeting: Meeting) -> Gridded:
        """Return how updates become integers that ciphertexts add up."""
        states = states_to_sum(self.metrics, meeting.joins)
        layout = Layout(meeting.shape, self.limit, counts=self.max_weight == 1, states=states)
        return Gridded(self.parameters, layout, meeting.cohort)

    def server(self, meeting: Meeting, cohort: Sequence[int], kit: Path) -> EncryptedServer:
        """Make the server's half among real devices. kit: has the parameters and the id of the clients' key.

        Errors: as `rehearse`; ConfigError for a kit without them, or with others than this has.
        """
        self._check_cohort(cohort, meeting.round)
        context = ServerContext.from_bytes(public_in(kit))
        require(context.scheme == self.parameters, f"{kit}: expected {self.parameters!r}, found {context.scheme!r}")
        return EncryptedServer(self, meeting, cohort, context)

    def client(self, meeting: Meeting, client: int, kit: Path, home: Path) -> EncryptedClient:
        """Make a client's half among real devices. kit: has the secret key that clients share.

        home: where the client notes what it took part in. Errors: as `server`.
        """
        context = self._context_in(kit)
        key = "" if isinstance(self.parameters, BFV) else f"-{context.id.hex()[:16]}"  # CKKS has a key for each run
        log = kept_log(home / f"encrypted-sums-{client}{key}.json")
        return EncryptedClient(self, meeting, client, context, log)

    def provision(self, server: Path, clients: Mapping[int, Path]) -> None:
        """Write one fresh secret key for all clients, and what the server may know of it.

        Kits that have them already are left as they are, but for CKKS, of which each run has a key of its own.
        """
        with contextlib.suppress(ConfigError):  # none yet, or for other parameters
            known = ServerContext.from_bytes(public_in(server))
            is_whole = all(self._context_in(kit).id == known.id for kit in clients.values())
            if is_whole and isinstance(self.parameters, BFV):
                return
        keep_contexts(ClientContext.create(self.parameters), server, clients)

    def _context_in(self, kit: Path) -> ClientContext:
        context = ClientContext.from_bytes(secret_in(kit))
        require(context.scheme == self.parameters, f"{kit}: expected {self.parameters!r}, found {context.scheme!r}")
        return context

    def _check_cohort(self, cohort: Sequence[int], round: int) -> None:
        """Raise RunStopped for fewer clients than hide one another, ConfigError for more than `clients`."""
        if len(cohort) < MINIMUM_CLIENTS:
            raise RunStopped(f"round {round}: a cohort of {len(cohort)}; at least {MINIMUM_CLIENTS} hide one another")
        most = f"Homomorphic(clients={self.clients}) is the most, raise it"
        require(len(cohort) <= self.clients, f"round {round}: a cohort of {len(cohort)}; {most}")


@functools.lru_cache(64)
def _chosen(name: str, clients: int, max_weight: int) -> Scheme:
    return SCHEMES[name].for_clients(clients, max_weight=max_weight)


@functools.lru_cache(4)
def _context_of_this_process(scheme: Scheme) -> ClientContext:
    """Return one context for all rounds of a simulation: making keys takes longer than adding a client."""
    return ClientContext.create(scheme)
