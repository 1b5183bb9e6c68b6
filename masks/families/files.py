"""The ``files`` family: masks that are there already, augmented as in the paper, brought to the ratio asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from masks.families.augment import cover

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Augmentations drawn for each mask, of which the one nearest to the ratio stays.
TRIES = 4


def draw_files(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask from the holes of ``spec.source``, see `masks.families.augment`.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels, border rule, and a source of kind ``mask``.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    (holes,) = spec.source.pixels
    return cover(rng, holes, spec, TRIES)
