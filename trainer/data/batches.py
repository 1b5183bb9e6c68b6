"""Training batches of (target, mask) from two datasets in storage.

    image shards --cache--> records of a batch -+
                                                +-> decode, crop, flip -> batch       n = worker, worker + W, ...
    mask  shards --cache--> records of a batch -+

Example n depends on (seed, n) alone: neither on the number of workers nor on where training was interrupted.
Where it lies is known ahead (see `order`), so a run resumes without reading what came before.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.config import DataConfig
from trainer.data import order
from trainer.data.examples import ExampleError, make_batch
from trainer.data.manifest import load_manifest
from trainer.data.order import Order, RecordReader, Source
from trainer.data.records import decode_record
from trainer.data.shard_cache import ShardCache
from trainer.documents import show
from trainer.errors import UserError

# Purposes of random numbers: each gets a seed sequence of its own.
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
            raise _no_records(folder, config)
    size = (manifest.parameters.get("height"), manifest.parameters.get("width"))
    if size != (image_size, image_size):
        raise UserError(
            f"{masks}: expected masks of {image_size} x {image_size} (unet.image_size). "
            f"Received {show(size[0])} x {show(size[1])}."
        )
    needed = 0
    for folder, shards in ((images, image_shards), (masks, mask_shards)):
        if storage.is_remote(folder):
            lies = Order([shard.records for shard in shards], (0,), config.streams, config.shuffle_buffer)
            needed += lies.shard_bytes([shard.bytes for shard in shards], workers)
    if needed > config.cache_gb * 1e9:
        raise UserError(
            f"data.cache_gb: expected {needed / 1e9:.3g} or more, for the shards that data.streams={config.streams} "
            f"keep open at once; with twice that the next shards are fetched ahead. Received {config.cache_gb:g}."
        )
    return counts[0], counts[1]


def fit_streams(images: str, masks: str, config: DataConfig, workers: Sequence[int]) -> int:
    """Streams for `DataConfig.streams`, by the shards of two datasets; ``workers`` as `order.fit_streams` takes them.

    Raises:
        UserError: a dataset is missing, unfinished or empty.
    """
    sizes = []
    for folder, kind in ((images, "image"), (masks, "mask")):
        sizes.append([shard.bytes for shard in load_manifest(folder, kind).split(config.split) if shard.records])
        if not sizes[-1]:
            raise _no_records(folder, config)
    return order.fit_streams(sizes, workers)


def count_reads(images: str, masks: str, config: DataConfig, workers: int) -> dict[str, float]:
    """How often ``workers`` read each shard in an epoch, on average: of ``images`` and of ``masks``."""
    sources = {
        "images": _find_source(images, "image", config, (0,)),
        "masks": _find_source(masks, "mask", config, (0,)),
    }
    return {name: source.order.reads(workers) for name, source in sources.items()}


def _no_records(folder: str, config: DataConfig) -> UserError:
    return UserError(f"{folder} has no records in split {config.split!r}")


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
        keys: also yields the ``image/filename`` (string [B]) and ``mask/index`` (int64 [B]) of each example.

    Raises (while iterating):
        tf.errors.UnknownError: a shard is missing or corrupt, or a record cannot be decoded; the message names it.
    """
    key = int(np.random.SeedSequence((seed, _AUGMENT)).generate_state(1, np.uint64)[0])
    batches = Batches(
        _find_source(images, "image", config, (seed, _IMAGE_ORDER)),
        _find_source(masks, "mask", config, (seed, _MASK_ORDER)),
        config,
        key,
        image_size,
        batch_size,
        first=start + worker,
        step=workers,
    )
    return batches.dataset(keys)


def _find_source(folder: str, kind: str, config: DataConfig, seed: tuple[int, ...]) -> Source:
    if not config.streams:
        raise ValueError("data.streams: expected a number. Received auto (see fit_streams).")
    shards = load_manifest(folder, kind).split(config.split)
    return Source(folder, shards, Order([s.records for s in shards], seed, config.streams, config.shuffle_buffer))


class Columns(NamedTuple):
    """The values of a batch's records, undecoded: an array or a sequence of B each."""

    numbers: np.ndarray  # int64, of the examples
    jpegs: Sequence[bytes]
    heights: Sequence[int]
    widths: Sequence[int]
    filenames: Sequence[bytes]
    pngs: Sequence[bytes]
    indices: Sequence[int]


_IMAGE_KEYS = ("image/encoded", "image/height", "image/width", "image/filename")
_MASK_KEYS = ("mask/encoded", "mask/index")


class Batches:
    """Batches of the examples ``first``, ``first + step``, ...; each makes the same ones whenever it is iterated.

    Args:
        images, masks: what the examples are made of.
        key: decides, with an example's number, what is drawn for it; 64 bits.
    """

    def __init__(
        self,
        images: Source,
        masks: Source,
        config: DataConfig,
        key: int,
        image_size: int,
        batch_size: int,
        first: int,
        step: int,
    ):
        self._images, self._masks = images, masks
        self._config, self._key, self._image_size, self._batch_size = config, key, image_size, batch_size
        self._first, self._step = first, step

    def dataset(self, keys: bool) -> tf.data.Dataset:
        """See `training_batches`: `read` in one thread, `make` in as many as there are cores."""
        count = [self._batch_size]
        number, text = tf.TensorSpec(count, tf.int64), tf.TensorSpec(count, tf.string)
        signature = Columns(number, text, number, number, text, text, number)
        found = tf.data.Dataset.from_generator(self.read, output_signature=signature)
        decode = functools.partial(self._decode, keys=keys)
        return found.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)

    def read(self) -> Iterator[Columns]:
        """Reads the records of batch after batch, without end."""
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(contextlib.closing(ShardCache(int(self._config.cache_gb * 1e9))))
            images, masks = (
                stack.enter_context(contextlib.closing(RecordReader(source, cache, self._first, self._step)))
                for source in (self._images, self._masks)
            )
            for batch in itertools.count():
                numbers = self._first + self._step * (batch * self._batch_size + np.arange(self._batch_size))
                image_values = _parse(self._images, numbers, images.read(numbers), _IMAGE_KEYS)
                mask_values = _parse(self._masks, numbers, masks.read(numbers), _MASK_KEYS)
                yield Columns(numbers, *image_values, *mask_values)

    def make(self, *values: Any) -> tuple[np.ndarray, np.ndarray]:
        """Targets and masks, as `examples.make_batch`, of the values of `Columns`.

        Raises:
            UserError: an example cannot be decoded; the message names its records.
        """
        of = Columns(*values)
        try:
            return make_batch(
                of.numbers, of.jpegs, of.heights, of.widths, of.pngs, self._key, self._image_size, self._config
            )
        except ExampleError as error:
            number = of.numbers[error.place]
            image, mask = (source.describe(number) for source in (self._images, self._masks))
            name = of.filenames[error.place].decode(errors="backslashreplace")
            raise UserError(f"example {number} cannot be decoded: {image} ({name}), with {mask}: {error}") from None

    def _decode(self, columns: Columns, keys: bool) -> tuple[tf.Tensor, ...]:
        target, mask = tf.numpy_function(self.make, columns, (tf.float32, tf.float32))
        shape = self._batch_size, self._image_size, self._image_size
        batch = tf.ensure_shape(target, (*shape, 3)), tf.ensure_shape(mask, (*shape, 1))
        return (*batch, columns.filenames, columns.indices) if keys else batch


def _parse(source: Source, numbers: np.ndarray, serialized: Sequence[bytes], keys: Sequence[str]) -> Iterator[tuple]:
    """The values under each of ``keys`` of the records of examples."""
    rows = []
    for number, record in zip(numbers.tolist(), serialized, strict=True):
        try:
            rows.append(decode_record(record, *keys))
        except ValueError as error:
            raise UserError(f"example {number} cannot be decoded: {source.describe(number)}: {error}") from None
    return zip(*rows, strict=True)
