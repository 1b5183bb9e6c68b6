"""The pictures of a report: which pairs are shown, and their pixels as small JPEGs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from pipelines.evaluation.methods import Filled
from pipelines.evaluation.rounds import Case
from pipelines.evaluation.scoreboard import BUCKETS
from trainer.images import rgb

SIDE = 320  # pictures with longer sides are made smaller
QUALITY = 85
HOLE_GREY = np.uint8(128)
TARGET, HOLES = "target", "with holes"  # beside the methods' names
RANKS = ("best", "median", "worst")


def choose_pairs(rows: Iterable[dict], method: str, metric: str = "psnr_holes") -> dict[int, tuple[int, str]]:
    """By pair, its interval and which case it is: those that ``method`` did best, worst, and in the middle.

    Of an interval with two pairs there is no median, of one with one pair only the best.
    """
    chosen = {}
    for bucket in BUCKETS:
        found = sorted(
            (row[metric], row["pair"])
            for row in rows
            if row["method"] == method and row["bucket"] == bucket and row.get(metric) is not None
        )
        # A later name wins no place from an earlier one.
        for rank, place in zip(RANKS, (len(found) - 1, (len(found) - 1) // 2, 0), strict=True):
            if found:
                chosen.setdefault(found[place][1], (bucket, rank))
    return chosen


def keep_chosen(cases: list[Case], chosen: dict) -> Iterator[list[Case]]:
    """The chosen cases of a round, if there are any."""
    if kept := [case for case in cases if case.pair in chosen]:
        yield kept


def _encode(picture: np.ndarray) -> bytes:
    side = max(picture.shape[:2])
    if side > SIDE:
        picture = cv2.resize(picture, None, fx=SIDE / side, fy=SIDE / side, interpolation=cv2.INTER_AREA)
    return rgb.encode_jpeg(picture, QUALITY)


def draw_round(
    item: tuple[list[Case], Sequence[Filled]], method: str, with_originals: bool
) -> Iterator[tuple[int, str, bytes]]:
    """(pair, method, JPEG) of each filled picture, and of the originals under `TARGET` and `HOLES`."""
    cases, filled = item
    pictures = iter(filled)
    for case in cases:
        if case.error:
            continue
        picture = next(pictures)
        if isinstance(picture, np.ndarray):
            yield case.pair, method, _encode(picture)
        if with_originals:
            yield case.pair, TARGET, _encode(case.target)
            yield case.pair, HOLES, _encode(np.where(case.mask[..., None] == 1, case.target, HOLE_GREY))
