"""What a job that did not end has left, and of what it made it: the next one need neither make nor read that again.

    DATASET/.shards/train-00003-of-00128.tfrecord.json    written after its shard; what the shard was made of
    DATASET/.shards/train-00003-of-00128.0f6e...c2.00005.piece    some records of a shard that is made by several
    DATASET/.shards/0f6e...c2.members.json                members of an archive in a bucket: to list them again would
                                                          take a request for each of a million images

A shard is taken only if it would be made of the same inputs in the same way, and is there as it was written. The folder
is removed when the manifest is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from trainer import storage
from trainer.data.finished import in_threads
from trainer.data.manifest import Shard
from trainer.documents import CHECKED, Count, Crc32c, Form, Text
from trainer.errors import NotFound, UserError
from trainer.storage.names import to_bytes, to_text

FOLDER = ".shards"
MOST_MEMBERS = 200_000  # of an archive; lists of more are no documents, see `documents.parse`
_MEMBERS, _PIECE = ".members.json", ".piece"
_Notes = Annotated[str, Field(max_length=1 << 26)]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """An input of a shard that is not in it: the line of the dataset's rejects."""

    __pydantic_config__ = CHECKED

    source: str
    stage: str
    error: str
    split: str
    member: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A shard that is there.

    Attributes:
        made_of: a digest of its inputs, as they were when they were listed, and of how it was made of them.
        stamp: of the shard's file, see `storage.stamp`; empty if there is none.
        shard: as the manifest will list it.
        rejects: of its inputs.
        notes: what else its maker has to know of it.
    """

    __pydantic_config__ = CHECKED

    made_of: Text
    stamp: Text
    shard: Shard
    rejects: tuple[Lost, ...] = ()
    notes: _Notes = ""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What the first line of a piece says of the rest of it: its checksum, and ``notes`` as of `Kept`."""

    __pydantic_config__ = CHECKED

    crc32c: Crc32c
    notes: _Notes = ""


_FORM: Form[Kept] = Form("the record of a shard", Kept, max_bytes=1 << 27)
_PIECE_FORM: Form[Piece] = Form("a piece of a shard", Piece)

Members = tuple[tuple[str, Count, Count], ...]  # name, a character for each byte of it; first byte; bytes
_MEMBERS_FORM: Form[Members] = Form("a list of an archive's members", Members, max_bytes=1 << 27)


def _address(folder: str, name: str) -> str:
    return storage.join(folder, FOLDER, f"{name}.json")


def keep(folder: str, kept: Kept) -> None:
    """Records a shard that this process has just written."""
    storage.confine(folder)
    storage.overwrite(_address(folder, kept.shard.name), json.dumps(dataclasses.asdict(kept)).encode())


def find(folder: str, name: str, made_of: str) -> Kept | None:
    """The record of the shard ``name`` if it is there, whole, and made of just this; None if not.

    The shard is read only if its stamp does not tell whether it is whole; its inputs are not.
    """
    try:
        kept = _FORM.read_if_any(_address(folder, name))
    except UserError:  # no record of ours
        return None
    if kept is None or kept.made_of != made_of or kept.shard.name != name:
        return None
    address = storage.join(folder, name)
    if kept.stamp and storage.stamp(address) == kept.stamp:
        return kept
    try:
        return kept if storage.checksum(address) == kept.shard.crc32c else None
    except NotFound:
        return None


def _address_of_piece(folder: str, name: str) -> str:
    return storage.join(folder, FOLDER, name + _PIECE)


def keep_piece(folder: str, name: str, data: bytes, notes: str = "") -> None:
    """Records some records of a shard under a name that tells, by a digest, what they are made of."""
    storage.confine(folder)
    head = json.dumps(dataclasses.asdict(Piece(crc32c=storage.crc32c(data), notes=notes))).encode()
    with contextlib.suppress(storage.AlreadyExists):  # of another attempt
        storage.create(_address_of_piece(folder, name), head + b"\n" + data)


def has_piece(folder: str, name: str) -> bool:
    """Whether there is one, which may be damaged."""
    return storage.exists(_address_of_piece(folder, name))


def read_piece(folder: str, name: str) -> tuple[bytes, str] | None:
    """Records and notes of a piece; None if it is not there as it was written."""
    address = _address_of_piece(folder, name)
    try:
        head, _, data = storage.read(address).partition(b"\n")
        piece = _PIECE_FORM.parse(head, address)
    except UserError:
        return None
    return (data, piece.notes) if storage.crc32c(data) == piece.crc32c else None


def drop_pieces(folder: str, names: Iterable[str]) -> None:
    """Removes pieces of a shard that is recorded."""
    for _ in in_threads(storage.delete, (_address_of_piece(folder, name) for name in names)):
        pass


def keep_members(folder: str, made_of: str, members: Iterable[tuple[str, int, int]]) -> None:
    """Records name, first byte and size of an archive's members under a digest of where it lies and its version."""
    storage.confine(folder)
    rows = [(to_bytes(name).decode("latin-1"), start, size) for name, start, size in members]
    storage.overwrite(storage.join(folder, FOLDER, made_of + _MEMBERS), json.dumps(rows).encode())


def find_members(folder: str, made_of: str) -> list[tuple[str, int, int]] | None:
    """What `keep_members` has recorded; None if there is nothing that can be read."""
    try:
        rows = _MEMBERS_FORM.read_if_any(storage.join(folder, FOLDER, made_of + _MEMBERS))
        return None if rows is None else [(to_text(row[0].encode("latin-1")), row[1], row[2]) for row in rows]
    except (UserError, UnicodeEncodeError):
        return None


def count(folder: str) -> int:
    """How many shards of the folder are recorded."""
    found = storage.scan(storage.join(folder, FOLDER), deep=False)
    return sum(1 for address, _ in found if not address.endswith((_MEMBERS, _PIECE)))


def forget(folder: str) -> None:
    """Removes the records."""
    storage.confine(folder)
    records = storage.join(folder, FOLDER)
    for _ in in_threads(storage.delete, storage.find(records, deep=False)):
        pass
    storage.remove_folder(records)
