"""Parts of files, sizes, checksums and folders: the same answers in a local folder and in a bucket."""

from __future__ import annotations

import os

import pytest

from trainer import storage
from trainer.storage.local import LocalStore

DATA = bytes(range(256)) * 5000  # more than a checksum's block


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (0, len(DATA)), (255, 2), (len(DATA) - 1, 1), (len(DATA) - 3, 9), (len(DATA), 5), (7, 0)],
)
def test_ranges(start, length, place):
    storage.create(f"{place}/file", DATA)
    assert storage.read_range(f"{place}/file", start, length) == DATA[start : start + length]


def test_what_is_not_there(place):
    for use in (lambda: storage.read_range(f"{place}/no", 0, 1), lambda: storage.checksum(f"{place}/no")):
        with pytest.raises(storage.NotFound, match=f"{place}/no does not exist"):
            use()


def test_sizes_and_checksums(place):
    for name, data in {"file": DATA, "file2": b"2", "empty": b""}.items():
        storage.create(f"{place}/{name}", data)
        assert storage.entry(f"{place}/{name}").size == len(data)
        assert storage.checksum(f"{place}/{name}") == storage.crc32c(data)
    assert dict(storage.scan(place)) == {f"{place}/file": len(DATA), f"{place}/file2": 1, f"{place}/empty": 0}
    assert dict(storage.select(f"{place}/f*2").scan()) == {f"{place}/file2": 1}
    assert dict(storage.scan(f"{place}/file")) == {f"{place}/file": len(DATA)}


def test_folders(place):
    for name in ("b/x/1", "a/1", "a/2", ".c/1", "file"):
        storage.create(f"{place}/{name}", b"")
    assert storage.folders(place) == ["a", "b"] and storage.folders(f"{place}/b") == ["x"]
    assert storage.folders(f"{place}/a") == storage.folders(f"{place}/no") == []


def test_a_shallow_pattern_lists_one_folder(tmp_path, monkeypatch):
    storage.create(f"{tmp_path}/a", b"")
    storage.create(f"{tmp_path}/deep/er/b", b"")
    visited, entry = [], LocalStore.entry
    monkeypatch.setattr(LocalStore, "entry", lambda self, path: visited.append(path) or entry(self, path))
    assert storage.select(f"{tmp_path}/*").find() == visited == [f"{tmp_path}/a"]


def test_links_to_nowhere_have_no_size(tmp_path):
    os.symlink(tmp_path / "no", tmp_path / "link")
    assert list(storage.scan(str(tmp_path))) == [(f"{tmp_path}/link", 0)]


def test_only_buckets_are_remote():
    assert storage.near("/a") == 0 < storage.near("gs://bucket/a")
    assert [storage.is_remote(address) for address in ("/a", "a/b", "/a://b", "gs://bucket/a")] == [False] * 3 + [True]
