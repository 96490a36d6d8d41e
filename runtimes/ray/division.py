"""Division of a cohort into runs, each the work of one call; aligned, where it is added up where it was trained."""

from __future__ import annotations

from ...core.tree import LEAF

MOST = 8 * LEAF  # clients of a run: one that is lost is done again
PER_SLOT = 4  # runs for each place at which clients train: whoever is faster takes more of them
FEW = 2 * LEAF  # clients for each place below which aligned runs would leave some place without work
WHOLE_BYTES = 1 << 30  # updates of a small cohort that travel one by one, all together


def aligned_widths(first: int, count: int, slots: int) -> list[int]:
    """Return the widths of runs of LEAF·2ᵏ clients that cover `count` places from `first` on, large ones first.

    Each begins at a multiple of its width, and only the last may be short. first: a multiple of LEAF. slots: number of
    clients that train at the same time.
    """
    unit = LEAF
    while unit < MOST and count >= 2 * unit * PER_SLOT * slots:
        unit *= 2
    widths: list[int] = []
    place, end = first, first + count
    while place < end:
        width = unit
        # Towards the end they become smaller, so that all places are done at about the same time.
        while width > LEAF and (place % width or end - place <= slots * width):
            width //= 2
        widths.append(min(width, end - place))
        place += widths[-1]
    return widths


def small_widths(count: int, slots: int) -> list[int]:
    """Return the widths of runs whose updates travel one by one: at most LEAF clients, some for every place."""
    width = max(1, min(LEAF, -(-count // (PER_SLOT * slots))))
    return [min(width, count - start) for start in range(0, count, width)]


def adds_up_elsewhere(first: int, count: int, slots: int, size: int) -> bool:
    """Return whether a cohort's runs are to be added up where they are trained. size: length of an update.

    Not so where they could not be aligned, and not for few clients, unless their updates together are large.
    """
    if first % LEAF:
        return False
    return count >= FEW * slots or 4 * size * count > WHOLE_BYTES
