"""What a mask dataset holds, counted and shown: the histogram of its manifest and its contact sheet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2

from masks.codec import decode_mask
from masks.contact_sheet import contact_sheet
from masks.coverage import RATIO_BUCKETS
from trainer import storage

SHEET = "contact_sheet.png"


class Cell(NamedTuple):
    """What masks are counted by."""

    generator: str
    bucket: int
    touches_border: int


# Of each cell how many masks there are, and the one of lowest index, as (index, PNG).
Tally = dict[Cell, tuple[int, int, bytes]]


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
    """The tally of all masks that ``tallies`` are of; in any order and grouping the same."""
    merged: Tally = {}
    for tally in tallies:
        for cell, (count, index, png) in tally.items():
            before, *first = merged.get(cell, (0, index, png))
            merged[cell] = (before + count, *min(tuple(first), (index, png)))
    return merged


def histogram(tally: Tally) -> list[dict]:
    """Number of masks by family, hole-ratio interval (its position in ``RATIO_BUCKETS``) and border class."""
    return [{**cell._asdict(), "count": tally[cell][0]} for cell in sorted(tally)]


def sheet_of(tally: Tally) -> bytes:
    """PNG with the first mask of each cell: a row per family and border class, a column per interval."""
    buckets = sorted({cell.bucket for cell in tally})
    columns = ["other" if bucket < 0 else "({}, {}]".format(*RATIO_BUCKETS[bucket]) for bucket in buckets]
    rows = {}
    for family, touches in sorted({(cell.generator, cell.touches_border) for cell in tally}):
        found = [tally.get(Cell(family, bucket, touches)) for bucket in buckets]
        masks = [None if cell is None else decode_mask(cell[2]) for cell in found]
        rows[f"{family}, at border" if touches else family] = masks
    return cv2.imencode(".png", contact_sheet(rows, columns))[1].tobytes()


def write_summary(tally: Tally, folder: str) -> dict:
    """Writes the contact sheet into ``folder``; returns the ``statistics`` of the dataset's manifest."""
    storage.overwrite(storage.join(folder, SHEET), sheet_of(tally))
    return {"histogram": histogram(tally)}
