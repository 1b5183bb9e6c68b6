"""Finds pictures that show the same photograph: copies, rescaled, recompressed, mirrored, or crops of one another.

What a network has seen of a held-out photograph makes its scores worthless, and collections of photographs overlap.
Two things are compared: local features (SIFT), of which a crop or an enlargement keeps enough in one arrangement, and
for pictures that have few, such as skies, a perceptual hash of the whole.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 512  # longer side, in pixels, at which pictures are compared
FEATURES, CONTRAST = 800, 0.01  # at most, and of the faintest: a quarter of what is usual, for smooth pictures
RATIO = 0.75  # Lowe's: a feature's nearest neighbor is so much nearer than the second
INLIERS = 12  # features in one arrangement that two pictures of different things do not have
HASH_BITS = 6  # of 64 in which copies may differ


class Look(NamedTuple):
    """What is compared of a picture: positions [N, 2] and descriptors [N, 128] of features, 64 bits of its hash."""

    points: np.ndarray
    descriptors: np.ndarray
    bits: np.ndarray


def look(pixels: np.ndarray) -> Look:
    """What is compared of a picture, uint8 [height, width, 3] in RGB."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(gray.shape)
    size = [max(1, round(side * scale)) for side in gray.shape[::-1]]
    gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    keys, descriptors = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=CONTRAST).detectAndCompute(gray, None)
    points = np.array([key.pt for key in keys], np.float32).reshape(-1, 2)
    descriptors = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    return Look(points, descriptors, hash_bits(gray))


def hash_bits(gray: np.ndarray) -> np.ndarray:
    """The perceptual hash of a picture, bool [64]: which of its 8 x 8 lowest frequencies are above their median."""
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    return low > np.median(low)


def inliers(one: Look, other: Look) -> int:
    """How many features two pictures share in one arrangement, whatever its position, angle and scale."""
    if min(len(one.points), len(other.points)) < INLIERS:
        return 0
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(one.descriptors, other.descriptors, k=2)
    # One feature of the other for each: a texture's would all find the same one.
    near = {b.trainIdx: b.queryIdx for b, second in pairs if b.distance < RATIO * second.distance}
    if len(near) < INLIERS:
        return 0
    source, target = one.points[list(near.values())], other.points[list(near)]
    cv2.setRNGSeed(0)
    found, kept = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC, ransacReprojThreshold=4)
    return 0 if found is None else int(kept.sum())


def is_alike(one: Look, other: Look) -> bool:
    """Whether two pictures show the same, or one a part of the other."""
    return int((one.bits != other.bits).sum()) <= HASH_BITS or inliers(one, other) >= INLIERS


def find_copies(
    candidates: Iterable[tuple[str, np.ndarray]], held_out: Iterable[tuple[str, np.ndarray]]
) -> dict[str, str]:
    """Names of the candidates that show a held-out picture or a part of one, mirrored or not, and that picture's.

    Args:
        candidates, held_out: names and pictures, uint8 [height, width, 3] in RGB.
    """
    looks = [(name, look(view)) for name, pixels in held_out for view in (pixels, pixels[:, ::-1])]
    found = {}
    for name, pixels in candidates:
        seen = look(pixels)
        of = next((original for original, other in looks if is_alike(seen, other)), None)
        if of is not None:
            found[name] = of
    return found
