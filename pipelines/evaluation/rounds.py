"""How well methods fill holes: the functions of the evaluation, which `pipelines.engines` wires.

mask records --> plan: mask -> (pair, round) --+
                  |                            +--> one image and its round of masks --> networks, baselines
images -----------+----------------------------+                                            |
                                                          pairs.jsonl, board  <--  one row per pair and method
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from masks import coverage
from masks.codec import decode_mask
from pipelines.evaluation import pairing, scoreboard
from pipelines.evaluation.methods import Output
from pipelines.transforms.model_handler import Pair
from pipelines.transforms.rejects import Rejected, blame, reject
from trainer import storage
from trainer.data import records
from trainer.images import budget, rgb
from trainer.inference.baselines import BASELINES
from trainer.metrics import image_quality, lpips
from trainer.storage.names import printable, to_text

_MASK_KEYS, _ENCODED = ("mask/index", "mask/bucket", "mask/touches_border"), "mask/encoded"


class Shard(NamedTuple):
    """A shard of records, as the manifest has it, and the position of its first record in the split."""

    address: str
    crc32c: str
    first: int
    records: int
    bytes: int


class Source(NamedTuple):
    """An image's name and its file, or why it could not be read."""

    name: str
    data: bytes
    error: str = ""


class PlacedMask(NamedTuple):
    """The number of a pair, and its mask's serialized record."""

    pair: int
    record: bytes


class Facts(NamedTuple):
    """What is known of a pair before it is filled: its number, the mask's index, interval and border class, the name
    of its image, and the hole ratio, None for a mask that cannot be decoded."""

    pair: int
    mask_index: int
    image: str
    bucket: int
    border: int
    hole_ratio: float | None


class Case(NamedTuple):
    """A pair to fill: target uint8 [S, S, 3] and mask uint8 [S, S] of {0, 1}."""

    facts: Facts
    target: np.ndarray
    mask: np.ndarray


class Failure(NamedTuple):
    """A pair whose image or mask cannot be used, and why."""

    facts: Facts
    error: str


class Round(NamedTuple):
    """The pairs of one image, by number."""

    cases: list[Case]
    failures: list[Failure]


FilledRound = tuple[Round, list[Output]]  # one output for each case


class Weights(NamedTuple):
    """Address and crc32c of a metric's weights."""

    address: str
    crc32c: str


def read_shard(shard: Shard) -> Iterator[tuple[int, bytes]]:
    """(position in the split, serialized record) of one shard."""
    found = records.read_records(shard.address, shard.crc32c, shard.bytes, shard.records)
    return enumerate(found, start=shard.first)


def read_masks(shard: Shard) -> Iterator[tuple[int, bytes]]:
    """`read_shard` of a shard of masks; raises `Corrupt` for a record that is none."""
    for position, serialized in read_shard(shard):
        with records.naming(position - shard.first, shard.address):
            *key, _ = records.decode_record(serialized, *_MASK_KEYS, _ENCODED)
            if key[0] < 0 or tuple(key[1:]) not in pairing.CELLS:
                raise ValueError(f"expected an index, an interval and a border class of masks. Received {key}.")
        yield position, serialized


def read_images(shard: Shard, places: Mapping[int, int]) -> Iterator[tuple[int, Source]]:
    """(position, image) of those images of a shard that have a place."""
    for position, serialized in read_shard(shard):
        if position in places:
            with records.naming(position - shard.first, shard.address):
                name, encoded = records.decode_record(serialized, "image/filename", "image/encoded")
            yield position, Source(printable(to_text(name)), encoded)


def name_of(address: bytes, base: str) -> str:
    """What a file below ``base`` is called."""
    return printable(storage.relative(to_text(address), base))


def read_file(item: tuple[int, bytes], base: str, max_pixels: int = rgb.MAX_PIXELS) -> tuple[int, Source]:
    """(position, image) of a file below ``base``, or why it cannot be read; its address as bytes may not be UTF-8."""
    position, address, name = item[0], to_text(item[1]), name_of(item[1], base)
    try:
        with blame(address, "read"):
            return position, Source(name, budget.read_file(address, max_pixels))
    except Rejected as lost:
        return position, Source(name, b"", lost.reject.error)


def mask_key(item: tuple[int, bytes]) -> pairing.MaskKey:
    return pairing.MaskKey(*records.decode_record(item[1], *_MASK_KEYS))


def place_image(
    item: tuple[int, Source], places: Mapping[int, int], num_images: int, plan: pairing.Plan
) -> Iterator[tuple[int, Source]]:
    """(round, image) for each round that uses an image."""
    position, image = item
    for turn in pairing.rounds_of(places[position], num_images, plan.rounds):
        yield turn, image


def place_mask(item: tuple[int, bytes], plan: pairing.Plan) -> Iterator[tuple[int, PlacedMask]]:
    """(round, mask) if the plan has the mask."""
    if place := plan.places.get(mask_key(item).mask_index):
        pair, turn = place
        yield turn, PlacedMask(pair, item[1])


def decode_round(group: tuple[int, Mapping[str, Iterable]], max_pixels: int = rgb.MAX_PIXELS) -> Round:
    """The pairs of one round; an image or a mask that cannot be decoded fails its own pairs only."""
    _, found = group
    (source,) = (Source(*image) for image in found["images"])
    image, error = None, source.error
    if not error:
        try:
            with blame(source.name, "decode"):
                image = rgb.decode_rgb(source.data, max_pixels)
        except Rejected as lost:
            error = lost.reject.error
    targets: dict[int, np.ndarray] = {}  # by size
    decoded = Round([], [])
    for placed in sorted(PlacedMask(*mask) for mask in found["masks"]):
        facts, mask, mask_error = _decode_mask(placed, source.name)
        if image is None or mask is None:
            decoded.failures.append(Failure(facts, error or mask_error))
            continue
        size = mask.shape[0]
        if size not in targets:
            targets[size] = rgb.center_square(image, size)
        decoded.cases.append(Case(facts, targets[size], mask))
    return decoded


def _decode_mask(placed: PlacedMask, image: str) -> tuple[Facts, np.ndarray | None, str]:
    """What is known of a pair, its mask, and why there is none."""
    index, bucket, border, encoded = records.decode_record(placed.record, *_MASK_KEYS, _ENCODED)
    facts = Facts(placed.pair, index, image, bucket, border, None)
    try:
        with blame(f"mask {index}", "decode"):
            mask = decode_mask(encoded)
    except Rejected as lost:
        return facts, None, lost.reject.error
    return facts._replace(hole_ratio=coverage.hole_ratio(mask)), mask, ""


def to_pairs(decoded: Round) -> tuple[Round, list[Pair]]:
    """The round, and its cases as a network takes them."""
    return decoded, [Pair(case.target, case.mask) for case in decoded.cases]


def fill_with(item: tuple[Round, list[Pair]], baseline: str) -> FilledRound:
    decoded, pairs = item
    return decoded, [BASELINES[baseline](pair.image, pair.mask) for pair in pairs]


def filled_cases(item: FilledRound) -> Iterator[tuple[Case, np.ndarray]]:
    """The cases that a method filled, and its outputs."""
    decoded, outputs = item
    for case, output in zip(decoded.cases, outputs, strict=True):
        if isinstance(output, np.ndarray):
            yield case, output


@functools.lru_cache(maxsize=1)
def _load_lpips(weights: Weights) -> lpips.Lpips:
    return lpips.load_lpips(*weights)


def _score(filled: list[tuple[Case, np.ndarray]], weights: Weights | None) -> list[dict[str, float | None]]:
    """The scores of each case's output; None where they are not finite."""
    output = np.stack([image for _, image in filled]).astype(np.float64) / 255
    target = np.stack([case.target for case, _ in filled]).astype(np.float64) / 255
    mask = np.stack([case.mask for case, _ in filled])[..., None].astype(np.float64)
    found = {name: np.asarray(values).tolist() for name, values in image_quality.compare(output, target, mask).items()}
    if weights:
        found[scoreboard.LPIPS] = np.asarray(_load_lpips(weights)(output, target)).tolist()
    rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]


def score_round(item: FilledRound, method: str, weights: Weights | None = None) -> list[dict]:
    """One row for each pair, as `scoreboard` takes them; with LPIPS if its weights are given."""
    decoded, outputs = item

    def row(facts: Facts, more: Mapping) -> dict:
        found = {"pair": facts.pair, "method": method, "image": facts.image, "mask": facts.mask_index}
        found |= {"bucket": facts.bucket, "border": facts.border}
        return found | ({} if facts.hole_ratio is None else {"hole_ratio": facts.hole_ratio}) | dict(more)

    rows = [row(failure.facts, {"error": failure.error}) for failure in decoded.failures]
    for case, output in zip(decoded.cases, outputs, strict=True):
        if isinstance(output, Exception):
            rows.append(row(case.facts, {"error": reject(case.facts.image, "fill", output).error}))
    if filled := list(filled_cases(item)):
        rows += [row(case.facts, scores) for (case, _), scores in zip(filled, _score(filled, weights), strict=True)]
    return sorted(rows, key=lambda found: found["pair"])
