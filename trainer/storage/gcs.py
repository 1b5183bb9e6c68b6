"""Google Cloud Storage as a store: ``gs://bucket/name``.

``STORAGE_EMULATOR_HOST`` points it at an emulator, as Google's own client does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer.errors import AlreadyExists, Conflict, NotFound, UserError
from trainer.storage.store import require_size

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
# Packages whose exceptions the client lets through once it has given up. Their names, because their import is slow.
_CLIENT_PACKAGES = {"google", "requests", "urllib3", "http"}


class GcsStore:
    """Objects of Google Cloud Storage. The client retries by itself, for up to 120 s a request."""

    is_remote = True
    near = 4 << 20  # assumed, not measured: 40 ms until the first byte, then 100 MB/s

    def normalize(self, address: str) -> str:
        """Without a slash at its end."""
        _split(address)
        return address.rstrip("/")

    def scan(self, folder: str, deep: bool) -> Iterator[tuple[str, int]]:
        """Address and size of each object in ``folder``, in the order of their names."""
        return _list(folder + "/", deep)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder``, objects' names up to their next slash."""
        bucket, name = _split(folder)
        prefix = name + "/" if name else ""
        with _errors(f"gs://{bucket}"):
            pages = client().list_blobs(bucket, prefix=prefix, delimiter="/", fields="prefixes,nextPageToken")
            list(pages)  # the prefixes are known when all pages are read
        return [found[len(prefix) : -1] for found in pages.prefixes]

    def exists(self, address: str) -> bool:
        """Whether an object is there; False for a bucket."""
        with _errors(address):
            return bool(_split(address)[1]) and _blob(address).exists()

    def size(self, address: str) -> int:
        """Bytes in the object; 0 if it does not exist."""
        return next((length for name, length in _list(address) if name == address), 0)

    def checksum(self, address: str) -> str:
        """`crc32c` of the object, as its metadata has it."""
        with _errors(address):
            blob = _blob(address)
            blob.reload()
            return blob.crc32c

    def read_versioned(self, address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
        """The whole object and its generation."""
        with contextlib.suppress(NotFound), _errors(address):
            blob = _blob(address)
            if max_bytes is None:
                return blob.download_as_bytes(), blob.generation
            file = _BoundedFile(address, max_bytes)
            blob.download_to_file(file)
            return file.getvalue(), blob.generation
        return None, 0

    def read_range(self, address: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the object ends."""
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        if not length:
            return b""
        with _errors(address):
            try:
                return _blob(address).download_as_bytes(start=start, end=start + length - 1, checksum=None)
            except RequestRangeNotSatisfiable:
                return b""

    def require_writable(self, folder: str) -> None:
        """Raises `UserError` unless the bucket exists and may be listed; only a write tells about writing."""
        list(_list(folder + "/."))

    def create(self, address: str, data: bytes) -> None:
        """Writes a new object."""
        try:
            self.replace(address, data, generation=0)
        except Conflict:
            raise AlreadyExists(address) from None

    def replace(self, address: str, data: bytes, generation: object) -> None:
        """Writes the object if it still has the ``generation``."""
        with _errors(address):
            # Without a generation to match, the client would retry uploads blindly.
            _blob(address).upload_from_string(
                data, content_type="application/octet-stream", if_generation_match=generation, checksum="crc32c"
            )

    def overwrite(self, address: str, data: bytes) -> None:
        """Writes the object over the generation that is there, until nobody else has done so meanwhile."""
        while True:
            with contextlib.suppress(Conflict):
                return self.replace(address, data, self.read_versioned(address)[1])

    def delete(self, address: str) -> None:
        """Removes the object, if it exists."""
        with contextlib.suppress(NotFound), _errors(address):
            _blob(address).delete()

    def is_transient(self, error: BaseException) -> bool:
        """Any exception of the client that `_errors` lets through: outages, timeouts, server errors."""
        return any(kind.__module__.split(".")[0] in _CLIENT_PACKAGES for kind in type(error).__mro__)


class _BoundedFile(io.BytesIO):
    """Memory for a download, which ends at once where it would be larger than ``max_bytes``."""

    def __init__(self, address: str, max_bytes: int):
        super().__init__()
        self._address, self._max_bytes = address, max_bytes

    def write(self, data) -> int:
        require_size(self._address, self.tell() + len(data), self._max_bytes)
        return super().write(data)


@functools.lru_cache(maxsize=1)
def client() -> Client:
    """The process's client; ``client.cache_clear()`` makes it read the environment again."""
    # Imported on first use: local folders need no cloud client.
    from google.cloud import storage

    return storage.Client()


def _split(address: str) -> tuple[str, str]:
    """Bucket and name of ``gs://bucket/name``; raises `UserError` for anything else."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"expected gs://bucket/name. Received {address!r}.")
    return bucket, name


def _blob(address: str) -> Blob:
    """Handle of an object; nothing is requested."""
    bucket, name = _split(address)
    return client().bucket(bucket).blob(name)


def _list(prefix: str, deep: bool = True) -> Iterator[tuple[str, int]]:
    """Address and size of each object whose address begins with ``prefix``; unless ``deep``, without those below it."""
    bucket, name = _split(prefix)
    with _errors(f"gs://{bucket}"):
        for found in client().list_blobs(
            bucket, prefix=name, delimiter=None if deep else "/", fields="items(name,size),nextPageToken"
        ):
            if not found.name.endswith("/"):  # such objects stand for folders
                yield f"gs://{bucket}/{found.name}", found.size or 0


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    """Turns the client's exceptions that are answers into this project's errors."""
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
