"""What a network has to beat: hole fillers that need no training.

Each takes an image uint8 [height, width, 3] and a mask uint8 [height, width] of {0, 1}, 1 = valid, and
returns the image with its holes filled; valid pixels stay as they are.
"""

from __future__ import annotations

import cv2
import numpy as np

# Pixels around a hole that OpenCV's methods look at; 3 is the value of its own examples.
RADIUS = 3


def fill_mean(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes in the mean colour of the valid pixels; mid-grey if there are none."""
    valid = image[mask == 1]
    colour = np.rint(valid.mean(axis=0)) if len(valid) else np.full(3, 128)
    return np.where(mask[..., None] == 1, image, colour.astype(np.uint8))


def fill_telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fast marching from the holes' edges inwards (Telea 2004), as in OpenCV; `fill_mean` if nothing is valid."""
    return _fill_with_opencv(image, mask, cv2.INPAINT_TELEA)


def fill_ns(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lines of equal brightness continued like a fluid's streamlines, by the Navier-Stokes equations (Bertalmio,
    Bertozzi and Sapiro 2001), as in OpenCV; `fill_mean` if nothing is valid."""
    return _fill_with_opencv(image, mask, cv2.INPAINT_NS)


def _fill_with_opencv(image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    # OpenCV looks under the holes: its gradients reach a few pixels in, and it returns an image without
    # valid pixels as it came. So it gets the mean colour there, not what it is to guess.
    filled = cv2.inpaint(fill_mean(image, mask), 1 - mask, RADIUS, method)
    return np.where(mask[..., None] == 1, image, filled)


BASELINES = {"telea": fill_telea, "ns": fill_ns, "mean": fill_mean}
