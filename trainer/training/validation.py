"""Validation: scores of the network on held-out records, the same on any number of workers.

Pair n has mask n and image (n // intervals) modulo images: masks cycle through the hole-ratio intervals, so every
image meets every interval. Worker (n modulo workers) computes pair n, and every worker gets every score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf

from masks.codec import decode_mask
from masks.coverage import RATIO_BUCKETS
from trainer import checkpoints, storage
from trainer.config import TrainConfig, ValidationConfig
from trainer.data import records
from trainer.data.manifest import Shard, load_manifest
from trainer.documents import show
from trainer.errors import UserError
from trainer.images import rgb
from trainer.metrics import IMAGE, METRICS, image_quality, intervals, validation_metrics
from trainer.metrics.intervals import ALL, interval_tag
from trainer.model.precision import find_policy
from trainer.model.unet import build_unet
from trainer.training.devices import num_devices
from trainer.training.step import make_sum


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The datasets to validate on.

    Attributes:
        images, masks: addresses.
        pairs: how many pairs are scored, over all workers.
    """

    images: str
    masks: str
    pairs: int


@dataclass(frozen=True)
class Pair:
    """One pair: its number, target uint8 [S, S, 3], mask uint8 [S, S] of {0, 1}, index of the mask's interval."""

    number: int
    target: np.ndarray
    mask: np.ndarray
    bucket: int


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Scores of the weights after a step, an event of training; ``cells`` as `intervals.summarize` returns them."""

    step: int
    cells: dict[int, dict[str, float]]

    def __str__(self) -> str:
        every = self.cells[ALL]
        failed = f" ({every['failed']} failed: not finite)" if every["failed"] else ""
        first = validation_metrics(IMAGE)[0]  # the others stand without error and intervals: the line is long enough
        lead, error = METRICS[first], every[f"{first}_error"]
        scores = []
        for name in validation_metrics(IMAGE):
            metric = METRICS[name]
            value = metric.format(every[name]) + (f" +- {metric.format(error)}" if name == first else "")
            scores.append(f"{metric.title} {value} {metric.unit}".rstrip())
        by_interval = [f"{interval_tag(b)}: {lead.format(cell[first])}" for b, cell in self.cells.items() if b != ALL]
        return (
            f"validation step {self.step}  {'  '.join(scores)}  of {every['count']} pairs{failed}  "
            f"({lead.title} by hole ratio  {'  '.join(by_interval)})"
        )


def find_held_out(
    config: ValidationConfig, image_size: int, images: str, masks: str, val_images: str | None, val_masks: str | None
) -> tuple[HeldOut | None, str]:
    """What to validate on, and a line that says so, or why there is no validation.

    Args:
        images, masks: the datasets to train on; their split is used unless others are given.
        val_images, val_masks: datasets to validate on.

    Raises:
        UserError: a given dataset is missing or incomplete, lacks the split, or its masks have another size.
    """
    if not config.every:
        return None, "no validation: validation.every is 0"
    if image_size < (minimum := 2 * image_quality.RADIUS + 1):  # the window of SSIM
        return None, f"no validation: it needs unet.image_size of {minimum} or more"
    found: dict[str, tuple[str, int]] = {}
    for kind, given, default in (("image", val_images, images), ("mask", val_masks, masks)):
        folder = given or default
        manifest = load_manifest(folder, kind)
        held_out = sum(shard.records for shard in manifest.shards if shard.split == config.split)
        if not held_out:
            if given:
                raise UserError(f"{folder}: split {config.split!r} has no records to validate on")
            return None, f"no validation: {folder} has no split {config.split!r} (--val-{kind}s names another)"
        size = (manifest.parameters.get("height"), manifest.parameters.get("width"))
        if kind == "mask" and size != (image_size, image_size):
            raise UserError(
                f"{folder}: expected masks of {image_size} x {image_size} (unet.image_size). "
                f"Received {show(size[0])} x {show(size[1])}."
            )
        found[kind] = folder, held_out
    pairs = min(config.examples, found["mask"][1])
    held = HeldOut(images=found["image"][0], masks=found["mask"][0], pairs=pairs)
    used = min(found["image"][1], -(-pairs // len(RATIO_BUCKETS)))
    return held, f"validation every {config.every} steps: {pairs} masks on {used} images of split {config.split!r}"


def read_pairs(held_out: HeldOut, split: str, worker: int, workers: int) -> list[Pair]:
    """The pairs of one worker, in order."""
    numbers = range(worker, held_out.pairs, workers)
    image_shards = load_manifest(held_out.images, "image").split(split)
    count = sum(shard.records for shard in image_shards)
    image_of = {n: n // len(RATIO_BUCKETS) % count for n in numbers}
    mask_shards = load_manifest(held_out.masks, "mask").split(split)
    pixels = {}
    for position, record in _read_records(held_out.images, image_shards, set(image_of.values())):
        with records.naming(position, f"split {split!r} of {held_out.images}"):
            (encoded,) = records.decode_record(record, "image/encoded")
            pixels[position] = rgb.decode_rgb(encoded)
    pairs: list[Pair] = []
    for number, record in _read_records(held_out.masks, mask_shards, set(numbers)):
        with records.naming(number, f"split {split!r} of {held_out.masks}"):
            encoded, bucket = records.decode_record(record, "mask/encoded", "mask/bucket")
            mask = decode_mask(encoded)
            if mask.shape != (pairs[0].mask.shape if pairs else (len(mask), len(mask))):
                raise ValueError(f"expected a square mask, of the size of the others. Received {mask.shape}.")
        target = rgb.center_square(pixels[image_of[number]], mask.shape[0])
        pairs.append(Pair(number, target, mask, bucket))
    return pairs


def _read_records(folder: str, shards: tuple[Shard, ...], wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """(position, record) of the ``wanted`` positions of a split, in order; shards without any are not read."""
    first = 0
    for shard in shards:
        positions = range(first, first + shard.records)
        if not wanted.isdisjoint(positions):
            found = records.read_records(storage.join(folder, shard.name), shard.crc32c, shard.bytes, shard.records)
            for position, record in zip(positions, found, strict=True):
                if position in wanted:
                    yield position, record
        first += shard.records


def _stack(pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    targets = np.stack([pair.target for pair in pairs]).astype(np.float32) / 255
    return targets, np.stack([pair.mask for pair in pairs]).astype(np.float32)[..., None]


def _score(pair: Pair, output: np.ndarray) -> list[float]:
    """The `validation_metrics`, in order, of a network's output float [S, S, 3]; NaN if not all of it is finite."""
    if not np.all(np.isfinite(output)):
        return [np.nan] * len(validation_metrics())
    filled = np.rint(np.clip(output, 0, 1) * 255).astype(np.uint8)
    found = intervals.score(np.where(pair.mask[..., None] == 1, pair.target, filled), pair.target, pair.mask)
    return [found[name] for name in validation_metrics()]


class Validator:
    """Scores weights on one worker's pairs, together with the other workers.

    It has a second copy of the network, which is not mirrored between workers: each worker calls it as often as its
    own pairs need.

    Args:
        strategy: that of training.
        pairs: this worker's, from `read_pairs`.
        count: number of pairs over all workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, config: TrainConfig, pairs: list[Pair], count: int):
        self._pairs, self._count = pairs, count
        self._batch = config.per_worker_batch_size // num_devices(strategy)  # it computes on one of them
        self._num_drawn = config.validation.pictures
        policy = find_policy(config.precision, config.scaling.device)
        self._network = build_unet(config.unet, dtype=policy, name="validated")
        signature = [tf.TensorSpec([None, None, None, channels], tf.float32) for channels in (3, 1)]
        self._predict = tf.function(
            lambda image, mask: self._network([image, mask], training=False), input_signature=signature
        )
        self._sum = make_sum(strategy)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets the weights to score; ``arrays`` by variable path."""
        checkpoints.assign_variables(self._network.variables, arrays)

    def validate(self, step: int) -> Validated:
        """Scores all workers' pairs; all workers must call this together, with the same weights."""
        # One row per pair, filled by one worker and 0 on the others: the sum is exact.
        rows = np.zeros((self._count, 1 + len(validation_metrics())))
        for begin in range(0, len(self._pairs), self._batch):
            batch = self._pairs[begin : begin + self._batch]
            targets, masks = _stack(batch)
            for pair, output in zip(batch, self._predict(targets * masks, masks).numpy(), strict=True):
                rows[pair.number] = [pair.bucket, *_score(pair, output)]
        columns = ("bucket", *validation_metrics())
        summed = (dict(zip(columns, row, strict=True)) for row in self._sum(rows).tolist())
        return Validated(step=step, cells=intervals.summarize(intervals.tally_of(summed)))

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets [N, S, S, 3] and masks [N, S, S, 1], float32, of this worker's first pairs, for `draw`."""
        return _stack(self._pairs[: self._num_drawn])

    def draw(self, targets: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """`image_grid` of the network's outputs for targets [N, S, S, 3] and masks [N, S, S, 1]."""
        return image_grid(targets, masks, self._predict(targets * masks, masks).numpy())


def image_grid(targets: np.ndarray, masks: np.ndarray, outputs: np.ndarray, side: int = 256) -> np.ndarray:
    """One row per example: image with gray holes, output, composite, target.

    Args:
        targets, outputs: float32 [N, S, S, 3], nominally in [0, 1].
        masks: float32 [N, S, S, 1] of {0, 1}.
        side: larger images are scaled down to this side.

    Returns:
        uint8 [N * s, 4 * s, 3] with s = min(S, side).
    """
    holes = np.where(masks > 0.5, targets, 0.5)
    composites = np.where(masks > 0.5, targets, outputs)
    shown = []
    for row in zip(holes, outputs, composites, targets, strict=True):
        cells = [np.clip(np.nan_to_num(cell), 0, 1).astype(np.float32) for cell in row]
        if cells[0].shape[0] > side:
            cells = [cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA) for cell in cells]
        shown.append(np.concatenate(cells, axis=1))
    return np.rint(np.concatenate(shown, axis=0) * 255).astype(np.uint8)
