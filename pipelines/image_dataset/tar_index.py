"""What lies where in a tar file, found by reading little more than its headers; also in one inside another.

ILSVRC2012_img_train.tar  [header][n01440764.tar: [header][n01440764_10026.JPEG] ... ][header][n01443537.tar ...
                                   '- offset, size    '- offset, size
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from trainer import storage

_SMALLEST, _LARGEST = 4 << 10, 8 << 20  # bytes read at once
_LONGEST_HEADER = 1 << 20  # with GNU's and POSIX's long names in it


class TarError(ValueError):
    """The archive is not one, is damaged or ends too early."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name (bytes that are not UTF-8 as surrogates), and its bytes' place in the outer file.

    Attributes:
        problem: why its contents cannot be had; empty if they can.
    """

    name: str
    start: int
    size: int
    problem: str = ""


class RangeReader:
    """Bytes ``start`` to ``start + size`` of a file as `tarfile` reads a file: seek, tell, read.

    It reads ahead the more, the more often the next position is near: headers that lie close together
    come many at a time from a bucket, where a request costs more than the bytes between them.
    """

    def __init__(self, address: str, start: int, size: int):
        self._address, self._start, self._size = address, start, size
        self._near = storage.near(address)
        self._position = self._begin = 0
        self._ahead, self._held = _SMALLEST, b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._position = position + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, length: int = -1) -> bytes:
        rest = max(self._size - self._position, 0)
        length = rest if length < 0 else min(length, rest)
        if length > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {length} bytes")
        first = self._position - self._begin
        if first < 0 or first + length > len(self._held):
            jump = first - len(self._held)
            self._ahead = min(2 * self._ahead, _LARGEST) if abs(jump) < self._near else _SMALLEST
            wanted = min(max(length, self._ahead), rest)
            self._held = storage.read_range(self._address, self._start + self._position, wanted)
            self._begin, first = self._position, 0
        self._position += length
        return self._held[first : first + length]


def list_members(address: str, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """The members of an archive in their order, without its folders and files whose names begin with a dot.

    Args:
        address: of the file that holds the archive.
        start: the archive's first byte in it.
        size: bytes of the archive; the whole file by default.

    Raises (after the members that could be found):
        TarError: what is wrong, and at which byte of the archive.
    """
    size = storage.size(address) - start if size is None else size
    reader = RangeReader(address, start, size)
    end = 0
    try:
        archive = tarfile.TarFile(fileobj=reader, encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            archive.members = []  # else it keeps every header
            if archive.offset <= end or info.size < 0:
                raise tarfile.ReadError("a member of negative size")
            end = archive.offset
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            if info.isdir() or any(part.startswith(".") and part != ".." for part in parts):
                continue
            name, place = "/".join(parts), start + info.offset_data
            if info.offset_data + info.size > size:
                yield Member(name, place, info.size, f"the archive ends within it, after {size} bytes")
                return
            problem = "" if info.isreg() and not info.issparse() else f"expected a file. Received type {info.type!r}"
            yield Member(name, place, info.size, problem)
    # A damaged header makes tarfile raise more kinds than its own; errors of the storage are others.
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise TarError(f"the archive is damaged or no uncompressed tar, after {end} of {size} bytes: {error}") from None
    reader.seek(end)
    block = reader.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:  # tarfile takes either end of headers for the end of the archive
        raise TarError(f"the archive ends after {size} bytes, without its end mark")
    if any(block):
        raise TarError(f"expected a header at byte {end} of {size}. Received other bytes.")
    # A header that was overwritten with zeros looks like the end mark: after that one are zeros only, and not many.
    if size - end > _LONGEST_HEADER or any(reader.read(size - reader.tell())):
        raise TarError(f"expected the end mark at the end. Received it at byte {end} of {size}.")
