"""Dataset writer: keyed records to shards, rejects and a manifest; the same bytes on any runner and after any retry.

(split, key, record) -> shard blake2b(key) % k -> group -> sort -> one object, created once --+
rejects              -> group -> sort -> rejects/<split>.jsonl                                +-> manifest.json
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from collections.abc import Iterable

import apache_beam as beam

from pipelines.transforms.create_once import write_claimed
from pipelines.transforms.rejects import Reject, reject_lines
from trainer import storage
from trainer.data import kept, records
from trainer.data.finished import in_threads
from trainer.data.manifest import (
    MANIFEST,
    REJECTS,
    Manifest,
    Shard,
    dump_manifest,
    has_manifest,
    load_manifest,
    shard_name,
)
from trainer.errors import UserError
from trainer.storage import claims
from trainer.storage.claims import Claim

Record = tuple[str, str, bytes]  # split, key (unique within the split), serialized example


def hash_key(key: str | bytes) -> int:
    """64-bit hash of a key, the same in every process (Python's ``hash`` is not)."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def shard_of(key: str | bytes, num_shards: int) -> int:
    """Shard of a key."""
    return hash_key(key) % num_shards


def place_record(record: Record, num_shards: dict[str, int]) -> tuple[tuple[str, int], tuple[str, bytes]]:
    """((split, shard), (key, serialized)) of a record."""
    split, key, serialized = record
    return (split, shard_of(key, num_shards[split])), (key, serialized)


def save_shard(
    serialized: Iterable[bytes],
    folder: str,
    split: str,
    shard: int,
    num_shards: dict[str, int],
    claim: Claim | None = None,
) -> Shard:
    """Writes serialized records as one shard."""
    count = itertools.count()
    data = records.frame_records(record for record, _ in zip(serialized, count, strict=False))
    name = shard_name(split, shard, num_shards[split])
    write_claimed(claim, storage.join(folder, name), data)
    return Shard(name=name, split=split, records=next(count), bytes=len(data), crc32c=storage.crc32c(data))


def write_shard(
    group: tuple[tuple[str, int], Iterable], folder: str, num_shards: dict[str, int], claim: Claim | None = None
) -> Shard:
    """Writes one shard, records in key order.

    Args:
        group: (split, shard) and its (key, serialized) pairs.
    """
    (split, shard), items = group
    ordered = sorted(items)
    return save_shard((record for _, record in ordered), folder, split, shard, num_shards, claim)


def write_rejects(group: tuple[str, Iterable[Reject]], folder: str, claim: Claim | None = None) -> tuple[str, int]:
    """Writes ``rejects/<split>.jsonl``; returns this name and its number of lines."""
    split, rejects = group
    data, name = reject_lines(rejects), f"{REJECTS}/{split}.jsonl"
    write_claimed(claim, storage.join(folder, name), data)
    return name, data.count(b"\n")


def write_manifest(
    inputs: int,
    folder: str,
    fields: dict,
    num_shards: dict[str, int],
    shards: Iterable[Shard],
    rejects: Iterable[tuple[str, int]],
    statistics: Iterable[dict],
    claim: Claim | None = None,
) -> None:
    """Writes shards without records, then the manifest of ``inputs`` inputs; everything else it lists exists.

    Raises:
        UserError: there is no record at all, a shard or a file of rejects is gone, or another job has claimed the
            folder.
    """
    listed, lines = list(shards), dict(rejects)
    lost = sum(lines.values())
    if not any(shard.records for shard in listed):
        raise UserError(f"no input can be used: {lost} of {inputs} rejected, see {folder}/{REJECTS}")
    written = {shard.name for shard in listed}
    keys = ((split, shard) for split, count in num_shards.items() for shard in range(count))
    empty = [key for key in keys if shard_name(*key, num_shards[key[0]]) not in written]
    listed += in_threads(lambda key: save_shard((), folder, *key, num_shards, claim), empty)
    listed.sort(key=operator.attrgetter("name"))
    counts = {"inputs": inputs, "records": sum(shard.records for shard in listed), "rejects": lost}
    merged = {key: value for part in statistics for key, value in part.items()}
    manifest = Manifest(**fields, counts=counts, shards=tuple(listed), statistics=merged)
    files = {shard.name: (shard.bytes, shard.crc32c) for shard in listed}
    claims.require_files(folder, {**files, **dict.fromkeys(lines)})
    if not (claim is not None and claim.is_own) and has_manifest(folder):
        # The job has compared a finished dataset with its inputs. What else differs is how an earlier version said it.
        there = load_manifest(folder, manifest.kind)
        is_same = (there.shards, there.counts, there.synsets) == (manifest.shards, manifest.counts, manifest.synsets)
    else:
        is_same = False
    if not is_same:
        write = functools.partial(write_claimed, claim)
        claims.publish(claim, storage.join(folder, MANIFEST), dump_manifest(manifest), write)
    kept.forget(folder)


class FinishDataset(beam.PTransform):
    """Completes a dataset whose shards are written: rejects, empty shards, and last the manifest.

    Input: PCollections of `Shard`, of `Reject`, of one int, the number of inputs, and optionally of dicts that are
    merged into the manifest's statistics.

    Args:
        folder: the dataset's address.
        num_shards: number of shards by split.
        fields: of the `Manifest`, all but counts, shards and statistics.
        claim: on the folder.
    """

    def __init__(self, folder: str, num_shards: dict[str, int], fields: dict, claim: Claim | None = None):
        super().__init__()
        self._folder, self._num_shards, self._fields, self._claim = folder, num_shards, fields, claim

    def expand(self, inputs):
        shards, rejects, count, *rest = inputs
        rejected = (
            rejects
            | "RejectSplit" >> beam.WithKeys(operator.attrgetter("split"))
            | "GroupRejects" >> beam.GroupByKey()
            | "WriteRejects" >> beam.Map(write_rejects, self._folder, self._claim)
        )
        statistics = rest[0] if rest else count.pipeline | "NoStatistics" >> beam.Create([])
        written = [beam.pvalue.AsIter(part) for part in (shards, rejected, statistics)]
        return count | "WriteManifest" >> beam.Map(
            write_manifest, self._folder, self._fields, self._num_shards, *written, self._claim
        )


class WriteDataset(beam.PTransform):
    """Writes records and rejects as a dataset.

    Input: PCollections of `Record`, and what `FinishDataset` takes after the shards.

    Args:
        folder, num_shards, fields, claim: as of `FinishDataset`.
    """

    def __init__(self, folder: str, num_shards: dict[str, int], fields: dict, claim: Claim | None = None):
        super().__init__()
        self._folder, self._num_shards, self._fields, self._claim = folder, num_shards, fields, claim

    def expand(self, inputs):
        examples, *rest = inputs
        shards = (
            examples
            | "Place" >> beam.Map(place_record, self._num_shards)
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteShards" >> beam.Map(write_shard, self._folder, self._num_shards, self._claim)
        )
        return (shards, *rest) | FinishDataset(self._folder, self._num_shards, self._fields, self._claim)
