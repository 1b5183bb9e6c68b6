"""Google Cloud Storage as a store: ``gs://bucket/name``.

``STORAGE_EMULATOR_HOST`` points it at an emulator, as Google's own client does; ``PCONV_BILLING_PROJECT`` names the
project that pays where whoever asks does.

Every request is repeated by `attempts` and nowhere else: the client's own retries are off, for they continue downloads
without checking them, take a lost answer of an upload for somebody else's file, and leave out answers that are cut
short.

Each upload has a name of its own in the object's metadata: it tells whether the object there is this upload's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from trainer.errors import AlreadyExists, Conflict, Denied, NotFound, Outage, Unwritable, UserError
from trainer.storage import attempts
from trainer.storage.store import EVERYTHING, BoundedFile, Entry, Span

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket, Client

T = TypeVar("T")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_MAX_NAME = 1024  # bytes of an object's name
_BILLING_PROJECT = "PCONV_BILLING_PROJECT"  # `trainer.command` sets it
_PAGE = 1000  # objects of a list
_UPLOAD = "pconv-upload"  # key of the metadata with the upload's name
# Packages whose exceptions mean that there was no answer. Their names, because their import is slow.
_CLIENT_PACKAGES = {"google", "requests", "urllib3", "http"}


class _There(NamedTuple):
    """What is known of the object at an address: its generation, 0 without one, and the name of its upload."""

    generation: int
    upload: str


class GcsStore:
    """Objects of Google Cloud Storage."""

    is_remote = True
    near = 4 << 20  # assumed, not measured: 40 ms until the first byte, then 100 MB/s

    def normalize(self, address: str) -> str:
        """Without a slash at its end."""
        _split(address)
        return address.rstrip("/")

    def entries(self, folder: str, deep: bool, enters=None, lost=None, span: Span = EVERYTHING) -> Iterator[Entry]:
        """The objects of a span in ``folder``, in the order of their names."""
        return _list(folder + "/", deep, span)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder``, objects' names up to their next slash."""
        _, name = _split(folder)
        prefix = name + "/" if name else ""
        pages = _pages(folder, prefix, delimiter="/", fields="prefixes,nextPageToken")
        return sorted({found[len(prefix) : -1] for _, prefixes in pages for found in prefixes})

    def exists(self, address: str) -> bool:
        """Whether an object is there; False for a bucket."""
        return bool(_split(address)[1]) and _find(address) is not None

    def is_there(self, address: str) -> bool:
        """Whether an object has this name, or begins with it and a slash."""
        with contextlib.suppress(Denied):  # who may list a managed folder may not list what is beside it
            if self.entry(address).version:
                return True
        return next(_list(f"{address}/", span=Span(most=1)), None) is not None

    def entry(self, address: str) -> Entry:
        """The object as a list shows it; its version is its generation."""
        first = next(_list(address, span=Span(most=1)), None)
        return first if first and first.address == address else Entry(address, 0)

    def checksum(self, address: str) -> str:
        """`crc32c` of the object, as its metadata has it."""

        def send() -> str:
            blob = _blob(address)
            blob.reload(retry=None)
            return blob.crc32c

        return _request(address, "read", send)

    def stamp(self, address: str, own: bool = False) -> str:
        """Empty: the object's checksum is known without reading it."""
        return ""

    def changed(self, address: str, outside: str = "") -> float:
        """When the object, or the last one below the folder, was written, by the server's clock."""
        (bucket, name), latest = _split(address), 0.0
        for page, _ in _pages(address, name, fields="items(name,updated),nextPageToken"):
            for blob in page:
                place = f"gs://{bucket}/{blob.name}/"
                if place.startswith(f"{address}/") and not (outside and place.startswith(f"{outside}/")):
                    latest = max(latest, blob.updated.timestamp())
        return latest

    def read_versioned(self, address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
        """The whole object and its generation."""

        def send() -> tuple[bytes, object]:
            blob = _blob(address)
            if max_bytes is None:
                return blob.download_as_bytes(retry=None), blob.generation
            file = BoundedFile(address, max_bytes)
            blob.download_to_file(file, retry=None)
            return file.getvalue(), blob.generation

        with contextlib.suppress(NotFound):
            return _request(address, "read", send, "twice")
        return None, 0

    def read_range(self, address: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the object ends.

        Unlike a whole object, a range comes without a checksum: only its length, and TLS, tell that it is whole.
        """
        if not length:
            return b""

        def send() -> bytes:
            from google.api_core.exceptions import RequestRangeNotSatisfiable

            blob = _blob(address)
            try:
                data = blob.download_as_bytes(start=start, end=start + length - 1, checksum=None, retry=None)
            except RequestRangeNotSatisfiable:
                data = b""
            if len(data) < length:
                blob = _blob(address)  # of no generation
                blob.reload(retry=None)
            expected = length if len(data) >= length else max(0, min(length, blob.size - start))
            if len(data) != expected:
                raise attempts.Damaged(f"expected {expected} bytes. Received {len(data)}.")
            return data

        return _request(address, "read", send)

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
        if len(_split(address)[1].encode(errors="surrogateescape")) > _MAX_NAME:
            raise Unwritable(f"cannot write to {address}: expected a name of at most {_MAX_NAME} bytes")
        upload = uuid.uuid4().hex

        def send() -> None:
            from google.api_core.exceptions import PreconditionFailed

            blob = _blob(address)
            blob.metadata = {_UPLOAD: upload}
            kind = "application/octet-stream"
            try:
                blob.upload_from_string(
                    data, content_type=kind, if_generation_match=generation, checksum="crc32c", retry=None
                )
            except PreconditionFailed:
                there = _find(address) or _There(0, "")
                if there.upload == upload:  # the answer to an earlier attempt was lost
                    return
                if there.generation == generation:
                    raise attempts.Damaged(f"the object is not at generation {generation}, although it is") from None
                raise

        _request(address, "write", send)

    def overwrite(self, address: str, data: bytes) -> None:
        """Writes the object over the generation that is there, until nobody else has done so meanwhile."""
        while True:
            there = _find(address, "believed") or _There(0, "")  # a wrong answer makes a conflict
            with contextlib.suppress(Conflict):
                return self.replace(address, data, there.generation)

    def delete(self, address: str) -> None:
        """Removes the object, if it exists."""
        with contextlib.suppress(NotFound):
            _request(address, "delete", lambda: _blob(address).delete(retry=None), "twice")

    def confine(self, folder: str) -> None:
        """A bucket has no links."""

    def require_confined(self, address: str) -> None:
        """A bucket has no links."""

    def sweep(self, folder: str, owns: Callable[[str], bool]) -> None:
        """An upload that does not end leaves nothing."""

    def remove_folder(self, folder: str) -> None:
        """A bucket has no folders."""


@functools.lru_cache(maxsize=1)
def client() -> Client:
    """The process's client; ``client.cache_clear()`` makes it read the environment again."""
    # Imported on first use: local folders need no cloud client.
    from google.cloud import storage

    return storage.Client()


def _split(address: str) -> tuple[str, str]:
    """Bucket and name of ``gs://bucket/name``; raises `UserError` if it is no such address."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"expected gs://bucket/name. Received {address!r}.")
    return bucket, name


def _blob(address: str) -> Blob:
    """Handle of an object; nothing is requested."""
    bucket, name = _split(address)
    return _bucket(bucket).blob(name)


def _bucket(name: str) -> Bucket:
    """Handle of a bucket; with the project that pays for what is asked of it, if one is named."""
    return client().bucket(name, user_project=os.environ.get(_BILLING_PROJECT) or None)


# Requests


def _find(address: str, absence: attempts.Absence = "twice") -> _There | None:
    """What is known of the object; None if there is none."""

    def send() -> _There:
        blob = _blob(address)
        blob.reload(retry=None)
        return _There(int(blob.generation), (blob.metadata or {}).get(_UPLOAD, ""))

    with contextlib.suppress(NotFound):
        return _request(address, "read", send, absence)
    return None


def _pages(address: str, prefix: str, **query: str | int | None) -> Iterator[tuple[list[Blob], set[str]]]:
    """Objects and prefixes of each page of a list; a page that fails is asked for again, not those before it."""
    bucket, _ = _split(address)
    token: str | None = None

    def send() -> tuple[list[Blob], set[str], str | None]:
        options = {"page_size": _PAGE} | query
        found = client().list_blobs(_bucket(bucket), prefix=prefix, page_token=token, retry=None, **options)
        page = list(next(found.pages, ()))
        return page, set(found.prefixes), found.next_page_token

    while True:
        page, prefixes, token = _request(f"gs://{bucket}", "list", send)
        yield page, prefixes
        if not token:
            return


def _list(prefix: str, deep: bool = True, span: Span = EVERYTHING) -> Iterator[Entry]:
    """The objects whose addresses are ``prefix`` and a name of ``span``; unless ``deep``, those of one folder."""
    bucket, name = _split(prefix)
    query: dict[str, str | int | None] = {"delimiter": None if deep else "/"}
    query |= {f"{bound}_offset": name + value for bound, value in (("start", span.start), ("end", span.end)) if value}
    query |= {"page_size": span.most} if span.most else {}
    for page, _ in _pages(prefix, name, fields="items(name,size,generation,crc32c),nextPageToken", **query):
        for found in page:
            if not found.name.endswith("/"):  # such objects stand for folders
                address = f"gs://{bucket}/{found.name}"
                yield Entry(address, found.size or 0, str(found.generation), found.crc32c or "")


def _request(address: str, verb: str, send: Callable[[], T], absence: attempts.Absence = "doubted") -> T:
    """What ``send()`` returns, see `attempts.repeat`; ``verb`` is to ``read``, ``list``, ``write`` or ``delete``."""
    return attempts.repeat(
        (f"gs://{_split(address)[0]}", verb), send, _kind, functools.partial(_ours, address=address), absence
    )


def _kind(error: BaseException) -> attempts.Kind:
    """What an exception of the client says."""
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

    if isinstance(error, exceptions.NotFound):
        return "absent"
    if isinstance(error, exceptions.Unauthorized | exceptions.Forbidden):
        return "refused"
    if isinstance(error, exceptions.ClientError) and error.code not in (408, 409, 429):
        return "answered"
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        # The former: there are none on this machine.
        return "answered" if type(error) is DefaultCredentialsError else "refused"
    if _is_malformed(error):
        return "answered"
    if _is_no_answer(error):
        return "unanswered"
    # What the client raises when it reads an answer that is empty; a bug would be raised again.
    return "odd" if isinstance(error, AttributeError | TypeError | KeyError) else "answered"


def _is_malformed(error: BaseException) -> bool:
    """Whether the server has an address that nothing can be sent to, such as one without ``http://``."""
    from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

    return isinstance(error, InvalidSchema | InvalidURL | MissingSchema)


def _is_no_answer(error: BaseException) -> bool:
    """Whether the client did not get an answer that it understands; a ValueError is JSON that is cut short."""
    packages = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return bool(packages & _CLIENT_PACKAGES) or isinstance(error, attempts.Damaged | OSError | ValueError)


def _ours(error: Exception, seconds: float, address: str) -> Exception:
    """This project's error for what the client has raised."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    if isinstance(error, exceptions.PreconditionFailed):
        return Conflict(address)
    if isinstance(error, exceptions.NotFound):
        return NotFound(f"{address} does not exist (no such bucket or object)")
    if isinstance(error, exceptions.ClientError) and error.code not in (408, 409, 429):
        kind = Denied if isinstance(error, exceptions.Unauthorized | exceptions.Forbidden) else UserError
        return kind(f"{address} may not be used: {error.message}")
    if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
        return Denied(f"no Google Cloud credentials for {address}: {error}")
    if _is_malformed(error):
        return UserError(f"STORAGE_EMULATOR_HOST: expected http://HOST:PORT. Received {error}")
    if _is_no_answer(error):
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outage(f"{address}: no answer from Cloud Storage that can be used, for {seconds:.0f} s: {text[:300]}")
    return error
