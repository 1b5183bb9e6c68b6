"""Google Cloud Storage: one client, its objects and its errors. Used by `storage` alone.

``STORAGE_EMULATOR_HOST`` points it at an emulator, as Google's own client does.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

from trainer.errors import Conflict, NotFound, UserError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")


@functools.lru_cache(maxsize=1)
def client():
    # Imported on first use: local folders need no cloud client.
    from google.cloud import storage

    return storage.Client()


def split(address: str) -> tuple[str, str]:
    """Bucket and name of ``gs://bucket/name``; raises `UserError` if it is no such address."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"expected gs://bucket/name. Received {address!r}.")
    return bucket, name


def blob(address: str):
    """Handle of an object; nothing is requested."""
    bucket, name = split(address)
    return client().bucket(bucket).blob(name)


@contextlib.contextmanager
def errors(address: str) -> Iterator[None]:
    """Turns what Google's client raises into this project's errors."""
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


def scan(prefix: str, deep: bool = True) -> Iterator[tuple[str, int]]:
    """Address and size of every object whose address begins with ``prefix``, in name order.

    Args:
        deep: whether also of those with a slash after the prefix.
    """
    bucket, name = split(prefix)
    with errors(f"gs://{bucket}"):
        for found in client().list_blobs(
            bucket, prefix=name, delimiter=None if deep else "/", fields="items(name,size),nextPageToken"
        ):
            if not found.name.endswith("/"):  # such objects stand for folders
                yield f"gs://{bucket}/{found.name}", found.size or 0


def folders(folder: str) -> list[str]:
    """Names of the folders right below ``folder``."""
    bucket, name = split(folder)
    prefix = name + "/" if name else ""
    with errors(f"gs://{bucket}"):
        pages = client().list_blobs(bucket, prefix=prefix, delimiter="/", fields="prefixes,nextPageToken")
        list(pages)  # the prefixes are known when all pages are read
    return [found[len(prefix) : -1] for found in pages.prefixes]


def read_range(address: str, start: int, length: int) -> bytes:
    """``length`` bytes (1 or more) from ``start``; fewer where the object ends."""
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    with errors(address):
        try:
            return blob(address).download_as_bytes(start=start, end=start + length - 1, checksum=None)
        except RequestRangeNotSatisfiable:
            return b""
