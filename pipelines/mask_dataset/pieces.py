"""Shards of masks that start from nothing, drawn piece by piece: what a job that was killed has drawn is kept.

indices -> by shard -> pieces -> draw -> DATASET/.shards/...piece -> by shard -> join -> shard and its record
            '- is there?          '- is there?

Indices and counts travel between workers, masks do not.
"""

from __future__ import annotations

import base64
import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import cv2
import numpy as np

from masks.sampling import MaskSpec
from pipelines.mask_dataset.plan import Plan
from pipelines.mask_dataset.sampling import TALLY, Cell, Tally, key_of, mask_record, merge_tallies, spec_of
from pipelines.mask_dataset.sampling import Count as Counted
from pipelines.transforms.create_once import write_claimed
from pipelines.transforms.dataset_writer import shard_of
from pipelines.transforms.progress import Progress
from trainer import storage
from trainer.command import code_version
from trainer.data import kept, records
from trainer.data.finished import in_threads
from trainer.data.kept import Kept
from trainer.data.manifest import Shard, shard_name
from trainer.documents import Count, Form
from trainer.errors import UserError
from trainer.storage import claims
from trainer.storage.claims import Claim

PLACED = 16_384  # indices that are placed together
_LEAST, _MOST, _PIECES = 64, 1024, 256  # masks of a piece, and pieces of a dataset that is not large
_FINISHED = -1

_TALLY: Form[list[tuple[str, int, int, Count, Count, str]]] = Form(
    "the tally of masks", list[tuple[str, int, int, Count, Count, str]], max_bytes=1 << 26
)

Place = tuple[int, int, list[int]]  # of a piece: its shard, its number there, and its masks in order
Drawn = tuple[int, tuple[int, list[int]]]  # the same by shard


@dataclass(frozen=True)
class MaskShards:
    """The shards of a job.

    Attributes:
        plan: of the masks.
        num_shards: of the plan's split.
        folder: of the dataset.
        claim: on it.
    """

    plan: Plan
    num_shards: int
    folder: str
    claim: Claim | None = None

    @functools.cached_property
    def made_of(self) -> str:
        """A digest of all that decides about a shard beside its number."""
        versions = code_version(), cv2.__version__, np.__version__
        facts = versions, self.plan, self.num_shards, self.size
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def size(self) -> int:
        """Masks of a piece."""
        return max(_LEAST, min(_MOST, self.plan.count // _PIECES))

    def name(self, shard: int) -> str:
        return shard_name(self.plan.split, shard, self.num_shards)

    def piece_name(self, shard: int, number: int) -> str:
        return f"{self.name(shard)}.{self.made_of}.{number:05d}"

    def find(self, shard: int) -> Kept | None:
        """The record of a shard that an earlier job has finished."""
        found = kept.find(self.folder, self.name(shard), self.made_of)
        return found if found and parse_tally(found.notes) is not None else None


def place_masks(first: int, job: MaskShards) -> Iterator[tuple[int, list[int]]]:
    """(shard, indices) of the masks ``first`` to ``first + PLACED - 1``, without those from ``count`` on."""
    shards = collections.defaultdict[int, list[int]](list)
    for index in range(first, min(first + PLACED, job.plan.count)):
        shards[shard_of(key_of(index), job.num_shards)].append(index)
    yield from shards.items()


def cut_shard(group: tuple[int, Iterable[list[int]]], job: MaskShards) -> Iterator[Place]:
    """The pieces of a shard; of one that is finished, all of it as number `_FINISHED`."""
    shard, placed = group
    indices = sorted(itertools.chain.from_iterable(placed))
    if job.find(shard):
        yield shard, _FINISHED, indices
        return
    for number, start in enumerate(range(0, len(indices), job.size)):
        yield shard, number, indices[start : start + job.size]


def draw_masks(indices: list[int], specs: tuple[MaskSpec, ...]) -> tuple[bytes, Tally]:
    """Masks as framed records, and the tally of them all."""
    tallies: list[Tally] = []

    def serialized() -> Iterator[bytes]:
        for index in indices:
            record, tally = mask_record(spec_of(specs, index), index)
            tallies.append(tally)
            yield record

    return records.frame_records(serialized()), merge_tallies(tallies)


def join_shard(group: tuple[int, Iterable[tuple[int, list[int]]]], job: MaskShards) -> Iterator[Shard | Tally]:
    """Writes a shard of its pieces and records it, unless an earlier job has; the shard, and the tally of its masks."""
    shard, pieces = group[0], sorted(group[1])
    found = job.find(shard)
    if found is None:
        names = [job.piece_name(shard, number) for number, _ in pieces]
        read = in_threads(functools.partial(kept.read_piece, job.folder), names)
        data, tallies = [], list[Tally]()
        for piece, (_, indices) in zip(read, pieces, strict=True):
            known = parse_tally(piece[1]) if piece else None
            some, tally = (piece[0], known) if piece and known is not None else draw_masks(indices, job.plan.specs)
            data.append(some)
            tallies.append(tally)
        found = _save_shard(shard, sum(len(indices) for _, indices in pieces), b"".join(data), tallies, job)
        kept.drop_pieces(job.folder, names)
    yield found.shard
    yield parse_tally(found.notes) or {}


def _save_shard(shard: int, count: int, data: bytes, tallies: list[Tally], job: MaskShards) -> Kept:
    name = job.name(shard)
    address = storage.join(job.folder, name)
    write_claimed(job.claim, address, data)
    made = Shard(name=name, split=job.plan.split, records=count, bytes=len(data), crc32c=storage.crc32c(data))
    notes, stamp = dump_tally(merge_tallies(tallies)), storage.stamp(address, own=True)
    done = Kept(made_of=job.made_of, stamp=stamp, shard=made, notes=notes)
    claims.require(job.claim)  # a record would outlive the dataset of a later job
    kept.keep(job.folder, done)
    return done


def dump_tally(tally: Tally) -> str:
    """A tally as text."""
    rows = [(*cell, count.masks, count.first, base64.b64encode(count.png).decode()) for cell, count in tally.items()]
    return json.dumps(rows)


def parse_tally(text: str) -> Tally | None:
    """The tally in a text that `dump_tally` has made; None if it is something else."""
    try:
        rows = _TALLY.parse(text.encode(), "notes")
        return {Cell(*row[:3]): Counted(row[3], row[4], base64.b64decode(row[5], validate=True)) for row in rows}
    except (UserError, ValueError):
        return None


class DrawPiece(beam.DoFn):
    """From a `Place` to `Drawn`: draws the masks of a piece and keeps them, unless an earlier job has."""

    def __init__(self, job: MaskShards):
        super().__init__()
        self._job, self._progress = job, Progress("masks", job.plan.count)
        count = beam.metrics.Metrics.counter
        self._drawn, self._kept = count("pconv", "masks"), count("pconv", "masks_kept")

    def setup(self):
        self._progress.start()

    def process(self, place: Place) -> Iterator[Drawn]:
        (shard, number, indices), job = place, self._job
        name = job.piece_name(shard, number)
        is_new = number != _FINISHED and not kept.has_piece(job.folder, name)
        if is_new:
            data, tally = draw_masks(indices, job.plan.specs)
            claims.require(job.claim)
            kept.keep_piece(job.folder, name, data, dump_tally(tally))
        (self._drawn if is_new else self._kept).inc(len(indices))
        self._progress.add(is_new, len(indices))
        yield shard, (number, indices)


class WriteMasks(beam.PTransform):
    """Twin of `masks.sampling.sample_mask`: masks 0 to ``count - 1`` as shards, from a pipeline.

    Returns two PCollections: the `Shard`s, and one `Tally` of all masks.
    """

    def __init__(self, job: MaskShards):
        super().__init__()
        self._job = job

    def expand(self, pipeline) -> tuple[beam.PCollection[Shard], beam.PCollection[Tally]]:
        written = (
            pipeline
            | "Starts" >> beam.Create(list(range(0, self._job.plan.count, PLACED)))
            | "Place" >> beam.FlatMap(place_masks, self._job)
            | "Shards" >> beam.GroupByKey()
            | "Cut" >> beam.FlatMap(cut_shard, self._job)
            | "SpreadPieces" >> beam.Reshuffle()
            | "Draw" >> beam.ParDo(DrawPiece(self._job))
            | "Pieces" >> beam.GroupByKey()
            | "Join" >> beam.FlatMap(_join, self._job).with_outputs(TALLY, main="shards")
        )
        return written.shards, written[TALLY] | beam.CombineGlobally(merge_tallies)


def _join(
    group: tuple[int, Iterable[tuple[int, list[int]]]], job: MaskShards
) -> Iterator[Shard | beam.pvalue.TaggedOutput]:
    for found in join_shard(group, job):
        yield found if isinstance(found, Shard) else beam.pvalue.TaggedOutput(TALLY, found)
