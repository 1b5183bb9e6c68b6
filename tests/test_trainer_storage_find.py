"""Finding files: the same answers in a local folder and in a bucket, and pathlib's where it has one."""

from __future__ import annotations

import clouds
import pytest

from trainer import storage
from trainer.errors import UserError

FILES = [
    "a.png",
    "b.jpg",
    "ab.png",
    "é (1)+.png",
    "c[1].png",
    "x-1.png",
    "x-2.png",
    "x-10.png",
    "train/a.png",
    "train/n01/a.png",
    "train/n01/b.JPEG",
    "train/n02/deep/a.png",
    "trainer/z.png",
    ".hidden.png",
    "train/.hidden.png",
    ".cache/a.png",
    "train/.cache/deep/a.png",
]
SHOWN = sorted(name for name in FILES if not name.startswith(".") and "/." not in name)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def grow_tree(root):
    for name in FILES:
        storage.create(storage.join(root, name), name.encode())


def names(addresses, root):
    assert all(address.startswith(root + "/") for address in addresses)
    return [address[len(root) + 1 :] for address in addresses]


def test_find_a_folder_or_a_file(place):
    grow_tree(place)
    assert names(storage.find(place), place) == SHOWN
    assert storage.find(place + "/") == storage.find(place)
    # Not what merely begins with the same letters: trainer/z.png.
    assert names(storage.find(place + "/train"), place) == [name for name in SHOWN if name.startswith("train/")]
    assert storage.find(place + "/train/a.png") == [place + "/train/a.png"]
    assert storage.find(place + "/train/a") == []
    # A hidden name that is asked for is found.
    assert storage.find(place + "/.hidden.png") == [place + "/.hidden.png"]
    assert storage.find(place + "/.cache") == storage.select(place + "/.cache/*").find() == [place + "/.cache/a.png"]


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.png",
        "?.png",
        "x-?.png",
        "*/*.png",
        "train/*",
        "train/*/*.png",
        "**/*",
        "**/a.png",
        "**/*.png",
        "train/**/*.png",
        "**/n0?/*",
        "tr*n/**/*.[pJ]*",
        "[ab].*",
        "[!a].*",
        "[a-b]*.png",
        "train/n0[!1]/**/*",
        "train[!x]a.png",
        "c[[]1].png",
        "é (1)+.*",
        "x-[z-a].png",
        "[^a].png",
        "nothing/**/*.png",
    ],
)
def test_find_agrees_with_pathlib(pattern, tmp_path, bucket):
    places = [str(tmp_path), bucket]
    for root in places:
        grow_tree(root)
    expected = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern) if path.is_file()}
    for root in places:
        assert names(storage.select(f"{root}/{pattern}").find(), root) == sorted(expected & set(SHOWN))


def test_two_stars_at_the_end_are_everything_below(place):
    grow_tree(place)
    assert storage.select(place + "/**").find() == storage.find(place)
    assert storage.select(place + "/train/**").find() == storage.find(place + "/train")


def test_find_the_whole_bucket(bucket):
    grow_tree(bucket)
    assert names(storage.find(bucket), bucket) == names(storage.find(bucket + "/"), bucket) == SHOWN


def test_objects_that_stand_for_folders_are_no_files(bucket, server):
    clouds.chosen.put(server, f"{bucket[5:]}/photos/", b"")
    storage.create(bucket + "/photos/a.png", b"")
    assert storage.find(bucket + "/photos") == storage.select(bucket + "/photos/*").find() == [bucket + "/photos/a.png"]


def test_base_of(place):
    grow_tree(place)
    assert storage.select(place + "/train").base == storage.select(place + "/train/").base == place + "/train"
    assert storage.select(place + "/train/*/*.png").base == place + "/train"
    assert storage.select(place + "/tr*").base == place
    assert storage.select(place + "/train/n01/a.png").base == place + "/train/n01"
    for address in (place, place + "/**/a.png", place + "/train/n0[12]/*", place + "/a.png"):
        base = storage.select(address).base
        found = storage.select(address).find()
        assert found and all(storage.join(base, storage.relative(name, base)) == name for name in found)
        assert not any(storage.relative(name, base).startswith("..") for name in found)


def test_normalize(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.normalize("~/runs/a/") == "/home/somebody/runs/a"
    assert storage.normalize("runs/../b") == str(tmp_path / "b")
    assert storage.normalize("gs://bucket/runs/a//") == "gs://bucket/runs/a"
    assert storage.normalize("gs://bucket/") == "gs://bucket"


@pytest.mark.parametrize(
    "address", ["", "b2://bucket/a", "gs://", "gs:///a", "gs://Bucket/a", "gs://b*/a", "gs://-b/a"]
)
def test_malformed_addresses_are_refused(address):
    with pytest.raises(UserError, match="expected .*gs://bucket/name.* Received "):
        storage.normalize(address)
