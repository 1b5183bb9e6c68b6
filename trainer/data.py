"""From two datasets in storage to batches of (target, mask), the same whoever computes them.

    image shards --cache--> record of number n -+
                                                zip -> decode, crop, flip -> batch       n = worker, worker + W, ...
    mask  shards --cache--> record of number n -+

Example number n depends on (seed, n) alone: on neither the number of workers nor where training was
interrupted. Where it lies is known ahead (`streams`), so a run continues without reading what came before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from trainer import mask_augment, records, storage
from trainer.command import UserError
from trainer.config import DataConfig
from trainer.datasets import load_manifest
from trainer.shard_cache import ShardCache
from trainer.streams import Order, RecordReader

# Streams of the seed: what is drawn for one purpose says nothing about another.
_IMAGE_ORDER, _MASK_ORDER, _AUGMENT = range(3)
_CHUNK = 16  # records that Python hands to TensorFlow at a time


def check_datasets(
    images: str, masks: str, config: DataConfig, image_size: int, *, workers: int = 1
) -> tuple[int, int]:
    """Checks at launch that both datasets can be trained on; returns how many images and masks they hold.

    Raises:
        UserError: a dataset is missing, unfinished or empty, the masks have another size, or the shards that one
            of ``workers`` reads at once do not fit into its cache.
    """
    image_shards = load_manifest(images, "image").split(config.split)
    manifest = load_manifest(masks, "mask")
    mask_shards = manifest.split(config.split)
    counts = [sum(shard.records for shard in shards) for shards in (image_shards, mask_shards)]
    for folder, count in zip((images, masks), counts, strict=True):
        if count == 0:
            raise UserError(f"{folder}: expected records in split {config.split!r}. Received none.")
    size = (manifest.parameters.get("height"), manifest.parameters.get("width"))
    if size != (image_size, image_size):
        raise UserError(
            f"{masks}: expected masks of {image_size} x {image_size} (unet.image_size). Received {size[0]} x {size[1]}."
        )
    needed = 0
    for folder, shards in ((images, image_shards), (masks, mask_shards)):
        if storage.is_bucket(folder):
            order = Order([shard.records for shard in shards], (0,), config.streams, config.shuffle_buffer)
            needed += order.shard_bytes([shard.bytes for shard in shards], workers)
    if needed > config.cache_gb * 1e9:
        raise UserError(
            f"data.cache_gb: expected {needed / 1e9:.3g} or more, for the shards that data.streams={config.streams} "
            f"keep open at once; twice that lets the next ones come ahead. Received {config.cache_gb:g}."
        )
    return counts[0], counts[1]


def decode_target(record: dict[str, tf.Tensor], draws: tf.Tensor, size: int, config: DataConfig) -> tf.Tensor:
    """A random square of an image record: float32 [size, size, 3] in [0, 1].

    Only the blocks of the JPEG that the square touches are decoded, and of a square of twice, four or eight times
    ``size`` only as many of their frequencies as are seen.

    Args:
        draws: float32 [4], uniform in [0, 1).
    """
    height, width = tf.cast(record["image/height"], tf.int32), tf.cast(record["image/width"], tf.int32)
    low, high = config.crop_scale
    scale, y, x, mirror = tf.unstack(draws)
    shorter = tf.minimum(height, width)
    side = tf.cast(tf.cast(shorter, tf.float32) * (low + (high - low) * scale), tf.int32)
    side = tf.clip_by_value(side, 1, shorter)
    halvings = sum(tf.cast(side >= size * ratio, tf.int32) for ratio in (2, 4, 8))
    # The square lies on the grid of the reduced image, whose last pixel may be of fewer than ratio x ratio.
    ratio = tf.bitwise.left_shift(1, halvings)
    height, width, side = height // ratio, width // ratio, side // ratio
    top = tf.cast(y * tf.cast(height - side + 1, tf.float32), tf.int32)
    left = tf.cast(x * tf.cast(width - side + 1, tf.float32), tf.int32)

    def decode(ratio: int) -> tf.Tensor:
        return tf.image.decode_and_crop_jpeg(record["image/encoded"], [top, left, side, side], channels=3, ratio=ratio)

    crop = tf.switch_case(halvings, [lambda r=r: decode(r) for r in (1, 2, 4, 8)])
    if config.flip:
        # Here it is bytes, and few. As a slice [:, ::-1] it takes as long as decoding.
        crop = tf.cond(mirror < 0.5, lambda: tf.reverse(crop, [1]), lambda: crop)
    # tf.image.resize(antialias=True) takes three times as long as either of these.
    crop = tf.cond(
        side > size,
        lambda: tf.raw_ops.ResizeArea(images=crop[None], size=(size, size)),
        lambda: tf.raw_ops.ResizeBilinear(images=crop[None], size=(size, size), half_pixel_centers=True),
    )
    return tf.ensure_shape(tf.minimum(crop[0] * (1 / 255), 1.0), (size, size, 3))


def decode_mask(record: dict[str, tf.Tensor], size: int) -> tf.Tensor:
    """The mask as it is stored: uint8 [size, size] of {0, 255}."""
    mask = tf.ensure_shape(tf.io.decode_png(record["mask/encoded"], channels=1), (size, size, 1))
    return tf.reshape(mask, (size, size))


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
    keys: bool = False,
) -> tf.data.Dataset:
    """Endless batches of one worker: target float32 [B, H, W, 3] in [0, 1], mask float32 [B, H, W, 1] of {0, 1}.

    Args:
        images: address of a dataset of image records.
        masks: address of a dataset of mask records of ``image_size``.
        batch_size: B, of this worker.
        seed: of order and augmentation.
        worker: number of this worker; it gets the examples start + worker, start + worker + workers, ...
        start: number of the first example, over all workers.
        keys: also yields the ``image/filename`` (string [B]) and ``mask/index`` (int64 [B]) that they were made of.

    Raises (while iterating):
        tf.errors.UnknownError: a shard is missing or corrupt, or a record cannot be decoded; the message names it.
    """
    datasets = []
    for folder, kind, purpose in ((images, "image", _IMAGE_ORDER), (masks, "mask", _MASK_ORDER)):
        shards = load_manifest(folder, kind).split(config.split)
        counts = [shard.records for shard in shards]
        datasets.append((folder, shards, Order(counts, (seed, purpose), config.streams, config.shuffle_buffer)))
    key = int(np.random.SeedSequence((seed, _AUGMENT)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    failures: dict[int, BaseException] = {}

    @contextlib.contextmanager
    def reading(first: int) -> Iterator[list[RecordReader]]:
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(contextlib.closing(ShardCache(int(config.cache_gb * 1e9))))
            readers = [RecordReader(*dataset, cache, first, workers) for dataset in datasets]
            for reader in readers:
                stack.enter_context(contextlib.closing(reader))
            yield readers

    def chunks() -> Iterator[tuple[np.ndarray, list[bytes], list[bytes]]]:
        with reading(start + worker) as both:
            for first in itertools.count(start + worker, _CHUNK * workers):
                numbers = first + workers * np.arange(_CHUNK)
                try:
                    records_of = [reader.read(numbers) for reader in both]
                except Exception as error:
                    failures[first] = error
                    return
                yield numbers, *records_of

    def decode(number, image_record, mask_record):
        image, mask = records.parse_image(image_record), records.parse_mask(mask_record)
        draws = tf.random.stateless_uniform([4 + mask_augment.DRAWS], [key, number], alg="philox")
        target = decode_target(image, draws[:4], image_size, config)
        varied = mask_augment.augment_mask(decode_mask(mask, image_size), draws[4:], config)
        valid = tf.cast(varied > 127, tf.float32)[..., None]
        return number, target, valid, image["image/filename"], mask["mask/index"]

    def explain(number):
        number = int(number)
        if number in failures:
            raise failures[number]
        with reading(number) as both:
            pair = [reader.read(np.array([number]))[0] for reader in both]
            where = [reader.where(number) for reader in both]
        try:
            decode(tf.constant(number, tf.int64), *pair)
        except (tf.errors.OpError, ValueError) as error:
            name, why = records.parse_image(pair[0])["image/filename"].numpy().decode(), str(error).splitlines()[0]
            raise UserError(
                f"example {number} cannot be decoded: {where[0]} ({name}), with {where[1]}: {why}"
            ) from None
        raise RuntimeError(f"example {number} was lost, though it can be decoded now")

    def check(expected, example):
        # What was lost above is seen as a gap in the numbers, and said with its name: TensorFlow's own error has none.
        number, target, mask, filename, index = example
        found = tf.cond(
            number == expected,
            lambda: number,
            lambda: tf.ensure_shape(tf.py_function(explain, [expected], tf.int64), []),
        )
        return found + workers, ((target, mask, filename, index) if keys else (target, mask))

    signature = (tf.TensorSpec([_CHUNK], tf.int64), *[tf.TensorSpec([_CHUNK], tf.string)] * 2)
    examples = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
    decoded = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    none = tf.constant(-1, tf.int64)
    end = (none, tf.zeros((image_size, image_size, 3)), tf.zeros((image_size, image_size, 1)), "", none)
    whole = decoded.ignore_errors(log_warning=False).concatenate(tf.data.Dataset.from_tensors(end))
    checked = whole.scan(tf.constant(start + worker, tf.int64), check)
    return checked.batch(batch_size, drop_remainder=True).prefetch(2)
