"""The same promises for a local folder and for a bucket on a real Cloud Storage server."""

from __future__ import annotations

import base64
import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.api_core import exceptions

from trainer import storage
from trainer.errors import UserError
from trainer.storage import gcs


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def race(function, count):
    """Calls function(i) for i < count at one time; returns results and exceptions."""
    start = threading.Barrier(count)

    def run(i):
        start.wait()
        try:
            return function(i)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_crc32c_is_the_published_check_value():
    assert storage.crc32c(b"123456789") == base64.b64encode(bytes.fromhex("E3069283")).decode()
    assert storage.crc32c(b"") == "AAAAAA=="


def test_create_writes_once(place):
    address = place + "/deep/er/file"
    storage.create(address, b"\x00\xff first")
    with pytest.raises(storage.AlreadyExists):
        storage.create(address, b"second")
    assert storage.read(address) == b"\x00\xff first"
    storage.create(place + "/empty", b"")
    assert storage.read(place + "/empty") == b"" and storage.exists(place + "/empty")


def test_one_of_many_creators_wins(place):
    address, contents = place + "/file", [bytes([i]) * 200_000 for i in range(20)]
    outcomes = race(lambda i: storage.create(address, contents[i]), 20)
    winners = [i for i, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1
    assert all(isinstance(outcome, storage.AlreadyExists) for outcome in outcomes if outcome is not None)
    assert storage.read(address) == contents[winners[0]]
    assert storage.find(place) == [address]


def test_more_than_one_request_can_carry(bucket):
    data = os.urandom(9 << 20)  # uploads of more than 8 MiB go in pieces
    storage.create(bucket + "/big", data)
    assert storage.read(bucket + "/big", storage.crc32c(data)) == data


def test_a_file_is_read_up_to_the_size_it_may_have(place):
    storage.create(place + "/small", b"1234")
    assert storage.read(place + "/small", storage.crc32c(b"1234"), max_bytes=4) == b"1234"
    assert storage.read_versioned(place + "/small", 4)[1] == storage.read_versioned(place + "/small")[1]
    assert storage.read_versioned(place + "/absent", 4) == (None, 0)
    with pytest.raises(storage.TooLarge, match="small is too large: expected 3 bytes or fewer. Received 4 or more."):
        storage.read(place + "/small", max_bytes=3)


def test_what_is_no_regular_file_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        for read in (storage.read, storage.checksum, lambda address: storage.read_range(address, 0, 9)):
            with pytest.raises(UserError, match=f"{name} cannot be read: expected a regular file"):
                read(str(tmp_path / name))
    with pytest.raises(UserError, match="cannot be read: embedded null byte"):
        storage.read(str(tmp_path / "a\0b"))


def test_replace_asks_for_the_generation_that_was_read(place):
    address = place + "/pointer"
    assert storage.read_versioned(address) == (None, 0)
    storage.replace(address, b"1", 0)
    data, generation = storage.read_versioned(address)
    assert data == b"1"
    storage.replace(address, b"2", generation)
    for stale in (generation, 0):
        with pytest.raises(storage.Conflict):
            storage.replace(address, b"3", stale)
    assert storage.read(address) == b"2"
    with pytest.raises(storage.Conflict):
        storage.replace(place + "/absent", b"", generation)
    assert not storage.exists(place + "/absent")


def test_one_of_many_replacers_wins(place):
    address = place + "/pointer"
    storage.create(address, b"old")
    _, generation = storage.read_versioned(address)
    outcomes = race(lambda i: storage.replace(address, b"%d" % i, generation), 10)
    winners = [i for i, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1 and storage.read(address) == b"%d" % winners[0]
    assert all(isinstance(outcome, storage.Conflict) for outcome in outcomes if outcome is not None)


def test_counting_by_compare_and_swap_loses_nothing(place):
    address = place + "/count"

    def count_to_five(_):
        done = 0
        while done < 5:
            data, generation = storage.read_versioned(address)
            try:
                storage.replace(address, b"%d" % (int(data or b"0") + 1), generation)
                done += 1
            except storage.Conflict:
                pass

    assert race(count_to_five, 6) == [None] * 6
    assert storage.read(address) == b"30"


def test_overwrite_takes_whatever_is_there(place):
    storage.overwrite(place + "/report", b"1")
    storage.overwrite(place + "/report", b"2")
    assert storage.read(place + "/report") == b"2"
    assert set(race(lambda i: storage.overwrite(place + "/report", b"x" * 9), 5)) == {None}


def test_readers_never_see_half_a_file(tmp_path):
    address, contents = str(tmp_path / "file"), [bytes([i]) * 3_000_000 for i in range(2)]
    storage.create(address, contents[0])
    writer = threading.Thread(target=lambda: [storage.overwrite(address, contents[i % 2]) for i in range(30)])
    writer.start()
    while writer.is_alive():
        assert storage.read(address) in contents
    writer.join()


def test_delete_is_idempotent(place):
    storage.create(place + "/a", b"")
    storage.create(place + "/ab", b"")
    storage.delete(place + "/a")
    storage.delete(place + "/a")
    assert not storage.exists(place + "/a") and storage.exists(place + "/ab")
    storage.create(place + "/a", b"again")


def test_what_is_not_there_is_named(place):
    storage.create(place + "/folder/file", b"")
    for address in (place + "/nothing", place + "/folder", place + "/folder/file/below"):
        assert not storage.exists(address)
        with pytest.raises(storage.NotFound, match=f"{address} does not exist"):
            storage.read(address)
    assert storage.find(place + "/nothing") == [] and storage.select(place + "/nothing/*.png").find() == []


def test_read_compares_checksums(place):
    storage.create(place + "/file", b"123456789")
    assert storage.read(place + "/file", "4waSgw==") == b"123456789"
    with pytest.raises(storage.Corrupt, match=f"{place}/file is corrupt: expected crc32c AAAAAA==. Received 4waSgw=="):
        storage.read(place + "/file", "AAAAAA==")


def test_a_missing_bucket_is_named(bucket):
    missing = bucket + "-not"
    for use in (
        lambda: storage.select(missing + "/a/*").find(),
        lambda: storage.find(missing),
        lambda: storage.read(missing + "/a"),
        lambda: storage.create(missing + "/a", b""),
        lambda: storage.overwrite(missing + "/a", b""),
        lambda: storage.require_writable(missing + "/a"),
    ):
        with pytest.raises(storage.NotFound, match=f"^{missing}(/a)? does not exist"):
            use()


@pytest.mark.parametrize("error", [exceptions.Forbidden("no rights"), exceptions.BadRequest("no rights")])
def test_what_the_server_refuses_is_the_users_to_know(error, monkeypatch):
    class Client:
        def bucket(self, name, **_):
            return name

        def list_blobs(self, *_, **__):
            raise error

    monkeypatch.setattr(gcs, "client", Client)
    with pytest.raises(UserError, match="gs://some-bucket may not be used: no rights"):
        storage.require_writable("gs://some-bucket/run")


def test_local_folders_that_cannot_be_used_are_named(tmp_path):
    file = str(tmp_path / "file")
    storage.create(file, b"")
    for use in (
        lambda: storage.require_writable(file),
        lambda: storage.require_writable(file + "/below"),
        lambda: storage.create(file + "/below", b""),
        lambda: storage.create(file + "/below/deeper", b""),
        lambda: storage.replace(file + "/below/deeper", b"", 0),
    ):
        with pytest.raises(UserError, match=f"cannot write to {file}"):
            use()
    storage.require_writable(str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder").is_dir()


READERS = {
    "read": storage.read,
    "read_versioned": storage.read_versioned,
    "read_range": lambda address: storage.read_range(address, 0, 9),
    "checksum": storage.checksum,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_local_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, reader):
    loop = str(tmp_path / "loop")
    os.symlink(loop, loop)
    with pytest.raises(UserError, match=f"^{loop} cannot be read: {os.strerror(errno.ELOOP)}$"):
        READERS[reader](loop)


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        storage.create(str(tmp_path / "folder" / "created"), b"")
        storage.overwrite(str(tmp_path / "folder" / "overwritten"), b"")
        storage.replace(str(tmp_path / "folder" / "replaced"), b"", 0)
    finally:
        os.umask(before)
    for name in ("created", "overwritten", "replaced"):
        assert stat.S_IMODE((tmp_path / "folder" / name).stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_nothing_is_left_beside_a_file_that_was_not_written(tmp_path):
    storage.create(str(tmp_path / "file"), b"")
    with pytest.raises(storage.AlreadyExists):
        storage.create(str(tmp_path / "file"), b"again")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_local_folders_need_no_cloud_client(tmp_path):
    code = (
        "import sys\nfrom trainer import storage\n"
        "storage.create(sys.argv[1] + '/a', b''); storage.replace(sys.argv[1] + '/b', b'', 0)\n"
        "assert len(storage.find(sys.argv[1])) == 2\n"
        "assert 'google.cloud.storage' not in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=600)


def test_a_place_that_cannot_be_written_is_told(bucket, tmp_path):
    storage.try_writing(f"{bucket}/run")
    assert storage.find(bucket) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write to"):
        storage.try_writing(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="does not exist"):
        storage.try_writing(f"{bucket.partition('://')[0]}://pconv-no-such-bucket/run")
