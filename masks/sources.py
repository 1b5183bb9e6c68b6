"""Sources: the pixels that some families start from, namely an existing mask, video frames or a photograph.

This module reads no files: callers decode them and pass the pixels in a `Source`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Number of arrays that a source has, all uint8 and of one shape, and of axes that each of them has."""

    arrays: int
    axes: int


KINDS = {
    "mask": Layout(arrays=1, axes=2),  # [height, width] of {0, 1}, 0 = hole
    "still": Layout(arrays=1, axes=3),  # [height, width, 3]: one photograph
    "frames": Layout(arrays=2, axes=3),  # [height, width, 3] twice: a frame and one soon after it, or a stereo pair
}


@dataclass(frozen=True, eq=False)
class Source:
    """Pixels that a family starts from. Two sources are equal if kind and pixels are.

    Attributes:
        kind: a key of ``KINDS``, which describes ``pixels``.
        pixels: one or two arrays; do not write to them.

    Raises:
        ValueError: unknown kind, or pixels whose number, dtype or shape does not fit the kind.
    """

    kind: str
    pixels: tuple[np.ndarray, ...]
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {tuple(KINDS)}. Received {self.kind!r}.")
        number, axes = KINDS[self.kind]
        shapes = [getattr(array, "shape", type(array)) for array in self.pixels]
        fits = [
            isinstance(array, np.ndarray)
            and array.dtype == np.uint8
            and array.ndim == axes
            and array.size > 0
            and array.shape[2:] in ((), (3,))
            for array in self.pixels
        ]
        if len(fits) != number or not all(fits) or len(set(shapes)) != 1:
            raise ValueError(
                f"pixels: expected {number} uint8 arrays of {axes} axes for kind {self.kind!r}. Received {shapes}."
            )
        digest = hashlib.blake2b(f"{self.kind} {shapes[0]}".encode(), digest_size=16)
        for array in self.pixels:
            digest.update(np.ascontiguousarray(array).data)
        object.__setattr__(self, "digest", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
