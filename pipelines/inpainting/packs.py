"""Packs: outputs in tars, in WebDataset's layout, for those who do not want a file for each.

    OUTPUT/packs/3f-5f2c91d0-019f3a2b4c1d-6d0c1f0a9be3.tar      outputs of share 3f, by run 5f2c91d0: see `Packer`

A pack is written once, and right after it one part of the books with the lines of all its members: before that it is
nobody's, and the end of a job deletes it. A bundle that is tried again may leave two packs with the same outputs. The
one that was begun later has all that the other has, and counts: the other is deleted, too. If an input of one member
has changed, all members are made again, for no pack is ever changed. Other shares than that member's may have some, if
there were fewer shares when the pack was written: then only the end of the job finds it, see `settle`.
"""

from __future__ import annotations

import collections
import hashlib
import io
import tarfile
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.inpainting.books import Books, Line, dump_line, write_part
from pipelines.inpainting.versions import PACKS, Record, begin_of, pack_of, pack_prefix
from pipelines.transforms.create_once import create_or_compare
from trainer import storage
from trainer.errors import UserError
from trainer.storage import claims
from trainer.storage.claims import Claim

_BLOCK = 512  # bytes, of a tar


class Packed(NamedTuple):
    """An output that is to be packed.

    Attributes:
        share: as of a `Line`.
        record: of the output.
        data: its bytes.
    """

    share: str
    record: dict[str, Any]
    data: bytes


@dataclass
class Packer:
    """Packs outputs of one bundle, those of a share together.

    Attributes:
        books, claim: the job's.
        digits: of a share.
        most_bytes: of tars of what waits, of all shares; then the share that has most is written.
    """

    books: Books
    claim: Claim | None
    digits: int
    most_bytes: int
    _waiting: dict[str, list[Packed]] = field(default_factory=dict)
    _bytes: collections.Counter[str] = field(default_factory=collections.Counter)
    _begun: str = field(default_factory=lambda: f"{time.time_ns() // 1_000_000:012x}")

    def add(self, packed: Packed) -> Iterator[Line]:
        """Lines of the outputs that are written now, if it is time."""
        share = packed.share[: self.digits]
        self._waiting.setdefault(share, []).append(packed)
        self._bytes[share] += _BLOCK - len(packed.data) // -_BLOCK * _BLOCK  # its header, too
        while self._bytes.total() >= self.most_bytes:
            ((largest, _),) = self._bytes.most_common(1)
            yield from self._write(largest)

    def flush(self) -> Iterator[Line]:
        """Writes what waits."""
        for share in sorted(self._waiting):
            yield from self._write(share)

    def _write(self, share: str) -> Iterator[Line]:
        members = sorted(self._waiting.pop(share), key=lambda one: one.record["output"])
        del self._bytes[share]
        data = make_tar((one.record["output"], one.data) for one in members)
        digest = hashlib.blake2b(data, digest_size=6).hexdigest()
        name = f"{PACKS}/{share}-{self.books.run}-{self._begun}-{digest}.tar"
        address = storage.join(self.books.output, name)
        claims.require(self.claim)
        create_or_compare(address, data)
        pack = {
            "name": name,
            "bytes": len(data),
            "crc32c": storage.crc32c(data),
            "stamp": storage.stamp(address, own=True),
        }
        del data
        lines = [Line(one.share, one.record | {"pack": pack}, is_booked=True) for one in members]
        write_part(self.books, share, b"".join(map(dump_line, lines)))
        yield from lines


def make_tar(files: Iterator[tuple[str, bytes]]) -> bytes:
    """A tar of some files, (name, bytes); the same bytes for the same files."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return found.getvalue()


# What becomes of them


class Sorted(NamedTuple):
    """Names of packs, by what has become of their outputs.

    Attributes:
        counting: packs with an output that counts.
        replaced: packs with an output that counts in another pack.
        other: packs with an output that counts nowhere, as its image is no input of this run.
    """

    counting: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()
    other: frozenset[str] = frozenset()

    @staticmethod
    def join(found: Iterable[Sorted]) -> Sorted:
        """Those of several shares, which may have outputs in one pack."""
        return Sorted(*(frozenset[str]().union(*some) for some in zip(*found, strict=True)))


@dataclass
class Census:
    """Which packs of a share have which outputs; of several that have one, it counts in the one that was begun last.

    Attributes:
        there: what is in the output folder.
    """

    there: Container[str]
    _has: set[tuple[str, str]] = field(default_factory=set)
    _counting: dict[str, str] = field(default_factory=dict)

    def see(self, record: Record) -> None:
        """Takes note of any record."""
        if (pack := pack_of(record)) in self.there:
            self._has.add((record["output"], pack))

    def count(self, record: Record) -> None:
        """Takes note of one that counts."""
        if pack := pack_of(record):
            self._counting[record["output"]] = pack

    def sort(self) -> Sorted:
        """All packs of which a record was seen."""
        replaced = {pack for output, pack in self._has if self._counting.get(output, pack) != pack}
        other = {pack for output, pack in self._has if output not in self._counting}
        return Sorted(frozenset(self._counting.values()), frozenset(replaced), frozenset(other))


def later(one: Record, other: Record) -> Record:
    """Of two records of one output the one that counts."""
    return max(one, other, key=lambda record: begin_of(pack_of(record)))


def settle(output: str, found: Sorted) -> list[str]:
    """Deletes the packs of an output folder whose outputs are all in others, or in no book; names of those that count.

    A pack stays that has outputs of images which are no inputs of this run.

    Raises:
        UserError: a pack had outputs that count in another pack, and some that count in it. It is deleted.
    """
    mixed = found.counting & found.replaced
    keep = (found.counting | (found.other - found.replaced)) - mixed
    for address in storage.find(storage.join(output, PACKS)):
        name = storage.relative(address, output)
        if pack_prefix(name) is not None and name not in keep:
            storage.delete(address)
    if mixed:
        raise UserError(
            f"{output}: {len(mixed)} packs, such as {min(mixed)}, had outputs that were made again beside others, and "
            "are deleted. The same command makes the others again."
        )
    return sorted(found.counting)
