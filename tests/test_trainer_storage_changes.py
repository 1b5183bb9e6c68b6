"""What tells that files are as they were: the stamp of a local file, and when something below a folder was changed."""

from __future__ import annotations

import os
import time

import pytest

from trainer import storage
from trainer.storage import local


@pytest.fixture
def clock(monkeypatch):
    """Moves the clock that ages are measured by, by as many seconds as the test says."""
    passed = [0.0]
    now = time.time
    monkeypatch.setattr(local.time, "time", lambda: now() + passed[0])
    return passed


def replace_in_place(path, data):
    """Another content of the same size, inode and time of the last write."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    same = ("st_size", "st_mtime_ns", "st_ino")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]


def test_a_stamp_is_of_contents_that_cannot_have_changed(tmp_path, clock):
    path = str(tmp_path / "a")
    storage.create(path, b"first")
    assert storage.stamp(path) == ""  # whoever wrote it may be writing again within the same tick
    clock[0] = 3.0
    first = storage.stamp(path)
    assert first and storage.stamp(path) == first
    while time.time_ns() // 10**8 == os.stat(path).st_ctime_ns // 10**8:  # the next tick of any clock
        pass
    replace_in_place(path, b"other")
    assert storage.stamp(path) not in ("", first)


def test_the_writer_of_a_file_knows_that_nobody_else_has_written_it(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    storage.create(path, b"first")
    if os.stat(path).st_ctime_ns % 10**7:
        assert storage.stamp(path, own=True)
    stat, coarse = os.stat, 1_700_000_000 * 10**9

    class Coarse:
        """What a file system with ticks of a second tells."""

        st_size, st_ino, st_mtime_ns, st_ctime_ns, st_ctime = 5, 1, coarse, coarse, coarse / 1e9

    monkeypatch.setattr(local.os, "stat", lambda *_, **__: Coarse)
    monkeypatch.setattr(local.time, "time", lambda: 1_700_000_001.0)
    assert storage.stamp(path, own=True) == storage.stamp(path) == ""
    monkeypatch.setattr(local.time, "time", lambda: 1_700_000_009.0)
    assert storage.stamp(path) == "5-1700000000000000000-1700000000000000000-1"
    monkeypatch.setattr(local.os, "stat", stat)


def test_what_is_not_there_has_no_stamp(tmp_path, clock, bucket):
    clock[0] = 9.0
    storage.create(f"{bucket}/a", b"data")
    assert [storage.stamp(address) for address in (f"{tmp_path}/no", f"{bucket}/a", f"{bucket}/no")] == ["", "", ""]


def let_tick(address):
    """Returns once a file that is written is later than one written before: clocks of services may count seconds."""
    storage.overwrite(address, b"tick")
    before = storage.changed(address)
    while storage.changed(address) <= before:
        time.sleep(0.02)
        storage.overwrite(address, b"tick")


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_last_change_of_a_file_or_below_a_folder(place, tmp_path, request):
    base = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    root = f"{base}/in"
    assert storage.changed(root) == 0
    times = []
    for name in ("a", "sub/b", "set/c"):
        storage.create(f"{root}/{name}", b"data")
        times.append(storage.changed(f"{root}/{name}"))
        let_tick(f"{base}/tick")
    assert 0 < times[0] < times[1] < times[2] <= storage.changed(root)
    assert storage.changed(root, outside=f"{root}/set") < times[2]
    assert storage.changed(root, outside=f"{root}/se") >= times[2]
    storage.overwrite(f"{root}/a", b"atad")
    assert storage.changed(f"{root}/a") > times[2]
    assert storage.changed(f"{root}/sub") < storage.changed(root, outside=f"{root}/set")


def test_a_file_that_is_gone_has_changed_its_folder(tmp_path):
    for name in ("sub/a", "sub/b"):
        storage.create(f"{tmp_path}/{name}", b"data")
    before = storage.changed(str(tmp_path))
    time.sleep(0.02)
    storage.delete(f"{tmp_path}/sub/a")
    assert storage.changed(str(tmp_path)) > before


def test_times_that_were_set_back_are_not_believed(tmp_path):
    storage.create(f"{tmp_path}/a", b"data")
    before = storage.changed(f"{tmp_path}/a")
    time.sleep(0.02)
    os.utime(tmp_path / "a", (1, 1))
    assert storage.changed(f"{tmp_path}/a") > before
