"""The images of a report: which pairs are shown, and their pixels as small JPEGs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import cv2
import numpy as np

from pipelines.evaluation.rounds import FilledRound, Round, filled_cases
from pipelines.evaluation.scoreboard import BUCKETS
from trainer.images import rgb

MAX_SIDE = 320  # pixels; larger images are shrunk
QUALITY = 85
HOLE_GRAY = np.uint8(128)
TARGET, HOLES = "target", "with holes"  # beside the methods' names
RANKS = ("best", "median", "worst")


def choose_pairs(rows: Iterable[dict], method: str, metric: str = "psnr_holes") -> dict[int, tuple[int, str]]:
    """Interval and rank by pair: those that ``method`` filled best, worst, and in the middle of each interval.

    An interval with two pairs has no median, one with a single pair only a best.
    """
    rows = list(rows)
    chosen: dict[int, tuple[int, str]] = {}
    for bucket in BUCKETS:
        found = sorted(
            (row[metric], row["pair"])
            for row in rows
            if row["method"] == method and row["bucket"] == bucket and row.get(metric) is not None
        )
        # A pair keeps the first rank it gets.
        for rank, place in zip(RANKS, (len(found) - 1, (len(found) - 1) // 2, 0), strict=True):
            if found:
                chosen.setdefault(found[place][1], (bucket, rank))
    return chosen


def keep_chosen(decoded: Round, chosen: Container[int]) -> Iterator[Round]:
    """The chosen cases of a round, if there are any."""
    if kept := [case for case in decoded.cases if case.facts.pair in chosen]:
        yield Round(kept, [])


def _encode(image: np.ndarray) -> bytes:
    side = max(image.shape[:2])
    if side > MAX_SIDE:
        scale = MAX_SIDE / side
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return rgb.encode_jpeg(image, QUALITY)


def draw_round(item: FilledRound, method: str, with_originals: bool) -> Iterator[tuple[int, str, bytes]]:
    """(pair, method, JPEG) of each output, and of the originals under `TARGET` and `HOLES`."""
    for case, output in filled_cases(item):
        yield case.facts.pair, method, _encode(output)
    for case in item[0].cases if with_originals else ():
        yield case.facts.pair, TARGET, _encode(case.target)
        holes = np.where(case.mask[..., None] == 1, case.target, HOLE_GRAY)
        yield case.facts.pair, HOLES, _encode(holes)
