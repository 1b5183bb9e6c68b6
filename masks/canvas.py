"""The canvas that a mask family draws on: where holes may lie, and how many pixels of them are wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masks.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """One mask before it is drawn.

    Attributes:
        region: uint8 [height, width] of ones, the view of the mask in which holes may lie. Paint it with 0, in place.
        mask_size: (height, width) of the whole mask in pixels; that of ``region``, unless ``border`` is ``none``.
        min_holes: smallest allowed number of hole pixels, 1 or more.
        max_holes: largest allowed number of hole pixels, at most the pixels of ``region``.
        border: ``any``, ``none`` or ``touch``. With ``none``, ``region`` already excludes the margin; a family only
            has to avoid being cut along a straight line. With ``touch``, it should reach an edge of ``region``.
        source: what the family starts from; None for families that start from nothing.
    """

    region: np.ndarray
    mask_size: tuple[int, int]
    min_holes: int
    max_holes: int
    border: str = "any"
    source: Source | None = None

    def draw_target(self, rng: np.random.Generator) -> int:
        """A number of hole pixels, uniform over the allowed ones.

        A call and not an attribute: each family decides when it takes this number from ``rng``, and golden pixels
        depend on that order.
        """
        return int(rng.integers(self.min_holes, self.max_holes + 1))
