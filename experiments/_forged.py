"""An aggregator that forges what attackers do to a sum: for experiments that compare aggregators under attack."""

import dataclasses

from umbel import derive
from umbel.core.tree import Tree


@dataclasses.dataclass(frozen=True)
class Forged:
    """A sum of what attackers have forged. Every client is in every round: the first updates are theirs."""

    aggregator: object
    attack: object
    attackers: int
    needs_individual_updates = True

    def zero(self, size):
        return size, []

    def add(self, updates, update):
        return updates[0], [*updates[1], update]

    def merge(self, one, other):
        return one[0], one[1] + other[1]

    def total(self, updates):
        size, seen = updates
        own, honest = seen[: self.attackers], seen[self.attackers :]
        tree = Tree(self.aggregator, size)
        for update in [*self.attack.forge(own, honest, derive(0, "attack")), *honest]:
            tree.add(update)
        return tree.total()
