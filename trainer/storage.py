"""Files in local folders and in Google Cloud Storage, behind one set of functions.

An *address* is a local path (``~`` is expanded) or ``gs://bucket/name``. This is the only module
that tells them apart. Everything written here is either created once (`create`) or replaced by
compare-and-swap (`replace`): nothing is overwritten by accident, whatever is retried.

``STORAGE_EMULATOR_HOST`` points the bucket half at an emulator, as Google's own client does.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import fnmatch
import functools
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from trainer.command import UserError

_WILDCARD = re.compile(r"[*?\[]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")


class NotFound(UserError):
    """There is nothing at the address."""


class AlreadyExists(Exception):
    """`create` found something at the address."""


class Conflict(Exception):
    """`replace` found another generation than the one that was read."""


class Corrupt(UserError):
    """The bytes that were read do not have the checksum they should have."""


def crc32c(data: bytes) -> str:
    """CRC-32C of ``data``, base64 of its big-endian bytes: the way Cloud Storage writes it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def is_bucket(address: str) -> bool:
    return address.startswith("gs://")


def normalize(address: str) -> str:
    """Without a trailing slash, ``~`` expanded, local paths absolute (workers run in other folders)."""
    if is_bucket(address):
        _split(address)
        return address.rstrip("/")
    if "://" in address or not address:
        raise UserError(f"expected a local path or gs://bucket/name. Received {address!r}.")
    return os.path.abspath(os.path.expanduser(address))


def join(folder: str, *names: str) -> str:
    return posixpath.join(folder, *names)


def relative(address: str, folder: str) -> str:
    """The part of ``address`` below ``folder``."""
    return posixpath.relpath(address, folder)


# Google Cloud Storage


@functools.lru_cache(maxsize=1)
def _client():
    # Imported on first use: local folders need no cloud client.
    from google.cloud import storage

    return storage.Client()


def _split(address: str) -> tuple[str, str]:
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"expected gs://bucket/name. Received {address!r}.")
    return bucket, name


def _blob(address: str):
    return _client().bucket(_split(address)[0]).blob(_split(address)[1])


@contextlib.contextmanager
def _cloud_errors(address: str) -> Iterator[None]:
    """Turns what Google's client raises into this module's errors."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except exceptions.PreconditionFailed:
        raise Conflict(address) from None
    except exceptions.NotFound:
        raise NotFound(f"{address} does not exist (no such bucket or object)") from None
    except exceptions.ClientError as error:  # 4xx: not allowed, or not a bucket's name
        raise UserError(f"{address} may not be used: {error.message}") from None
    except GoogleAuthError as error:
        raise UserError(f"no Google Cloud credentials for {address}: {error}") from None


def _list_bucket(prefix: str) -> list[str]:
    bucket, name = _split(prefix)
    with _cloud_errors(f"gs://{bucket}"):
        blobs = list(_client().list_blobs(bucket, prefix=name, fields="items(name),nextPageToken"))
    return [f"gs://{bucket}/{blob.name}" for blob in blobs if not blob.name.endswith("/")]


# Finding


def _glob_regex(pattern: str) -> re.Pattern:
    """``**/`` is any number of folders, ``**`` anything; ``*``, ``?``, ``[a-z]``, ``[!a]`` stay within a folder."""
    rules = {"**/": "(?s:.*/)?", "**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    sets = {p: "(?!/)" + fnmatch.translate(p)[:-2] for p in parts[1::2]}  # without the \Z at its end
    return re.compile("".join(rules.get(p) or sets.get(p) or re.escape(p) for p in parts))


def find(address: str) -> list[str]:
    """Addresses of all files that match, sorted: one file, a folder (all files below it) or a glob.

    Files and folders whose names begin with a dot are left out, unless ``address`` is or begins with
    them. Returns an empty list where nothing matches; raises `NotFound` for a bucket that is not there.
    """
    pattern = normalize(address)
    wildcard = _WILDCARD.search(pattern)
    base = pattern[: wildcard.start()].rpartition("/")[0] if wildcard else pattern
    if is_bucket(pattern):
        bucket, name = _split(base)
        found = _list_bucket(f"gs://{bucket}/{name}/" if name else f"gs://{bucket}/")
        if not wildcard and name and exists(pattern):
            found.append(pattern)
    elif os.path.isfile(pattern):
        found = [pattern]
    else:
        walk = os.walk(base or "/", followlinks=True)
        found = [os.path.join(folder, name) for folder, _, names in walk for name in names]
    if wildcard:
        found = [name for name in found if _glob_regex(pattern).fullmatch(name)]
    return sorted(name for name in found if "/." not in name[len(base) :])


def base_of(address: str) -> str:
    """The folder that the names found by ``find(address)`` are relative to."""
    pattern = normalize(address)
    wildcard = _WILDCARD.search(pattern)
    if wildcard:
        return pattern[: wildcard.start()].rpartition("/")[0]
    is_file = exists(pattern) if is_bucket(pattern) else os.path.isfile(pattern)
    return pattern.rpartition("/")[0] if is_file else pattern


def exists(address: str) -> bool:
    """Whether a file (not a folder) is there."""
    if is_bucket(address):
        with _cloud_errors(address):
            return bool(_split(address)[1]) and _blob(address).exists()
    return os.path.isfile(address)


def require_writable(folder: str) -> None:
    """Raises `UserError` unless files can be written below ``folder``: a check to make at launch."""
    if is_bucket(folder):
        _list_bucket(folder + "/.")
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
        with contextlib.suppress(NotFound), _cloud_errors(address):
            blob = _blob(address)
            return blob.download_as_bytes(), blob.generation
        return None, 0
    try:
        data = Path(address).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None, 0
    except OSError as error:
        raise UserError(f"{address} cannot be read: {error.strerror}") from None
    return data, crc32c(data)


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
        with _cloud_errors(address):
            # Without a generation to match, the client would retry uploads blindly.
            _blob(address).upload_from_string(
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
        with contextlib.suppress(NotFound), _cloud_errors(address):
            _blob(address).delete()
        return
    Path(address).unlink(missing_ok=True)
