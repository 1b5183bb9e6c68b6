"""The ``occlusion`` family: the paper's own masks, from occlusions between two video frames.

Where both frames show a point, the optical flow from one to the next and the flow back cancel; where they do not,
something was occluded. A single photograph becomes two frames by moving two layers of it.

Masks do not depend on threads, CPU features (AVX-512 to SSE2) or Intel's IPP: flow is computed without variational
refinement and without IPP, which did differ. Architectures other than x86-64 have not been compared.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from masks.canvas import Canvas
from masks.exactness import without_ipp
from masks.families.augment import affine, cover
from masks.sources import Source

# Shorter side of frames, in pixels, when flow is computed, whatever the size of the mask: its cost grows with the area.
WORKING_SIDE = 256
# Longer side: wider frames are center-cropped.
MAX_SIDE = 512
# Occlusions that become masks, in working pixels: gaps up to MAX_GAP in a band are closed; pieces of less area than
# MIN_PIECE are noise of the flow; a piece with more than the fraction MAX_DEEP of its area deeper inside than half of
# MAX_BAND is a change of scene or a surface without texture, not motion.
MAX_GAP = 7
MIN_PIECE = 48
MAX_BAND = 32
MAX_DEEP = 0.05
# Motion of the near layer relative to the far one, and of the far layer, in working pixels.
MIN_MOTION, MAX_MOTION = 6, 28
MAX_FAR_MOTION = 10
MAX_SHAPES = 3


@without_ipp()
def draw_occlusion(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws the occlusions in ``canvas.source``, augmented as in `masks.families.augment`.

    If two frames show no motion, the first is used as a photograph; if a photograph has no texture by which motion
    could be seen, noise takes its place.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on, with a source of kind ``frames`` or ``still``.
    """
    assert canvas.source is not None  # sample_mask checks it
    cover(rng, _find_holes(rng, canvas.source), canvas)


def _find_holes(rng: np.random.Generator, source: Source) -> np.ndarray:
    """`bands` of the source, of its first frame, or of noise: the first of these that shows any."""
    if source.kind == "frames":
        holes = bands_both_ways(source)[int(rng.integers(2))]
        if not holes.all():
            return holes
    holes = bands(occluded(*two_layers(rng, source.pixels[0])))
    if not holes.all():
        return holes
    return bands(occluded(*two_layers(rng, _noise(rng))))


def shrink(frame: np.ndarray) -> np.ndarray:
    """A frame at the size at which flow is computed; small frames are enlarged.

    Args:
        frame: uint8 [height, width, 3].

    Returns:
        uint8 [height, width, 3], the shorter side ``WORKING_SIDE``, the longer one at most ``MAX_SIDE`` pixels.
    """
    height, width = frame.shape[:2]
    longest = min(height, width) * MAX_SIDE // WORKING_SIDE
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    frame = frame[top : top + longest, left : left + longest]
    height, width = frame.shape[:2]
    scale = WORKING_SIDE / min(height, width)
    size = (max(WORKING_SIDE, round(width * scale)), max(WORKING_SIDE, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR_EXACT)


@functools.lru_cache(maxsize=4)  # consecutive masks have one source, and flow is most of their cost
@without_ipp()
def bands_both_ways(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """`bands` of the two frames at their working size, in both orders. Cached: do not write to the arrays."""
    frame, next_frame = map(shrink, source.pixels)
    forward, backward = _flows(frame, next_frame)
    return bands(_disagreement(forward, backward)), bands(_disagreement(backward, forward))


@without_ipp()
def bands(holes: np.ndarray) -> np.ndarray:
    """The occlusions that look like motion: neither specks nor whole surfaces.

    Args:
        holes: uint8 [height, width] of {0, 1}, 0 = occluded, at the working size.

    Returns:
        uint8 [height, width] of {0, 1}; all 1 if none are left.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (MAX_GAP, MAX_GAP))
    found = cv2.medianBlur(cv2.morphologyEx(1 - holes, cv2.MORPH_CLOSE, disc), 5)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    deep = cv2.distanceTransform(np.pad(found, 1), cv2.DIST_L2, 5)[1:-1, 1:-1] > MAX_BAND / 2
    areas = stats[:, cv2.CC_STAT_AREA]
    valid = (areas < MIN_PIECE) | (np.bincount(labels[deep], minlength=number) > MAX_DEEP * areas)
    valid[0] = True  # label 0 is everything not occluded
    return valid.astype(np.uint8)[labels]


@without_ipp()
def occluded(frame: np.ndarray, next_frame: np.ndarray) -> np.ndarray:
    """Mask of what ``frame`` shows and ``next_frame`` does not.

    A pixel x is occluded if the flow f there and the flow back b at x + f do not cancel:
    |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5, the test of Sundaram, Brox, Keutzer: Dense point trajectories by
    GPU-accelerated large displacement optical flow, ECCV 2010. A pixel whose flow leaves the frame is not tested.
    Occlusions thinner than 3 pixels are dropped as noise of the flow.

    Args:
        frame: uint8 [height, width, 3].
        next_frame: of the same size.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = occluded.
    """
    return _disagreement(*_flows(frame, next_frame))


def _flows(frame: np.ndarray, next_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense inverse search (Kroeger et al., ECCV 2016) both ways: float32 [height, width, 2], (x, y) in pixels.

    OpenCV's preset stops at half the resolution and then refines. At full resolution, the precision on scenes with
    known occlusion rises from 0.73 to 0.98; refinement adds nothing there, and its bits depend on the CPU.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    search.setVariationalRefinementIterations(0)
    gray, next_gray = (cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) for pixels in (frame, next_frame))
    # OpenCV's stubs do not know that the flow to start from may be None.
    return search.calc(gray, next_gray, None), search.calc(next_gray, gray, None)  # type: ignore[call-overload]


def _disagreement(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """uint8 [height, width], 0 where the two flows fail the test in `occluded`."""
    height, width = forward.shape[:2]
    x = forward[..., 0] + np.arange(width, dtype=np.float32)
    y = forward[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    total = np.square(forward + back)
    squares = forward * forward + back * back
    fails = total[..., 0] + total[..., 1] > 0.01 * (squares[..., 0] + squares[..., 1]) + 0.5
    fails &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return 1 - cv2.morphologyEx(fails.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def two_layers(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two frames from one photograph: smooth shapes, filled with its rotation by 180 degrees, move over it as it moves.

    Args:
        rng: random generator; the only source of randomness.
        image: uint8 [height, width, 3].

    Returns:
        Two frames, uint8 [WORKING_SIDE, WORKING_SIDE, 3].
    """
    side = WORKING_SIDE
    far = _random_crop(rng, shrink(image))
    near = np.ascontiguousarray(far[::-1, ::-1])
    shapes = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(1, MAX_SHAPES + 1))):
        cv2.fillPoly(shapes, [_outline(rng)], 1)

    direction, length, far_direction, far_length, spin, growth = rng.random(6).tolist()
    drift = _vector(far_direction, far_length * MAX_FAR_MOTION)
    shift = _vector(direction, MIN_MOTION + length * (MAX_MOTION - MIN_MOTION))
    angle, scale = math.radians(16 * spin - 8), 0.95 + 0.1 * growth
    along, across = scale * math.cos(angle), scale * math.sin(angle)
    center = (side / 2, side / 2)
    land = (side / 2 + shift[0] + drift[0], side / 2 + shift[1] + drift[1])
    matrix = affine(((along, -across), (across, along)), center, land)
    next_far = _warp(far, affine(((1, 0), (0, 1)), (0, 0), drift))
    next_near = _warp(near, matrix)
    next_shapes = cv2.warpAffine(shapes, matrix, (side, side), flags=cv2.INTER_NEAREST)
    return _paste(far, near, shapes), _paste(next_far, next_near, next_shapes)


def _warp(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``frame`` moved by ``matrix``, nearest neighbor, continued by reflection."""
    size = (frame.shape[1], frame.shape[0])
    return cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)


def _paste(far: np.ndarray, near: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    frame = far.copy()
    cv2.copyTo(near, shapes, frame)
    return frame


def _vector(direction: float, length: float) -> tuple[int, int]:
    """(x, y) in whole pixels; ``direction`` is a fraction of a full turn."""
    angle = 2 * math.pi * direction
    return round(length * math.cos(angle)), round(length * math.sin(angle))


def _random_crop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A random square of ``WORKING_SIDE`` from an image at least that large."""
    top, left = (int(rng.integers(size - WORKING_SIDE + 1)) for size in image.shape[:2])
    return image[top : top + WORKING_SIDE, left : left + WORKING_SIDE]


def _outline(rng: np.random.Generator) -> np.ndarray:
    """int32 [72, 2]: a smooth closed outline (x, y) around a random point; its radius is a sum of five waves."""
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
    """uint8 [WORKING_SIDE, WORKING_SIDE, 3] of spots about 8 pixels wide."""
    cells = rng.integers(0, 256, (WORKING_SIDE // 8, WORKING_SIDE // 8, 3), np.uint8)
    return cv2.resize(cells, (WORKING_SIDE, WORKING_SIDE), interpolation=cv2.INTER_LINEAR_EXACT)
