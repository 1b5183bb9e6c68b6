"""The image job: parts of a source become shards of records.

    Part -> list_part -> where each image lies --(shard of its key)--> group -> read, convert, frame -> one shard
                     '-> rejects                                                                  '-> rejects

Workers exchange where the images lie, not their bytes. A worker reads and converts the images of a shard one after
another: it holds one image and the shard, whatever the size of the source.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import cv2
import PIL

from pipelines.image_dataset.parts import Item, Part, Row, list_part, sample_items
from pipelines.transforms.dataset_writer import hash_key, save_shard, shard_of
from pipelines.transforms.progress import Progress
from pipelines.transforms.rejects import REJECTED, Reject, Rejected, blame
from pipelines.transforms.thread_map import ThreadMap
from trainer import storage
from trainer.command import code_version
from trainer.data import kept, records
from trainer.data.kept import Kept, Lost
from trainer.data.manifest import Shard, shard_name
from trainer.errors import ImageError, UserError, is_outage
from trainer.images import rgb
from trainer.storage import claims
from trainer.storage.claims import Claim
from trainer.storage.names import to_text

SHARD_BYTES = 200_000_000
_READERS, _READ_AHEAD = 8, 16  # concurrent requests to a bucket; images read before they are needed
_TARS_AT_ONCE = 32  # whose headers a worker reads, one request after another of each
_FAULTS = (ImageError, UserError)  # of an image; see `rejects` for what is none


# Planning


def measure_split(parts: list[Part], spec: rgb.ImageSpec, limit: int | None) -> int:
    """Estimates the bytes of a split's records.

    Images that are stored as they are keep their size. With a ``short_side`` a sample of images (`sample_items`) is
    converted, and all are taken to shrink as much as these; with a ``limit`` that many of their mean size count.
    """
    total = sum(part.bytes for part in parts)
    if spec.short_side is None and limit is None:
        return total
    before, after = [], []
    for item in sample_items(parts):
        try:
            after.append(len(rgb.to_jpeg(read_image(item, spec), spec)[0]))
            before.append(item.size)
        except _FAULTS as error:
            if is_outage(error):
                raise
    if not before:
        return total
    wanted = total if limit is None else min(total, limit * sum(before) / len(before))
    return round(wanted * sum(after) / sum(before))


def choose_num_shards(size: int) -> int:
    """The smallest power of two that keeps the shards of ``size`` bytes at 200 MB or less each, so above 100 MB.

    A power of two, so that tars and folders of the same images, whose sizes differ a little, get the same number.
    """
    num_shards = 1
    while size > num_shards * SHARD_BYTES:
        num_shards *= 2
    return num_shards


# Converting


def read_image(item: Item, spec: rgb.ImageSpec) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: the file is larger than any image that the specification allows.
        UserError: it cannot be read, or its size has changed.
    """
    if item.size > spec.max_bytes:
        raise ImageError(f"expected at most {spec.max_bytes} bytes ({spec.max_pixels} pixels). Received {item.size}.")
    address = to_text(item.address)
    if not item.member and storage.is_remote(address):
        data = storage.read(address, max_bytes=item.size)  # a whole object is compared with its checksum
    else:
        data = storage.read_range(address, item.start, item.size)
    if len(data) != item.size:
        raise UserError(f"expected {item.size} bytes. Received {len(data)}.")
    return data


def read_images(items: list[Item], spec: rgb.ImageSpec) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with a function that returns what `read_image` does; images in buckets are read ahead."""
    if not any(storage.is_remote(to_text(item.address)) for item in items):
        for item in items:
            yield item, functools.partial(read_image, item, spec)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: collections.deque[tuple[Item, Callable[[], bytes]]] = collections.deque()
        for item in items:
            waiting.append((item, pool.submit(read_image, item, spec).result))
            if len(waiting) == _READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def image_record(item: Item, data: bytes, spec: rgb.ImageSpec, labels: dict[str, int]) -> bytes:
    """Serialized record of one image. Raises `ImageError`."""
    encoded, height, width = rgb.to_jpeg(data, spec)
    values = {
        "image/encoded": encoded,
        "image/format": "JPEG",
        "image/height": height,
        "image/width": width,
        "image/colorspace": "RGB",
        "image/channels": 3,
        "image/filename": item.key,
        "image/class/label": labels.get(to_text(item.synset), -1),
        "image/class/synset": item.synset,
    }
    return records.encode_record(values, records.IMAGE_FEATURES)


def _checked_record(item: Item, data: bytes, spec: rgb.ImageSpec, labels: dict[str, int]) -> bytes:
    """`image_record`, of bytes that are read again if they cannot be decoded and came from a tar in a bucket.

    A part of an object has no checksum: the image is to blame only for bytes that arrive the same twice.
    """
    try:
        return image_record(item, data, spec, labels)
    except ImageError:
        if not item.member or not storage.is_remote(to_text(item.address)):
            raise
        again = read_image(item, spec)
        if again == data:
            raise
    return image_record(item, again, spec, labels)


def convert_images(
    items: list[Item], spec: rgb.ImageSpec, labels: dict[str, int], rejects: list[Reject]
) -> Iterator[bytes]:
    """Serialized records in the items' order; images that cannot be used are appended to ``rejects``."""
    for item, read in read_images(items, spec):
        address, member = to_text(item.address), to_text(item.member)
        try:
            with blame(address, "read", _FAULTS, item.split, member):
                data = read()
            with blame(address, "decode", _FAULTS, item.split, member):
                record = _checked_record(item, data, spec, labels)
        except Rejected as lost:
            rejects.append(lost.reject)
        else:
            yield record


# Keeping


def way_of(spec: rgb.ImageSpec, labels: dict[str, int]) -> str:
    """A digest of how images become records: options, labels, versions, and whether HEIC can be read."""
    versions = [code_version(), cv2.__version__, PIL.__version__, importlib.util.find_spec("pillow_heif") is not None]
    facts = [versions, dataclasses.asdict(spec), sorted(labels.items())]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def made_of(rows: list[Row], way: str) -> str:
    """A digest of all that decides about the shard of these rows; empty if a change of a file could not be told."""
    total = hashlib.blake2b(way.encode(), digest_size=16)
    for row in rows:
        if not Item(*row).version:
            return ""
        total.update(repr(row).encode())
    return total.hexdigest()


# Transforms


def list_rows(part: Part, output: str = "") -> Iterator[Row | beam.pvalue.TaggedOutput]:
    """`list_part` with items as rows, and rejects under the tag ``rejected``."""
    for found in list_part(part, output):
        yield beam.pvalue.TaggedOutput(REJECTED, found) if isinstance(found, Reject) else found.row


def weigh_part(part: Part) -> int:
    """What a part weighs among the `_TARS_AT_ONCE`: only tars that lie in one of a bucket take turns in waiting."""
    return 1 if part.member and storage.is_remote(part.address) else _TARS_AT_ONCE + 1


def split_of(row: Row) -> str:
    return Item(*row).split


def random_order(row: Row) -> tuple[int, Row]:
    """Sort key under which the first images are a random sample, the same in every run."""
    return hash_key(Item(*row).key), row


def place_image(row: Row, num_shards: dict[str, int]) -> tuple[tuple[str, int], Row]:
    """((split, shard), row)."""
    item = Item(*row)
    return (item.split, shard_of(item.key, num_shards[item.split])), row


class ListImages(beam.PTransform):
    """Twin of `parts.list_part`: from a PCollection of `Part` to one of `Row` and one of `Reject`.

    Args:
        limit: images to take of each split; None takes all.
        output: as of `parts.list_part`.
    """

    def __init__(self, limit: int | None = None, output: str = ""):
        super().__init__()
        self._limit, self._output = limit, output

    def expand(self, parts) -> tuple[beam.PCollection[Row], beam.PCollection[Reject]]:
        lists = ThreadMap(list_rows, self._output, threads=_TARS_AT_ONCE, max_in_flight=_TARS_AT_ONCE, weigh=weigh_part)
        listed = parts | beam.Reshuffle() | "List" >> beam.ParDo(lists).with_outputs(REJECTED, main="rows")
        rows = listed.rows
        if self._limit is not None:
            rows = (
                rows
                | beam.WithKeys(split_of)
                | beam.combiners.Top.SmallestPerKey(self._limit, key=random_order)
                | beam.Values()
                | "Drawn" >> beam.FlatMap(iter)
            )
        return rows, listed[REJECTED]


class ConvertShard(beam.DoFn):
    """From ((split, shard), rows) to the `Shard`, and tagged `Reject`s.

    What an earlier job has made of the same files is kept, and its rejects are told again.
    """

    def __init__(
        self,
        folder: str,
        num_shards: dict[str, int],
        spec: rgb.ImageSpec,
        labels: dict[str, int],
        claim: Claim | None = None,
    ):
        super().__init__()
        self._folder, self._num_shards, self._spec, self._labels = folder, num_shards, spec, labels
        self._claim = claim
        self._progress = Progress("images")
        self._converted = beam.metrics.Metrics.counter("pconv", "images")
        self._kept = beam.metrics.Metrics.counter("pconv", "images_kept")

    def setup(self):
        self._way = way_of(self._spec, self._labels)
        self._progress.start()
        cv2.setNumThreads(1)  # the runner has as many workers as it was told there are cores
        warnings.filterwarnings("ignore", module="PIL")  # of broken metadata; broken images become rejects

    def process(self, group: tuple[tuple[str, int], Iterable[Row]]):
        (split, shard), rows = group
        ordered = sorted(rows)
        digest = made_of(ordered, self._way)
        found = kept.find(self._folder, shard_name(split, shard, self._num_shards[split]), digest) if digest else None
        if found is None:
            found = self._make(split, shard, [Item(*row) for row in ordered], digest)
        else:
            self._kept.inc(found.shard.records)
            for _ in range(found.shard.records):
                self._progress.add(is_new=False)
        yield found.shard
        for lost in found.rejects:
            yield beam.pvalue.TaggedOutput(REJECTED, Reject(**dataclasses.asdict(lost)))

    def _make(self, split: str, shard: int, items: list[Item], digest: str) -> Kept:
        rejects: list[Reject] = []
        converted = self._counted(convert_images(items, self._spec, self._labels, rejects))
        made = save_shard(converted, self._folder, split, shard, self._num_shards, self._claim)
        stamp = storage.stamp(storage.join(self._folder, made.name), own=True)
        done = Kept(
            made_of=digest, stamp=stamp, shard=made, rejects=tuple(Lost(**dataclasses.asdict(lost)) for lost in rejects)
        )
        if digest:
            claims.require(self._claim)  # a record would outlive the dataset of a later job
            kept.keep(self._folder, done)
        return done

    def _counted(self, serialized: Iterable[bytes]) -> Iterator[bytes]:
        for record in serialized:
            yield record
            self._converted.inc()
            self._progress.add()


class WriteImages(beam.PTransform):
    """From `Row`s to written shards: a PCollection of `Shard`s, and one of `Reject`s.

    Args:
        folder: the dataset's address.
        num_shards: number of shards by split.
        spec: what images are stored as.
        labels: label of each synset.
        claim: on the folder.
    """

    def __init__(
        self,
        folder: str,
        num_shards: dict[str, int],
        spec: rgb.ImageSpec,
        labels: dict[str, int],
        claim: Claim | None = None,
    ):
        super().__init__()
        self._num_shards = num_shards
        self._convert = ConvertShard(folder, num_shards, spec, labels, claim)

    def expand(self, rows) -> tuple[beam.PCollection[Shard], beam.PCollection[Reject]]:
        written = (
            rows
            | "Place" >> beam.Map(place_image, self._num_shards)
            | "GroupByShard" >> beam.GroupByKey()
            | "ConvertShard" >> beam.ParDo(self._convert).with_outputs(REJECTED, main="shards")
        )
        return written.shards, written[REJECTED]
