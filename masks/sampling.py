"""Mask specifications, and the function that draws mask number ``index`` of one.

    spec = MaskSpec(generator="shapes", height=512, width=512, hole_ratio=(0.1, 0.2), border="none", seed=0)
    mask = sample_mask(spec, 7)

Mask 7 depends on these two values only, so any worker can draw it again at any time.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from masks import coverage, exactness
from masks.canvas import Canvas
from masks.families import FAMILIES
from masks.sources import Source

# Not a family: each mask is drawn by one of several, chosen by ``MaskSpec.weights``.
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
    """Specification of masks. Raises ValueError if no mask can satisfy it.

    Attributes:
        generator: name of the family, a key of ``FAMILIES``, or ``mixture``.
        height: height of the mask in pixels; 16 or more.
        width: width of the mask in pixels; 16 or more.
        hole_ratio: (low, high] with 0 <= low < high <= 1; every mask has low < hole ratio <= high, in float64.
        border: rule for hole pixels near the border, that is, less than ``margin`` pixels away from it: ``any`` has no
            rule, ``none`` forbids them, ``touch`` requires at least one.
        seed: any integer; another seed gives other masks.
        margin: width of that border region in pixels, 1 or more; default ``coverage.border_margin(height, width)``.
        weights: for ``mixture`` only: positive weight of each family, as a mapping or pairs. Kept as pairs sorted by
            name.
        source: what a family with source kinds starts from; required to draw it. It is not part of the random key, so
            masks with the same index from two sources are cropped and rotated alike.

    Raises:
        ValueError: an attribute is outside its range, the interval contains no whole number of pixels, or ``none``
            leaves too few pixels for the interval.
    """

    generator: str
    height: int
    width: int
    hole_ratio: tuple[float, float]
    border: str = "any"
    seed: int = 0
    margin: int = None  # type: ignore[assignment]  # replaced by the default, which depends on the size
    weights: tuple[tuple[str, float], ...] = ()
    source: Source | None = None

    def __post_init__(self):
        names = (*FAMILIES, MIXTURE)
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
        max_margin = (min(self.height, self.width) - 1) // 2
        _require(_is_whole(margin) and 1 <= margin <= max_margin, "margin", f"1 to {max_margin} pixels", self.margin)
        object.__setattr__(self, "margin", int(margin))
        self._check_families()
        self._check_hole_ratio()

    def _check_hole_ratio(self) -> None:
        expected = "(low, high) with 0 <= low < high <= 1"
        try:
            low, high = (float(bound) + 0.0 for bound in self.hole_ratio)  # -0.0 becomes 0.0, to which it is equal
        except (TypeError, ValueError):
            raise ValueError(f"hole_ratio: expected {expected}. Received {self.hole_ratio!r}.") from None
        _require(0 <= low < high <= 1, "hole_ratio", expected, self.hole_ratio)
        object.__setattr__(self, "hole_ratio", (low, high))

        pixels, room = self.height * self.width, self._room
        smallest, largest = coverage.pixel_interval(low, high, pixels)
        _require(
            smallest <= largest,
            "hole_ratio",
            f"an interval that holds a whole number of the {pixels} pixels of {self.height} x {self.width}",
            self.hole_ratio,
        )
        _require(
            smallest <= room,
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
        _require(set(families) <= set(FAMILIES), "weights", f"families of {tuple(FAMILIES)}", self.weights)
        _require(len(set(families)) == len(families), "weights", "each family once", self.weights)
        _require(all(0 < w < math.inf for _, w in weights), "weights", "finite numbers above 0", self.weights)
        if self.source is not None:
            kinds = [kind for name in self.families for kind in FAMILIES[name].source_kinds]
            _require(self.source.kind in kinds, "source", f"one of {kinds} for {self.families}", self.source.kind)

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that draw the masks: one, or several for ``mixture``."""
        return tuple(name for name, _ in self.weights) or (self.generator,)

    @property
    def _inset(self) -> int:
        """Width in pixels of the outer part of a mask in which no hole may lie."""
        return self.margin if self.border == "none" else 0

    @property
    def _room(self) -> int:
        """Number of pixels that may be holes."""
        return (self.height - 2 * self._inset) * (self.width - 2 * self._inset)

    def canvas(self, mask: np.ndarray) -> Canvas:
        """What a family draws on: the view of ``mask``, uint8 [height, width] of ones, in which holes may lie."""
        inset = self._inset
        min_holes, max_holes = coverage.pixel_interval(*self.hole_ratio, mask.size)
        return Canvas(
            region=mask[inset : self.height - inset, inset : self.width - inset],
            mask_size=(self.height, self.width),
            min_holes=min_holes,
            max_holes=min(max_holes, self._room),
            border=self.border,
            source=self.source,
        )


def sample_mask(spec: MaskSpec, index: int) -> np.ndarray:
    """Mask number ``index`` of ``spec``. Depends on these two only: not on worker, order, process or clock.

    Args:
        spec: the mask's specification.
        index: 0 or more.

    Returns:
        uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole, whose hole ratio and border satisfy ``spec``.

    Raises:
        ValueError: ``index`` is not an integer of 0 or more, or the mask's family needs a source that ``spec`` does
            not have.
    """
    rng = _generator_of(spec, index)
    family = _choose_family(spec, rng)
    draw, kinds = FAMILIES[family]
    if kinds:
        received = spec.source and spec.source.kind
        _require(received in kinds, "source", f"a Source of one of {kinds}, which {family!r} starts from", received)
    mask = np.ones((spec.height, spec.width), np.uint8)
    canvas = spec.canvas(mask)
    draw(rng, canvas)
    _settle(mask, canvas, spec.margin, rng)
    return mask


def family_of(spec: MaskSpec, index: int) -> str:
    """Name of the family that draws mask ``index``."""
    return _choose_family(spec, _generator_of(spec, index))


def _choose_family(spec: MaskSpec, rng: np.random.Generator) -> str:
    if not spec.weights:
        return spec.generator
    families, weights = zip(*spec.weights, strict=True)
    limits = np.cumsum(weights)
    chosen = int(np.searchsorted(limits, rng.random() * limits[-1], side="right"))
    return families[min(chosen, len(families) - 1)]  # the product may round up to the last limit


def _generator_of(spec: MaskSpec, index: int) -> np.random.Generator:
    """Philox, keyed by a digest of the specification and the index."""
    _require(_is_whole(index) and index >= 0, "index", "a whole number of 0 or more", index)
    low, high = spec.hole_ratio
    text = f"{spec.generator} {spec.height} {spec.width} {low!r} {high!r} {spec.border} {spec.seed} {int(index)}"
    if spec.margin != coverage.border_margin(spec.height, spec.width):
        text += f" margin {spec.margin}"
    if spec.weights:
        text += f" weights {spec.weights!r}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))


def _settle(mask: np.ndarray, canvas: Canvas, margin: int, rng: np.random.Generator) -> None:
    """Makes ``mask`` satisfy, in place, what its family left unmet: the hole ratio, then border ``touch``."""
    if not canvas.min_holes <= coverage.count_holes(mask) <= canvas.max_holes:
        exactness.resize_holes(canvas.region, canvas.draw_target(rng), rng)
    if canvas.border == "touch" and not coverage.touches_border(mask, margin):
        exactness.shift_to_border(mask)
