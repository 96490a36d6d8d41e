"""Updates that attackers send in place of their own, to test aggregators with. Attacks on data are in `data.attacks`.

An attack is a frozen value with one method:

    forge(own, honest, key) -> list[ClientUpdate]

own: what the cohort's attackers would send if they were honest, at least one; honest: what the others send, which
colluding attackers are taken to know. It returns as many updates as `own` has, each with the weight and the metrics of
the honest one, so that only the vectors give it away. Pure: nothing passed in is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..core.random import Key
from ..core.types import ClientUpdate, Vector
from ..core.validation import require_real

Updates = Sequence[ClientUpdate]


@dataclass(frozen=True)
class SignFlip:
    """The honest update times −scale."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_real("scale", self.scale, above=0)

    def forge(self, own: Updates, honest: Updates, key: Key) -> list[ClientUpdate]:
        """Turn each attacker's own update round."""
        return [_mapped(update, lambda vector: np.float32(-self.scale) * vector) for update in own]


@dataclass(frozen=True)
class Scaling:
    """The honest update times factor: what replaces the model when it was trained on poisoned examples.

    Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020: How To Backdoor Federated Learning.
    https://arxiv.org/abs/1807.00459

    Parameters
    ----------
    factor
        None for the cohort's weight over the attackers', with which FedAvg(server_lr=1) lands on the attackers' own
        mean model once the honest deltas cancel out.
    """

    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None:
            require_real("factor", self.factor, above=0)

    def forge(self, own: Updates, honest: Updates, key: Key) -> list[ClientUpdate]:
        """Enlarge each attacker's own update."""
        ours = sum(update.weight for update in own)
        factor = (ours + sum(update.weight for update in honest)) / ours if self.factor is None else self.factor
        return [_mapped(update, lambda vector: np.float32(factor) * vector) for update in own]


@dataclass(frozen=True)
class Alie:
    """ "A little is enough": in each coordinate the honest mean less z standard deviations, which few cut off.

    Baruch, Baruch, Goldberg 2019: A Little Is Enough: Circumventing Defenses For Distributed Learning.
    https://arxiv.org/abs/1902.06156

    Parameters
    ----------
    z
        None for the paper's z_max: the largest with which enough honest clients lie further out for the attackers to
        make a majority with them. Without honest updates in the cohort, the attackers imitate their own.
    """

    z: float | None = None

    def __post_init__(self) -> None:
        if self.z is not None:
            require_real("z", self.z)

    def forge(self, own: Updates, honest: Updates, key: Key) -> list[ClientUpdate]:
        """Send the same vector from every attacker."""
        z = largest_deviation(len(own) + len(honest), len(own)) if self.z is None else self.z
        seen = honest or own

        def little(vectors: list[Vector]) -> Vector:
            stacked = np.stack(vectors)
            return stacked.mean(axis=0) - np.float32(z) * stacked.std(axis=0)

        return _all_sending(own, little([one.delta for one in seen]), little([one.extra for one in seen]))


@dataclass(frozen=True)
class Ipm:
    """Inner product manipulation: −epsilon times the honest mean.

    Xie, Koyejo, Gupta 2020: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation.
    https://arxiv.org/abs/1903.03936

    Parameters
    ----------
    epsilon
        Small (0.1) to hide among honest updates, large (above the ratio of honest to attacking clients) to turn their
        mean round. Without honest updates in the cohort, the attackers turn their own.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        require_real("epsilon", self.epsilon, above=0)

    def forge(self, own: Updates, honest: Updates, key: Key) -> list[ClientUpdate]:
        """Send the same vector from every attacker."""
        seen = honest or own

        def turned(vectors: list[Vector]) -> Vector:
            return np.float32(-self.epsilon) * np.stack(vectors).mean(axis=0)

        return _all_sending(own, turned([one.delta for one in seen]), turned([one.extra for one in seen]))


@dataclass(frozen=True)
class FreeRide:
    """The params as they were received, with Gaussian noise of standard deviation `noise` to pass for training.

    Fraboni, Vidal, Lorenzi 2021: Free-rider Attacks on Model Aggregation in Federated Learning.
    https://arxiv.org/abs/2006.11901
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        require_real("noise", self.noise, at_least=0)

    def forge(self, own: Updates, honest: Updates, key: Key) -> list[ClientUpdate]:
        """Send noise alone."""
        return [self._noisy(update, key.derive(position)) for position, update in enumerate(own)]

    def _noisy(self, update: ClientUpdate, key: Key) -> ClientUpdate:
        generator = key.generator()
        return _mapped(
            update, lambda vector: np.float32(self.noise) * generator.standard_normal(len(vector), np.float32)
        )


ALL_ATTACKS = (SignFlip(), Scaling(), Alie(), Ipm(), FreeRide())


def largest_deviation(clients: int, attackers: int) -> float:
    """Return z_max of ALIE: with s = ⌊n/2⌋ + 1 − m honest clients further out than z, attackers are the majority."""
    honest, supporters = clients - attackers, max(1, clients // 2 + 1 - attackers)
    return NormalDist().inv_cdf((honest - supporters) / honest) if honest > supporters else 0.0


def _mapped(update: ClientUpdate, change: Callable[[Vector], Vector]) -> ClientUpdate:
    """Return update with its vectors changed."""
    return update._replace(delta=change(update.delta), extra=change(update.extra))


def _all_sending(own: Updates, delta: Vector, extra: Vector) -> list[ClientUpdate]:
    """Return the same vectors from every attacker, under its own weight."""
    return [update._replace(delta=delta, extra=extra) for update in own]
