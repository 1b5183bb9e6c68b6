"""From two datasets in storage to batches of (target, mask), the same whoever computes them.

    image shards --cache--> records of a batch -+
                                                +-> decode, crop, flip -> batch       n = worker, worker + W, ...
    mask  shards --cache--> records of a batch -+

Example number n depends on (seed, n) alone: on neither the number of workers nor where training was
interrupted. Where it lies is known ahead (`streams`), so a run continues without reading what came before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.config import DataConfig
from trainer.data.examples import ExampleError, make_batch
from trainer.data.manifest import load_manifest
from trainer.data.order import Order, RecordReader, describe_record
from trainer.data.records import FEATURES, parsing_spec
from trainer.data.shard_cache import ShardCache
from trainer.errors import UserError

# Streams of the seed: what is drawn for one purpose says nothing about another.
_IMAGE_ORDER, _MASK_ORDER, _AUGMENT = range(3)


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
    key = int(np.random.SeedSequence((seed, _AUGMENT)).generate_state(1, np.uint64)[0])

    def read() -> Iterator[tuple[np.ndarray, list[bytes], list[bytes]]]:
        first = start + worker
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(contextlib.closing(ShardCache(int(config.cache_gb * 1e9))))
            both = [RecordReader(*dataset, cache, first, workers) for dataset in datasets]
            for reader in both:
                stack.enter_context(contextlib.closing(reader))
            for step in itertools.count():
                numbers = first + workers * (step * batch_size + np.arange(batch_size))
                yield numbers, *(reader.read(numbers) for reader in both)

    def make(numbers, names, *columns) -> tuple[np.ndarray, np.ndarray]:
        try:
            return make_batch(numbers, *columns, key, image_size, config)
        except ExampleError as error:
            number = numbers[error.place]
            image, mask = (describe_record(*dataset, number) for dataset in datasets)
            raise UserError(
                f"example {number} cannot be decoded: {image} ({names[error.place].decode()}), with {mask}: {error}"
            ) from None

    def decode(numbers, image_records, mask_records):
        image = tf.io.parse_example(image_records, _only("image", "encoded", "height", "width", "filename"))
        mask = tf.io.parse_example(mask_records, _only("mask", "encoded", "index"))
        names, index = image["image/filename"], mask["mask/index"]
        sizes = image["image/height"], image["image/width"]
        taken = numbers, names, image["image/encoded"], *sizes, mask["mask/encoded"]
        both = tf.numpy_function(make, taken, (tf.float32, tf.float32))
        both = [
            tf.ensure_shape(part, (batch_size, image_size, image_size, depth))
            for part, depth in zip(both, (3, 1), strict=True)
        ]
        return (*both, names, index) if keys else tuple(both)

    signature = (tf.TensorSpec([batch_size], tf.int64), *[tf.TensorSpec([batch_size], tf.string)] * 2)
    found = tf.data.Dataset.from_generator(read, output_signature=signature)
    return found.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def _only(kind: str, *names: str) -> dict:
    """What `parse_example` takes, of some of the values of a record."""
    spec = parsing_spec(FEATURES[kind])
    return {f"{kind}/{name}": spec[f"{kind}/{name}"] for name in names}
