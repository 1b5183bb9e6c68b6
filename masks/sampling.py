"""Mask number ``index`` of a specification: what is asked for, and the one function that draws it.

    spec = MaskSpec(generator="shapes", height=512, width=512, hole_ratio=(0.1, 0.2), border="none", seed=0)
    mask = sample_mask(spec, 7)

The two values are all that mask 7 depends on, so any worker can draw it, at any time, again.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from masks import coverage, exactness
from masks.families.blobs import draw_blobs
from masks.families.boxes import draw_boxes
from masks.families.files import draw_files
from masks.families.occlusion import draw_occlusion
from masks.families.shapes import draw_shapes
from masks.families.strokes import draw_strokes
from masks.families.walks import draw_walks
from masks.sources import Source

# Families of masks: draw(rng, spec) -> uint8 [height, width] of {0, 1}. What a family leaves short of the
# specification, sample_mask settles.
GENERATORS: dict[str, Callable[[np.random.Generator, MaskSpec], np.ndarray]] = {
    "shapes": draw_shapes,
    "strokes": draw_strokes,
    "walks": draw_walks,
    "boxes": draw_boxes,
    "blobs": draw_blobs,
    "occlusion": draw_occlusion,
    "files": draw_files,
}

# What a family starts from, one of these kinds of `Source`; the others start from nothing.
SOURCE_KINDS: dict[str, tuple[str, ...]] = {"occlusion": ("frames", "still"), "files": ("mask",)}

# Not a family: each mask is of one of several, chosen by ``MaskSpec.weights``.
MIXTURE = "mixture"

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
        generator: name of the family, a key of ``GENERATORS``, or ``mixture``.
        height: of the mask, in pixels; 16 or more.
        width: of the mask, in pixels; 16 or more.
        hole_ratio: (low, high] with 0 <= low < high <= 1; every mask has low < hole ratio <= high, in float64.
        border: which holes may be near the border, that is, less than ``margin`` pixels away from it: ``any`` has no
            rule, ``none`` forbids them all, ``touch`` asks for one or more.
        seed: any whole number; another seed gives other masks.
        margin: in pixels, 1 or more; by default ``coverage.border_margin(height, width)``.
        weights: of ``mixture``: a mapping, or pairs, from family to positive weight. Kept as pairs in name order.
        source: what the families of ``SOURCE_KINDS`` start from; they cannot draw without. It does not enter the
            chance, so masks of one index from two sources are cut and turned alike.

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
    margin: int | None = None
    weights: tuple[tuple[str, float], ...] = ()
    source: Source | None = None

    def __post_init__(self):
        names = (*GENERATORS, MIXTURE)
        _require(self.generator in names, "generator", f"one of {names}", self.generator)
        for name in ("height", "width"):
            size = getattr(self, name)
            _require(_is_whole(size) and size >= MIN_SIZE, name, f"a whole number of {MIN_SIZE} pixels or more", size)
            object.__setattr__(self, name, int(size))
        _require(_is_whole(self.seed), "seed", "a whole number", self.seed)
        object.__setattr__(self, "seed", int(self.seed))
        _require(self.border in BORDERS, "border", f"one of {BORDERS}", self.border)
        default_margin = coverage.border_margin(self.height, self.width)
        margin = default_margin if self.margin is None else self.margin
        most = (min(self.height, self.width) - 1) // 2
        _require(_is_whole(margin) and 1 <= margin <= most, "margin", f"1 to {most} pixels", self.margin)
        object.__setattr__(self, "margin", int(margin))
        self._check_families()

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

    def _check_families(self) -> None:
        pairs = self.weights.items() if isinstance(self.weights, Mapping) else self.weights
        weights = tuple(sorted((str(name), float(weight)) for name, weight in pairs))
        object.__setattr__(self, "weights", weights)
        mixed = self.generator == MIXTURE
        expected = "positive numbers by family" if mixed else f"none, but for generator {MIXTURE!r}"
        _require(bool(weights) == mixed, "weights", expected, self.weights)
        families = [name for name, _ in weights]
        _require(set(families) <= set(GENERATORS), "weights", f"families of {tuple(GENERATORS)}", self.weights)
        _require(len(set(families)) == len(families), "weights", "each family once", self.weights)
        _require(all(0 < w < math.inf for _, w in weights), "weights", "finite numbers above 0", self.weights)
        if self.source is not None:
            kinds = [kind for name in self.families for kind in SOURCE_KINDS.get(name, ())]
            _require(self.source.kind in kinds, "source", f"one of {kinds} for {self.families}", self.source.kind)

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that masks are drawn from: one, but for ``mixture``."""
        return tuple(name for name, _ in self.weights) or (self.generator,)

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
        ValueError: ``index`` is not a whole number of 0 or more, or the mask's family needs a source that ``spec``
            does not have.
    """
    rng = _generator_of(spec, index)
    family = _choose_family(spec, rng)
    kinds = SOURCE_KINDS.get(family)
    if kinds:
        received = spec.source and spec.source.kind
        _require(received in kinds, "source", f"a Source of one of {kinds}, which {family!r} starts from", received)
    mask = GENERATORS[family](rng, spec)
    _settle(mask, spec, rng)
    return mask


def family_of(spec: MaskSpec, index: int) -> str:
    """The family that mask ``index`` is drawn from: of ``mixture`` one of several, else the one there is."""
    return _choose_family(spec, _generator_of(spec, index))


def _choose_family(spec: MaskSpec, rng: np.random.Generator) -> str:
    if not spec.weights:
        return spec.generator
    families, weights = zip(*spec.weights, strict=True)
    limits = np.cumsum(weights)
    chosen = int(np.searchsorted(limits, rng.random() * limits[-1], side="right"))
    return families[min(chosen, len(families) - 1)]  # the product may round up to the last limit


def _generator_of(spec: MaskSpec, index: int) -> np.random.Generator:
    """Philox, keyed by a digest of the specification's text and the index."""
    _require(_is_whole(index) and index >= 0, "index", "a whole number of 0 or more", index)
    low, high = spec.hole_ratio
    text = f"{spec.generator} {spec.height} {spec.width} {low!r} {high!r} {spec.border} {spec.seed} {int(index)}"
    if spec.margin != coverage.border_margin(spec.height, spec.width):
        text += f" margin {spec.margin}"
    if spec.weights:
        text += f" weights {spec.weights!r}"
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
        exactness.resize_holes(spec.region(mask), spec.draw_target(rng), rng)
        touches = coverage.touches_border(mask, spec.margin)
    if not touches and spec.border == "touch":
        exactness.shift_to_border(mask)
