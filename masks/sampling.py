"""Mask number ``index`` of a specification: what is asked for, and the one function that draws it.

    spec = MaskSpec(generator="shapes", height=512, width=512, hole_ratio=(0.1, 0.2), border="none", seed=0)
    mask = sample_mask(spec, 7)

The two values are all that mask 7 depends on, so any worker can draw it, at any time, again.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from masks import coverage
from masks.shapes import draw_shapes

# Families of masks: draw(rng, spec) -> uint8 [height, width] of {0, 1}. What a family leaves short of the
# specification, sample_mask settles.
GENERATORS: dict[str, Callable[[np.random.Generator, MaskSpec], np.ndarray]] = {
    "shapes": draw_shapes,
}

BORDERS = ("any", "none", "touch")
MIN_SIZE = 16


def _require(condition: bool, key: str, expected: str, received: object) -> None:
    if not condition:
        raise ValueError(f"{key}: expected {expected}. Received {received!r}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """What masks shall be like. A specification that no mask can meet is refused when it is made.

    Attributes:
        generator: name of the family, a key of ``GENERATORS``.
        height: of the mask, in pixels; 16 or more.
        width: of the mask, in pixels; 16 or more.
        hole_ratio: (low, high] with 0 <= low < high <= 1; every mask has low < hole ratio <= high, in float64.
        border: which holes may be near the border, that is, less than ``coverage.border_margin(height, width)``
            pixels away from it: ``any`` has no rule, ``none`` forbids them all, ``touch`` asks for one or more.
        seed: any whole number; another seed gives other masks.

    Raises:
        ValueError: an attribute is outside its range, the interval holds no whole number of pixels, or ``none``
            leaves too few pixels for the interval.
    """

    generator: str
    height: int
    width: int
    hole_ratio: tuple[float, float]
    border: str = "any"
    seed: int = 0

    def __post_init__(self):
        names = tuple(GENERATORS)
        _require(self.generator in names, "generator", f"one of {names}", self.generator)
        for name in ("height", "width"):
            size = getattr(self, name)
            _require(_is_whole(size) and size >= MIN_SIZE, name, f"a whole number of {MIN_SIZE} pixels or more", size)
            object.__setattr__(self, name, int(size))
        _require(_is_whole(self.seed), "seed", "a whole number", self.seed)
        object.__setattr__(self, "seed", int(self.seed))
        _require(self.border in BORDERS, "border", f"one of {BORDERS}", self.border)

        expected = "(low, high) with 0 <= low < high <= 1"
        try:
            low, high = (float(bound) + 0.0 for bound in self.hole_ratio)  # -0.0 becomes 0.0, to which it is equal
        except (TypeError, ValueError):
            raise ValueError(f"hole_ratio: expected {expected}. Received {self.hole_ratio!r}.") from None
        _require(0 <= low < high <= 1, "hole_ratio", expected, self.hole_ratio)
        object.__setattr__(self, "hole_ratio", (low, high))

        pixels, room = self.height * self.width, self._room
        fewest, most = coverage.pixel_interval(low, high, pixels)
        _require(
            fewest <= most,
            "hole_ratio",
            f"an interval that holds a whole number of the {pixels} pixels of {self.height} x {self.width}",
            self.hole_ratio,
        )
        _require(
            fewest <= room,
            "hole_ratio",
            f"a lower bound under {room / pixels:.4f} with border='none', which leaves {room} of {pixels} pixels, "
            f"those {self.margin} or more from the border",
            self.hole_ratio,
        )

    @property
    def margin(self) -> int:
        """Pixels less than this far from the border are near it."""
        return coverage.border_margin(self.height, self.width)

    @property
    def _room(self) -> int:
        """Pixels that may be holes."""
        inset = 2 * self.margin if self.border == "none" else 0
        return (self.height - inset) * (self.width - inset)

    @property
    def fewest_holes(self) -> int:
        """Hole pixels that a mask has at least; 1 or more."""
        return coverage.pixel_interval(*self.hole_ratio, self.height * self.width)[0]

    @property
    def most_holes(self) -> int:
        """Hole pixels that a mask has at most, within the interval and the border rule."""
        return min(coverage.pixel_interval(*self.hole_ratio, self.height * self.width)[1], self._room)

    def region(self, mask: np.ndarray) -> np.ndarray:
        """The view of ``mask`` [height, width] in which holes may lie: draw here."""
        inset = self.margin if self.border == "none" else 0
        return mask[inset : self.height - inset, inset : self.width - inset]

    def draw_target(self, rng: np.random.Generator) -> int:
        """A number of hole pixels, evenly distributed over those that are allowed."""
        return int(rng.integers(self.fewest_holes, self.most_holes + 1))


def sample_mask(spec: MaskSpec, index: int) -> np.ndarray:
    """Mask number ``index`` of ``spec``. Depends on these two alone: not on worker, order, process or clock.

    Args:
        spec: what the mask shall be like.
        index: 0 or more.

    Returns:
        uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole, with a hole ratio inside the interval of ``spec`` and
        its border rule kept.

    Raises:
        ValueError: ``index`` is not a whole number of 0 or more.
    """
    _require(_is_whole(index) and index >= 0, "index", "a whole number of 0 or more", index)
    rng = _generator_of(spec, int(index))
    mask = GENERATORS[spec.generator](rng, spec)
    _settle(mask, spec, rng)
    return mask


def _generator_of(spec: MaskSpec, index: int) -> np.random.Generator:
    """Philox, keyed by a digest of the specification's text and the index."""
    low, high = spec.hole_ratio
    text = f"{spec.generator} {spec.height} {spec.width} {low!r} {high!r} {spec.border} {spec.seed} {index}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))


def _settle(mask: np.ndarray, spec: MaskSpec, rng: np.random.Generator) -> None:
    """Gives ``mask``, in place, what its family left short of ``spec``: the border rule, then the interval."""
    touches = coverage.touches_border(mask, spec.margin)
    if touches and spec.border == "none":
        inside = spec.region(mask).copy()
        mask[:] = 1
        spec.region(mask)[:] = inside
    if not spec.fewest_holes <= coverage.count_holes(mask) <= spec.most_holes:
        coverage.resize_holes(spec.region(mask), spec.draw_target(rng), rng)
        touches = coverage.touches_border(mask, spec.margin)
    if not touches and spec.border == "touch":
        coverage.shift_to_border(mask)
