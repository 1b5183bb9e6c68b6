"""Objects of Amazon S3 and Azure Blob Storage as stores: ``s3://bucket/name`` and ``az://container/name``.

Servers that speak as they do, too. The client is obstore; what it reads from the environment, README.md has in a table.
Its own retries are off: every request is repeated by `attempts` and nowhere else.

Two texts in each object's metadata are ours: the name of its upload, which tells whether the object there is this
upload's, and its crc32c, for neither service keeps one. An object of somebody else's is read to know its checksum.
An object's generation is its ETag; that of S3 is the same again where the same bytes are written again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import google_crc32c

from trainer.errors import AlreadyExists, Conflict, Denied, NotFound, Unwritable, UserError
from trainer.storage import attempts
from trainer.storage.objects import failures, services
from trainer.storage.store import EVERYTHING, Entry, Span, crc32c, encode_crc32c, require_size

if TYPE_CHECKING:
    from obstore import ListResult, ObjectMeta, PutMode
    from obstore.store import ObjectStore as Client

T = TypeVar("T")

_UPLOAD, _CRC32C = "pconvupload", "pconvcrc32c"  # keys of metadata: Azure's are identifiers
_PAGE, _BLOCK = 1000, 1 << 20  # objects of a list, bytes of an object
_UPLOAD_RATE = 1e6  # bytes per second: a slower upload is given up
_MAX_NAME = 1024  # bytes of an object's name

# What obstore cannot ask for, whatever the store has.
_UNASKABLE = re.compile(r"//|^/|(^|/)\.{1,2}(/|$)|[\x00-\x1f\x7f]")


class _There(NamedTuple):
    """What is known of the object at an address; all empty without one."""

    generation: str = ""
    upload: str = ""
    crc32c: str = ""
    size: int = 0
    written: float = 0.0


class ObjectStore:
    """Objects of a service."""

    is_remote = True
    near = 4 << 20  # assumed, as of `gcs`

    def __init__(self, service: services.Service):
        self._service = service
        self._tried: set[str] = set()  # buckets with conditional writes

    def normalize(self, address: str) -> str:
        """Without a slash at its end."""
        self._split(address)
        if importlib.util.find_spec("obstore") is None:
            extra, scheme = self._service.extra, self._service.scheme
            raise UserError(
                f"{address}: {scheme}:// needs obstore: pip install 'pconv[{extra}]', or pip install obstore"
            )
        return address.rstrip("/")

    def entries(self, folder: str, deep: bool, enters=None, lost=None, span: Span = EVERYTHING) -> Iterator[Entry]:
        """The objects of a span in ``folder``, in the order of their names."""
        for address, meta in self._list(folder, deep, span):
            # An object that stands for a folder, such as a console makes, is listed without its slash.
            if meta["size"] or self._find(address) is not None:
                yield Entry(address, meta["size"], _version(meta))

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder``, objects' names up to their next slash."""
        return sorted({name.rstrip("/").rpartition("/")[2] for name in self._entries(folder)["common_prefixes"]})

    def exists(self, address: str) -> bool:
        """Whether an object is there; False for a bucket."""
        return bool(self._split(address)[1]) and self._find(address) is not None

    def is_there(self, address: str) -> bool:
        """Whether an object has this name, or begins with it and a slash."""
        return next(self._list(address), None) is not None or self.exists(address)

    def entry(self, address: str) -> Entry:
        """The object as a list shows it; its version is its ETag."""
        there = self._find(address) or _There()
        return Entry(address, there.size, there.generation.strip('"'))

    def checksum(self, address: str) -> str:
        """`crc32c` of the object: from its metadata, or of its bytes where they were written by others."""
        there = self._find(address, "doubted")
        if there is None:
            raise NotFound(f"{address} does not exist (no such bucket or object)")
        return there.crc32c or self._request(address, "read", functools.partial(self._digest, address))

    def stamp(self, address: str, own: bool = False) -> str:
        """The ETag of an object of others; empty for one of ours, whose checksum is known without reading it."""
        there = None if own else self._find(address)
        return "" if there is None or there.crc32c else there.generation

    def changed(self, address: str, outside: str = "") -> float:
        """When the object, or the last one below the folder, was written, by the server's clock."""
        there = self._find(address) if self._split(address)[1] else None
        times = [there.written] if there else []
        for found, meta in self._list(address):
            if not (outside and f"{found}/".startswith(f"{outside}/")):
                times.append(meta["last_modified"].timestamp())
        return max(times, default=0.0)

    def read_versioned(self, address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
        """The whole object and its ETag."""

        def send() -> tuple[bytes, object]:
            import obstore

            found = obstore.get(self._client(address), self._name(address))
            size, ours = found.meta["size"], cast("Mapping[str, str]", found.attributes)
            require_size(address, size, max_bytes)
            data, expected = bytes(found.bytes()), ours.get(_CRC32C, "")
            if len(data) != size or (expected and crc32c(data) != expected):
                raise attempts.Damaged(f"expected {size} bytes of crc32c {expected or 'any'}. Received others.")
            return data, found.meta["e_tag"] or ""

        with contextlib.suppress(NotFound):
            return self._request(address, "read", send, "twice")
        return None, 0

    def read_range(self, address: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the object ends; without a checksum, as `gcs` has it."""
        if not length:
            return b""

        def send() -> bytes:
            import obstore

            client, name = self._client(address), self._name(address)
            try:
                data = bytes(obstore.get_range(client, name, start=start, length=length))
            except Exception as error:
                if not failures.is_past_end(error):
                    raise
                data = b""
            if len(data) < length:
                expected = max(0, min(length, obstore.head(client, name)["size"] - start))
                if len(data) != expected:
                    raise attempts.Damaged(f"expected {expected} bytes. Received {len(data)}.")
            return data

        return self._request(address, "read", send)

    def require_writable(self, folder: str) -> None:
        """Raises `UserError` unless the bucket exists and may be listed and written to, with conditions that hold.

        They are tried once, with a hidden object that is removed again: stores that say nothing of them overwrite.
        """
        next(self._list(folder), None)
        bucket, _ = self._split(folder)
        if bucket in self._tried:
            return
        address, refused = f"{folder}/.pconv-{uuid.uuid4().hex}", 0
        self.create(address, b"")
        modes: list[PutMode] = ["create", {"e_tag": '"0x0"'}]
        for mode in modes:
            try:
                self._request(address, "write", functools.partial(self._put, address, b"", mode, {}))
            except Conflict:
                refused += 1
            except Denied:
                raise
            except UserError:  # such headers are unknown there
                pass
        self.delete(address)
        if refused < len(modes):
            raise UserError(
                f"{self._root(folder)}: expected a store that heeds If-None-Match and If-Match when it is written to. "
                "Received one that overwrites: of two writers both would win, and neither know of it."
            )
        self._tried.add(bucket)

    def create(self, address: str, data: bytes) -> None:
        """Writes a new object."""
        try:
            self.replace(address, data, generation=0)
        except Conflict:
            raise AlreadyExists(address) from None

    def replace(self, address: str, data: bytes, generation: object) -> None:
        """Writes the object if it still has the ETag ``generation``."""
        name = self._split(address)[1]
        if len(name.encode(errors="surrogateescape")) > _MAX_NAME:
            raise Unwritable(f"cannot write to {address}: expected a name of at most {_MAX_NAME} bytes")
        upload = uuid.uuid4().hex
        mode: PutMode = {"e_tag": str(generation)} if generation else "create"
        metadata = {_UPLOAD: upload, _CRC32C: crc32c(data)}

        def send() -> None:
            from obstore.exceptions import AlreadyExistsError, PreconditionError

            try:
                self._put(address, data, mode, metadata)
            except (AlreadyExistsError, PreconditionError):
                there = self._find(address) or _There()
                if there.upload == upload:  # the answer to an earlier attempt was lost
                    return
                if there.generation == (generation or ""):
                    raise attempts.Damaged(f"the object is not at {generation or 'absent'}, although it is") from None
                raise

        self._request(address, "write", send)

    def overwrite(self, address: str, data: bytes) -> None:
        """Writes the object over the generation that is there, until nobody else has done so meanwhile."""
        while True:
            there = self._find(address, "believed") or _There()  # a wrong answer makes a conflict
            with contextlib.suppress(Conflict):
                return self.replace(address, data, there.generation)

    def delete(self, address: str) -> None:
        """Removes the object, if it exists."""

        def send() -> None:
            import obstore

            obstore.delete(self._client(address), self._name(address))

        with contextlib.suppress(NotFound):
            self._request(address, "delete", send, "twice")

    def confine(self, folder: str) -> None:
        """A bucket has no links."""

    def require_confined(self, address: str) -> None:
        """A bucket has no links."""

    def sweep(self, folder: str, owns: Callable[[str], bool]) -> None:
        """An upload that does not end leaves nothing."""

    def remove_folder(self, folder: str) -> None:
        """A bucket has no folders."""

    # Addresses

    def _split(self, address: str) -> tuple[str, str]:
        """Bucket and name; raises `UserError` if it is no address of this service."""
        scheme = self._service.scheme
        bucket, _, name = address.removeprefix(f"{scheme}://").partition("/")
        if not self._service.bucket.fullmatch(bucket):
            raise UserError(f"expected {scheme}://bucket/name. Received {address!r}.")
        return bucket, name

    def _root(self, address: str) -> str:
        """The bucket's address."""
        return f"{self._service.scheme}://{self._split(address)[0]}"

    def _name(self, address: str) -> str:
        """The object's name; raises `UserError` for one that obstore does not ask for."""
        name = self._split(address)[1]
        if _UNASKABLE.search(name):
            raise Unwritable(f"{address!r}: expected a name without empty parts, '.', '..' and control characters")
        return name

    def _client(self, address: str, size: int | None = None) -> Client:
        """To read with or, given a ``size`` in bytes, to write so much."""
        bucket, seconds = self._split(address)[0], None if size is None else services.QUIET_S
        while seconds and size and seconds * _UPLOAD_RATE < size:
            seconds *= 2
        return services.client(self._service, bucket, seconds)

    # Requests

    def _find(self, address: str, absence: attempts.Absence = "twice") -> _There | None:
        """What is known of the object; None if there is none."""

        def send() -> _There:
            import obstore

            found = obstore.get(self._client(address), self._name(address), options={"head": True})
            ours = cast("Mapping[str, str]", found.attributes)
            meta, written = found.meta, found.meta["last_modified"].timestamp()
            return _There(meta["e_tag"] or "", ours.get(_UPLOAD, ""), ours.get(_CRC32C, ""), meta["size"], written)

        with contextlib.suppress(NotFound):
            return self._request(address, "read", send, absence)
        return None

    def _digest(self, address: str) -> str:
        import obstore

        found, total, size = obstore.get(self._client(address), self._name(address)), google_crc32c.Checksum(), 0
        for block in found.stream(_BLOCK):
            total.update(bytes(block))
            size += len(block)
        if size != found.meta["size"]:
            raise attempts.Damaged(f"expected {found.meta['size']} bytes. Received {size}.")
        return encode_crc32c(total.digest())

    def _list(self, folder: str, deep: bool = True, span: Span = EVERYTHING) -> Iterator[tuple[str, ObjectMeta]]:
        """Address and metadata of the objects of a span right in ``folder`` or, if ``deep``, anywhere below it."""
        root, prefix = self._root(folder), self._name(folder)
        skipped = len(prefix) + 1 if prefix else 0
        if not deep and span == EVERYTHING:
            for meta in self._entries(folder)["objects"]:
                if meta["path"] != prefix:
                    yield f"{root}/{meta['path']}", meta
            return
        start: str | None = span.start
        while start is not None:
            begin, start = start, None
            for meta in self._below(folder, begin):
                name = meta["path"][skipped:]
                if span.end and name >= span.end:
                    return
                if not deep and "/" in name:
                    start = name.partition("/")[0] + "0"  # what follows all that is in this folder
                    break
                # Not the object that stands for the folder itself, whose name is empty or, without its slash, a part.
                if name >= begin and (not prefix or meta["path"].startswith(f"{prefix}/")):
                    yield f"{root}/{meta['path']}", meta

    def _below(self, folder: str, start: str) -> Iterator[ObjectMeta]:
        """What is below ``folder`` from a name on, and little before; a page that fails is asked for again."""
        stream: Iterator[Sequence[ObjectMeta]] | None = None
        prefix, before = self._name(folder), _before(start)
        last = after = "/".join(filter(None, (prefix, before))) if before else ""

        def send() -> Sequence[ObjectMeta] | None:
            import obstore

            nonlocal stream, after
            try:
                if stream is None:
                    after = last
                    client = self._client(folder)
                    stream = obstore.list(client, prefix or None, offset=after or None, chunk_size=_PAGE)
                return next(stream, None)
            except BaseException:
                stream = None
                raise

        while (page := self._request(self._root(folder), "list", send)) is not None:
            last = page[-1]["path"] if page else last
            # Some servers begin from the beginning whatever is asked for.
            yield from (meta for meta in page if meta["path"] > after)

    def _entries(self, folder: str) -> ListResult[Sequence[ObjectMeta]]:
        """Objects right in ``folder``, and prefixes of those below it."""

        def send() -> ListResult[Sequence[ObjectMeta]]:
            import obstore

            return obstore.list_with_delimiter(self._client(folder), self._name(folder) or None)

        return self._request(self._root(folder), "list", send)

    def _put(self, address: str, data: bytes, mode: PutMode, metadata: dict[str, str]) -> None:
        import obstore

        client, name = self._client(address, len(data)), self._name(address)
        obstore.put(client, name, data, mode=mode, attributes=metadata, use_multipart=False)

    def _request(self, address: str, verb: str, send: Callable[[], T], absence: attempts.Absence = "doubted") -> T:
        """As `attempts.repeat` does it; ``verb`` is to ``read``, ``list``, ``write`` or ``delete``."""
        ours = functools.partial(failures.ours, address=address, name=self._service.name, hint=self._service.hint)
        return attempts.repeat((self._root(address), verb), send, failures.kind_of, ours, absence)


def _version(meta: ObjectMeta) -> str:
    """The ETag, which Azure's lists have without its quotes."""
    return (meta["e_tag"] or "").strip('"')


def _before(name: str) -> str:
    """A text before ``name`` in order, with little between them: a list begins behind what obstore is given."""
    if not name:
        return ""
    letter = ord(name[-1]) - 1
    close = name[:-1] + chr(0xD7FF if 0xD800 <= letter < 0xE000 else letter) + "\U0010ffff"
    return next((text for text in (close, name[:-1]) if not _UNASKABLE.search(text)), "")
