"""Manifests: written, read back, and refused where they do not describe a finished dataset."""

from __future__ import annotations

import dataclasses
import json

import pytest

from trainer import storage
from trainer.data.manifest import Manifest, Shard, dump_manifest, has_manifest, load_manifest, shard_name
from trainer.errors import UserError


def make_manifest(**changes):
    shards = (
        Shard(name="train-00000-of-00002.tfrecord", split="train", records=3, bytes=300, crc32c="AAAAAA=="),
        Shard(name="train-00001-of-00002.tfrecord", split="train", records=0, bytes=0, crc32c="AAAAAA=="),
        Shard(name="val-00000-of-00001.tfrecord", split="val", records=2, bytes=200, crc32c="4waSgw=="),
    )
    fields = {
        "kind": "image",
        "parameters": {"input": "gs://b/in", "num_shards": {"train": 2, "val": 1}},
        "seed": 7,
        "code_version": "0.1.0",
        "counts": {"inputs": 6, "records": 5, "rejects": 1},
        "shards": shards,
        "synsets": ("n01", "n02"),
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture(params=["folder", "bucket"])
def folder(request, tmp_path):
    return str(tmp_path / "data") if request.param == "folder" else request.getfixturevalue("bucket") + "/data"


def write(folder, data):
    storage.create(folder + "/manifest.json", data)


def edited(**changes):
    return json.dumps({**json.loads(dump_manifest(make_manifest())), **changes}).encode()


def test_round_trip(folder):
    assert not has_manifest(folder)
    write(folder, dump_manifest(make_manifest()))
    assert has_manifest(folder)
    assert load_manifest(folder, "image") == make_manifest()


def test_manifest_holds_what_the_contract_says():
    fields = json.loads(dump_manifest(make_manifest()))
    assert fields["schema_version"] == 1
    assert (fields["kind"], fields["seed"], fields["code_version"]) == ("image", 7, "0.1.0")
    assert fields["counts"] == {"inputs": 6, "records": 5, "rejects": 1}
    assert fields["parameters"]["num_shards"] == {"train": 2, "val": 1}
    assert fields["shards"][2] == {
        "name": "val-00000-of-00001.tfrecord",
        "split": "val",
        "records": 2,
        "bytes": 200,
        "crc32c": "4waSgw==",
    }
    assert dump_manifest(make_manifest()) == dump_manifest(make_manifest())


def test_shard_names():
    assert shard_name("train", 0, 128) == "train-00000-of-00128.tfrecord"
    assert shard_name("val", 12345, 99999) == "val-12345-of-99999.tfrecord"


def test_splits():
    manifest = make_manifest()
    assert [shard.name[:11] for shard in manifest.split("train")] == ["train-00000", "train-00001"]
    assert [shard.records for shard in manifest.split("val")] == [2]
    with pytest.raises(UserError, match="split: expected one of \\['train', 'val'\\]. Received 'test'"):
        manifest.split("test")


@pytest.mark.parametrize(
    "counts",
    [
        {"inputs": 6, "records": 5, "rejects": 0},
        {"inputs": 5, "records": 5, "rejects": 1},
        {"inputs": 7, "records": 6, "rejects": 1},
    ],
)
def test_counts_must_add_up(counts, folder):
    with pytest.raises(ValueError, match="inputs = records \\+ rejects and 5 records"):
        make_manifest(counts=counts)
    write(folder, edited(counts=counts))
    with pytest.raises(UserError, match="manifest.json is not a dataset manifest: .*5 records"):
        load_manifest(folder, "image")


def test_no_folder(folder):
    with pytest.raises(storage.NotFound, match=f"image dataset {folder} does not exist"):
        load_manifest(folder, "image")


def test_no_bucket(bucket):
    with pytest.raises(storage.NotFound, match=f"{bucket}-not does not exist"):
        load_manifest(bucket + "-not/data", "image")


def test_no_manifest_is_no_dataset(folder):
    storage.create(folder + "/train-00000-of-00001.tfrecord", b"")
    with pytest.raises(UserError, match=f"{folder} has no manifest.json: the job .* did not finish"):
        load_manifest(folder, "image")


def test_another_kind(folder):
    write(folder, dump_manifest(make_manifest()))
    with pytest.raises(UserError, match=f"{folder}: expected a dataset of mask records. Received image records."):
        load_manifest(folder, "mask")


@pytest.mark.parametrize("changes", [{}, {"color": 1}, {"shards": "elsewhere"}])
def test_another_schema_version(changes, folder):
    # A later version may hold anything: its number is what the user has to know.
    write(folder, edited(schema_version=2, **changes))
    with pytest.raises(UserError, match=f"{folder}: expected schema version 1. Received 2"):
        load_manifest(folder, "image")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"3",
        b"[]",
        b"{}",
        b"\xff\xfe",
        edited(shards=None),
        edited(shards=[{"name": "a"}]),
        edited(counts=None),
        edited(counts={}),
        edited(color=1),
        edited(schema_version=None),
    ],
)
def test_garbage_is_refused_in_one_line(data, tmp_path):
    folder = str(tmp_path)
    write(folder, data)
    with pytest.raises(UserError, match=f"^{folder}"):
        load_manifest(folder, "image")


NAME = "val-00000-of-00001.tfrecord"


def with_shard(**changes):
    """The manifest, with its last shard, of two records, changed."""
    shards = json.loads(dump_manifest(make_manifest()))["shards"]
    records = changes.get("records", 2)
    total = 3 + records if type(records) is int else 5
    counts = {"inputs": total, "records": total, "rejects": 0}
    return edited(shards=[*shards[:2], shards[2] | changes], counts=counts)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../../etc/passwd", f"../{NAME}", f"/data/{NAME}", f"gs://other/{NAME}", f"a/{NAME}", "", "val"]
    + [f"{NAME}\0", f"{NAME}\n", f".{NAME}", 5, [], {}, None, "val-00001-of-00001.tfrecord", "val-0-of-1.tfrecord"]
    + ["val-\u0660\u0660\u0660\u0660\u0660-of-00001.tfrecord", "other-00000-of-00001.tfrecord"],
)
def test_shards_are_files_of_the_folder_and_named_as_such(name, tmp_path):
    write(str(tmp_path), with_shard(name=name))
    with pytest.raises(UserError, match="manifest.json is not a dataset manifest: .*(shards named as|expected a text)"):
        load_manifest(str(tmp_path), "image")


@pytest.mark.parametrize("split", ["..", "../val", "/val", "gs://other/val", "va\0l", "va\x1b[31ml"])
def test_no_split_leads_elsewhere(split, tmp_path):
    write(str(tmp_path), with_shard(split=split, name=shard_name(split, 0, 1)))
    with pytest.raises(UserError, match="expected shards named as"):
        load_manifest(str(tmp_path), "image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes": -1}, r"shards\[2\].bytes: expected 0 or more"),
        ({"bytes": 10**30}, r"shards\[2\].bytes: expected \d+ or less"),
        ({"bytes": 31}, "16 bytes or more for each record. Received 2 records in 31 bytes"),
        ({"records": 10**18}, r"shards\[2\].records: expected \d+ or less"),
        ({"records": 10**15}, "16 bytes or more for each record. Received 1000000000000000 records in 200 bytes"),
        ({"records": 2.0}, r"shards\[2\].records: expected an integer"),
        ({"crc32c": "AAAA"}, r"shards\[2\].crc32c: expected"),
        ({"name": "train-00000-of-00002.tfrecord", "split": "train"}, "expected each shard once"),
    ],
)
def test_shards_are_as_large_as_their_records(changes, message, tmp_path):
    write(str(tmp_path), with_shard(**changes))
    with pytest.raises(UserError, match=f"manifest.json is not a dataset manifest: .*{message}"):
        load_manifest(str(tmp_path), "image")


@pytest.mark.parametrize("key", ["parameters", "statistics", "seed", "code_version", "synsets", "kind"])
def test_no_value_is_null(key, tmp_path):
    write(str(tmp_path), edited(**{key: None}))
    with pytest.raises(UserError, match=f"manifest.json is not a dataset manifest: {key}: expected .* Received None"):
        load_manifest(str(tmp_path), "image")


def test_a_manifest_of_as_many_shards_as_there_are_names_is_read(tmp_path):
    shards = [
        {"name": shard_name("train", n, 99_999), "split": "train", "records": 0, "bytes": 0} for n in range(99_999)
    ]
    counts = {"inputs": 0, "records": 0, "rejects": 0}
    write(str(tmp_path), edited(shards=[shard | {"crc32c": "AAAAAA=="} for shard in shards], counts=counts))
    assert len(load_manifest(str(tmp_path), "image").split("train")) == 99_999


def test_manifests_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_manifest().seed = 1
