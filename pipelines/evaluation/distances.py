"""FID of every method in every cell, from the features of single pictures.

Features are gathered by method and put in the order of the pairs, so that the distances do not depend on how the
pictures were split. Sums that could be merged would be larger: 2,048 x 2,048 numbers in each cell.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from pipelines.evaluation.methods import Filled
from pipelines.evaluation.pairing import BORDERS
from pipelines.evaluation.rounds import Case, Weights, pictures_of
from pipelines.evaluation.scoreboard import ANY
from trainer.metrics import fid

DECIMALS = 6  # further ones depend on how many threads the linear algebra has


class Features(NamedTuple):
    """What the network sees in one round: of D features,

    Attributes:
        places: int64 [N, 4]: pair, interval, border class, row of the pair's target.
        outputs: float32 [N, D].
        targets: float32 [T, D]; pairs of one image share a row.
    """

    places: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray


Distances = dict[tuple[int | str, int | str], tuple[int, float]]  # by interval and border class, (pairs, distance)


@functools.lru_cache(maxsize=1)
def _load(weights: Weights) -> fid.Inception:
    return fid.load_inception(*weights)


def look_at_round(
    item: tuple[list[Case], list[Filled]], method: str, weights: Weights
) -> Iterator[tuple[str, Features]]:
    """(method, features) of a round's pictures, if there are any."""
    found = list(pictures_of(item))
    if not found:
        return
    rows: dict[bytes, int] = {}
    places, targets = [], []
    for case, _ in found:
        row = rows.setdefault(case.target.tobytes(), len(targets))
        if row == len(targets):
            targets.append(case.target)
        places.append((case.pair, case.bucket, case.border, row))
    network = _load(weights)
    seen = [
        np.asarray(network(np.stack(pictures).astype(np.float32) / 255))
        for pictures in ([picture for _, picture in found], targets)
    ]
    yield method, Features(np.array(places), *seen)


def measure(item: tuple[str, Iterable[Features]]) -> tuple[str, Distances]:
    """The distances of one method's pictures to their targets, in the cells that have two pairs or more."""
    method, parts = item
    places, outputs, rows, targets, start = [], [], [], [], 0
    for part in parts:
        places.append(part.places[:, :3])
        rows.append(part.places[:, 3] + start)
        outputs.append(part.outputs)
        targets.append(part.targets)
        start += len(part.targets)
    places, outputs, rows, targets = map(np.concatenate, (places, outputs, rows, targets))
    order = np.argsort(places[:, 0])
    places, outputs, rows = places[order], outputs[order], rows[order]
    found: Distances = {}
    for bucket in (*np.unique(places[:, 1]).tolist(), ANY):
        for border in (*range(len(BORDERS)), ANY):
            inside = np.ones(len(places), bool) if bucket == ANY else places[:, 1] == bucket
            inside = inside if border == ANY else inside & (places[:, 2] == border)
            if (count := int(inside.sum())) > 1:
                distance = fid.frechet_distance(outputs[inside], targets[rows[inside]])
                found[bucket, border] = count, round(distance, DECIMALS)
    return method, found


class MeasureDistances(beam.PTransform):
    """From (cases, pictures) by method's name to (method, distances)."""

    def __init__(self, weights: Weights):
        super().__init__()
        self._weights = weights

    def expand(self, filled):
        features = [
            item | f"Look_{name}" >> beam.FlatMap(look_at_round, name, self._weights) for name, item in filled.items()
        ]
        return features | beam.Flatten() | "ByMethod" >> beam.GroupByKey() | "Measure" >> beam.Map(measure)
