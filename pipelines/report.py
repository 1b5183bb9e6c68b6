"""The picture that the demo ends with: one row per photograph, one column per method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_WIDTH, GAP, CAPTION = 300, 12, 22  # pixels
BACKGROUND, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)


def show_holes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image uint8 [height, width, 3] with its holes in white."""
    return np.where(mask[..., None] == 1, image, np.uint8(255))


def draw_report(title: str, columns: Sequence[str], rows: Sequence[tuple[Sequence[np.ndarray], Sequence[str]]]):
    """A contact sheet.

    Args:
        title: one line above it.
        columns: headings.
        rows: for each photograph its pictures, uint8 [height, width, 3], and a caption under each.

    Returns:
        A ``PIL.Image`` in RGB.
    """
    heights = [round(CELL_WIDTH * pictures[0].shape[0] / pictures[0].shape[1]) for pictures, _ in rows]
    width = GAP + len(columns) * (CELL_WIDTH + GAP)
    top = 2 * GAP + 2 * CAPTION
    sheet = Image.new("RGB", (width, top + sum(h + CAPTION + GAP for h in heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, INK, large)
    lefts = [GAP + i * (CELL_WIDTH + GAP) for i in range(len(columns))]
    for left, heading in zip(lefts, columns, strict=True):
        draw.text((left, GAP + CAPTION + 4), heading, INK, small)
    y = top
    for height, (pictures, captions) in zip(heights, rows, strict=True):
        for left, picture, caption in zip(lefts, pictures, captions, strict=True):
            scaled = Image.fromarray(picture).resize((CELL_WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left, y))
            draw.text((left, y + height + 2), caption, FAINT, small)
        y += height + CAPTION + GAP
    return sheet
