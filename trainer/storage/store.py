"""The contract of a store: what `api` asks of each scheme's implementation (`local`, `gcs`)."""

from __future__ import annotations

import base64
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import google_crc32c

from trainer.errors import Denied, TooLarge
from trainer.storage import names


def encode_crc32c(digest: bytes) -> str:
    """Base64 of a CRC-32C's four big-endian bytes: the way Cloud Storage writes it."""
    return base64.b64encode(digest).decode()


def crc32c(data: bytes) -> str:
    """CRC-32C of ``data``, as `encode_crc32c` writes it."""
    return encode_crc32c(google_crc32c.value(data).to_bytes(4, "big"))


def require_size(address: str, size: int, max_bytes: int | None) -> None:
    """Raises `TooLarge` for a file of more than ``max_bytes``."""
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(f"{address} is too large: expected {max_bytes:,} bytes or fewer. Received {size:,} or more.")


class BoundedFile(io.BytesIO):
    """Memory for a download, which ends at once where it would be larger than ``max_bytes``."""

    def __init__(self, address: str, max_bytes: int):
        super().__init__()
        self._address, self._max_bytes = address, max_bytes

    def write(self, data) -> int:
        require_size(self._address, self.tell() + len(data), self._max_bytes)
        return super().write(data)


class Entry(NamedTuple):
    """A file as a list shows it.

    Attributes:
        address: of the file.
        size: bytes; 0 for what is gone since it was listed.
        version: a text that is another one whenever the contents are, told without reading them; empty where nothing
            tells it, as of a local file that was written only just now.
        checksum: `crc32c` of the file, if the list tells it; else empty.
    """

    address: str
    size: int
    version: str = ""
    checksum: str = ""


def in_batches(listed: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries some at a time, the first one alone: what is done to some together takes less than one by one."""
    rest, most = iter(listed), 1
    while some := list(itertools.islice(rest, most)):
        yield some
        most = min(10 * most, 1000)


class Span(NamedTuple):
    """Which of the files below a folder to list, by their names there.

    Attributes:
        start, end: the files from the first of these names on and before the second; empty for no bound.
        part, parts: of a local folder: those that are in this one of so many parts by the hash of their names.
        most: a hint: how many will be taken.
    """

    start: str = ""
    end: str = ""
    part: int = 0
    parts: int = 1
    most: int | None = None

    def holds(self, name: str) -> bool:
        """Whether a file of this name is one of them."""
        if not self.start <= name or (self.end and name >= self.end):
            return False
        return self.parts == 1 or zlib.crc32(names.to_bytes(name)) % self.parts == self.part


EVERYTHING = Span()


class Store(Protocol):
    """Files at the addresses of one scheme.

    Besides what its docstring says, each method may raise `Denied` where access is refused, another `UserError` where
    the address cannot be used, and `Outage` where the service does not do its work: no exception of a client leaves an
    implementation, which repeats what may succeed by itself, for a bounded time. Nothing may be seen half written. An
    implementation keeps its imports of a cloud client inside its functions: commands that work on
    local files load none.

    Attributes:
        is_remote: whether reading needs a network, so that caches, reading ahead and local copies are worth their
            price. The addresses of a store that is not remote are paths of the local file system.
        near: bytes that can be read in about the time that one more `read_range` takes to begin.
    """

    is_remote: bool
    near: int

    def normalize(self, address: str) -> str:
        """``address`` as the other methods expect it, without a slash at its end; UserError if it is malformed."""

    def entries(
        self,
        folder: str,
        deep: bool,
        enters: Callable[[str], bool] | None = None,
        lost: dict[str, Denied] | None = None,
        span: Span = EVERYTHING,
    ) -> Iterator[Entry]:
        """The files of a span that are right in ``folder`` or, if ``deep``, anywhere below it.

        In the order of their names where `is_remote`, and there it costs no more to begin at a later one; in any order
        elsewhere. What is hidden below the folder (`names.is_hidden`) may be left out. Yields nothing for a folder that
        does not exist; raises `NotFound` for a bucket that does not.

        Args:
            enters: whether a folder below, by its address, may hold what is looked for; where all are listed at once,
                it is not asked.
            lost: gets the error of each folder that may not be listed alone of all, by its address; without it, that
                is raised.
        """

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder``, in any order."""

    def exists(self, address: str) -> bool:
        """Whether a file (not a folder) is there."""

    def is_there(self, address: str) -> bool:
        """Whether anything has this name: a file, a folder, or what is neither."""

    def entry(self, address: str) -> Entry:
        """The file as a list shows it; of size 0 if it does not exist."""

    def checksum(self, address: str) -> str:
        """`crc32c` of the file, without reading it if the store knows it. Raises `NotFound`."""

    def stamp(self, address: str, own: bool = False) -> str:
        """A text that the file has as long as its contents are the same, told without reading them; may be empty.

        Where `checksum` needs no reading either, it is. ``own``: this process has just written the file.
        """

    def changed(self, address: str, outside: str = "") -> float:
        """When the file, or the last one below the folder, was changed, in seconds since 1970; 0 if there is none.

        Files below the folder ``outside`` do not count; of local folders, those that files are in count, too.
        """

    def read_versioned(self, address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
        """The whole file and its generation, a value that `replace` takes; ``(None, 0)`` if it does not exist.

        Raises `TooLarge` for a file of more than ``max_bytes``, of which no more than these are held in memory.
        """

    def read_range(self, address: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the file ends. Raises `NotFound`."""

    def require_writable(self, folder: str) -> None:
        """Raises `UserError` unless files can be written below ``folder``, as far as can be told without writing.

        Where there are links, it confines the folder as well, as what it leads to now.
        """

    def confine(self, folder: str) -> None:
        """Where there are links: this process writes and deletes nothing below ``folder`` through one any more."""

    def require_confined(self, address: str) -> None:
        """Raises `UserError` if a link is on the way from a confined folder to ``address``, or is there itself."""

    def create(self, address: str, data: bytes) -> None:
        """Writes a new file. Raises `AlreadyExists`, also where several create it at the same time.

        Not if it is this call's own file, whose first answer was lost; the same holds for `replace`.
        """

    def replace(self, address: str, data: bytes, generation: object) -> None:
        """Writes the file if it still has the ``generation``. Raises `Conflict` if not."""

    def overwrite(self, address: str, data: bytes) -> None:
        """Writes the file, whatever is there."""

    def delete(self, address: str) -> None:
        """Removes the file, if it exists."""

    def sweep(self, folder: str, owns: Callable[[str], bool]) -> None:
        """Removes what writers that were killed left below ``folder``, not what a living one is about to publish.

        Of files alone that are ``owns(path below the folder)``.
        """

    def remove_folder(self, folder: str) -> None:
        """Removes ``folder`` and those below it if they hold no files; does nothing where folders do not exist."""
