"""Pairs of frames of video files, as sources of masks.

FFmpeg, which comes with OpenCV, decodes videos; other builds may give frames that differ in a few bits.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np

from masks.families import occlusion
from masks.sources import Source
from trainer import storage
from trainer.images import rgb

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
PART = 8 << 20  # bytes of a remote video that are fetched at once


class VideoError(ValueError):
    """The file is not a video that can be used."""


@contextlib.contextmanager
def local_copy(address: str) -> Iterator[str]:
    """Path of a local file with the contents of ``address``: that itself, or a temporary copy, fetched in parts."""
    if not storage.is_remote(address):
        storage.read_range(address, 0, 1)  # raises if it does not exist
        yield address
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video" + posixpath.splitext(address)[1])
        with open(path, "wb") as file:
            while part := storage.read_range(address, file.tell(), PART):
                file.write(part)
        yield path


def frame_pairs(
    path: str, gap: int, interval: int, max_pairs: int, max_pixels: int = rgb.MAX_PIXELS
) -> list[tuple[int, Source]]:
    """Pairs of a frame and the one ``gap`` frames later, spread evenly over a video, in bounded memory.

    Pairs start ``interval`` frames apart, or 2, 4, 8 ... times that, so that there are at most ``max_pairs``. The
    number of frames is not known in advance: what files say about it may be wrong.

    Args:
        path: a local file.
        gap: 1 or more frames.
        interval: more than ``gap`` frames.
        max_pairs: 1 or more.
        max_pixels: of a frame.

    Returns:
        (number of the first frame, `Source` of kind ``frames`` at the working size of flow), in order; not empty.

    Raises:
        VideoError: the file is not a video, or its frames are too large or too few.
    """
    pairs: list[tuple[int, Source]] = []
    first, index = None, 0
    capture = _open_video(path, max_pixels)
    try:
        while capture.grab():
            place = index % interval
            if place == 0:
                first = _retrieve(capture)
            elif place == gap and first is not None:
                second = _retrieve(capture)
                if second is not None and first.shape == second.shape:
                    pairs.append((index - gap, Source("frames", (first, second))))
                first = None
                if len(pairs) > max_pairs:
                    pairs, interval = pairs[::2], interval * 2
            index += 1
    finally:
        capture.release()
    if not pairs:
        raise VideoError(f"expected {gap + 1} frames or more. Received {index}.")
    return pairs


def _open_video(path: str, max_pixels: int) -> cv2.VideoCapture:
    """A capture to release after use. Raises `VideoError`."""
    # FFmpeg and OpenCV would report broken files on standard error; they become rejects instead.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # A file with a video's name may be a playlist of other files and addresses: FFmpeg must not open any of them.
    os.environ.setdefault(
        "OPENCV_FFMPEG_CAPTURE_OPTIONS",
        "protocol_whitelist;file|format_whitelist;avi,m4v,matroska,mov,mpeg,mpegts,mpegvideo",
    )
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise VideoError("the file is not a video that FFmpeg can read")
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels:
        capture.release()
        raise VideoError(f"expected frames of at most {max_pixels} pixels. Received {width} x {height}.")
    return capture


def _retrieve(capture: cv2.VideoCapture) -> np.ndarray | None:
    done, frame = capture.retrieve()
    return occlusion.shrink(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)) if done and frame.ndim == 3 else None
