"""The ``occlusion`` family: the paper's own masks, from what two frames of a film do not both show.

The optical flow from a frame to the next and the flow back cancel where both frames show a thing; where they disagree,
something went out of sight. A single photograph becomes two frames by moving two layers of it.

The bits of the masks do not depend on threads, CPU features (AVX-512 to SSE2) or Intel's IPP: flow is computed without
variational refinement and without IPP, which are what differed. Other architectures than x86-64 have not been compared.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from masks.exactness import without_ipp
from masks.families.augment import affine, cover
from masks.sources import Source

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Shorter side of frames, in pixels, when flow is computed, whatever size the mask has: its cost grows with the area.
WORKING_SIDE = 256
# Longest side: the middle is cut out of wider frames.
LONGEST_SIDE = 512
# Of occlusions that masks are made of, in working pixels: gaps in a band that are closed; the area below which a piece
# is noise of the flow; and the share of a piece that may lie deep inside, half the widest band from its edge: with more
# of that it is a scene that changed, or a surface without texture, not motion.
WIDEST_GAP = 7
SMALLEST_PIECE = 48
WIDEST_BAND = 32
LARGEST_DEPTH = 0.05
# Of the two layers, in working pixels: how far the near one moves against the far one, and the far one itself.
MOTION = (6, 28)
FAR_MOTION = 10
LAYER_SHAPES = 3


@without_ipp()
def draw_occlusion(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask from what ``spec.source`` shows to be occluded, augmented, see `masks.families.augment`.

    Where two frames show nothing in motion, the first is taken for a photograph; where a photograph has no texture
    whose motion could be seen, noise stands in for it.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels, border rule, and a source of kind ``frames`` or ``still``.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    if spec.source.kind == "frames":
        holes = bands_both_ways(spec.source)[int(rng.integers(2))]
        if not holes.all():
            return cover(rng, holes, spec)
    holes = bands(occluded(*two_layers(rng, spec.source.pixels[0])))
    if holes.all():
        holes = bands(occluded(*two_layers(rng, _noise(rng))))
    return cover(rng, holes, spec)


def shrink(frame: np.ndarray) -> np.ndarray:
    """A frame at the size that flow is computed at, enlarged if need be.

    Args:
        frame: uint8 [height, width, 3].

    Returns:
        uint8 [height, width, 3], the shorter side ``WORKING_SIDE``, the longer one at most ``LONGEST_SIDE`` pixels.
    """
    height, width = frame.shape[:2]
    longest = min(height, width) * LONGEST_SIDE // WORKING_SIDE
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    frame = frame[top : top + longest, left : left + longest]
    height, width = frame.shape[:2]
    scale = WORKING_SIDE / min(height, width)
    size = (max(WORKING_SIDE, round(width * scale)), max(WORKING_SIDE, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR_EXACT)


@functools.lru_cache(maxsize=4)  # consecutive masks have one source, and flow is most of their cost
@without_ipp()
def bands_both_ways(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """`bands` of the two frames at their working size, in either order; not to be written on."""
    frame, next_frame = map(shrink, source.pixels)
    forward, backward = _flows(frame, next_frame)
    return bands(_disagreement(forward, backward)), bands(_disagreement(backward, forward))


@without_ipp()
def bands(holes: np.ndarray) -> np.ndarray:
    """Of the occlusions those that look like something moved: neither specks nor whole surfaces.

    Args:
        holes: uint8 [height, width] of {0, 1}, 0 = occluded, at the working size.

    Returns:
        uint8 [height, width] of {0, 1}; all 1 if there are none.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (WIDEST_GAP, WIDEST_GAP))
    found = cv2.medianBlur(cv2.morphologyEx(1 - holes, cv2.MORPH_CLOSE, disc), 5)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    deep = cv2.distanceTransform(np.pad(found, 1), cv2.DIST_L2, 5)[1:-1, 1:-1] > WIDEST_BAND / 2
    areas = stats[:, cv2.CC_STAT_AREA]
    valid = (areas < SMALLEST_PIECE) | (np.bincount(labels[deep], minlength=number) > LARGEST_DEPTH * areas)
    valid[0] = True  # label 0 is what is not occluded
    return valid.astype(np.uint8)[labels]


@without_ipp()
def occluded(frame: np.ndarray, next_frame: np.ndarray) -> np.ndarray:
    """What ``frame`` shows and ``next_frame`` does not.

    A pixel x is occluded where the flow f there and the flow back b at x + f do not cancel:
    |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5, the test of Sundaram, Brox, Keutzer: Dense point trajectories by
    GPU-accelerated large displacement optical flow, ECCV 2010. A pixel whose flow leaves the frame has nothing to
    disagree with. What is thinner than 3 pixels is left out, as noise of the flow.

    Args:
        frame: uint8 [height, width, 3].
        next_frame: of the same size.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = occluded.
    """
    return _disagreement(*_flows(frame, next_frame))


def _flows(frame: np.ndarray, next_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense inverse search (Kroeger et al., ECCV 2016) both ways: float32 [height, width, 2], (x, y) in pixels.

    OpenCV's preset stops at half the resolution, and then refines. At full resolution the precision on scenes with
    known occlusion rises from 0.73 to 0.98; refinement adds nothing there, and its bits depend on the CPU.
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    search.setVariationalRefinementIterations(0)
    grey, next_grey = (cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) for pixels in (frame, next_frame))
    return search.calc(grey, next_grey, None), search.calc(next_grey, grey, None)


def _disagreement(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """uint8 [height, width], 0 where the flows fail the test of `occluded`."""
    height, width = forward.shape[:2]
    x = forward[..., 0] + np.arange(width, dtype=np.float32)
    y = forward[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    total = forward + back
    squares = forward * forward + back * back
    total *= total
    fails = total[..., 0] + total[..., 1] > 0.01 * (squares[..., 0] + squares[..., 1]) + 0.5
    fails &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return 1 - cv2.morphologyEx(fails.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def two_layers(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One photograph as two frames: smooth shapes, filled with it turned around, move over it, and it moves too.

    Args:
        rng: the only source of chance.
        image: uint8 [height, width, 3].

    Returns:
        Two frames, uint8 [WORKING_SIDE, WORKING_SIDE, 3].
    """
    side = WORKING_SIDE
    far = _random_crop(rng, shrink(image))
    near = np.ascontiguousarray(far[::-1, ::-1])
    shapes = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(1, LAYER_SHAPES + 1))):
        cv2.fillPoly(shapes, [_outline(rng)], 1)

    direction, length, far_direction, far_length, spin, growth = rng.random(6).tolist()
    drift = _vector(far_direction, far_length * FAR_MOTION)
    shift = _vector(direction, MOTION[0] + length * (MOTION[1] - MOTION[0]))
    angle, scale = math.radians(16 * spin - 8), 0.95 + 0.1 * growth
    along, across = scale * math.cos(angle), scale * math.sin(angle)
    centre = (side / 2, side / 2)
    land = (side / 2 + shift[0] + drift[0], side / 2 + shift[1] + drift[1])
    matrix = affine(((along, -across), (across, along)), centre, land)
    moved = {"dsize": (side, side), "flags": cv2.INTER_NEAREST, "borderMode": cv2.BORDER_REFLECT_101}
    next_far = cv2.warpAffine(far, affine(((1, 0), (0, 1)), (0, 0), drift), **moved)
    next_near = cv2.warpAffine(near, matrix, **moved)
    next_shapes = cv2.warpAffine(shapes, matrix, (side, side), flags=cv2.INTER_NEAREST)
    return _paste(far, near, shapes), _paste(next_far, next_near, next_shapes)


def _paste(far: np.ndarray, near: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    frame = far.copy()
    cv2.copyTo(near, shapes, frame)
    return frame


def _vector(direction: float, length: float) -> tuple[int, int]:
    """Whole pixels (x, y); ``direction`` is a share of a full turn."""
    angle = 2 * math.pi * direction
    return round(length * math.cos(angle)), round(length * math.sin(angle))


def _random_crop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A square of ``WORKING_SIDE`` from any place of an image that is no smaller."""
    top, left = (int(rng.integers(size - WORKING_SIDE + 1)) for size in image.shape[:2])
    return image[top : top + WORKING_SIDE, left : left + WORKING_SIDE]


def _outline(rng: np.random.Generator) -> np.ndarray:
    """int32 [72, 2]: a closed smooth line (x, y) around a random place, its distance a sum of five waves."""
    x, y, size, *waves = rng.random(13).tolist()
    radius = WORKING_SIDE * (0.1 + 0.2 * size)
    points = []
    for step in range(72):
        angle = math.radians(5 * step)
        away = 1 + sum(
            0.7 / (n + 1) * waves[2 * n] * math.cos((n + 1) * angle + 2 * math.pi * waves[2 * n + 1]) for n in range(5)
        )
        away *= radius
        points.append(
            (round(x * WORKING_SIDE + away * math.cos(angle)), round(y * WORKING_SIDE + away * math.sin(angle)))
        )
    return np.array(points, np.int32)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """uint8 [WORKING_SIDE, WORKING_SIDE, 3] of spots some 8 pixels wide."""
    cells = rng.integers(0, 256, (WORKING_SIDE // 8, WORKING_SIDE // 8, 3), np.uint8)
    return cv2.resize(cells, (WORKING_SIDE, WORKING_SIDE), interpolation=cv2.INTER_LINEAR_EXACT)
