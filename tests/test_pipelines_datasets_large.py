"""Datasets of many shards and folders of many images: what the bookkeeping holds in memory, and asks of a bucket.

The folder of images is a store made of a formula: names and sizes, no bytes.
"""

from __future__ import annotations

import bisect
import itertools
import os
import tracemalloc

import pytest

from pipelines.image_dataset import parts, sources
from pipelines.image_dataset.parts import list_part
from pipelines.transforms import dataset_writer
from trainer import storage
from trainer.data import finished
from trainer.data.finished import Expected
from trainer.data.manifest import Shard, check_sizes, load_manifest, shard_name
from trainer.storage import selections
from trainer.storage.store import EVERYTHING, Entry

# Bytes of memory for each shard: 100,000 shards in 100 MB.
EACH = 1000


class Numbered:
    """A bucket of images ``in/00000000.jpg``, ``in/00000001.jpg`` ..., which says how many pages were asked for."""

    is_remote, near = True, 4 << 20

    def __init__(self, count: int):
        self.names = Names(count)
        self.pages = itertools.count()

    def normalize(self, address):
        return address.rstrip("/")

    def exists(self, address):
        return False

    def is_there(self, address):
        return address == "many://b/in"

    def folders(self, folder):
        return []

    def changed(self, address, outside=""):
        return 0.0

    def entry(self, address):
        return Entry(address, 0)

    def entries(self, folder, deep, enters=None, lost=None, span=EVERYTHING):
        if folder != "many://b/in":
            return
        begin = bisect.bisect_left(self.names, span.start)
        end = bisect.bisect_left(self.names, span.end) if span.end else len(self.names)
        for first in range(begin, end, 1000):
            next(self.pages)
            for number in range(first, min(first + 1000, end)):
                yield Entry(f"{folder}/{self.names[number]}", number % 7, str(number))


class Names:
    """Names in order, as a sequence."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> str:
        return f"{number:08d}.jpg"


def peak(function):
    """What a function returns, and the most bytes that Python held for it at a time."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_flat_folder_is_listed_in_parts_that_hold_each_file_once(soak, monkeypatch):
    count = 2_000_000 if soak else 20_000
    store = Numbered(count)
    monkeypatch.setitem(storage.SCHEMES, "many", store)
    monkeypatch.setattr(parts, "_MANY", 1000)
    if not soak:  # these take 20 requests
        monkeypatch.setattr(selections, "_WIDE", 4)
    found, memory = peak(lambda: sources.find_source("many://b/in"))
    (part,) = found.parts
    assert (part.count, part.bytes) == (count, sum(number % 7 for number in range(count))) and found.count() == count
    assert memory < 8_000_000, "the launcher holds sums, no names"
    asked = next(store.pages)
    pieces = found.cut()
    assert asked < count / 1000 + 1500 and next(store.pages) - asked < 1500
    sizes, names = [], set()
    for piece in pieces:
        keys = [item.key for item in list_part(piece)]
        sizes.append(len(keys))
        names.update(keys[:: max(1, len(keys) // 50)])
    assert sum(sizes) == count and len(names) >= len(pieces)
    assert len(pieces) >= 8 and max(sizes) <= count / 8


def test_a_folder_that_may_not_be_listed_is_one_reject_of_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_MANY", 1)
    for number in range(50):
        storage.create(f"{tmp_path}/in/{number % 5}/{number}.jpg", b"1")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("/in/3"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = sources.find_source(f"{tmp_path}/in")
    pieces = found.cut()
    listed = [item for piece in pieces for item in list_part(piece)]
    assert len(pieces) == 8 and len(listed) == 41
    (lost,) = (item for item in listed if not isinstance(item, parts.Item))
    assert (lost.source, lost.stage) == (f"{tmp_path}/in/3", "list")


@pytest.fixture
def shards(soak, tmp_path):
    """Shards that are there, as files without bytes."""
    count = 100_000 if soak else 3_000
    found = [
        Shard(name=shard_name("train", n, count), split="train", records=1000, bytes=10**8 + n, crc32c="AAAAAA==")
        for n in range(count)
    ]
    for shard in found:
        with open(tmp_path / shard.name, "wb") as file:
            file.truncate(shard.bytes)
    return found


def test_many_shards_are_written_down_and_looked_through_in_little_memory(shards, tmp_path):
    folder, bound = str(tmp_path), EACH * len(shards) + 2_000_000
    fields = {"kind": "image", "seed": 0, "code_version": "1", "parameters": {}}
    num_shards, inputs = {"train": len(shards)}, 1000 * len(shards)
    rows = [(shard.name, shard.split, shard.records, shard.bytes, shard.crc32c) for shard in shards]
    names = ("name", "split", "records", "bytes", "crc32c")
    del shards[:]

    def write():
        found = (Shard(**dict(zip(names, row, strict=True))) for row in rows)
        dataset_writer.write_manifest(inputs, folder, fields, num_shards, found, [], [])

    memory = {"write": peak(write)[1]}
    there, memory["load"] = peak(lambda: load_manifest(folder, "image"))
    assert [(shard.name, shard.bytes) for shard in there.shards[:2]] == [(row[0], row[3]) for row in rows[:2]]
    memory["check"] = peak(lambda: check_sizes(folder, there.shards))[1]
    damaged, memory["damaged"] = peak(lambda: finished.damaged_files(folder, there))
    expected = Expected(kind="image", seed=0, parameters={}, places=lambda: [f"{folder}/manifest.json"])
    _, memory["outdated"] = peak(lambda: finished.is_outdated(folder, there, expected))
    assert damaged == [] and len(there.shards) == len(rows)
    assert {step: size for step, size in memory.items() if size > bound} == {}
    print({step: f"{size / len(rows):.0f} bytes a shard" for step, size in memory.items()})


def test_a_finished_dataset_in_a_bucket_is_looked_through_without_a_request_for_each_shard(bucket, monkeypatch):
    fields = {"kind": "mask", "seed": 0, "code_version": "1", "parameters": {}}
    made = [dataset_writer.save_shard([b"%d" % n], bucket, "train", n, {"train": 30}) for n in range(30)]
    dataset_writer.write_manifest(30, bucket, fields, {"train": 30}, made, [], [])
    there, asked, store = load_manifest(bucket, "mask"), [], storage.store_of(bucket)
    checksum = type(store).checksum
    monkeypatch.setattr(type(store), "checksum", lambda self, address: asked.append(address) or checksum(self, address))
    assert finished.damaged_files(bucket, there) == [] and asked == []
    storage.overwrite(f"{bucket}/{made[3].name}", storage.read(f"{bucket}/{made[4].name}"))
    assert finished.damaged_files(bucket, there) == [made[3].name] and asked == [f"{bucket}/{made[3].name}"]
