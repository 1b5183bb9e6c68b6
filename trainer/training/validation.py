"""Scores of the network on held-out records while it trains, the same on any number of workers.

Pair n holds mask number n and image number (n // intervals) modulo images: masks take turns through the hole-ratio
intervals, so every image meets every interval. Pair n is computed by worker n modulo workers, and every worker gets
every score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from masks.codec import decode_mask
from masks.coverage import RATIO_BUCKETS
from trainer import checkpoints, storage
from trainer.config import TrainConfig, ValidationConfig
from trainer.data import records
from trainer.data.manifest import Shard, load_manifest
from trainer.errors import UserError
from trainer.images import rgb
from trainer.metrics import image_quality, intervals, validation_metrics
from trainer.model.unet import build_unet
from trainer.tensorboard import picture_grid
from trainer.training.sharing import make_sum


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The datasets to validate on.

    Attributes:
        images, masks: addresses.
        pairs: how many there are to score.
    """

    images: str
    masks: str
    pairs: int


@dataclass(frozen=True)
class Pair:
    """One pair: its number, target uint8 [S, S, 3], mask uint8 [S, S] of {0, 1}, number of the mask's interval."""

    number: int
    target: np.ndarray
    mask: np.ndarray
    bucket: int


def find_held_out(
    config: ValidationConfig, image_size: int, images: str, masks: str, val_images: str | None, val_masks: str | None
) -> tuple[HeldOut | None, str]:
    """What to validate on, and a sentence that says so, or why there is none.

    Args:
        images, masks: the datasets to train on, whose split is used where no others are given.
        val_images, val_masks: datasets to validate on.

    Raises:
        UserError: a given dataset is missing or unfinished, lacks the split, or its masks have another size.
    """
    if not config.every:
        return None, "no validation: validation.every is 0"
    if image_size < (least := 2 * image_quality.RADIUS + 1):  # the window of SSIM
        return None, f"no validation: it needs unet.image_size of {least} or more"
    found: dict[str, tuple[str, int]] = {}
    for kind, given, default in (("image", val_images, images), ("mask", val_masks, masks)):
        folder = given or default
        manifest = load_manifest(folder, kind)
        held_out = sum(shard.records for shard in manifest.shards if shard.split == config.split)
        if not held_out:
            if given:
                raise UserError(f"{folder}: expected records in split {config.split!r}. Received none.")
            return None, f"no validation: {folder} has no split {config.split!r} (--val-{kind}s names another)"
        size = (manifest.parameters.get("height"), manifest.parameters.get("width"))
        if kind == "mask" and size != (image_size, image_size):
            raise UserError(
                f"{folder}: expected masks of {image_size} x {image_size} (unet.image_size). "
                f"Received {size[0]} x {size[1]}."
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
    pixels = {
        place: rgb.decode_rgb(records.parse_image(record)["image/encoded"].numpy())
        for place, record in _read_records(held_out.images, image_shards, set(image_of.values()))
    }
    pairs = []
    for number, record in _read_records(held_out.masks, mask_shards, set(numbers)):
        parsed = records.parse_mask(record)
        mask = decode_mask(parsed["mask/encoded"].numpy())
        target = rgb.center_square(pixels[image_of[number]], mask.shape[0])
        pairs.append(Pair(number, target, mask, int(parsed["mask/bucket"])))
    return pairs


def _read_records(folder: str, shards: tuple[Shard, ...], wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The records at the ``wanted`` places of a split, in order; shards without one are not read."""
    first = 0
    for shard in shards:
        places = range(first, first + shard.records)
        if not wanted.isdisjoint(places):
            found = records.read_records(storage.join(folder, shard.name), shard.crc32c)
            for place, record in zip(places, found, strict=True):
                if place in wanted:
                    yield place, record
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

    The network is another copy of the one that trains: it has no part in the workers' common variables, so
    each worker calls it as often as its pairs need.

    Args:
        strategy: of the training.
        pairs: from `read_pairs`.
        count: pairs of all workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, config: TrainConfig, pairs: list[Pair], count: int):
        self._pairs, self._count = pairs, count
        self._batch, self._pictures = config.per_worker_batch_size, config.validation.pictures
        self._network = build_unet(config.unet, dtype=config.precision, name="validated")
        signature = [tf.TensorSpec([None, None, None, channels], tf.float32) for channels in (3, 1)]
        self._predict = tf.function(
            lambda image, mask: self._network([image, mask], training=False), input_signature=signature
        )
        self._sum = make_sum(strategy)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the weights to use from now on, by variable path."""
        checkpoints.assign_variables(self._network.variables, arrays)

    def validate(self) -> dict[int, dict[str, float]]:
        """`intervals.summarize` of all workers' pairs. All workers must call this together, with the same weights."""
        # One row per pair, each filled by one worker and 0 on the others: their sum is exact.
        rows = np.zeros((self._count, 1 + len(validation_metrics())))
        for begin in range(0, len(self._pairs), self._batch):
            batch = self._pairs[begin : begin + self._batch]
            targets, masks = _stack(batch)
            for pair, output in zip(batch, self._predict(targets * masks, masks).numpy(), strict=True):
                rows[pair.number] = [pair.bucket, *_score(pair, output)]
        columns = ("bucket", *validation_metrics())
        everyones = (dict(zip(columns, row, strict=True)) for row in self._sum(rows).tolist())
        return intervals.summarize(intervals.tally_of(everyones))

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets [N, S, S, 3] and masks [N, S, S, 1], float32, of this worker's first pairs, to be drawn."""
        return _stack(self._pairs[: self._pictures])

    def draw(self, targets: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Picture grid, uint8, of what the network makes of targets [N, S, S, 3] and masks [N, S, S, 1]."""
        return picture_grid(targets, masks, self._predict(targets * masks, masks).numpy())
