"""Images as records, and how many shards they need: the pure functions of the image job."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pipelines.image_dataset.parts import Item, Part, sample_items, to_text
from pipelines.transforms.rejects import Reject, Rejected, blame
from trainer import storage
from trainer.data import records
from trainer.errors import ImageError, UserError
from trainer.images import rgb

SHARD_BYTES = 200_000_000
_READERS, _READ_AHEAD = 8, 16  # requests to a bucket at a time; images read before they are needed


def measure_split(parts: list[Part], spec: rgb.ImageSpec, limit: int | None) -> int:
    """About how many bytes the records of a split will have.

    What is kept as it is takes its own size. With a ``short_side`` a sample of images (`sample_items`) is
    converted, and all are taken to shrink as much as these; with a ``limit`` that many of their mean size count.
    """
    total = sum(part.bytes for part in parts)
    if spec.short_side is None and limit is None:
        return total
    before, after = [], []
    for item in sample_items(parts):
        try:
            after.append(len(rgb.to_jpeg(read_image(item, spec), spec)[0]))
            before.append(item[5])
        except (ImageError, UserError):
            continue
    if not before:
        return total
    wanted = total if limit is None else min(total, limit * sum(before) / len(before))
    return round(wanted * sum(after) / sum(before))


def choose_num_shards(size: int) -> int:
    """The smallest power of two that keeps shards of ``size`` bytes in all at 200 MB; so they have 100 MB or more.

    A power of two, so that archives and folders of the same images, which do not measure quite the same, get as many.
    """
    num_shards = 1
    while size > num_shards * SHARD_BYTES:
        num_shards *= 2
    return num_shards


def read_image(item: Item, spec: rgb.ImageSpec) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: there are more than any image that the specification allows can have.
        UserError: they cannot be read, or end too early.
    """
    _, _, _, address, start, size, _ = item
    if size > spec.max_bytes:
        raise ImageError(f"expected at most {spec.max_bytes} bytes ({spec.max_pixels} pixels). Received {size}.")
    data = storage.read_range(to_text(address), start, size)
    if len(data) < size:
        raise UserError(f"expected {size} bytes. Received {len(data)}.")
    return data


def read_images(items: list[Item], spec: rgb.ImageSpec) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with a function that gives what `read_image` does; those of buckets are read ahead."""
    if not any(storage.is_bucket(to_text(item[3])) for item in items):
        for item in items:
            yield item, lambda item=item: read_image(item, spec)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append((item, pool.submit(read_image, item, spec).result))
            if len(waiting) == _READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def image_record(item: Item, data: bytes, spec: rgb.ImageSpec, labels: dict[str, int]) -> bytes:
    """Serialized record of one image. Raises `ImageError`."""
    _, key, synset, *_ = item
    encoded, height, width = rgb.to_jpeg(data, spec)
    values = {
        "image/encoded": encoded,
        "image/format": "JPEG",
        "image/height": height,
        "image/width": width,
        "image/colorspace": "RGB",
        "image/channels": 3,
        "image/filename": key,
        "image/class/label": labels.get(to_text(synset), -1),
        "image/class/synset": synset,
    }
    return records.encode_record(values, records.IMAGE_FEATURES)


def convert_images(
    items: list[Item], spec: rgb.ImageSpec, labels: dict[str, int], rejects: list[Reject]
) -> Iterator[bytes]:
    """Serialized records in the items' order; what cannot be used is added to ``rejects``."""
    for item, read in read_images(items, spec):
        split, _, _, address, _, _, member = item
        # A connection that fails is neither: it ends the attempt, so that the runner makes another.
        faults, where = (ImageError, UserError), {"split": split, "member": to_text(member)}
        try:
            with blame(to_text(address), "read", faults, **where):
                data = read()
            with blame(to_text(address), "decode", faults, **where):
                record = image_record(item, data, spec, labels)
        except Rejected as lost:
            rejects.append(lost.reject)
        else:
            yield record
