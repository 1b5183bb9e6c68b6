"""What some families start from instead of from nothing: the masks of others, frames of a film, a photograph.

This module knows no files and no buckets: who reads them decodes them, and gives the pixels in a `Source`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

# kind: number of arrays, and how many axes each has.
KINDS = {
    "mask": (1, 2),  # uint8 [height, width] of {0, 1}, 0 = hole
    "still": (1, 3),  # uint8 [height, width, 3]: one photograph
    "frames": (2, 3),  # uint8 [height, width, 3] twice, of one size: a frame and one soon after it, or a stereo pair
}


@dataclass(frozen=True, eq=False)
class Source:
    """Pixels that a family starts from. Two sources are equal when kind and pixels are.

    Attributes:
        kind: a key of ``KINDS``, which says what ``pixels`` are.
        pixels: one or two arrays; they are not to be written on.

    Raises:
        ValueError: an unknown kind, or pixels of another number, dtype or shape than the kind has.
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
                f"pixels: expected {number} of uint8 with {axes} axes for kind {self.kind!r}. Received {shapes}."
            )
        digest = hashlib.blake2b(f"{self.kind} {shapes[0]}".encode(), digest_size=16)
        for array in self.pixels:
            digest.update(np.ascontiguousarray(array))
        object.__setattr__(self, "digest", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
