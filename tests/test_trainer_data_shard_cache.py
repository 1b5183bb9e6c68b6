"""The cache of shards with a real object server: verified, bounded, shared, and no worse after a crash."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import pytest

from trainer import storage
from trainer.data import records, shard_cache
from trainer.data.manifest import Shard
from trainer.data.shard_cache import ShardCache
from trainer.errors import UserError

RECORDS = 4
BOUND = 240  # seconds for what takes few: it ends a test that would hang


def write(dataset, number, size=1000):
    """A shard of RECORDS records of ``size`` bytes."""
    framed = records.frame_records([bytes([number, i]) * (size // 2) for i in range(RECORDS)])
    name = f"train-{number:05d}-of-00009.tfrecord"
    storage.create(f"{dataset}/{name}", framed)
    return Shard(name=name, split="train", records=RECORDS, bytes=len(framed), crc32c=storage.crc32c(framed))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """Names of the objects downloaded."""
    found, read = [], storage.read

    def counting(address, *checksum):
        found.append(address.rpartition("/")[2])
        return read(address, *checksum)

    monkeypatch.setattr(storage, "read", counting)
    return found


def cached(folder):
    return sorted(path.name.partition("-")[2] for path in folder.glob("*.tfrecord"))


def use(cache, dataset, shard):
    opened = cache.open(dataset, shard)
    found = [opened.read(i) for i in (3, 0)]
    opened.close()
    number = int(shard.name[6:11])
    assert found == [bytes([number, i]) * (len(found[0]) // 2) for i in (3, 0)]


def settle(cache):
    """Waits until all that was prepared has been fetched, or has found no room."""
    assert not futures.wait(cache._ahead.values(), BOUND).not_done


@pytest.fixture
def shards(bucket):
    return [write(bucket, number) for number in range(5)]


SHARD = 4 * (1000 + 16)  # bytes of one


def test_a_local_shard_is_read_where_it_lies_and_verified_once(tmp_path, folder, monkeypatch):
    shard = write(str(tmp_path), 1)
    values = []
    real = shard_cache.google_crc32c.Checksum
    monkeypatch.setattr(shard_cache.google_crc32c, "Checksum", lambda: values.append(1) or real())
    for _ in range(2):
        cache = ShardCache(1, str(folder))
        use(cache, str(tmp_path), shard)
        use(cache, str(tmp_path), shard)
    assert len(values) == 1 and not folder.exists()
    path = tmp_path / shard.name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(storage.Corrupt, match=f"{path} is corrupt: expected crc32c {shard.crc32c}"):
        cache.open(str(tmp_path), shard)
    path.unlink()
    with pytest.raises(storage.NotFound, match=f"{path} does not exist"):
        cache.open(str(tmp_path), shard)


def test_a_shard_of_a_bucket_is_downloaded_once(bucket, shards, folder, reads):
    for _ in range(3):
        use(ShardCache(10**6, str(folder)), bucket, shards[2])
    assert reads == [shards[2].name] == cached(folder)


def test_the_file_used_longest_ago_makes_room(bucket, shards, folder, reads):
    cache = ShardCache(3 * SHARD, str(folder))
    for number in (0, 1, 2, 0, 3):
        use(cache, bucket, shards[number])
    assert cached(folder) == [shards[n].name for n in (0, 2, 3)]
    use(cache, bucket, shards[4])
    assert cached(folder) == [shards[n].name for n in (0, 3, 4)]
    assert len(reads) == 5


def test_what_is_open_is_never_removed_and_still_counts(bucket, shards, folder):
    cache, other = ShardCache(2 * SHARD, str(folder)), ShardCache(2 * SHARD, str(folder))
    first = cache.open(bucket, shards[0])
    for number in (1, 2, 3):
        use(other, bucket, shards[number])
        assert len(cached(folder)) == 2
    assert cached(folder) == [shards[0].name, shards[3].name]
    assert first.read(2) == bytes([0, 2]) * 500
    # More open than fits: what is needed comes all the same, what is not needed yet does not.
    rest = [other.open(bucket, shards[number]) for number in (1, 2)]
    assert len(cached(folder)) == 3
    other.prepare(bucket, shards[4])
    settle(other)
    assert cached(folder) == [shards[n].name for n in (0, 1, 2)]
    for shard in (first, *rest):
        shard.close()
    use(other, bucket, shards[4])
    assert len(cached(folder)) == 2


def test_what_was_fetched_ahead_waits_to_be_opened_unless_the_room_is_needed(bucket, shards, folder, reads):
    cache = ShardCache(2 * SHARD, str(folder))
    cache.prepare(bucket, shards[0])
    cache.prepare(bucket, shards[0])
    settle(cache)
    assert cached(folder) == [shards[0].name]
    for number in (1, 2, 3):
        use(ShardCache(2 * SHARD, str(folder)), bucket, shards[number])
    use(cache, bucket, shards[0])
    assert reads.count(shards[0].name) == 1
    cache.prepare(bucket, shards[1])
    cache.prepare(bucket, shards[2])
    settle(cache)
    assert cached(folder) == [shards[1].name, shards[2].name]
    opened = cache.open(bucket, shards[4])
    assert len(cached(folder)) == 2 and shards[4].name in cached(folder)
    opened.close()


def test_names_change_while_nobody_lists_the_folder(bucket, shards, folder, monkeypatch):
    rename, free = os.rename, []

    def watching(old, new):
        with open(folder / ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(new)
            except BlockingIOError:
                pass
        rename(old, new)

    monkeypatch.setattr(os, "rename", watching)
    use(ShardCache(10**6, str(folder)), bucket, shards[0])
    assert cached(folder) == [shards[0].name] and not free


def test_several_are_downloaded_at_a_time(bucket, shards, folder, monkeypatch):
    read, meeting = storage.read, threading.Barrier(4, timeout=BOUND)

    def together(*arguments):
        meeting.wait()
        return read(*arguments)

    monkeypatch.setattr(storage, "read", together)
    cache = ShardCache(10**6, str(folder))
    for shard in shards[:4]:
        cache.prepare(bucket, shard)
    for shard in shards[:4]:
        use(cache, bucket, shard)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_corrupt_or_missing_object_stops_with_its_name(bucket, shards, folder, ahead):
    storage.overwrite(f"{bucket}/{shards[0].name}", b"x" * shards[0].bytes)
    storage.delete(f"{bucket}/{shards[1].name}")
    cache = ShardCache(10**6, str(folder))
    for number, kind, message in ((0, storage.Corrupt, "is corrupt: expected crc32c"), (1, storage.NotFound, "exist")):
        if ahead:
            cache.prepare(bucket, shards[number])
        with pytest.raises(kind, match=f"{bucket}/{shards[number].name}.* {message}"):
            cache.open(bucket, shards[number])
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_damaged_copy_is_downloaded_again(bucket, shards, folder, reads):
    use(ShardCache(10**6, str(folder)), bucket, shards[0])
    (copy,) = folder.glob("*.tfrecord")
    data = copy.read_bytes()
    for damaged in (data[:-3], data[:100] + b"?" + data[101:], b""):
        copy.write_bytes(damaged)
        use(ShardCache(10**6, str(folder)), bucket, shards[0])
        assert copy.read_bytes() == data
    assert len(reads) == 4


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_are_not(bucket, shards, folder):
    folder.mkdir()
    living, dead = folder / "a-living.tfrecord.draft", folder / "b-dead.tfrecord.draft"
    same = folder / f"{shards[0].crc32c.replace('/', '_')}-{shards[0].name}.draft"
    for path in (living, dead, same):
        path.write_bytes(b"half" * 9999)
    with open(living) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        use(ShardCache(10**6, str(folder)), bucket, shards[0])
    assert living.exists() and not dead.exists() and not same.exists()


def test_a_manifest_of_other_records_is_told(bucket, shards, folder):
    wrong = Shard(**{**dataclasses.asdict(shards[0]), "records": 5})
    with pytest.raises(storage.Corrupt, match=f"{bucket}/{shards[0].name}: expected 5 records.* Received 4"):
        ShardCache(10**6, str(folder)).open(bucket, wrong)


def test_a_full_disk_says_what_to_do(bucket, shards, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="expected room for .*data.cache_gb"):
        ShardCache(10**6, str(folder)).open(bucket, shards[0])
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_the_folder_is_one_users_own(monkeypatch, tmp_path):
    monkeypatch.setattr(shard_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    assert shard_cache.cache_folder() == f"{tmp_path}/pconv-shards-{os.getuid()}"


PROCESS = """
import os, random, signal, sys, time
from trainer import storage
from trainer.data import shard_cache
from trainer.data.manifest import Shard
bucket, folder, log, limit, seed, killed_at = *sys.argv[1:4], *map(int, sys.argv[4:7])
shards = [Shard(**eval(text)) for text in sys.argv[7:]]
read, downloads = storage.read, []
def slow(address, *arguments):
    with open(log, "a") as file:
        file.write(address + "\\n")
    downloads.append(address)
    time.sleep(0.05)  # so that the others come meanwhile
    if len(downloads) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(address, *arguments)
storage.read = slow
cache = shard_cache.ShardCache(limit, folder)
rng = random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(12):
    for shard in rng.sample(shards, len(shards)):
        cache.prepare(bucket, shard)
        opened = cache.open(bucket, shard)
        number = int(shard.name[6:11])
        assert all(opened.read(i) == bytes([number, i]) * 500 for i in range(4))
        opened.close()
cache.close()
"""


def run_processes(bucket, folder, log, limit, shards, killed_at):
    """Exit codes of processes that read all shards in turns; number i is killed in its download ``killed_at[i]``."""
    arguments = [repr(dataclasses.asdict(shard)) for shard in shards]
    with contextlib.ExitStack() as stack:
        started = []
        for seed, last in enumerate(killed_at):
            command = [sys.executable, "-c", PROCESS, bucket, str(folder), str(log), str(limit), str(seed), str(last)]
            process = subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # closes its pipes and waits for it
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout.readline() == b"ready\n"
        for process in started:
            process.stdin.write(b"\n")
            process.stdin.close()
        return [process.wait(BOUND) for process in started]


def test_processes_share_one_download(bucket, shards, folder, tmp_path):
    assert run_processes(bucket, folder, tmp_path / "log", 10**6, shards, [0, 0, 0]) == [0, 0, 0]
    assert sorted(Path(line).name for line in (tmp_path / "log").read_text().split()) == cached(folder)


def test_processes_that_take_each_others_room_and_are_killed_leave_a_whole_cache(bucket, shards, folder, tmp_path):
    done = run_processes(bucket, folder, tmp_path / "log", 4 * SHARD, shards, [2, 0, 0])
    assert done == [-signal.SIGKILL, 0, 0]
    (folder / "one.draft").touch()
    cache = ShardCache(4 * SHARD, str(folder))
    for shard in shards:
        use(cache, bucket, shard)
    assert len(cached(folder)) <= 4 and not list(folder.glob("*.draft"))
