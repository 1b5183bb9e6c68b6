"""Parts of a source of images, and where each image lies: files of a folder, or members of a tar.

Tars are indexed by reading little more than their headers, also in a tar inside another:

    ILSVRC2012_img_train.tar  [header][n01440764.tar: [header][n01440764_10026.JPEG] ... ][header][n01443537.tar ...
                                       '- offset, size    '- offset, size
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.image_dataset import ilsvrc
from pipelines.transforms.rejects import Reject, reject
from trainer import storage
from trainer.data import kept
from trainer.errors import Denied
from trainer.storage import names
from trainer.storage.names import to_bytes

_MIN_READ, _MAX_READ = 4 << 10, 8 << 20  # bytes read at once
# Of a tar among many, which are read at the same time: bytes between headers that are read to save a request. To read
# on is faster for each of them, but reads all of the images, a second time for nothing: of ImageNet 138 GB.
_NEAR_AMONG_MANY = 32 << 10
_MAX_HEADER = 1 << 20  # bytes, with GNU's and POSIX's long names in it

# An `Item` as it travels between workers: Beam encodes plain tuples field by field, NamedTuples by pickling them.
Row = tuple[str, bytes, bytes, bytes, int, int, bytes, bytes]

_MANY = 10_000  # files of a part that are worth being listed in several places


class Item(NamedTuple):
    """Where one image lies. Names of files need not be UTF-8, so they are bytes here: Beam's coder of text is strict.

    Attributes:
        split: that it belongs to.
        key: split/synset/name, the same wherever the image lies.
        synset: its class; may be empty.
        address: of its file, or of the file that holds the tar.
        start: its first byte in the file.
        size: bytes.
        member: its name in the tar; empty for files.
        version: a digest of its file's `storage.Entry.version`; empty if that is.
    """

    split: str
    key: bytes
    synset: bytes
    address: bytes
    start: int
    size: int
    member: bytes
    version: bytes

    @property
    def row(self) -> Row:
        return self[:]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images that are listed together: those of a folder, or of a tar.

    Attributes:
        split: that they belong to.
        bytes: of all files; of a tar, its size.
        count: of files; 0 for a tar, and for one of several that a part was cut into.
        files: the files; None for a tar.
        address: of a tar, the file that it is or lies in.
        start: first byte of the tar in its file.
        member: name of the tar, if it lies in another.
        version: of the file with the tar, see `storage.Entry`.
        synset: of all images.
        truth: where `ilsvrc.validation_synsets` finds the synset of each image; may be empty.
    """

    split: str
    bytes: int
    count: int = 0
    files: storage.Selection | None = None
    address: str = ""
    start: int = 0
    member: str = ""
    version: str = ""
    synset: str = ""
    truth: str = ""

    def cut(self) -> list[Part]:
        """Parts to be listed at the same time that hold the same images, see `storage.Selection.cut`."""
        if self.files is None or self.count < _MANY:
            return [self]
        return [dataclasses.replace(self, files=files, bytes=0, count=0) for files in self.files.cut()]


def list_part(part: Part, output: str = "") -> Iterator[Item | Reject]:
    """The images in a part, in no particular order.

    A tar, a member of one, or a folder that cannot be read is a `Reject`.

    Args:
        output: folder in which the members of a tar in a bucket are recorded, or found, see `trainer.data.kept`.
    """
    truth = ilsvrc.validation_synsets(part.truth) if part.truth else {}
    yield from _list_files(part, part.files, truth) if part.files else _list_tar(part, truth, output)


def _list_files(part: Part, files: storage.Selection, truth: dict[int, str]) -> Iterator[Item | Reject]:
    lost: dict[str, Denied] = {}
    for found in files.entries(lost):
        name = storage.relative(found.address, files.base)
        yield _make_item(part, truth, name, found.address, 0, found.size, found.version)
    for folder, error in lost.items():
        yield reject(folder, "list", error, part.split)


def _list_tar(part: Part, truth: dict[int, str], output: str) -> Iterator[Item | Reject]:
    try:
        for found in _members(part, output):
            member = posixpath.join(part.member, found.name)
            if found.problem:
                yield reject(part.address, "index", TarError(found.problem), part.split, member)
            else:
                name = found.name.removeprefix(part.split + "/")
                yield _make_item(part, truth, name, part.address, found.start, found.size, part.version, member)
    except TarError as error:
        yield reject(part.address, "index", error, part.split, part.member)


def _members(part: Part, output: str) -> Iterator[Member]:
    """`list_twice` of a tar, of one in a bucket only if no earlier job has recorded its members in ``output``."""
    keeps = bool(output and part.version) and storage.is_remote(part.address)
    facts = part.address, part.start, part.bytes, part.version
    digest = hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    known, end = kept.find_members(output, digest) if keeps else None, part.start + part.bytes
    if known is not None and all(part.start <= start <= start + size <= end for _, start, size in known):
        yield from itertools.starmap(Member, known)
        return
    members: list[Member] = []
    for member in list_twice(part.address, part.start, part.bytes, _NEAR_AMONG_MANY if part.member else None):
        yield member
        keeps = keeps and not member.problem and len(members) < kept.MOST_MEMBERS
        if keeps:
            members.append(member)
    if keeps:
        kept.keep_members(output, digest, [member[:3] for member in members])


def _make_item(
    part: Part,
    truth: dict[int, str],
    name: str,
    address: str,
    start: int,
    size: int,
    version: str,
    member: str = "",
) -> Item:
    number = ilsvrc.image_number(name)
    synset = part.synset or ("" if number is None else truth.get(number, ""))
    key = "/".join((part.split, synset, name) if synset else (part.split, name))
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest() if version else b""
    return Item(part.split, to_bytes(key), to_bytes(synset), to_bytes(address), start, size, to_bytes(member), digest)


def sample_items(parts: list[Part], count: int = 64) -> list[Item]:
    """Up to ``count`` images: the first ones of up to 16 parts that are spread evenly over ``parts``."""
    chosen = [parts[i * len(parts) // 16] for i in range(16)] if len(parts) > 16 else parts
    found = (list(itertools.islice(list_part(part), -(-count // len(chosen)))) for part in chosen)
    return [item for items in found for item in items if isinstance(item, Item)]


# Tars


class TarError(ValueError):
    """The file is not a tar, is damaged, or ends too early."""


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: bytes that are not UTF-8 are surrogates in it.
        start: its first byte in the outer file.
        size: bytes.
        problem: why its contents cannot be read; empty if they can.
    """

    name: str
    start: int
    size: int
    problem: str = ""


class RangeReader:
    """Bytes ``start`` to ``start + size`` of a file, with what `tarfile` calls of a file: seek, tell, read.

    It reads further ahead the more often the next position is near: headers that lie close together
    come many at a time from a bucket, where a request costs more than the bytes between them.

    Args:
        near: how many bytes may be between them, as many as a request is worth by default.
    """

    def __init__(self, address: str, start: int, size: int, near: int | None = None):
        self._address, self._start, self._size = address, start, size
        self._near = storage.near(address) if near is None else min(near, storage.near(address))
        self._position = self._begin = 0
        self._ahead, self._held = _MIN_READ, b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._position = position + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, length: int = -1) -> bytes:
        rest = max(self._size - self._position, 0)
        length = rest if length < 0 else min(length, rest)
        if length > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {length} bytes")
        first = self._position - self._begin
        if first < 0 or first + length > len(self._held):
            jump = first - len(self._held)
            self._ahead = min(2 * self._ahead, _MAX_READ) if abs(jump) < self._near else _MIN_READ
            wanted = min(max(length, self._ahead), rest)
            self._held = storage.read_range(self._address, self._start + self._position, wanted)
            self._begin, first = self._position, 0
        self._position += length
        return self._held[first : first + length]


def list_members(address: str, start: int = 0, size: int | None = None, near: int | None = None) -> Iterator[Member]:
    """The members of a tar in their order, without folders and hidden files (`names.is_hidden`).

    Args:
        address: of the file that holds the tar.
        start: the tar's first byte in it.
        size: bytes of the tar; the whole file by default.
        near: as of `RangeReader`.

    Raises (after the members that could be found):
        TarError: what is wrong, and at which byte of the tar.
    """
    size = storage.entry(address).size - start if size is None else size
    reader = RangeReader(address, start, size, near)
    end = 0
    try:
        # Of a file that is read tarfile calls no other methods than the reader has.
        archive = tarfile.TarFile(fileobj=reader, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
            if archive.offset <= end or info.size < 0:
                raise tarfile.ReadError("a member of negative size")
            end = archive.offset
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            if info.isdir() or names.is_hidden(info.name):
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
    _check_end(reader, end, size)


def list_twice(address: str, start: int, size: int, near: int | None = None) -> Iterator[Member]:
    """`list_members`, of a tar in a bucket once more if it seems damaged: a part of an object has no checksum."""
    count = 0
    try:
        for member in list_members(address, start, size, near):
            yield member
            count += 1
    except TarError:
        if not storage.is_remote(address):
            raise
        yield from itertools.islice(list_members(address, start, size, near), count, None)


def _check_end(reader: RangeReader, end: int, size: int) -> None:
    """Raises `TarError` if a tar of ``size`` bytes, whose last member ends at ``end``, has no proper end mark."""
    reader.seek(end)
    block = reader.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:  # tarfile takes either end of headers for the end of the archive
        raise TarError(f"the archive ends after {size} bytes, without its end mark")
    if any(block):
        raise TarError(f"expected a header at byte {end} of {size}. Received other bytes.")
    # A header that was overwritten with zeros looks like the end mark, but only a few zeros follow the real one.
    if size - end > _MAX_HEADER or any(reader.read(size - reader.tell())):
        raise TarError(f"expected the end mark at the end. Received it at byte {end} of {size}.")
