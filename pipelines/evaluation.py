"""How well a network fills holes, by hole-ratio interval: the pure functions of the job, and its transforms.

    image shards -> targets --+
                              +-- pair n -> RunInference -> one row per method -> table
    mask shards  -> masks   --+

Pair n holds mask number n and image number (n // intervals) modulo images: masks take turns through
the intervals, so every image meets every interval.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import cv2
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from masks.codec import decode_mask
from masks.coverage import RATIO_BUCKETS
from pipelines.model_handler import InpaintModelHandler, Pair
from trainer import images, metrics, records, storage
from trainer.baselines import BASELINES

NETWORK = "network"
METRICS = ("psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes")


class Case(NamedTuple):
    """One pair to score: its number, the image's name, target, mask, hole ratio and its interval's number."""

    number: int
    filename: str
    target: np.ndarray
    mask: np.ndarray
    hole_ratio: float
    bucket: int


def read_shard(shard: tuple[str, str, int]) -> Iterator[tuple[int, bytes]]:
    """(position in the split, serialized record) of one shard, given address, crc32c and first position."""
    address, checksum, first = shard
    return enumerate(records.unframe_records(storage.read(address, checksum)), start=first)


def image_pairs(item: tuple[int, bytes], num_images: int, num_pairs: int) -> Iterator[tuple[int, bytes]]:
    """(pair, image record) for each pair that an image is in: those n with n // intervals % images = its position."""
    position, record = item
    together = len(RATIO_BUCKETS)
    for first in range(position * together, num_pairs, num_images * together):
        yield from ((n, record) for n in range(first, min(first + together, num_pairs)))


def mask_pairs(item: tuple[int, bytes], num_pairs: int) -> Iterator[tuple[int, bytes]]:
    """(pair, mask record) if the mask's index is among the pairs."""
    index = int(records.parse_mask(item[1])["mask/index"])
    if index < num_pairs:
        yield index, item[1]


def square_target(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [height, width, 3], resized to [size, size, 3]."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def make_case(group: tuple[int, dict[str, Iterable[bytes]]]) -> tuple[Case, Pair]:
    """Decodes one pair; the case carries along what its score needs."""
    number, found = group
    (image,), (mask,) = found["images"], found["masks"]
    image, mask = records.parse_image(image), records.parse_mask(mask)
    holes = decode_mask(mask["mask/encoded"].numpy())
    target = square_target(images.decode_rgb(image["image/encoded"].numpy()), holes.shape[0])
    filename = image["image/filename"].numpy().decode()
    case = Case(number, filename, target, holes, float(mask["mask/hole_ratio"]), int(mask["mask/bucket"]))
    return case, Pair(target, holes)


def score(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """`METRICS` of uint8 [height, width, 3] pictures; ``mask`` uint8 [height, width] of {0, 1}."""
    output, target = (picture[None].astype(np.float64) / 255 for picture in (output, target))
    holes = mask[None, ..., None].astype(np.float64)
    scores = {}
    for name, metric in (("psnr", metrics.psnr), ("ssim", metrics.ssim), ("l1", metrics.l1)):
        scores[name] = float(np.asarray(metric(output, target))[0])
        scores[f"{name}_holes"] = float(np.asarray(metric(output, target, holes))[0])
    return scores


def score_methods(item: tuple[Case, np.ndarray | Exception], baselines: tuple[str, ...]) -> Iterator[dict]:
    """One row per method: the network, then the baselines.

    Raises:
        Exception: what the network raised for this case.
    """
    case, output = item
    if isinstance(output, Exception):
        raise output
    filled = {NETWORK: output} | {name: BASELINES[name](case.target, case.mask) for name in baselines}
    for method, picture in filled.items():
        yield {
            "pair": case.number,
            "image": case.filename,
            "hole_ratio": case.hole_ratio,
            "bucket": case.bucket,
            "method": method,
            **score(picture, case.target, case.mask),
        }


def summarize(rows: list[dict]) -> list[dict]:
    """Mean of each metric by interval and method, in pair order, so that sums are the same on any runner."""
    groups: dict[tuple[int, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["bucket"], row["pair"])):
        groups.setdefault((row["bucket"], row["method"]), []).append(row)
    return [
        {"bucket": bucket, "method": method, "pairs": len(members)}
        | {name: float(np.mean([row[name] for row in members])) for name in METRICS}
        for (bucket, method), members in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def format_table(cells: list[dict]) -> str:
    """Markdown table of `summarize`'s cells."""
    lines = [
        "| hole ratio | method | pairs | PSNR | PSNR holes | SSIM | SSIM holes | l1 % | l1 % holes |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in cells:
        interval = "({}, {}]".format(*RATIO_BUCKETS[cell["bucket"]]) if cell["bucket"] >= 0 else "other"
        values = [f"{cell[name]:.2f}" for name in ("psnr", "psnr_holes")]
        values += [f"{cell[name]:.3f}" for name in ("ssim", "ssim_holes")]
        values += [f"{100 * cell[name]:.2f}" for name in ("l1", "l1_holes")]
        lines.append(f"| {interval} | {cell['method']} | {cell['pairs']} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def write_report(rows: list[dict], folder: str, fields: dict) -> None:
    """Writes ``pairs.jsonl``, ``metrics.json`` and ``table.md`` into the output folder."""
    rows = sorted(rows, key=lambda row: row["pair"])
    cells = summarize(rows)
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    storage.overwrite(storage.join(folder, "pairs.jsonl"), lines.encode())
    report = json.dumps({**fields, "cells": cells}, indent=1, sort_keys=True)
    storage.overwrite(storage.join(folder, "metrics.json"), report.encode())
    storage.overwrite(storage.join(folder, "table.md"), format_table(cells).encode())


class ScorePairs(beam.PTransform):
    """From a pipeline to the rows of `score_methods`.

    Args:
        image_shards, mask_shards: (address, crc32c, position of the first record) each.
        num_images: records in the image shards.
        num_pairs: pairs to score.
        handler: the network.
        baselines: names of `BASELINES`.
    """

    def __init__(self, image_shards, mask_shards, num_images: int, num_pairs: int, handler, baselines):
        super().__init__()
        self._shards = {"images": list(image_shards), "masks": list(mask_shards)}
        self._num_images, self._num_pairs = num_images, num_pairs
        self._handler: InpaintModelHandler = handler
        self._baselines = tuple(baselines)

    def expand(self, pipeline):
        read = {
            kind: pipeline | f"Shards_{kind}" >> beam.Create(shards) | f"Read_{kind}" >> beam.FlatMap(read_shard)
            for kind, shards in self._shards.items()
        }
        numbered = {
            "images": read["images"] | "PairImages" >> beam.FlatMap(image_pairs, self._num_images, self._num_pairs),
            "masks": read["masks"] | "PairMasks" >> beam.FlatMap(mask_pairs, self._num_pairs),
        }
        return (
            numbered
            | beam.CoGroupByKey()
            | beam.Reshuffle()
            | "Decode" >> beam.Map(make_case)
            | "Inpaint" >> RunInference(KeyedModelHandler(self._handler))
            | "Score" >> beam.FlatMap(score_methods, self._baselines)
        )
