"""A scheme is one class and one line of `SCHEMES`: with a store of the test's own, all that keeps files works."""

from __future__ import annotations

import inspect
import threading

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.inpainting.inputs import common_folder
from pipelines.launch import run_pipeline
from pipelines.pairs.lists import read_pairs
from pipelines.transforms.dataset_writer import WriteDataset
from trainer import checkpoints, presets, storage
from trainer.checkpoints.saver import Saver
from trainer.data.manifest import load_manifest
from trainer.data.shard_cache import ShardCache
from trainer.errors import Outage, UserError
from trainer.storage import retry
from trainer.storage.gcs import GcsStore
from trainer.storage.local import LocalStore
from trainer.storage.objects import ObjectStore
from trainer.storage.store import EVERYTHING, Entry, Store, require_size


class Busy(Outage):
    """What this store raises while it does not answer."""


class MemoryStore:
    """Files in a dict, with their generations; with ``busy``, the first write to every so many files is refused."""

    is_remote, near = True, 1 << 20

    def __init__(self):
        self.files: dict[str, tuple[bytes, int]] = {}
        self.generation, self.refused, self.busy = 0, set(), 0
        self.lock = threading.Lock()

    def normalize(self, address):
        return address.rstrip("/")

    def entries(self, folder, deep, enters=None, lost=None, span=EVERYTHING):
        for address, (data, generation) in sorted(self.files.items()):
            name = address[len(folder) + 1 :]
            if address.startswith(folder + "/") and (deep or "/" not in name) and span.holds(name):
                yield Entry(address, len(data), str(generation))

    def folders(self, folder):
        below = [found.address[len(folder) + 1 :] for found in self.entries(folder, True)]
        return list({name.partition("/")[0] for name in below if "/" in name})

    def exists(self, address):
        return address in self.files

    def is_there(self, address):
        return any(f"{name}/".startswith(f"{address}/") for name in self.files)

    def entry(self, address):
        data, generation = self.files.get(address, (b"", ""))
        return Entry(address, len(data), str(generation))

    def checksum(self, address):
        return storage.crc32c(self.read_range(address, 0, 1 << 40))

    def stamp(self, address, own=False):
        return ""

    def changed(self, address, outside=""):
        below = [file for file in self.files if file == address or file.startswith(address + "/")]
        return max((float(self.files[file][1]) for file in below if not file.startswith(f"{outside}/")), default=0.0)

    def read_versioned(self, address, max_bytes=None):
        data, generation = self.files.get(address, (None, 0))
        require_size(address, len(data or b""), max_bytes)
        return data, generation

    def read_range(self, address, start, length):
        if address not in self.files:
            raise storage.NotFound(f"{address} does not exist")
        return self.files[address][0][start : start + length]

    def require_writable(self, folder):
        pass

    def create(self, address, data):
        try:
            self.replace(address, data, 0)
        except storage.Conflict:
            raise storage.AlreadyExists(address) from None

    def replace(self, address, data, generation):
        with self.lock:
            if self.busy and len(self.files) % self.busy == 0 and address not in self.refused:
                self.refused.add(address)
                raise Busy(address)
            if self.files.get(address, (None, 0))[1] != generation:
                raise storage.Conflict(address)
            self.generation += 1
            self.files[address] = (data, self.generation)

    def overwrite(self, address, data):
        self.replace(address, data, self.read_versioned(address)[1])

    def delete(self, address):
        self.files.pop(address, None)

    def confine(self, folder):
        pass

    def require_confined(self, address):
        pass

    def sweep(self, folder, owns):
        pass

    def remove_folder(self, folder):
        pass


@pytest.fixture
def store(monkeypatch):
    """The store of ``mem://`` addresses."""
    made = MemoryStore()
    monkeypatch.setitem(storage.SCHEMES, "mem", made)
    return made


@pytest.mark.parametrize("kind", [LocalStore, GcsStore, ObjectStore, MemoryStore])
def test_stores_have_what_the_contract_asks_for(kind):
    for name, method in vars(Store).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            ours, theirs = inspect.signature(method), inspect.signature(getattr(kind, name))
            assert list(ours.parameters) == list(theirs.parameters), name
    assert isinstance(kind.is_remote, bool) and isinstance(kind.near, int)


def test_unknown_schemes_are_refused_wherever_they_are_used(store):
    for use in (storage.normalize, storage.find, storage.read, storage.exists, storage.is_remote):
        with pytest.raises(
            UserError, match=r"a local path or gs://bucket/name or .* or mem://bucket/name. Received 'ftp://b/x'"
        ):
            use("ftp://b/x")


def test_files_are_found(store):
    for name in ("a.png", "deep/er/b.png", "deep/.hidden", "c.txt"):
        storage.create(f"mem://b/{name}", b"12")
    assert storage.find("mem://b/") == ["mem://b/a.png", "mem://b/c.txt", "mem://b/deep/er/b.png"]
    assert storage.select("mem://b/**/*.png").find() == ["mem://b/a.png", "mem://b/deep/er/b.png"]
    assert storage.select("mem://b/*").find() == ["mem://b/a.png", "mem://b/c.txt"]
    assert list(storage.scan("mem://b/a.png")) == [("mem://b/a.png", 2)]
    assert storage.folders("mem://b") == ["deep"] and storage.select("mem://b/deep/*").base == "mem://b/deep"
    assert storage.select("mem://b/a.png").base == "mem://b"
    with pytest.raises(storage.Corrupt):
        storage.read("mem://b/a.png", storage.crc32c(b"21"))


def test_lists_of_pairs(store):
    storage.create("mem://b/lists/pairs.csv", b"image,mask\nin/a.jpg,mem://c/m.png\n/b.jpg,gs://ddd/m.png\n")
    pairs = read_pairs("mem://b/lists/pairs.csv")
    assert pairs == [("mem://b/lists/in/a.jpg", "mem://c/m.png"), ("/b.jpg", "gs://ddd/m.png")]
    assert common_folder(["mem://b/x/1/a", "mem://b/x/2/b"]) == "mem://b/x"
    with pytest.raises(UserError, match="Received images of several"):
        common_folder(["mem://b/x", "mem://c/x"])


def test_weights_of_the_perceptual_network(store):
    assert presets.override(presets.PRESETS["demo"], ["loss.vgg=keras:mem://b/vgg16.h5"]).loss.vgg.endswith("vgg16.h5")


def test_a_dataset_is_written_and_read_through_the_cache(store, tmp_path):
    records = [("train", f"key-{i}", b"record %d" % i) for i in range(9)]
    fields = {"kind": "mask", "seed": 3, "code_version": "1", "parameters": {}}

    def build(pipeline):
        found, rejects = pipeline | "Found" >> beam.Create(records), pipeline | "Rejects" >> beam.Create([])
        count = pipeline | "Count" >> beam.Create([len(records)])
        (found, rejects, count) | WriteDataset("mem://b/set", {"train": 2}, fields)

    run_pipeline(PipelineOptions([], runner="FnApiRunner"), build)
    shards = load_manifest("mem://b/set", "mask").split("train")
    assert {f"mem://b/set/{shard.name}" for shard in shards} < set(store.files)
    cache, found = ShardCache(1 << 20, str(tmp_path / "cache")), []
    for shard in shards:
        cache.prepare("mem://b/set", shard)
        opened = cache.open("mem://b/set", shard)
        found += [opened.read(number) for number in range(shard.records)]
        opened.close()
    cache.close()
    assert sorted(found) == sorted(data for _, _, data in records)
    assert len(list((tmp_path / "cache").glob("*.tfrecord"))) == 2  # as of any store that is remote


@pytest.mark.parametrize("busy", [0, 1, 3])
def test_checkpoints_are_saved_and_restored_through_refusals(store, busy):
    store.busy = busy
    config = presets.override(presets.PRESETS["demo"], ["checkpoint.keep=2"])
    with Saver("mem://b/run", config) as saver:
        for step in (1, 2, 3):
            saver.save({"model": {"w": np.full(3, step)}, "optimizer": {}}, {"step": step})
    assert bool(store.refused) == bool(busy)
    found = checkpoints.load_newest("mem://b/run").checkpoint
    assert found.state == {"step": 3}
    np.testing.assert_array_equal(found.variables["model"]["w"], [3, 3, 3])
    assert len(storage.folders("mem://b/run/checkpoints")) == 2


def test_an_outage_alone_is_worth_another_attempt(store):
    store.busy = 1
    with pytest.raises(Busy):
        retry.create("mem://b/x", b"1", 0)
    with pytest.raises(ZeroDivisionError):
        retry.persist(lambda: 1 / 0, 60)
