"""Verified local files of shards: local ones where they lie, those of buckets in a folder of bounded size.

    shard in a bucket --(one process of the host)--> NAME.draft --rename--> NAME --open and locked--> reads
                                                                              '--not locked--> may be removed

The folder is shared by all processes of a host and needs no server: who downloads a shard holds a lock on its draft,
who reads one holds a shared lock on its file, and the file used longest ago that nobody locks is removed when room is
needed. Linux drops the locks of a process that dies, so what it left behind is told from what is in use.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import posixpath
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import google_crc32c

from trainer import storage
from trainer.data.manifest import Shard
from trainer.errors import UserError

_DRAFT = ".draft"
_POLL = 0.02  # seconds between two looks at what another process downloads
_DOWNLOADS = 8  # at a time and process; one stream of a bucket is far slower than a host's network
_BLOCK = 1 << 22

_verified: dict[tuple, str] = {}  # checksum of each file version this process has read whole


def cache_folder() -> str:
    """Where this machine keeps verified copies of shards from buckets; TMPDIR chooses the disk."""
    return os.path.join(tempfile.gettempdir(), f"pconv-shards-{os.getuid()}")


def _checksum(file: int) -> str:
    """`storage.crc32c` of an open file, read once per process as long as the file is not written to."""
    state = os.fstat(file)
    version = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if version not in _verified:
        value, position = google_crc32c.Checksum(), 0
        while block := os.pread(file, _BLOCK, position):
            value.update(block)
            position += len(block)
        _verified[version] = base64.b64encode(value.digest()).decode()
    return _verified[version]


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _closing(file: int) -> Iterator[int]:
    try:
        yield file
    finally:
        os.close(file)


class OpenShard:
    """The records of one file, in any order; it stays readable and in place until closed."""

    def __init__(self, address: str, shard: Shard, file: int):
        self._file = file
        places, position, size = [], 0, os.fstat(file).st_size
        while position + 16 <= size:  # frames: see records.frame_records
            (length,) = struct.unpack("<Q", os.pread(file, 8, position))
            places.append((position + 12, length))
            position += 16 + length
        if len(places) != shard.records or position != size:
            os.close(file)
            raise storage.Corrupt(
                f"{address}: expected {shard.records} records, as in the manifest. Received {len(places)}."
            )
        self._places = places

    def read(self, record: int) -> bytes:
        position, length = self._places[record]
        return os.pread(self._file, length, position)

    def close(self) -> None:
        os.close(self._file)


class ShardCache:
    """Opens shards, after downloading those that lie in buckets; downloads ahead what is asked for.

    Args:
        limit: bytes that all files in ``folder`` may take. A shard is not removed while it is open or waits to be
            opened, in any process. Only where open shards alone are more than ``limit``, as when several runs
            share a host, is it exceeded, by what has to be read now.
        folder: for shards of buckets; default `cache_folder`.
    """

    def __init__(self, limit: int, folder: str | None = None):
        self._limit, self._folder = limit, folder or cache_folder()
        self._pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="pconv-shard")
        self._ahead: dict[str, Future] = {}
        self._mutex = threading.Lock()

    def prepare(self, dataset: str, shard: Shard) -> None:
        """Begins to fetch and verify a shard that will be opened soon; what goes wrong shows when it is opened."""
        address = storage.join(dataset, shard.name)
        with self._mutex:
            known = self._ahead.get(address)
            if known is None or (known.done() and _result(known) is None):
                self._ahead[address] = self._pool.submit(self._file, address, shard, False)

    def open(self, dataset: str, shard: Shard) -> OpenShard:
        """
        Raises:
            storage.NotFound, storage.Corrupt: naming the shard.
            UserError: it cannot be read, or the disk has no room for it.
        """
        address = storage.join(dataset, shard.name)
        with self._mutex:
            pending = self._ahead.pop(address, None)
        file = None
        if pending is not None and not pending.cancel():
            file = _result(pending)  # what went wrong goes wrong again now, or has passed
        return OpenShard(address, shard, self._file(address, shard, True) if file is None else file)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in self._let_go():
            future.add_done_callback(_discard)

    def _let_go(self) -> list[Future]:
        """What was or is being fetched ahead, to be unlocked so that it can be removed."""
        with self._mutex:
            waiting, self._ahead = self._ahead, {}
        return [future for future in waiting.values() if not future.cancel()]

    def _file(self, address: str, shard: Shard, needed: bool) -> int | None:
        """A file descriptor that holds a shared lock; ``None`` if there is no room for what is not needed yet."""
        if storage.is_bucket(address):
            return self._cached(address, shard, needed)
        try:
            file = os.open(address, os.O_RDONLY)
        except FileNotFoundError:
            raise storage.NotFound(f"{address} does not exist") from None
        except OSError as error:
            raise UserError(f"{address} cannot be read: {error.strerror}") from None
        if (found := _checksum(file)) != shard.crc32c:
            os.close(file)
            raise storage.Corrupt(f"{address} is corrupt: expected crc32c {shard.crc32c}. Received {found}.")
        return file

    def _cached(self, address: str, shard: Shard, needed: bool) -> int | None:
        # The checksum is part of the name: the same shard of another dataset is another file.
        path = os.path.join(self._folder, shard.crc32c.replace("/", "_") + "-" + posixpath.basename(address))
        while True:
            file = _open_copy(path, shard.crc32c)
            if file is not None:
                return file
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            draft = os.open(path + _DRAFT, os.O_RDWR | os.O_CREAT, 0o600)
            if not _locked(draft, fcntl.LOCK_EX):  # another process downloads it
                os.close(draft)
                time.sleep(_POLL)
            elif not _is_at(draft, path + _DRAFT) or os.path.exists(path):  # another one just did
                if _is_at(draft, path + _DRAFT):
                    os.unlink(path + _DRAFT)
                os.close(draft)
            else:
                return self._download(address, shard, path, draft, needed)

    def _download(self, address: str, shard: Shard, path: str, draft: int, needed: bool) -> int | None:
        """Fills the draft, which this process has locked, and publishes it as ``path``."""
        try:
            fits = self._reserve(draft, shard.bytes)
            if not fits and needed:
                for future in self._let_go():
                    _discard(future)
                self._reserve(draft, shard.bytes)
            elif not fits:
                os.unlink(path + _DRAFT)
                os.close(draft)
                return None
            data, done = storage.read(address, shard.crc32c), 0
            while done < len(data):
                done += os.pwrite(draft, data[done : done + _BLOCK], done)
            os.ftruncate(draft, len(data))
            os.rename(path + _DRAFT, path)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + _DRAFT)
            os.close(draft)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{self._folder}: expected room for {address} ({shard.bytes / 1e6:.0f} MB). Received a full disk; "
                    "data.cache_gb bounds what is kept, TMPDIR chooses the disk."
                ) from None
            raise
        fcntl.flock(draft, fcntl.LOCK_SH)
        return draft

    def _reserve(self, draft: int, size: int) -> bool:
        """Removes unused files until ``size`` bytes more fit, and gives the draft that size; whether they fit."""
        with _closing(os.open(os.path.join(self._folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)) as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            files, own = [], os.fstat(draft).st_ino
            for entry in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    state = entry.stat()
                    if entry.name != ".lock" and state.st_ino != own:
                        whole = not entry.name.endswith(_DRAFT)
                        files.append((whole, state.st_atime_ns, state.st_size, entry.path))
            total = sum(taken for _, _, taken, _ in files)
            for whole, _, taken, path in sorted(files):
                # A draft that nobody has locked is left from a process that died: it goes in any case.
                if (not whole or total + size > self._limit) and _remove(path):
                    total -= taken
            os.ftruncate(draft, size)
            return total + size <= self._limit


def _result(future: Future) -> int | None:
    return None if future.exception() else future.result()


def _discard(future: Future) -> None:
    if (file := _result(future)) is not None:
        os.close(file)


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: str) -> bool:
    """Removes a file unless someone has locked it."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    with _closing(file):
        if not _locked(file, fcntl.LOCK_EX) or not _is_at(file, path):
            return False
        os.unlink(path)
        return True


def _open_copy(path: str, checksum: str) -> int | None:
    """The file at ``path``, locked; ``None`` if there is none, or one that was damaged, which is removed."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if _checksum(file) == checksum:
        if _is_at(file, path):
            state = os.fstat(file)
            os.utime(file, ns=(time.time_ns(), state.st_mtime_ns))  # used last: the system may not keep this
            return file
    elif _is_at(file, path):
        os.unlink(path)
    os.close(file)
    return None
