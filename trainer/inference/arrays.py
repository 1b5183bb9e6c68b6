"""Images and masks that callers of `predict` have, as the arrays that it computes with; or what it expects instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow, whose arrays are what they seem
_CHANNELS = ((), (1,), (2,), (3,), (4,))
_EXPECTED = "expected uint8 or uint16 [height, width], or with 1 to 4 channels"


def as_pairs(images: Iterable[Any], masks: Iterable[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Arrays of images and of their masks, as `as_image` and `as_mask` return them, of one size each.

    Raises:
        ValueError: they are something else, or one image where several are expected.
    """
    for name, given in (("images", images), ("masks", masks)):
        if isinstance(given, Image.Image | str | bytes) or (isinstance(given, np.ndarray) and given.ndim <= 2):
            raise ValueError(f"{name}: expected several. Received one, {_describe(given)}: inpaint takes one of each.")
    pairs = [list(several) for several in (images, masks)]
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(f"masks: expected one for each of {len(pairs[0])} images. Received {len(pairs[1])}.")
    found = []
    for image, mask in zip(*pairs, strict=True):
        pixels = as_image(image)
        found.append((pixels, as_mask(mask, pixels.shape[:2])))
    return found


def as_image(image: Any) -> np.ndarray:
    """uint8 or uint16 [height, width] or [height, width, channels] of an image.

    Args:
        image: an array; one of Pillow's of mode L, LA, RGB, RGBA or I;16; an array of another library on the CPU; or
            nested lists of integers from 0 to 255.

    Raises:
        ValueError: it is something else; the message says what was expected.
    """
    if isinstance(image, Image.Image) and image.mode not in _MODES:
        advice = "image.convert('RGB') makes one of 8 bits"
        raise ValueError(
            f"image: expected one of Pillow's modes {', '.join(_MODES[:5])}. Received {image.mode}: {advice}."
        )
    pixels = _as_array("image", image)
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or pixels.shape[2:] not in _CHANNELS:
        raise ValueError(f"image: {_EXPECTED}. Received {_describe(pixels)}.")
    if pixels.size == 0:
        raise ValueError(f"image: expected one pixel or more. Received {_describe(pixels)}.")
    return pixels


def as_mask(mask: Any, size: tuple[int, ...]) -> np.ndarray:
    """uint8 [height, width] of {0, 1} of a mask, 1 = valid.

    Args:
        mask: an array of uint8 or bool; one of Pillow's of mode 1, where white is valid, or of mode L with values 0 and
            1; an array of another library on the CPU; or nested lists of 0 and 1.
        size: of its image, (height, width).

    Raises:
        ValueError: it is something else; the message says what was expected.
    """
    if isinstance(mask, Image.Image) and mask.mode not in ("1", "L"):
        raise ValueError(f"mask: expected one of Pillow's modes 1 and L. Received {mask.mode}.")
    values = _as_array("mask", mask)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype != np.uint8 or values.max(initial=0) > 1:  # with 255 for valid, every pixel would be replaced
        received = f"{values.dtype} up to {values.max(initial=0)}" if values.size else _describe(values)
        advice = "(mask > 127).astype(np.uint8) where white is valid, (mask <= 127) where white is hole"
        raise ValueError(f"mask: expected uint8 of 0 and 1, where 1 is valid. Received {received}: {advice}.")
    if values.shape != size:
        raise ValueError(f"mask: expected the image's size {size}. Received {values.shape}.")
    return values


def _as_array(name: str, given: Any) -> np.ndarray:
    """An array of whatever may be one; raises `ValueError` for the rest."""
    if isinstance(given, np.ndarray):
        return given
    if given is None or isinstance(given, str | bytes | dict) or hasattr(given, "__fspath__"):
        advice = ": np.asarray(PIL.Image.open(path)) reads a file" if given is not None else ""
        raise ValueError(f"{name}: expected an array. Received {_describe(given)}{advice}.")
    if isinstance(given, list | tuple) and any(hasattr(part, "shape") or hasattr(part, "size") for part in given):
        raise ValueError(f"{name}: expected one {name}. Received {_describe(given)}: inpaint_batch takes several.")
    try:
        array = np.asarray(given)
        if isinstance(given, list | tuple) and array.dtype.kind == "i" and 0 <= array.min() and array.max() <= 255:
            return array.astype(np.uint8)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except Exception as error:  # of other libraries, such as for a tensor on a GPU
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: expected an array. Received {_describe(given)}: {reason}") from None


def _describe(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} {list(given.shape)}"
    if isinstance(given, list | tuple):
        return f"a {type(given).__name__} of {len(given)}"
    if isinstance(given, Image.Image):
        return f"an image of Pillow's, mode {given.mode}, {given.width} x {given.height}"
    return f"{type(given).__name__} {given!r}"[:100] if isinstance(given, str | bytes) else type(given).__name__
