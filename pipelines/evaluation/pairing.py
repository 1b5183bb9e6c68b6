"""Which mask goes onto which image: a function of the seed and what the datasets hold, of nothing else.

Masks fall into cells, one for each hole-ratio interval and border class. In every cell they are put in an order
that the seed decides; those of one place in that order, one of each cell, are a *round* and share an image. So every
cell has as many pairs as any other, on the same images.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from masks.coverage import RATIO_BUCKETS

OTHER = -1  # a hole ratio outside of all intervals
BORDERS = ("none", "touch")  # by ``mask/touches_border``
# In the order of a round's pairs.
CELLS = tuple((bucket, border) for bucket in (*range(len(RATIO_BUCKETS)), OTHER) for border in range(len(BORDERS)))
ALL_MASKS = sys.maxsize


class MaskKey(NamedTuple):
    """What a mask's place depends on: its record's ``mask/index``, ``mask/bucket`` and ``mask/touches_border``."""

    index: int
    bucket: int
    border: int


class Plan(NamedTuple):
    """Pairs to evaluate.

    Attributes:
        places: by mask index, (number of the pair, number of the round).
        rounds: how many there are.
        found: by cell, how many masks there are, used or not.
    """

    places: dict[int, tuple[int, int]]
    rounds: int
    found: dict[tuple[int, int], int]


def draw(seed: int, kind: str, number: int) -> int:
    """64 bits that look random, of these three alone."""
    return int.from_bytes(hashlib.blake2b(f"{kind} {seed} {number}".encode(), digest_size=8).digest(), "big")


def plan_pairs(masks: Iterable[MaskKey], seed: int, per_cell: int | None = None) -> Plan:
    """The plan for the masks of a split, in whatever order they come.

    Args:
        per_cell: pairs in each cell; cells with fewer masks give what they have. By default as many as the smallest
            cell of the intervals has that is not empty, so that all have the same number.
    """
    cells: dict[tuple[int, int], list[MaskKey]] = {}
    for mask in masks:
        cells.setdefault((mask.bucket, mask.border), []).append(mask)
    found = {cell: len(cells.get(cell, ())) for cell in CELLS}
    if per_cell is None:
        regular = [count for (bucket, _), count in found.items() if count and bucket != OTHER]
        per_cell = min(regular or [count for count in found.values() if count], default=0)
    chosen = []
    for number, cell in enumerate(CELLS):
        ordered = sorted(cells.get(cell, ()), key=lambda mask: (draw(seed, "mask", mask.index), mask.index))
        chosen += [(turn, number, mask.index) for turn, mask in enumerate(ordered[:per_cell])]
    places = {index: (pair, turn) for pair, (turn, _, index) in enumerate(sorted(chosen))}
    return Plan(places, 1 + max((turn for turn, _, _ in chosen), default=-1), found)


def order_images(num_images: int, seed: int, rounds: int) -> dict[int, int]:
    """By position of an image, its place in the seed's order; of the first ``rounds`` places only."""
    first = heapq.nsmallest(rounds, range(num_images), key=lambda position: (draw(seed, "image", position), position))
    return {position: place for place, position in enumerate(first)}


def rounds_of(place: int, num_images: int, rounds: int) -> Iterator[int]:
    """The rounds that the image of a place is in: images take turns."""
    return iter(range(place, rounds, num_images))
