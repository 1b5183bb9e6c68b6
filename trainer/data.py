"""From two datasets in storage to batches of (target, mask), the same whoever computes them.

    image shards --fetch--> records --shuffle--+
                                               zip -> number n -> every W-th to worker w -> decode, crop, flip -> batch
    mask  shards --fetch--> records --shuffle--+

Example number n depends on (seed, n) alone: on neither the number of workers nor where training was
interrupted. Each worker reads all records and decodes its own share.
"""

from __future__ import annotations

import os
import tempfile

import tensorflow as tf

from trainer import records, storage
from trainer.command import UserError
from trainer.config import DataConfig
from trainer.datasets import Shard, load_manifest

# Streams of the seed: what is drawn for one purpose says nothing about another.
_IMAGE_ORDER, _MASK_ORDER, _AUGMENT = range(3)


def cache_folder() -> str:
    """Where this machine keeps verified copies of shards from buckets."""
    return os.path.join(tempfile.gettempdir(), f"pconv-shards-{os.getuid()}")


def check_datasets(images: str, masks: str, config: DataConfig, image_size: int) -> tuple[int, int]:
    """Checks at launch that both datasets can be trained on; returns how many images and masks they hold.

    Raises:
        UserError: a dataset is missing, unfinished or empty, or the masks have another size.
    """
    image_count = sum(shard.records for shard in load_manifest(images, "image").split(config.split))
    manifest = load_manifest(masks, "mask")
    mask_count = sum(shard.records for shard in manifest.split(config.split))
    for folder, count in ((images, image_count), (masks, mask_count)):
        if count == 0:
            raise UserError(f"{folder}: expected records in split {config.split!r}. Received none.")
    size = (manifest.parameters.get("height"), manifest.parameters.get("width"))
    if size != (image_size, image_size):
        raise UserError(
            f"{masks}: expected masks of {image_size} x {image_size} (unet.image_size). Received {size[0]} x {size[1]}."
        )
    return image_count, mask_count


def _seed(*parts: tf.Tensor | int) -> tf.Tensor:
    """A pair of seeds from a path of integers."""
    seed = tf.zeros(2, tf.int64)
    for part in parts:
        seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(part, tf.int64))
    return seed


def record_stream(
    folder: str, shards: tuple[Shard, ...], seed: tuple[int, int], buffer: int, start: int = 0
) -> tf.data.Dataset:
    """Endless serialized records: every epoch holds each record once, in an order made of (seed, epoch).

    Args:
        folder: the dataset's address.
        shards: the shards of one split; their checksums are verified as they are first read.
        seed: (seed, stream).
        buffer: records to shuffle within.
        start: records that were already seen, over all epochs.

    Raises (while iterating):
        tf.errors.UnknownError: a shard is missing or corrupt; the message names it.
    """
    addresses = [storage.join(folder, shard.name) for shard in shards if shard.records]
    checksums = [shard.crc32c for shard in shards if shard.records]
    per_epoch = sum(shard.records for shard in shards)
    verified: dict[str, str] = {}

    def fetch(address, checksum):
        key = address.numpy().decode()
        if key not in verified:
            verified[key] = storage.fetch(key, cache_folder(), checksum.numpy().decode())
        return verified[key]

    def epoch(number):
        tf.compat.v1.get_default_graph().seed = None  # else shuffle() mixes in what tf.random.set_seed was given
        # Of what fold_in makes, the second half is the number as it came: no seed by itself.
        shard_seed, record_seed = tf.unstack(
            tf.random.stateless_uniform([2], _seed(*seed, number), minval=None, maxval=None, dtype=tf.int64)
        )
        files = tf.data.Dataset.from_tensor_slices((addresses, checksums))
        files = files.shuffle(len(addresses), seed=shard_seed, reshuffle_each_iteration=False)
        paths = files.map(
            lambda a, c: tf.ensure_shape(tf.py_function(fetch, (a, c), tf.string), []),
            num_parallel_calls=2,
            deterministic=True,
        )
        found = paths.prefetch(2).interleave(
            tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=2, deterministic=True
        )
        return found.shuffle(buffer, seed=record_seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.counter(start // per_epoch).flat_map(epoch).skip(start % per_epoch)


def decode_target(record: dict[str, tf.Tensor], seed: tf.Tensor, size: int, config: DataConfig) -> tf.Tensor:
    """A random square of an image record: float32 [size, size, 3] in [0, 1].

    Only the blocks of the JPEG that the square touches are decoded.
    """
    height, width = tf.cast(record["image/height"], tf.int32), tf.cast(record["image/width"], tf.int32)
    low, high = config.crop_scale
    scale, y, x, mirror = tf.unstack(tf.random.stateless_uniform([4], seed))
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.clip_by_value(tf.cast(shorter * (low + (high - low) * scale), tf.int32), 1, tf.minimum(height, width))
    top = tf.cast(y * tf.cast(height - side + 1, tf.float32), tf.int32)
    left = tf.cast(x * tf.cast(width - side + 1, tf.float32), tf.int32)
    crop = tf.image.decode_and_crop_jpeg(record["image/encoded"], [top, left, side, side], channels=3)
    crop = tf.image.resize(crop, (size, size), antialias=True) / 255.0
    if config.flip:
        crop = tf.cond(mirror < 0.5, lambda: crop[:, ::-1], lambda: crop)
    return tf.ensure_shape(tf.clip_by_value(crop, 0.0, 1.0), (size, size, 3))


def decode_mask(record: dict[str, tf.Tensor], size: int) -> tf.Tensor:
    """A mask record: float32 [size, size, 1] of {0, 1}."""
    mask = tf.io.decode_png(record["mask/encoded"], channels=1)
    return tf.cast(tf.ensure_shape(mask, (size, size, 1)) > 127, tf.float32)


def training_batches(
    images: str,
    masks: str,
    config: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    worker: int = 0,
    workers: int = 1,
    start: int = 0,
) -> tf.data.Dataset:
    """Endless batches of one worker: target float32 [B, H, W, 3] in [0, 1], mask float32 [B, H, W, 1] of {0, 1}.

    Args:
        images: address of a dataset of image records.
        masks: address of a dataset of mask records of ``image_size``.
        batch_size: B, of this worker.
        seed: of order and augmentation.
        worker: number of this worker; it gets the examples n with ``n % workers == worker``.
        start: number of the first example, over all workers.
    """

    def stream(folder: str, kind: str, number: int) -> tf.data.Dataset:
        shards = load_manifest(folder, kind).split(config.split)
        return record_stream(folder, shards, (seed, number), config.shuffle_buffer, start)

    def decode(number, pair):
        image, mask = records.parse_image(pair[0]), records.parse_mask(pair[1])
        target = decode_target(image, _seed(seed, _AUGMENT, number), image_size, config)
        return target, decode_mask(mask, image_size)

    pairs = tf.data.Dataset.zip(stream(images, "image", _IMAGE_ORDER), stream(masks, "mask", _MASK_ORDER))
    numbered = pairs.enumerate(start=start).shard(workers, worker)
    # shard() counts from 0: with a start that is a multiple of `workers` (a whole number of
    # batches) it gives this worker the same numbers as an uninterrupted run.
    decoded = numbered.map(decode, num_parallel_calls=2, deterministic=True)
    return decoded.batch(batch_size, drop_remainder=True).prefetch(2)
