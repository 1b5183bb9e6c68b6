"""The table of mask families. To add one: its module, a row here, a row in masks/README.md, and its test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from masks.canvas import Canvas
from masks.families.blobs import draw_blobs
from masks.families.boxes import draw_boxes
from masks.families.files import draw_files
from masks.families.occlusion import draw_occlusion
from masks.families.shapes import draw_shapes
from masks.families.strokes import draw_strokes
from masks.families.walks import draw_walks


class Family(NamedTuple):
    """How a family draws: ``draw(rng, canvas)`` paints ``canvas.region``, taking all randomness from ``rng``.

    ``source_kinds`` are the kinds of `masks.sources.Source` it can start from; empty if it starts from nothing.
    """

    draw: Callable[[np.random.Generator, Canvas], None]
    source_kinds: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "shapes": Family(draw_shapes),
    "strokes": Family(draw_strokes),
    "walks": Family(draw_walks),
    "boxes": Family(draw_boxes),
    "blobs": Family(draw_blobs),
    "occlusion": Family(draw_occlusion, source_kinds=("frames", "still")),
    "files": Family(draw_files, source_kinds=("mask",)),
}
