"""Account of what a client has released of its examples, in a file of its own: no bound of it rests on a server's word.

A server names runs and rounds as it likes, begins a run anew, or plays an order again that it has sent before; a client
that counts by those names releases the same examples again and again. So each reply is charged here before it leaves,
under the experiment's name in the client's own policy, whatever its overrides are. The owner of the data resets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import ConfigError, StoreError
from ..core.system.files import write_atomically

MOST_VARIANTS = 64  # variants of one experiment that are told apart; what older ones released counts with the oldest
EARLIER = "earlier"


@dataclass(frozen=True)
class Spending:
    """Releases of a client's examples.

    Parameters
    ----------
    replies
        To orders to train.
    events
        {event: count} of a plan's ledger; empty without a plan.
    """

    replies: int = 0
    events: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Spending) -> Spending:
        """Add both together."""
        return Spending(self.replies + other.replies, dict(Counter(self.events) + Counter(other.events)))


Account = dict[str, dict[str, Spending]]  # {experiment's name: {digest of experiment and model: spending}}


def total(variants: Mapping[str, Spending]) -> Spending:
    """Add all variants of an experiment together."""
    everything = Spending()
    for one in variants.values():
        everything = everything.plus(one)
    return everything


@dataclass(frozen=True)
class SpendingFile:
    """A client's account on its disk. Processes take turns; what was charged outlives them, and a power cut."""

    path: Path

    @staticmethod
    def of(home: Path, client: int) -> SpendingFile:
        """Return the account of a client that keeps its memory in home."""
        return SpendingFile(home / f"released-{client}.json")

    def read(self) -> Account:
        """Read the account.

        Errors: StoreError for a file that does not read back: to forget would be to release again.
        """
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return {
                str(name): {str(digest): _parsed(one) for digest, one in variants.items()}
                for name, variants in found.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"{self.path} says what this client has released, and cannot be read ({error}); put it back, or, if "
                "all that may be released again, reset it: umbel client budget KIT --reset"
            ) from error

    def charge(self, name: str, variant: str, spent: Spending, check: Callable[[Spending], None]) -> None:
        """Add to an experiment's account, once check has agreed to what it comes to; on disk when this returns.

        check: raises for more than the client agrees to; nothing is charged then. Errors: those; StoreError.
        """
        with self._alone():
            account = self.read()
            variants = account.setdefault(name, {})
            check(total(variants).plus(spent))
            variants[variant] = variants.get(variant, Spending()).plus(spent)
            account[name] = _few(variants)
            self._write(account)

    def reset(self, name: str | None = None) -> None:
        """Forget what was released, for one experiment or for all. Errors: ConfigError for a name that is not there."""
        with self._alone():
            account = {} if name is None else self.read()
            if name is not None and account.pop(name, None) is None:
                raise ConfigError(f"nothing was released for experiment {name!r}; {self.path} has: {[*account]}")
            self._write(account)

    def _write(self, account: Account) -> None:
        plain = {
            name: {digest: {"replies": one.replies, "events": dict(one.events)} for digest, one in variants.items()}
            for name, variants in account.items()
        }
        try:
            write_atomically(self.path, json.dumps(plain, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}; nothing is released") from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file while inside."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StoreError(f"{self.path} cannot be locked: {error.strerror}; nothing is released") from error


def _parsed(one: Mapping[str, object]) -> Spending:
    """Read a file's entry. Errors: ValueError, TypeError, KeyError for anything else."""
    events = dict(one["events"])  # type: ignore[call-overload]
    counts = [one["replies"], *events.values()]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts are whole numbers of at least 0")
    return Spending(counts[0], {str(event): count for event, count in events.items()})


def _few(variants: dict[str, Spending]) -> dict[str, Spending]:
    """Return at most MOST_VARIANTS, with the same total."""
    surplus = [digest for digest in variants if digest != EARLIER][: max(0, len(variants) - MOST_VARIANTS)]
    if not surplus:
        return variants
    earlier = total({digest: variants[digest] for digest in (*surplus, EARLIER) if digest in variants})
    kept = {digest: one for digest, one in variants.items() if digest not in (*surplus, EARLIER)}
    return {EARLIER: earlier, **kept}
