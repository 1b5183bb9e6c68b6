"""FID of every method in every cell, from the features of single images.

Features are gathered by method and put in the order of the pairs, so that the distances do not depend on how the
images were split. Sums that could be merged would be larger: 2,048 x 2,048 numbers in each cell.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipelines.evaluation.pairing import BORDERS
from pipelines.evaluation.rounds import FilledRound, Weights, filled_cases
from pipelines.evaluation.scoreboard import ANY
from trainer.metrics import fid

DECIMALS = 6  # further ones depend on how many threads the linear algebra has


class Features(NamedTuple):
    """Features of the outputs and targets of N pairs, D each.

    Attributes:
        places: int64 [N, 4]: pair, interval, border class, row of the pair's target.
        outputs: float32 [N, D].
        targets: float32 [T, D]; pairs of one image share a row.
    """

    places: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray


Distances = dict[tuple[int | str, int | str], tuple[int, float]]  # (pairs, distance) by interval and border class


@functools.lru_cache(maxsize=1)
def _load(weights: Weights) -> fid.Inception:
    return fid.load_inception(*weights)


def look_at_round(item: FilledRound, method: str, weights: Weights) -> Iterator[tuple[str, Features]]:
    """(method, features) of a round's images, if there are any."""
    found = list(filled_cases(item))
    if not found:
        return
    rows: dict[bytes, int] = {}
    targets: list[np.ndarray] = []
    places = []
    for case, _ in found:
        row = rows.setdefault(case.target.tobytes(), len(targets))
        if row == len(targets):
            targets.append(case.target)
        places.append((case.facts.pair, case.facts.bucket, case.facts.border, row))
    network = _load(weights)

    def look(images: list[np.ndarray]) -> np.ndarray:
        return np.asarray(network(np.stack(images).astype(np.float32) / 255))

    yield method, Features(np.array(places), look([output for _, output in found]), look(targets))


def gather(parts: Iterable[Features]) -> Features:
    """All parts as one, in the order of the pairs."""
    parts = list(parts)
    starts = np.cumsum([0, *(len(part.targets) for part in parts[:-1])])
    places = np.concatenate([part.places + (0, 0, 0, start) for part, start in zip(parts, starts, strict=True)])
    order = np.argsort(places[:, 0])
    outputs = np.concatenate([part.outputs for part in parts])
    return Features(places[order], outputs[order], np.concatenate([part.targets for part in parts]))


def measure(item: tuple[str, Iterable[Features]]) -> tuple[str, Distances]:
    """The distances between one method's outputs and their targets, in the cells of two pairs or more."""
    method, parts = item
    places, outputs, targets = gather(parts)
    _, buckets, borders, rows = places.T
    found: Distances = {}
    for bucket in (*np.unique(buckets).tolist(), ANY):
        for border in (*range(len(BORDERS)), ANY):
            inside = np.ones(len(places), bool) if bucket == ANY else buckets == bucket
            inside = inside if border == ANY else inside & (borders == border)
            if (count := int(inside.sum())) > 1:
                distance = fid.frechet_distance(outputs[inside], targets[rows[inside]])
                found[bucket, border] = count, round(distance, DECIMALS)
    return method, found
