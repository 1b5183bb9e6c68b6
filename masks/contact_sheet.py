"""Contact sheets: one image with small copies of many masks in labeled rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

GAP = 8  # pixels between copies
HEADING = 22  # pixels of height for a line of text
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_PAPER, _INK = 216, 40  # both black holes and white valid pixels stand out from them


def contact_sheet(
    rows: Mapping[str, Sequence[np.ndarray | None]], columns: Sequence[str], cell: int = 128
) -> np.ndarray:
    """An image with one mask per cell, holes black.

    Args:
        rows: masks, uint8 [height, width] of {0, 1}, by row name, one per column; None leaves its cell empty.
        columns: names of the columns.
        cell: side of a cell in pixels; masks keep their aspect ratio.

    Returns:
        uint8 [rows * (cell + GAP) + HEADING + GAP, label + columns * (cell + GAP)], grayscale.

    Raises:
        ValueError: a row does not have one mask per column.
    """
    texts = [cv2.getTextSize(name, _FONT, _SIZE, 1)[0][0] for name in rows]
    label = max(texts, default=0) + 2 * GAP
    step = cell + GAP
    sheet = np.full((HEADING + GAP + len(rows) * step, label + len(columns) * step), _PAPER, np.uint8)
    for column, name in enumerate(columns):
        _write(sheet, name, (label + column * step, HEADING - 4))
    for row, (name, masks) in enumerate(rows.items()):
        if len(masks) != len(columns):
            raise ValueError(f"rows[{name!r}]: expected {len(columns)} masks, one per column. Received {len(masks)}.")
        top = HEADING + row * step
        _write(sheet, name, (GAP, top + cell // 2))
        for column, mask in enumerate(masks):
            if mask is not None:
                copy = _shrink(mask, cell)
                left = label + column * step
                sheet[top : top + copy.shape[0], left : left + copy.shape[1]] = copy
    return sheet


def _write(sheet: np.ndarray, text: str, at: tuple[int, int]) -> None:
    cv2.putText(sheet, text, at, _FONT, _SIZE, _INK, 1, cv2.LINE_AA)


def _shrink(mask: np.ndarray, cell: int) -> np.ndarray:
    height, width = mask.shape
    scale = cell / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
