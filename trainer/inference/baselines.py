"""Baselines: hole fillers without training, which a network has to beat.

Each takes an image uint8 [height, width, 3] and a mask uint8 [height, width] of {0, 1}, 1 = valid, and
returns the image with its holes filled; valid pixels are unchanged.
"""

from __future__ import annotations

import threading

import cv2
import numpy as np

# Pixels around a hole that OpenCV's methods consider. At 128 and 256 pixels the mean PSNR over the intervals of hole
# ratios is within 0.02 dB (Telea) and 0.11 dB (Navier-Stokes) of that of the best radius up to 15; small holes are
# filled better by smaller ones, large holes by larger ones (tests/benchmarks/classical.py).
RADII = {"telea": 3, "ns": 3}


# Of the patches that are compared, (2 radius + 1) squared pixels. The mean PSNR over the intervals of hole ratios at
# 128 pixels, ten photographs: 21.66, 21.73, 21.72 and 21.58 dB with 1 to 4.
PATCH_RADIUS = 2

_RANDOM = threading.Lock()  # PyPatchMatch has one stream of random numbers for all threads


def fill_mean(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills with the mean color of the valid pixels; with mid-gray if there are none."""
    valid = image[mask == 1]
    color = np.rint(valid.mean(axis=0)) if len(valid) else np.full(3, 128)
    return np.where(mask[..., None] == 1, image, color.astype(np.uint8))


def fill_telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching inwards from the holes' edges (Telea 2004), by OpenCV; `fill_mean` if no pixel is valid."""
    return fill_with_opencv(image, mask, cv2.INPAINT_TELEA, RADII["telea"])


def fill_ns(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Navier-Stokes inpainting, which continues lines of equal brightness like streamlines (Bertalmio, Bertozzi and
    Sapiro 2001), by OpenCV; `fill_mean` if no pixel is valid."""
    return fill_with_opencv(image, mask, cv2.INPAINT_NS, RADII["ns"])


def fill_interpolated(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pull-push interpolation (`trainer.model.interpolation`), which a network with `UNetConfig.residual` adds to;
    `fill_mean` if no pixel is valid."""
    from trainer.model.interpolation import interpolate_holes  # loads Keras

    filled = np.rint(np.asarray(interpolate_holes(image[None], mask[None, ..., None])[0])).astype(np.uint8)
    return filled if mask.any() else fill_mean(image, mask)


def fill_with_patches(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Patches that look alike, from elsewhere in the image (PatchMatch: Barnes et al. 2009), by PyPatchMatch, an extra
    of this package; `fill_mean` if no pixel is valid."""
    from patchmatch import patch_match  # optional

    if not mask.any():
        return fill_mean(image, mask)
    with _RANDOM:
        patch_match.set_random_seed(0)  # the same result wherever it is computed
        filled = patch_match.inpaint(fill_mean(image, mask), 1 - mask, patch_size=PATCH_RADIUS)
    return np.where(mask[..., None] == 1, image, filled)


def fill_with_opencv(image: np.ndarray, mask: np.ndarray, method: int, radius: int) -> np.ndarray:
    """By `cv2.inpaint`: ``method`` is one of its constants, ``radius`` in pixels."""
    # OpenCV reads a few pixels under the holes for its gradients, and returns an image without valid pixels
    # unchanged. Holes are set to the mean color first, so that nothing hidden leaks into the result.
    filled = cv2.inpaint(fill_mean(image, mask), 1 - mask, radius, method)
    return np.where(mask[..., None] == 1, image, filled)


BASELINES = {
    "telea": fill_telea,
    "ns": fill_ns,
    "mean": fill_mean,
    "interpolation": fill_interpolated,
    "patchmatch": fill_with_patches,
}
EXTRAS = {"patchmatch": "patchmatch"}  # modules by baseline that are not installed with this package
