"""Baselines: hole fillers without training, which a network has to beat.

Each takes an image uint8 [height, width, 3] and a mask uint8 [height, width] of {0, 1}, 1 = valid, and
returns the image with its holes filled; valid pixels are unchanged.
"""

from __future__ import annotations

import cv2
import numpy as np

# Pixels around a hole that OpenCV's methods consider; 3 as in its own examples.
RADIUS = 3


def fill_mean(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills with the mean color of the valid pixels; with mid-gray if there are none."""
    valid = image[mask == 1]
    color = np.rint(valid.mean(axis=0)) if len(valid) else np.full(3, 128)
    return np.where(mask[..., None] == 1, image, color.astype(np.uint8))


def fill_telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching inwards from the holes' edges (Telea 2004), by OpenCV; `fill_mean` if no pixel is valid."""
    return _fill_with_opencv(image, mask, cv2.INPAINT_TELEA)


def fill_ns(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Navier-Stokes inpainting, which continues lines of equal brightness like streamlines (Bertalmio, Bertozzi and
    Sapiro 2001), by OpenCV; `fill_mean` if no pixel is valid."""
    return _fill_with_opencv(image, mask, cv2.INPAINT_NS)


def _fill_with_opencv(image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    # OpenCV reads a few pixels under the holes for its gradients, and returns an image without valid pixels
    # unchanged. Holes are set to the mean color first, so that nothing hidden leaks into the result.
    filled = cv2.inpaint(fill_mean(image, mask), 1 - mask, RADIUS, method)
    return np.where(mask[..., None] == 1, image, filled)


BASELINES = {"telea": fill_telea, "ns": fill_ns, "mean": fill_mean}
