"""The image job's transforms: parts of a source become shards of records.

    Part -> list_part -> where each image lies --(shard of its key)--> group -> read, convert, frame -> one shard
                     '-> rejects                                                                  '-> rejects

What is shuffled between workers is where the images lie, not what is in them. A worker reads and converts the images
of a shard one after another: it holds one image and the shard, whatever the size of the source.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import apache_beam as beam
import cv2

from pipelines.image_dataset.convert import convert_images
from pipelines.image_dataset.parts import Item, list_part
from pipelines.transforms.dataset_writer import hash_key, save_shard, shard_of
from pipelines.transforms.progress import Progress
from pipelines.transforms.rejects import REJECTED, Reject, tag_rejects
from trainer.images import rgb


def split_of(item: Item) -> str:
    return item[0]


def draw_order(item: Item) -> tuple[int, Item]:
    """What orders images so that the first ones are as good as drawn by lot, and the same every time."""
    return hash_key(item[1]), item


def place_image(item: Item, num_shards: dict[str, int]) -> tuple[tuple[str, int], Item]:
    """((split, shard), item)."""
    return (item[0], shard_of(item[1], num_shards[item[0]])), item


class ListImages(beam.PTransform):
    """Twin of `image_parts.list_part`: from a PCollection of `Part` to `Item`s and `Reject`s.

    Args:
        limit: images to take of each split; None takes all.
    """

    def __init__(self, limit: int | None = None):
        super().__init__()
        self._limit = limit

    def expand(self, parts) -> tuple[beam.PCollection[Item], beam.PCollection[Reject]]:
        listed = parts | beam.Reshuffle() | beam.FlatMap(tag_rejects, list_part).with_outputs(REJECTED, main="items")
        items = listed.items
        if self._limit is not None:
            items = (
                items
                | beam.WithKeys(split_of)
                | beam.combiners.Top.SmallestPerKey(self._limit, key=draw_order)
                | beam.Values()
                | "Drawn" >> beam.FlatMap(iter)
            )
        return items, listed[REJECTED]


class ConvertShard(beam.DoFn):
    """From ((split, shard), items) to the shard as a dict, and what could not be used under the tag ``rejected``."""

    def __init__(self, folder: str, num_shards: dict[str, int], spec: rgb.ImageSpec, labels: dict[str, int]):
        super().__init__()
        self._folder, self._num_shards, self._spec, self._labels = folder, num_shards, spec, labels
        self._progress = Progress("images")
        self._converted = beam.metrics.Metrics.counter("pconv", "images")

    def setup(self):
        self._progress.start()
        cv2.setNumThreads(1)  # the runner has as many workers as it was told there are cores
        warnings.filterwarnings("ignore", module="PIL")  # broken metadata; what matters becomes a reject

    def process(self, group: tuple[tuple[str, int], Iterable[Item]]):
        (split, shard), items = group
        ordered = sorted(items)
        rejects: list[Reject] = []
        found = convert_images(ordered, self._spec, self._labels, rejects)
        yield save_shard(self._counted(found), self._folder, split, shard, self._num_shards)
        for line in rejects:
            yield beam.pvalue.TaggedOutput(REJECTED, line)

    def _counted(self, serialized: Iterable[bytes]) -> Iterator[bytes]:
        for record in serialized:
            yield record
            self._converted.inc()
            self._progress.add()


class WriteImages(beam.PTransform):
    """From `Item`s to written shards: a PCollection of `Shard`s as dicts, and one of `Reject`s.

    Args:
        folder: the dataset's address.
        num_shards: number of shards by split.
        spec: what images are stored as.
        labels: of each synset.
    """

    def __init__(
        self,
        folder: str,
        num_shards: dict[str, int],
        spec: rgb.ImageSpec,
        labels: dict[str, int],
    ):
        super().__init__()
        self._num_shards = num_shards
        self._convert = ConvertShard(folder, num_shards, spec, labels)

    def expand(self, items) -> tuple[beam.PCollection[dict], beam.PCollection[Reject]]:
        written = (
            items
            | "Place" >> beam.Map(place_image, self._num_shards)
            | "GroupByShard" >> beam.GroupByKey()
            | "ConvertShard" >> beam.ParDo(self._convert).with_outputs(REJECTED, main="shards")
        )
        return written.shards, written[REJECTED]
