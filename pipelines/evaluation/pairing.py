"""Pairing of masks with images: a pure function of the seed and of what the datasets hold.

Masks fall into cells, one for each hole-ratio interval and border class. The seed orders the masks of every cell; the
n-th masks of all cells form *round* n and share an image. So all cells have the same number of pairs, on the same
images.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from masks.coverage import RATIO_BUCKETS
from trainer.errors import UserError

OTHER = -1  # a hole ratio outside all intervals
BORDERS = ("none", "touch")  # by ``mask/touches_border``
# In the order of a round's pairs.
CELLS = tuple((bucket, border) for bucket in (*range(len(RATIO_BUCKETS)), OTHER) for border in range(len(BORDERS)))
ALL_MASKS = sys.maxsize


class MaskKey(NamedTuple):
    """What a mask's place depends on: its record's ``mask/index``, ``mask/bucket`` and ``mask/touches_border``."""

    mask_index: int
    bucket: int
    border: int


class Plan(NamedTuple):
    """Pairs to evaluate.

    Attributes:
        places: (number of the pair, number of the round) by mask index.
        rounds: number of rounds.
        found: number of masks, used or not, by cell.
    """

    places: dict[int, tuple[int, int]]
    rounds: int
    found: dict[tuple[int, int], int]


def draw(seed: int, kind: str, number: int) -> int:
    """64 pseudorandom bits, a function of the arguments only."""
    return int.from_bytes(hashlib.blake2b(f"{kind} {seed} {number}".encode(), digest_size=8).digest(), "big")


def plan_pairs(masks: Iterable[MaskKey], seed: int, per_cell: int | None = None) -> Plan:
    """The plan for the masks of a split, which may come in any order.

    Args:
        per_cell: pairs in each cell; cells with fewer masks use all of them. By default the size of the smallest
            nonempty cell of the intervals, so that all have the same number.
    """
    cells: dict[tuple[int, int], list[MaskKey]] = {}
    for key in masks:
        cells.setdefault((key.bucket, key.border), []).append(key)
    found = {cell: len(cells.get(cell, ())) for cell in CELLS}
    if per_cell is None:
        regular = [count for (bucket, _), count in found.items() if count and bucket != OTHER]
        per_cell = min(regular or [count for count in found.values() if count], default=0)
    chosen = []
    for number, cell in enumerate(CELLS):
        ordered = sorted(cells.get(cell, ()), key=lambda key: (draw(seed, "mask", key.mask_index), key.mask_index))
        chosen += [(turn, number, key.mask_index) for turn, key in enumerate(ordered[:per_cell])]
    places = {mask: (pair, turn) for pair, (turn, _, mask) in enumerate(sorted(chosen))}
    if len(places) < len(chosen):
        raise UserError("masks: expected a mask/index of its own for each. Received one twice.")
    return Plan(places, 1 + max((turn for turn, _, _ in chosen), default=-1), found)


def order_images(num_images: int, seed: int, rounds: int) -> dict[int, int]:
    """Place in the seed's order by position of an image, for the first ``rounds`` places only."""
    first = heapq.nsmallest(rounds, range(num_images), key=lambda position: (draw(seed, "image", position), position))
    return {position: place for place, position in enumerate(first)}


def rounds_of(place: int, num_images: int, rounds: int) -> Iterator[int]:
    """The rounds that use the image of a place: images take turns."""
    return iter(range(place, rounds, num_images))
