"""Chain: update transforms one after another on the client, undone in reverse on the server."""

from __future__ import annotations

from collections.abc import Iterator

from ..bases import UpdateTransform
from ..random import Key
from ..spec import ModelSpec
from ..traits import Trait
from ..types import ClientUpdate, State, Total


class Chain(UpdateTransform):
    """Transforms in the order in which the client applies them. `Chain()` changes nothing.

    Composes: a Chain is itself a transform. Equal chains compare equal; the repr rebuilds it.
    """

    def __init__(self, *transforms: UpdateTransform):
        self.transforms = transforms

    @property
    def needs(self) -> Trait:
        """Nothing of its own: its members declare what they need."""
        return Trait.NONE

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.transforms == other.transforms

    def __hash__(self) -> int:
        return hash(self.transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    def init(self, spec: ModelSpec) -> State:
        """Return a tuple of the members' states."""
        return tuple(transform.init(spec) for transform in self.transforms)

    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Apply the members on the client, first to last."""
        for position, (transform, own) in enumerate(zip(self.transforms, state, strict=True)):
            update = transform.encode(own, update, key.derive(position))
        return update

    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Undo the members once, on the server, last to first. Return their new states and the decoded total."""
        states = list(state)
        for position in reversed(range(len(self.transforms))):
            states[position], total = self.transforms[position].decode(states[position], total, key.derive(position))
        return tuple(states), total


def flattened(transforms: UpdateTransform) -> Iterator[UpdateTransform]:
    """Yield the transforms of a chain, and of the chains in it; or the one transform that is no chain."""
    if isinstance(transforms, Chain):
        for one in transforms.transforms:
            yield from flattened(one)
    else:
        yield transforms
