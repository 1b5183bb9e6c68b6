"""Verified local files of shards: local shards in place, those of buckets in a cache folder of bounded size.

    shard in a bucket --(one process of the host)--> NAME.draft --rename--> NAME --open and locked--> reads
                                                                              '--not locked--> may be removed

All processes of a host share the folder without a server: a process that downloads a shard locks its draft, a reader
holds a shared lock on its file, and when room is needed the least recently used file without a lock is removed. Linux
drops the locks of a process that dies, so its leftovers can be told from files in use.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import posixpath
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import google_crc32c

from trainer import storage
from trainer.data.manifest import Shard
from trainer.data.records import find_frames
from trainer.errors import UserError

_DRAFT = ".draft"
_POLL = 0.02  # seconds between checks of what another process downloads
_DOWNLOADS = 8  # concurrent per process; one stream from a bucket is far slower than a host's network
_BLOCK = 1 << 22

_verified: dict[tuple, str] = {}  # checksum of each file version that this process has read in full


def cache_folder() -> str:
    """Folder for this machine's verified copies of shards from buckets; TMPDIR chooses the disk."""
    return os.path.join(tempfile.gettempdir(), f"pconv-shards-{os.getuid()}")


def _require_own(folder: str) -> None:
    """Raises `UserError` for a folder, or a link to one, of another account: in TMPDIR anybody may take the name."""
    if {os.lstat(folder).st_uid, os.stat(folder).st_uid} != {os.geteuid()}:
        raise UserError(f"{folder}: expected a folder of this account's own. Received one of another; see TMPDIR.")


def _checksum(file: int) -> str:
    """`storage.crc32c` of an open file, computed once per process until the file is written to."""
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
    """Random access to the records of one file, which stays in place until closed."""

    def __init__(self, address: str, shard: Shard, file: int):
        self._file = file
        try:
            self._places = list(find_frames(lambda at, count: os.pread(file, count, at), os.fstat(file).st_size))
            if (found := len(self._places)) != shard.records:
                raise ValueError(f"expected {shard.records} records, as in the manifest. Received {found}.")
        except ValueError as error:
            os.close(file)
            raise storage.Corrupt(f"{address}: {error}") from None

    def read(self, record: int) -> bytes:
        position, length = self._places[record]
        return os.pread(self._file, length, position)

    def close(self) -> None:
        os.close(self._file)


class ShardCache:
    """Opens shards, downloading those in buckets first; prefetches on request.

    Args:
        limit: bytes that all files in ``folder`` may take. No shard is removed while any process has it open or
            prefetched. The limit is exceeded only where open shards alone take more, as when several runs share
            a host.
        folder: for shards of buckets; default `cache_folder`.
    """

    def __init__(self, limit: int, folder: str | None = None):
        self._limit, self._folder = limit, folder or cache_folder()
        self._pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="pconv-shard")
        self._ahead: dict[str, Future] = {}
        self._mutex = threading.Lock()

    def prepare(self, dataset: str, shard: Shard) -> None:
        """Begins to fetch and verify a shard that will be opened soon; errors are raised when it is opened."""
        address = storage.join(dataset, shard.name)
        with self._mutex:
            known = self._ahead.get(address)
            if known is None or (known.done() and _result(known) is None):
                self._ahead[address] = self._pool.submit(self._file, address, shard, False)

    def open(self, dataset: str, shard: Shard) -> OpenShard:
        """Opens a shard, fetched if need be.

        Raises:
            storage.NotFound, storage.Corrupt: naming the shard.
            UserError: it cannot be read, or the disk has no room for it.
        """
        address = storage.join(dataset, shard.name)
        with self._mutex:
            pending = self._ahead.pop(address, None)
        file = None
        if pending is not None and not pending.cancel():
            file = _result(pending)  # an error occurs again now, or has passed
        if file is None:
            file = self._file(address, shard, True)
            assert file is not None  # which only happens to files that are not needed
        return OpenShard(address, shard, file)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in self._let_go():
            future.add_done_callback(_discard)

    def _let_go(self) -> list[Future]:
        """The prefetched files and those in flight, to be unlocked so that they can be removed."""
        with self._mutex:
            waiting, self._ahead = self._ahead, {}
        return [future for future in waiting.values() if not future.cancel()]

    def _file(self, address: str, shard: Shard, needed: bool) -> int | None:
        """A file descriptor that holds a shared lock; None if there is no room and it is not ``needed`` yet."""
        if storage.is_remote(address):
            return self._cached(address, shard, needed)
        try:
            file = os.open(address, os.O_RDONLY | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                raise UserError(f"{address} cannot be read: expected a regular file.")
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
            _require_own(self._folder)
            draft = os.open(path + _DRAFT, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
        """Downloads into the draft, which this process has locked, and publishes it as ``path``."""
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
            data, done = storage.read(address, shard.crc32c, shard.bytes), 0
            while done < len(data):
                done += os.pwrite(draft, data[done : done + _BLOCK], done)
            os.ftruncate(draft, len(data))
            with self._turn():  # a file whose name changes while `_reserve` lists them might be counted under neither
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

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Keeps other processes and threads from adding and removing files meanwhile."""
        with _closing(os.open(os.path.join(self._folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _reserve(self, draft: int, size: int) -> bool:
        """Removes unused files until ``size`` more bytes fit, gives the draft that size; returns whether they fit."""
        with self._turn():
            files, own = [], os.fstat(draft).st_ino
            for entry in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    state = entry.stat()
                    if entry.name != ".lock" and state.st_ino != own:
                        whole = not entry.name.endswith(_DRAFT)
                        files.append((whole, state.st_atime_ns, state.st_size, entry.path))
            total = sum(taken for _, _, taken, _ in files)
            for whole, _, taken, path in sorted(files):
                # A draft without a lock is left from a process that died: it is removed in any case.
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
    """Removes a file unless it is locked; returns whether it did."""
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
    """The file at ``path``, locked; None if it is missing or damaged (then it is removed)."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if _checksum(file) == checksum:
        if _is_at(file, path):
            state = os.fstat(file)
            os.utime(file, ns=(time.time_ns(), state.st_mtime_ns))  # access time for _reserve: mounts may not keep it
            return file
    elif _is_at(file, path):
        os.unlink(path)
    os.close(file)
    return None
