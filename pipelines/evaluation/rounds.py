"""How well networks fill holes: the pure functions of the job, and its transforms.

mask records --> plan: mask -> (pair, round) --+
                  |                            +--> one image and its round of masks --> networks, baselines
images -----------+----------------------------+                                            |
                                                          pairs.jsonl, board  <--  one row per pair and method
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from masks import coverage
from masks.codec import decode_mask
from pipelines.evaluation import pairing, scoreboard
from pipelines.evaluation.methods import Contender, Filled, RoundHandler
from pipelines.transforms.model_handler import Pair
from trainer import storage
from trainer.data import records
from trainer.errors import ImageError
from trainer.images import rgb
from trainer.inference.baselines import BASELINES
from trainer.metrics import image_quality, lpips


class Case(NamedTuple):
    """One pair: its number, mask index, image's name, interval and border class, and its pixels or what went wrong."""

    pair: int
    mask_index: int
    image: str
    bucket: int
    border: int
    target: np.ndarray | None
    mask: np.ndarray | None
    error: str = ""


Source = tuple[str, bytes, str]  # an image's name, its file, and why there is none


def read_shard(shard: tuple[str, str, int]) -> Iterator[tuple[int, bytes]]:
    """(position in the split, serialized record) of one shard, given address, crc32c and first position."""
    address, checksum, first = shard
    return enumerate(records.read_records(address, checksum), start=first)


def read_images(shard: tuple[str, str, int], places: dict[int, int]) -> Iterator[tuple[int, Source]]:
    """(position, image) of those images of a shard that have a place."""
    for position, serialized in read_shard(shard):
        if position in places:
            record = records.parse_image(serialized)
            yield position, (record["image/filename"].numpy().decode(), record["image/encoded"].numpy(), "")


def read_file(item: tuple[int, str], base: str) -> tuple[int, Source]:
    """(position, image) of a file below ``base``; one that cannot be read says why."""
    position, address = item
    name = storage.relative(address, base)
    try:
        return position, (name, storage.read(address), "")
    except Exception as error:
        return position, (name, b"", _describe(error))


def mask_key(item: tuple[int, bytes]) -> pairing.MaskKey:
    record = records.parse_mask(item[1])
    return pairing.MaskKey(*(int(record[f"mask/{name}"]) for name in ("index", "bucket", "touches_border")))


def place_image(
    item: tuple[int, Source], places: dict[int, int], num_images: int, plan: pairing.Plan
) -> Iterator[tuple[int, Source]]:
    """(round, image) for each round that an image is in."""
    position, image = item
    for turn in pairing.rounds_of(places[position], num_images, plan.rounds):
        yield turn, image


def place_mask(item: tuple[int, bytes], plan: pairing.Plan) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """(round, (pair, mask record)) if the plan has the mask."""
    if place := plan.places.get(mask_key(item).index):
        pair, turn = place
        yield turn, (pair, item[1])


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def decode_round(group: tuple[int, dict[str, Iterable]]) -> list[Case]:
    """The cases of one round, by number; an image or a mask that cannot be decoded fails its cases alone."""
    _, found = group
    ((name, data, error),) = found["images"]
    image = None
    if not error:
        try:
            image = rgb.decode_rgb(data)
        except ImageError as problem:
            error = _describe(problem)
    cases, targets = [], {}
    for pair, serialized in sorted(found["masks"]):
        record = records.parse_mask(serialized)
        index, bucket, border = (int(record[f"mask/{key}"]) for key in ("index", "bucket", "touches_border"))
        problem, mask, target = error, None, None
        try:
            mask = decode_mask(record["mask/encoded"].numpy())
        except ValueError as exception:
            problem = problem or _describe(exception)
        if not problem:
            if mask.shape[0] not in targets:
                targets[mask.shape[0]] = rgb.center_square(image, mask.shape[0])
            target = targets[mask.shape[0]]
        cases.append(Case(pair, index, name, bucket, border, target, mask, problem))
    return cases


def to_pairs(cases: list[Case]) -> tuple[list[Case], list[Pair]]:
    """The cases, and those of them that can be filled as a network takes them."""
    return cases, [Pair(case.target, case.mask) for case in cases if not case.error]


def fill_with(item: tuple[list[Case], list[Pair]], baseline: str) -> tuple[list[Case], list[Filled]]:
    cases, pairs = item
    return cases, [BASELINES[baseline](pair.image, pair.mask) for pair in pairs]


class Weights(NamedTuple):
    """Address and crc32c of a metric's weights."""

    address: str
    crc32c: str


@functools.lru_cache(maxsize=1)
def _load_lpips(weights: Weights) -> lpips.Lpips:
    return lpips.load_lpips(*weights)


def _scores(
    outputs: list[np.ndarray], targets: list[np.ndarray], masks: list[np.ndarray], weights: Weights | None
) -> list[dict]:
    output, target = (np.stack(pictures).astype(np.float64) / 255 for pictures in (outputs, targets))
    mask = np.stack(masks)[..., None].astype(np.float64)
    found = {name: np.asarray(values).tolist() for name, values in image_quality.compare(output, target, mask).items()}
    if weights:
        found[scoreboard.LPIPS] = np.asarray(_load_lpips(weights)(output, target)).tolist()
    rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]


def pictures_of(item: tuple[list[Case], list[Filled]]) -> Iterator[tuple[Case, np.ndarray]]:
    """The cases that a method gave a picture for, and the pictures."""
    cases, filled = item
    for case, picture in zip((case for case in cases if not case.error), filled, strict=True):
        if isinstance(picture, np.ndarray):
            yield case, picture


def score_round(item: tuple[list[Case], list[Filled]], method: str, weights: Weights | None = None) -> list[dict]:
    """One row per case, as `scoreboard` takes them; with LPIPS if its weights are given."""
    cases, filled = item
    pictures = iter(filled)
    rows, scored = [], []
    for case in cases:
        row = {"pair": case.pair, "method": method, "image": case.image, "mask": case.mask_index}
        row |= {"bucket": case.bucket, "border": case.border}
        if case.mask is not None:
            row["hole_ratio"] = coverage.hole_ratio(case.mask)
        picture = case.error or next(pictures)
        if isinstance(picture, np.ndarray):
            scored.append((row, picture, case.target, case.mask))
        else:
            row["error"] = picture if isinstance(picture, str) else _describe(picture)
        rows.append(row)
    if scored:
        found, *arrays = zip(*scored, strict=True)
        for row, scores in zip(found, _scores(*map(list, arrays), weights), strict=True):
            row |= scores
    return rows


def key_by_pair(row: dict) -> tuple[int, dict]:
    return row["pair"], row


class MakeRounds(beam.PTransform):
    """From a pipeline to the decoded rounds, and the plan they follow.

    Args:
        image_shards: (address, crc32c, position of the first record) each; or
        image_files: addresses, and the folder their names are relative to.
        mask_shards: as ``image_shards``.
        places: by image position its place, from `pairing.order_images`.
        num_images: how many take turns.
    """

    def __init__(self, mask_shards, places, num_images, seed, per_cell, image_shards=(), image_files=((), "")):
        super().__init__()
        self._mask_shards, self._image_shards, self._image_files = mask_shards, image_shards, image_files
        self._places, self._num_images, self._seed, self._per_cell = places, num_images, seed, per_cell

    def _read_images(self, pipeline):
        if self._image_shards:
            shards = pipeline | "ImageShards" >> beam.Create(self._image_shards)
            return shards | "ReadImages" >> beam.FlatMap(read_images, self._places)
        addresses, base = self._image_files
        used = [(position, address) for position, address in enumerate(addresses) if position in self._places]
        return pipeline | "ImageFiles" >> beam.Create(used) | "ReadImages" >> beam.Map(read_file, base)

    def expand(self, pipeline):
        masks = pipeline | "MaskShards" >> beam.Create(self._mask_shards) | "ReadMasks" >> beam.FlatMap(read_shard)
        plan = (
            masks
            | "MaskKeys" >> beam.Map(mask_key)
            | "AllKeys" >> beam.combiners.ToList()
            | "Plan" >> beam.Map(pairing.plan_pairs, self._seed, self._per_cell)
        )
        planned = beam.pvalue.AsSingleton(plan)
        placed = {
            "images": self._read_images(pipeline)
            | "PlaceImages" >> beam.FlatMap(place_image, self._places, self._num_images, planned),
            "masks": masks | "PlaceMasks" >> beam.FlatMap(place_mask, planned),
        }
        rounds = placed | "Join" >> beam.CoGroupByKey() | "Decode" >> beam.Map(decode_round)
        return rounds | "Spread" >> beam.Reshuffle(), plan


class FillRounds(beam.PTransform):
    """From rounds to one PCollection of (cases, pictures) per method, by name."""

    def __init__(self, contenders: list[Contender], baselines: tuple[str, ...], batch_size: int | None):
        super().__init__()
        self._contenders, self._baselines, self._batch_size = contenders, baselines, batch_size

    def expand(self, rounds):
        inputs = rounds | "ToPairs" >> beam.Map(to_pairs)
        filled = {
            c.name: inputs | f"Fill_{c.name}" >> RunInference(KeyedModelHandler(RoundHandler(c, self._batch_size)))
            for c in self._contenders
        }
        for name in self._baselines:
            filled[name] = inputs | f"Fill_{name}" >> beam.Map(fill_with, name)
        return filled
