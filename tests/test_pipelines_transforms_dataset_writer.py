"""From keyed records to a dataset: shards against `b2sum`, TensorFlow's reader and the server's checksums."""

from __future__ import annotations

import hashlib
import itertools
import json

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.launch import run_pipeline
from pipelines.transforms import create_once, dataset_writer
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.data.manifest import has_manifest, load_manifest
from trainer.errors import UserError
from trainer.storage import gcs

# The last two columns are the digest that `printf '%s' KEY | b2sum -l 64` prints, modulo 8 and 128.
GOLDEN = [
    ("a", "40f89e395b66422f", 7, 47),
    ("n01440764/n01440764_10026.JPEG", "ade55b8ee23d6e2c", 4, 44),
    ("000000000063", "e88171bf581d6779", 1, 121),
    ("é.png", "48da5623daf85f9e", 6, 30),
]
FIELDS = {"kind": "mask", "seed": 3, "code_version": "1", "parameters": {"count": 12}}
RECORDS = [("train", f"key-{i}", b"record %d" % i * i) for i in range(9)] + [("val", "key-0", b"other")]
NUM_SHARDS = {"train": 16, "val": 2}  # more than records, so that some are empty
REJECTS = [
    Reject(source="in/z.jpg", stage="read", error="UserError: gone", split="train"),
    Reject(source="in/b.jpg", stage="decode", error="ImageError: empty", split="train"),
]


def write_dataset(folder, found=RECORDS, rejects=REJECTS, inputs=12):
    def build(pipeline):
        found_, rejects_ = pipeline | "Found" >> beam.Create(found), pipeline | "Rejects" >> beam.Create(rejects)
        count = pipeline | "Count" >> beam.Create([inputs])
        (found_, rejects_, count) | dataset_writer.WriteDataset(str(folder), NUM_SHARDS, FIELDS)

    run_pipeline(PipelineOptions([], runner="FnApiRunner"), build)


def contents(folder) -> dict[str, bytes]:
    return {storage.relative(a, str(folder)): storage.read(a) for a in storage.find(str(folder))}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder that one undisturbed run has written."""
    folder = tmp_path_factory.mktemp("written") / "set"
    write_dataset(folder)
    return folder


@pytest.mark.parametrize(("key", "digest", "of_8", "of_128"), GOLDEN)
def test_shard_of_is_the_same_in_every_process(key, digest, of_8, of_128):
    # pytest's own process has a random hash seed, so Python's hash() would pass once in many runs.
    assert int(digest, 16) % 8 == of_8 and int(digest, 16) % 128 == of_128
    assert (dataset_writer.shard_of(key, 8), dataset_writer.shard_of(key, 128), dataset_writer.shard_of(key, 1)) == (
        of_8,
        of_128,
        0,
    )


def test_shards_are_balanced():
    counts = [0] * 8
    for i in range(4000):
        counts[dataset_writer.shard_of(f"{i:012d}", 8)] += 1
    assert 400 < min(counts) and max(counts) < 600  # 500 each, and a standard deviation of 21


def test_a_shard_holds_its_records_in_key_order_whatever_order_they_come_in(tmp_path):
    items = [("b", b"2"), ("a", b"1"), ("c", b""), ("a/1", b"\xff" * 300)]
    written = set()
    for number, order in enumerate(itertools.permutations(items)):
        if number % 24 == 0:  # five of the 120, with each item first once
            info = dataset_writer.write_shard((("val", 1), iter(order)), str(tmp_path / str(number)), {"val": 3})
            written.add((tmp_path / str(number) / "val-00001-of-00003.tfrecord").read_bytes())
    (data,) = written
    path = str(tmp_path / "0" / info.name)
    assert [r.numpy() for r in tf.data.TFRecordDataset(path)] == [b"1", b"\xff" * 300, b"2", b""]
    assert (info.records, info.bytes, info.split) == (4, len(data), "val")


def test_an_empty_shard_is_an_empty_file(tmp_path):
    info = dataset_writer.write_shard((("train", 0), []), str(tmp_path), {"train": 1})
    assert (tmp_path / "train-00000-of-00001.tfrecord").read_bytes() == b""
    assert info.records == 0 and info.crc32c == "AAAAAA=="


def test_checksum_is_the_servers(bucket):
    info = dataset_writer.write_shard((("train", 0), [("k", b"record" * 1000)]), f"{bucket}/d", {"train": 1})
    blob = gcs.client().bucket(bucket.removeprefix("gs://")).get_blob(f"d/{info.name}")
    assert (blob.crc32c, blob.size) == (info.crc32c, info.bytes)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_retry_may_write_the_same_bytes_and_no_others(where, tmp_path, request):
    folder = str(tmp_path) if where == "folder" else request.getfixturevalue("bucket")
    address = f"{folder}/deep/file"
    create_once.create_or_compare(address, b"first")
    create_once.create_or_compare(address, b"first")
    for other in (b"other", b"firs", b"first ", b""):
        with pytest.raises(UserError, match="file exists with other contents: --overwrite"):
            create_once.create_or_compare(address, other)
    assert storage.read(address) == b"first"
    assert [storage.relative(a, folder) for a in storage.find(folder)] == ["deep/file"]


def test_dataset(written):
    names = [f"train-{i:05d}-of-00016.tfrecord" for i in range(16)] + [f"val-0000{i}-of-00002.tfrecord" for i in (0, 1)]
    assert sorted(contents(written)) == ["manifest.json", "rejects/train.jsonl", *names]
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["counts"] == {"inputs": 12, "records": 10, "rejects": 2}
    assert {key: manifest[key] for key in FIELDS} == FIELDS and manifest["schema_version"] == 1
    assert [shard["name"] for shard in manifest["shards"]] == names
    for shard in manifest["shards"]:
        split, number, of = shard["split"], int(shard["name"].split("-")[1]), NUM_SHARDS[shard["split"]]
        found = [r.numpy() for r in tf.data.TFRecordDataset(str(written / shard["name"]))]
        digests = {k: hashlib.blake2b(k.encode(), digest_size=8).hexdigest() for s, k, _ in RECORDS if s == split}
        keys = sorted(key for key, digest in digests.items() if int(digest, 16) % of == number)
        assert found == [record for key in keys for s, k, record in RECORDS if (s, k) == (split, key)]
        assert (shard["records"], shard["bytes"]) == (len(found), (written / shard["name"]).stat().st_size)
    assert min(shard["records"] for shard in manifest["shards"]) == 0  # the case of an empty shard is in here
    lines = (written / "rejects" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["in/b.jpg", "in/z.jpg"]
    expected = {"source": "in/z.jpg", "member": "", "stage": "read", "error": "UserError: gone", "split": "train"}
    assert json.loads(lines[1]) == expected


def test_order_changes_no_byte_and_the_manifest_is_last(written, tmp_path, monkeypatch):
    created, create = [], storage.create
    monkeypatch.setattr(storage, "create", lambda address, data: (create(address, data), created.append(address)))
    write_dataset(tmp_path / "set", RECORDS[::-1], REJECTS[::-1])
    assert contents(tmp_path / "set") == contents(written)
    assert len(created) == 20 and created[-1].endswith("/manifest.json")


@pytest.mark.parametrize("writes", [0, 7, 19])
def test_a_job_that_died_is_refused_and_finishes_when_run_again(writes, written, tmp_path, monkeypatch):
    create, left = storage.create, [writes]

    def create_until_death(address, data):
        if left[0] == 0:
            raise ZeroDivisionError("the machine is gone")
        left[0] -= 1
        create(address, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", create_until_death)
        with pytest.raises(Exception, match="the machine is gone"):
            write_dataset(tmp_path / "set")
    assert len(contents(tmp_path / "set")) == writes
    expected = "does not exist" if writes == 0 else "has no manifest.json: the job that writes this .* did not finish"
    with pytest.raises(UserError, match=expected):
        load_manifest(str(tmp_path / "set"), "mask")
    write_dataset(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(written)


def test_a_job_that_died_does_not_finish_as_another(written, tmp_path):
    (tmp_path / "set").mkdir()
    for name, data in contents(written).items():
        if name.startswith("train"):
            (tmp_path / "set" / name).write_bytes(data)
    with pytest.raises(UserError, match="exists with other contents"):
        write_dataset(tmp_path / "set", [(split, key, record + b"!") for split, key, record in RECORDS])
    assert not has_manifest(str(tmp_path / "set"))


def test_inputs_that_got_lost_leave_no_dataset(tmp_path):
    with pytest.raises(Exception, match="inputs = records . rejects"):
        write_dataset(tmp_path, inputs=13)
    assert not has_manifest(str(tmp_path))
