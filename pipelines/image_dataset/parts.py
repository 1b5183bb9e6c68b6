"""Parts of a source of images, and what lies in each of them: files of a folder, or members of an archive."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.image_dataset import ilsvrc
from pipelines.image_dataset.tar_index import TarError, list_members
from pipelines.transforms.rejects import Reject, reject
from trainer import storage

# split, key, synset, address, first byte in the file, bytes, name in the archive. Names of files need not be
# UTF-8, which is why they are bytes here: Beam's coder of text refuses others.
Item = tuple[str, bytes, bytes, bytes, int, int, bytes]


def to_bytes(name: str) -> bytes:
    """A file's name as the file system has it."""
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images that are listed together: those of a folder, or of an archive.

    Attributes:
        split: they belong to.
        address: a pattern that finds the files; of an archive, the file that it is or lies in.
        bytes: of all files; of an archive, its size.
        folder: that names are relative to; empty for an archive.
        start: first byte of the archive in its file.
        member: name of the archive, if it lies in another.
        synset: of all of them.
        truth: where `ilsvrc.validation_synsets` finds the synset of each; may be empty.
    """

    split: str
    address: str
    bytes: int
    folder: str = ""
    start: int = 0
    member: str = ""
    synset: str = ""
    truth: str = ""


def list_part(part: Part) -> Iterator[Item | Reject]:
    """What lies in a part, in no order to rely on; what an archive lost is a `Reject`."""
    truth = ilsvrc.validation_synsets(part.truth) if part.truth else {}

    def item(name: str, address: str, start: int, size: int, member: str = "") -> Item:
        synset = part.synset or truth.get(ilsvrc.image_number(name), "")
        key = "/".join(filter(None, (part.split, synset, name)))
        return part.split, to_bytes(key), to_bytes(synset), to_bytes(address), start, size, to_bytes(member)

    if part.folder:
        for address, size in storage.scan(part.address):
            yield item(address[len(part.folder) :].lstrip("/"), address, 0, size)
        return
    try:
        for found in list_members(part.address, part.start, part.bytes):
            member = posixpath.join(part.member, found.name)
            if found.problem:
                yield reject(part.address, "index", TarError(found.problem), part.split, member)
            else:
                yield item(found.name.removeprefix(part.split + "/"), part.address, found.start, found.size, member)
    except TarError as error:
        yield reject(part.address, "index", error, part.split, part.member)


def sample_items(parts: list[Part], count: int = 64) -> list[Item]:
    """Up to ``count`` images from up to 16 parts that lie evenly among ``parts``; the first ones of each."""
    chosen = [parts[i * len(parts) // 16] for i in range(16)] if len(parts) > 16 else parts
    found = ([item for item in itertools.islice(list_part(part), -(-count // len(chosen)))] for part in chosen)
    return [item for items in found for item in items if isinstance(item, tuple)]
