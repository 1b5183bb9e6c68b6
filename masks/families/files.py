"""The ``files`` family: existing masks, augmented as in the paper and brought to the requested hole ratio."""

from __future__ import annotations

import numpy as np

from masks.canvas import Canvas
from masks.families.augment import cover

# Augmentations drawn for each copy; the one nearest to the hole ratio is kept.
TRIES = 4


def draw_files(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws the holes of ``canvas.source``, a mask, augmented as in `masks.families.augment`.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on, with a source of kind ``mask``.
    """
    assert canvas.source is not None  # sample_mask checks it
    (holes,) = canvas.source.pixels
    cover(rng, holes, canvas, TRIES)
