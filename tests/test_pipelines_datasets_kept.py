"""A job that was killed, given again: the shards that are there are kept, and their inputs are not read again.

What must come out is what an undisturbed job makes; what was read is counted.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from picture_files import noise, save
from pipelines import build_imagenet
from pipelines.image_dataset.convert import made_of
from pipelines.image_dataset.parts import list_part
from pipelines.image_dataset.sources import find_source
from trainer import storage
from trainer.command import SOME_REJECTED
from trainer.data import kept
from trainer.data.manifest import shard_name
from trainer.errors import UserError

SHARDS = 10


class Killed(Exception):
    """The machine is gone."""


def build(source, output, *options: str) -> int:
    shards = ["--num-shards", str(SHARDS)]
    return build_imagenet.main(["--input", str(source), "--output", str(output), *shards, *options])


def contents(folder: str) -> dict[str, bytes]:
    """Every file, hidden ones, too."""
    hidden = [storage.join(folder, name) for name in (kept.FOLDER, ".claims")]
    found = [*storage.find(folder), *(address for place in hidden for address in storage.find(place))]
    return {storage.relative(address, folder): storage.read(address) for address in found}


@pytest.fixture
def kill(monkeypatch):
    """Lets a job write so many shards, and then fails."""

    def run(source, output, shards: int, *options: str) -> None:
        create, left = storage.create, [shards]

        def create_until_death(address, data):
            if left[0] == 0:
                raise Killed("the machine is gone")
            left[0] -= 1
            create(address, data)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "create", create_until_death)
            with pytest.raises(Exception, match="the machine is gone"):
                build(source, output, *options)

    return run


@pytest.fixture
def reads(monkeypatch):
    """Names of the inputs that were read, in order; of what lies in a folder ``in``."""
    found = []

    def watched(function):
        def call(address, *arguments, **keywords):
            if "/in/" in address:
                found.append(address.rpartition("/in/")[2])
            return function(address, *arguments, **keywords)

        return call

    monkeypatch.setattr(storage, "read", watched(storage.read))
    monkeypatch.setattr(storage, "read_range", watched(storage.read_range))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 photographs, and 10 files that are none."""
    folder = tmp_path_factory.mktemp("photos") / "in"
    for number in range(40):
        save(f"{folder}/{number % 3}/{number:02d}.png", noise(8, 8, 3, number))
    for number in range(10):
        (folder / f"{number:02d}.txt").write_text("no image")
    _age(folder)
    return folder


def _age(folder) -> None:
    """Makes files look written long enough ago for the clock of any file system."""
    time.sleep(0.2)
    assert all(storage.entry(address).version for address in storage.find(str(folder)))


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """What one undisturbed job writes."""
    folder = f"{tmp_path_factory.mktemp('whole')}/set"
    assert build(photos, folder) == SOME_REJECTED
    return contents(folder)


def copied(photos, place: str) -> str:
    """The address of a copy of the photographs."""
    for path in photos.rglob("*.*"):
        storage.create(f"{place}/in/{path.relative_to(photos).as_posix()}", path.read_bytes())
    if not storage.is_remote(place):
        _age(f"{place}/in")
    return f"{place}/in"


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def at(data: bytes, place: str, photos) -> bytes:
    return data.replace(f"{place}/in".encode(), str(photos).encode())


def test_what_is_there_is_kept_and_its_inputs_are_not_read(place, photos, whole, kill, reads, capsys):
    source, output = copied(photos, place), f"{place}/set"
    kill(source, output, 9)
    assert len([name for name in contents(output) if name.startswith(kept.FOLDER)]) == 9
    reads.clear()
    assert build(source, output) == SOME_REJECTED
    assert f"{output}: a job that did not end has left 9 shards" in capsys.readouterr().err
    found = {name: at(data, place, photos) for name, data in contents(output).items()}
    assert found == whole  # rejects of what was not read again and the manifest, too; and no record is left
    assert 0 < len(set(reads)) <= 50 * 0.3 and len(reads) < 2 * len(set(reads)) + 4


def test_all_shards_are_kept_of_a_job_that_had_only_its_manifest_to_write(place, photos, whole, kill, reads):
    source, output = copied(photos, place), f"{place}/set"
    kill(source, output, SHARDS + 1)  # and the file of rejects
    reads.clear()
    assert build(source, output) == SOME_REJECTED
    assert {name: at(data, place, photos) for name, data in contents(output).items()} == whole
    assert not [name for name in reads if name.endswith(("png", "txt"))]


CHANGES = {
    "edited in place, its time set back": lambda path, other: _edit(path, other.read_bytes()),
    "replaced by another": lambda path, other: _replace(path, other.read_bytes()),
    "removed": lambda path, other: path.unlink(),
    "renamed": lambda path, other: path.rename(path.with_name("zz.png")),
}


def _edit(path: Path, data: bytes) -> None:
    before = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_of_inputs_that_changed_since_is_not_kept(change, photos, tmp_path, kill):
    source, output = copied(photos, str(tmp_path)), tmp_path / "set"
    kill(source, output, SHARDS)
    CHANGES[change](tmp_path / "in" / "1" / "01.png", tmp_path / "in" / "2" / "02.png")
    with pytest.raises(UserError, match=r"-of-00010.tfrecord exists with other contents: --overwrite, or choose"):
        build(source, output)
    assert build(source, output, "--overwrite") == SOME_REJECTED
    fresh = tmp_path / "fresh"
    build(source, fresh)
    assert contents(str(output)) == contents(str(fresh))


def test_an_object_that_is_another_since_is_noticed(bucket, photos, kill):
    source, output = copied(photos, bucket), f"{bucket}/set"
    kill(source, output, SHARDS)
    storage.overwrite(f"{source}/1/01.png", storage.read(f"{source}/2/02.png"))
    with pytest.raises(UserError, match="exists with other contents"):
        build(source, output)


def test_an_object_that_was_written_again_since_is_read_again(bucket, photos, kill, reads):
    source, output = copied(photos, bucket), f"{bucket}/set"
    kill(source, output, SHARDS)
    data = storage.read(f"{source}/1/01.png")
    storage.overwrite(f"{source}/1/01.png", data)  # the same bytes, but who knows
    reads.clear()
    assert build(source, output) == SOME_REJECTED
    assert "1/01.png" in reads and len(set(reads)) < 20


def test_a_file_that_is_added_changes_its_shard_alone(photos, tmp_path, kill, reads):
    source, output = copied(photos, str(tmp_path)), tmp_path / "set"
    kill(source, output, SHARDS)
    (tmp_path / "in" / "1" / "no image.txt").write_text("no image")
    _age(tmp_path / "in")
    reads.clear()
    assert build(source, output) == SOME_REJECTED  # its shard holds the same records as before
    assert "1/no image.txt" in reads and len(set(reads)) < 20
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["counts"] == {"inputs": 51, "records": 40, "rejects": 11}


@pytest.mark.parametrize("options", [["--quality", "80"], ["--short-side", "4"], ["--min-side", "9"]])
def test_what_was_made_in_another_way_is_not_kept(options, photos, tmp_path, kill, reads):
    kill(photos, tmp_path / "set", SHARDS)
    reads.clear()
    with pytest.raises(UserError, match=r"exists with other contents|no input can be used"):
        build(photos, tmp_path / "set", *options)
    assert reads


DAMAGE = {
    "gone": lambda shard, record: shard.unlink(),
    "cut short": lambda shard, record: shard.write_bytes(shard.read_bytes()[:-1]),
    "record cut short": lambda shard, record: record.write_bytes(record.read_bytes()[:-1]),
    "record of another": lambda shard, record: record.write_bytes(record.with_name(_other(record)).read_bytes()),
    "record of anything": lambda shard, record: record.write_text("[" * 10_000),
}


def _other(record: Path) -> str:
    return next(path.name for path in record.parent.iterdir() if path.name != record.name)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_is_not_as_it_was_written_is_made_again(damage, photos, whole, tmp_path, kill, reads):
    output = tmp_path / "set"
    kill(photos, output, 9)
    shard = min(path for path in output.glob("*.tfrecord") if path.stat().st_size)
    DAMAGE[damage](shard, output / kept.FOLDER / f"{shard.name}.json")
    if damage == "cut short":
        with pytest.raises(UserError, match=f"{shard.name} exists with other contents"):
            build(photos, output)
        return
    reads.clear()
    assert build(photos, output) == SOME_REJECTED
    assert contents(str(output)) == whole and 2 < len(set(reads)) < 40


def test_a_shard_that_was_copied_is_kept_for_its_checksum(photos, whole, tmp_path, kill, reads):
    output = tmp_path / "set"
    kill(photos, output, SHARDS)
    for path in output.glob("*.tfrecord"):
        _replace(path, path.read_bytes())  # another file, another stamp
    reads.clear()
    assert build(photos, output) == SOME_REJECTED
    assert contents(str(output)) == whole and not reads


def class_tars(photos) -> bytes:
    """A tar of two tars with all photographs in each."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as outer:
        for synset in ("n01", "n02"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for path in sorted(photos.rglob("*.png")):
                    archive.add(path, path.name)
            info = tarfile.TarInfo(f"{synset}.tar")
            info.size = inner.tell()
            inner.seek(0)
            outer.addfile(info, inner)
    return file.getvalue()


def test_of_tars_that_were_read_headers_alone_are_read_again_and_in_a_bucket_not_even_these(
    place, photos, kill, monkeypatch
):
    tar, output = f"{place}/in/ILSVRC2012_img_train.tar", f"{place}/set"
    storage.create(tar, class_tars(photos))
    time.sleep(0.2)
    assert build(tar, f"{place}/whole") == 0
    kill(tar, output, SHARDS)
    ranges, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda a, s, n: ranges.append((s, n)) or read_range(a, s, n))
    listed = [item for part in find_source(tar).parts for item in list_part(part)]
    launched = len(ranges)
    assert len(listed) == 80 and launched > 2
    ranges.clear()
    assert build(tar, output) == 0
    assert contents(output) == contents(f"{place}/whole")
    assert not {(item.start, item.size) for item in listed} & set(ranges)
    assert len(ranges) < launched if storage.is_remote(place) else len(ranges) == launched


def test_a_list_of_members_that_somebody_else_wrote_is_not_believed(tmp_path):
    folder, members = str(tmp_path), [("a \udcff.jpg", 512, 10), ("b\n.jpg", 1536, 0)]
    kept.keep_members(folder, "0" * 32, members)
    assert kept.find_members(folder, "0" * 32) == members and kept.count(folder) == 0
    (path,) = (tmp_path / kept.FOLDER).iterdir()
    for text in ("", "{}", '[["a", -1, 5]]', '[["\u1234", 1, 5]]', '[["a", 1]]', "[" * 5000, '[["a", 1.5, 5]]'):
        path.write_text(text)
        assert kept.find_members(folder, "0" * 32) is None, text


def test_what_is_left_beside_a_finished_dataset_is_removed(photos, tmp_path, capsys):
    output = tmp_path / "set"
    build(photos, output)
    before = contents(str(output))
    storage.create(f"{output}/{kept.FOLDER}/{shard_name('train', 0, SHARDS)}.json", b"{}")
    assert build(photos, output) == SOME_REJECTED
    assert "is already complete" in capsys.readouterr().err
    assert contents(str(output)) == before and not (output / kept.FOLDER).exists()


def test_a_file_without_a_version_makes_no_record():
    row = ("train", b"train/a", b"", b"/in/a", 0, 1, b"", b"12345678")
    assert made_of([row], "way") != made_of([row], "other way")
    assert made_of([row], "way") != made_of([(*row[:-1], b"12345679")], "way")
    assert made_of([row], "way") != made_of([(*row[:5], 2, *row[6:])], "way")
    assert made_of([], "way") and made_of([row, (*row[:-1], b"")], "way") == ""
