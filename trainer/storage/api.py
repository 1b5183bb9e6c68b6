"""Files in local folders and in Google Cloud Storage, behind one set of functions.

An *address* is a local path (``~`` is expanded) or ``gs://bucket/name``. This is the only module
that tells them apart. Everything written here is either created once (`create`) or replaced by
compare-and-swap (`replace`): nothing is overwritten by accident, whatever is retried.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from trainer.errors import AlreadyExists, Conflict, Corrupt, NotFound, UserError
from trainer.storage import gcs, globs

_client = gcs.client
_BLOCK = 1 << 20


def crc32c(data: bytes) -> str:
    """CRC-32C of ``data``, base64 of its big-endian bytes: the way Cloud Storage writes it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def is_bucket(address: str) -> bool:
    return address.startswith("gs://")


def normalize(address: str) -> str:
    """Without a trailing slash, ``~`` expanded, local paths absolute (workers run in other folders)."""
    if is_bucket(address):
        gcs.split(address)
        return address.rstrip("/")
    if "://" in address or not address:
        raise UserError(f"expected a local path or gs://bucket/name. Received {address!r}.")
    return os.path.abspath(os.path.expanduser(address))


def join(folder: str, *names: str) -> str:
    return posixpath.join(folder, *names)


def relative(address: str, folder: str) -> str:
    """The part of ``address`` below ``folder``."""
    return posixpath.relpath(address, folder)


# Finding


def _walk(folder: str, deep: bool) -> Iterator[tuple[str, int]]:
    for parent, below, names in os.walk(folder or "/", followlinks=True):
        if not deep:
            below.clear()
        yield from ((path, size(path)) for path in (os.path.join(parent, name) for name in names))


def scan(address: str) -> Iterator[tuple[str, int]]:
    """Address and size of every file that `find` finds, one by one, in no order to rely on."""
    pattern = normalize(address)
    folder = globs.fixed_folder(pattern)
    base = pattern if folder is None else folder
    matches = globs.compile_glob(pattern).fullmatch if folder is not None else None
    deep = matches is None or "**" in pattern or "/" in pattern[len(base) + 1 :]
    found = gcs.scan(base + "/", deep) if is_bucket(pattern) else _walk(base, deep)
    if matches is None and exists(base):
        found = itertools.chain([(base, size(base))], found)
    for name, length in found:
        if "/." not in name[len(base) :] and (matches is None or matches(name)):
            yield name, length


def find(address: str) -> list[str]:
    """Addresses of all files that match, sorted: one file, a folder (all files below it) or a glob.

    Files and folders whose names begin with a dot are left out, unless ``address`` is or begins with
    them. Returns an empty list where nothing matches; raises `NotFound` for a bucket that is not there.
    """
    return sorted(name for name, _ in scan(address))


def folders(address: str) -> list[str]:
    """Names of the folders right below ``address``, sorted, without those that begin with a dot."""
    if is_bucket(address):
        names = gcs.folders(address)
    else:
        names = next(os.walk(address), ("", [], []))[1]
    return sorted(name for name in names if not name.startswith("."))


def base_of(address: str) -> str:
    """The folder that the names found by ``find(address)`` are relative to."""
    pattern = normalize(address)
    folder = globs.fixed_folder(pattern)
    if folder is not None:
        return folder
    is_file = exists(pattern) if is_bucket(pattern) else os.path.isfile(pattern)
    return pattern.rpartition("/")[0] if is_file else pattern


def exists(address: str) -> bool:
    """Whether a file (not a folder) is there."""
    if is_bucket(address):
        with gcs.errors(address):
            return bool(gcs.split(address)[1]) and gcs.blob(address).exists()
    return os.path.isfile(address)


def size(address: str) -> int:
    """Bytes in the file."""
    if is_bucket(address):
        return next((length for name, length in gcs.scan(address) if name == address), 0)
    with contextlib.suppress(OSError):  # a link to nowhere, or gone since it was listed: reading it will say so
        return os.path.getsize(address)
    return 0


def require_writable(folder: str) -> None:
    """Raises `UserError` unless files can be written below ``folder``: a check to make at launch."""
    if is_bucket(folder):
        list(gcs.scan(folder + "/."))
        return
    _make_folder(folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: permission denied")


# Reading


def read(address: str, checksum: str | None = None) -> bytes:
    """The whole file. Raises `NotFound`, and `Corrupt` if ``checksum`` (see `crc32c`) differs."""
    data, _ = read_versioned(address)
    if data is None:
        raise NotFound(f"{address} does not exist")
    if checksum is not None and crc32c(data) != checksum:
        raise Corrupt(f"{address} is corrupt: expected crc32c {checksum}. Received {crc32c(data)}.")
    return data


def read_versioned(address: str) -> tuple[bytes | None, object]:
    """Bytes and the generation to give to `replace`; ``(None, 0)`` if there is nothing."""
    if is_bucket(address):
        with contextlib.suppress(NotFound), gcs.errors(address):
            blob = gcs.blob(address)
            return blob.download_as_bytes(), blob.generation
        return None, 0
    try:
        data = Path(address).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None, 0
    except OSError as error:
        raise UserError(f"{address} cannot be read: {error.strerror}") from None
    return data, crc32c(data)


def read_range(address: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start``; fewer where the file ends. Raises `NotFound`."""
    if is_bucket(address):
        return gcs.read_range(address, start, length) if length else b""
    try:
        with open(address, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(length)
    except FileNotFoundError:
        raise NotFound(f"{address} does not exist") from None
    except OSError as error:
        raise UserError(f"{address} cannot be read: {error.strerror}") from None


def near(address: str) -> int:
    """How many bytes can be read in about the time that one more `read_range` takes to begin."""
    # Assumed, not measured: 40 ms until the first byte of a bucket, then 100 MB/s.
    return 4 << 20 if is_bucket(address) else 0


def checksum(address: str) -> str:
    """`crc32c` of the file; a bucket knows that of its objects. Raises `NotFound`."""
    if is_bucket(address):
        with gcs.errors(address):
            blob = gcs.blob(address)
            blob.reload()
            return blob.crc32c
    total, position = google_crc32c.Checksum(), 0
    while block := read_range(address, position, _BLOCK):
        total.update(block)
        position += len(block)
    return base64.b64encode(total.digest()).decode()


def fetch(address: str, folder: str, checksum: str) -> str:
    """Path of a local file with the contents of ``address``, verified.

    A local file is used where it lies; an object is downloaded into ``folder`` under a name made of
    its checksum, unless a whole copy is there.
    """
    if not is_bucket(address):
        read(address, checksum)
        return address
    path = os.path.join(folder, checksum.replace("/", "_") + "-" + posixpath.basename(address))
    if read_versioned(path)[1] != checksum:
        _write_local(path, read(address, checksum))
    return path


# Writing


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None


def _write_local(path: str, data: bytes, publish=os.replace) -> None:
    """Writes beside ``path`` first, so that no reader ever sees half a file."""
    folder, name = os.path.split(path)
    _make_folder(folder)
    draft = os.path.join(folder, f".{name}.{os.urandom(4).hex()}")
    try:
        with open(draft, "xb") as file:
            file.write(data)
        publish(draft, path)
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


def create(address: str, data: bytes) -> None:
    """Writes a new file; raises `AlreadyExists` if there is one."""
    if is_bucket(address):
        try:
            replace(address, data, generation=0)
        except Conflict:
            raise AlreadyExists(address) from None
        return
    try:
        _write_local(address, data, publish=os.link)  # link fails if the name is taken, replace would not
    except FileExistsError:
        raise AlreadyExists(address) from None


def replace(address: str, data: bytes, generation: object) -> None:
    """Writes ``data`` if the file still has the ``generation`` that `read_versioned` gave, else raises `Conflict`."""
    if is_bucket(address):
        with gcs.errors(address):
            # Without a generation to match, the client would retry uploads blindly.
            gcs.blob(address).upload_from_string(
                data, content_type="application/octet-stream", if_generation_match=generation, checksum="crc32c"
            )
        return
    _make_folder(os.path.dirname(address))
    lock = os.path.join(os.path.dirname(address), "." + os.path.basename(address) + ".lock")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if read_versioned(address)[1] != generation:
            raise Conflict(address)
        _write_local(address, data)


def overwrite(address: str, data: bytes) -> None:
    """Writes ``data`` whatever is there; for files that only one writer has, such as reports."""
    while is_bucket(address):
        with contextlib.suppress(Conflict):
            return replace(address, data, read_versioned(address)[1])
    _write_local(address, data)


def delete(address: str) -> None:
    """Removes a file; nothing happens if there is none."""
    if is_bucket(address):
        with contextlib.suppress(NotFound), gcs.errors(address):
            gcs.blob(address).delete()
        return
    Path(address).unlink(missing_ok=True)
