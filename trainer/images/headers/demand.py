"""What decoding an image file takes, as each format's parser says it."""

from __future__ import annotations

from typing import NamedTuple

PIXEL_SECONDS = 20e-9  # decoding a pixel, of most formats
VISIT_SECONDS = 1e-9  # looking at one once more in a scan of a JPEG


class Demand(NamedTuple):
    """What an image file takes.

    Attributes:
        width, height: in pixels, as stored.
        stored: bytes for each pixel while it is decoded, in Pillow's or OpenCV's memory.
        own: bytes for each pixel as an array of its own depth and channels.
        extra: bytes that decoding takes beside those.
        seconds: that decoding takes.
        because: what ``extra`` or ``seconds`` come from, for messages.
        frames: images or pages in the file, of which the first is decoded; as counted up to some thousand.
    """

    width: int
    height: int
    stored: int
    own: int
    extra: int = 0
    seconds: float = 0.0
    because: str = ""
    frames: int = 1

    @property
    def pixels(self) -> int:
        return self.width * self.height
