"""Records of outputs, and versions of files: what a second run knows of an output and of what it was made of.

It takes an output for finished only if all these files are as they were. It need not read them: the list of a bucket
tells the crc32c of an object, that of a local folder the stamp of a file (`storage.stamp`), and only where that says
nothing, or something else, is the file asked for, read at last and its crc32c compared. So a finished item costs no
request of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

from pipelines.inpainting.inputs import Item
from trainer import storage
from trainer.documents import CHECKED, Count, Crc32c, Form
from trainer.errors import ImageError, NotFound, UserError
from trainer.images import budget, pictures
from trainer.storage import names

RECORDS, PACKS = ".items", "packs"
_PACK = re.compile(rf"{PACKS}/([0-9a-f]{{0,4}})-[0-9a-f]{{8}}-([0-9a-f]{{12}})-[0-9a-f]{{12}}\.tar")  # see `packs`


# Versions


@dataclass(frozen=True)
class Version:
    """A file as it was.

    Attributes:
        address: of the file.
        bytes: its size.
        crc32c: its checksum.
        stamp: from `storage.stamp`; may be empty.
    """

    __pydantic_config__ = CHECKED

    address: str
    bytes: Count
    crc32c: Crc32c
    stamp: str = ""


def read_version(address: str, max_pixels: int) -> tuple[bytes, Version]:
    """`budget.read_file`, and the version that was read."""
    stamp = storage.stamp(address)  # before: whoever changes the file from now on gives it another
    data = budget.read_file(address, max_pixels)
    return data, Version(address, len(data), storage.crc32c(data), stamp)


def is_same(version: Version, mark: str = "") -> bool:
    """`is_current`, with nothing asked for if a list says so.

    Args:
        mark: the checksum or stamp that a list tells of the file; may be empty.
    """
    return (bool(mark) and mark in (version.stamp, version.crc32c)) or is_current(version)


def is_current(version: Version) -> bool:
    """Whether the file is still that version; False if it is gone."""
    if version.stamp and storage.stamp(version.address) == version.stamp:
        return True
    try:
        return storage.checksum(version.address) == version.crc32c
    except NotFound:
        return False


# Records


class Pack(TypedDict):
    """A tar of outputs as it was when it was written; ``name`` is its path below the output folder."""

    __pydantic_config__ = CHECKED  # type: ignore[misc]

    name: str
    bytes: Count
    crc32c: Crc32c
    stamp: str


class Record(TypedDict):
    """The record of an output; what else is in it is taken as it is."""

    __pydantic_config__ = ConfigDict(CHECKED, extra="allow")  # type: ignore[misc]

    image: str
    mask: str
    output: str
    more_masks: NotRequired[list[str]]
    bytes: Count
    crc32c: Crc32c
    status: NotRequired[str]
    stamp: NotRequired[str]  # of the output
    made_of: NotRequired[list[Version]]  # in a record of its own
    pack: NotRequired[Pack]  # that has it, if it is no file of its own
    versions: NotRequired[list[tuple[Count, Crc32c, str]]]  # of its image and its masks: bytes, crc32c and stamp


_RECORD: Form[Record] = Form("the record of an output", Record, error=storage.Corrupt)
_OWN = ("stamp", "made_of", "versions", "share")  # fields that are not told to users


def is_record(found: Any) -> bool:
    """Whether a value has the fields of a record that its readers go by: of millions of lines `Form` takes too long."""
    try:
        is_one = (
            type(found["image"])
            is type(found["mask"])
            is type(found["output"])
            is type(found["crc32c"])
            is type(found["status"])
            is str
        ) and type(found["bytes"]) is int
        if "more_masks" in found:
            is_one = is_one and all(type(name) is str for name in found["more_masks"])
        if "pack" in found:
            pack = found["pack"]
            types = [type(pack[key]) for key in ("name", "bytes", "crc32c", "stamp")]
            is_one = is_one and types == [str, int, str, str] and pack_prefix(pack["name"]) is not None
        if "versions" in found:
            is_one = is_one and {3}.issuperset(map(len, found["versions"]))
        return is_one
    except (KeyError, TypeError, AttributeError):
        return False


def pack_prefix(name: str) -> str | None:
    """The digits that the shares of a pack's members begin with; None if a file, by its path, is no pack."""
    found = _PACK.fullmatch(name) if name.startswith(PACKS) else None
    return found[1] if found else None


def pack_of(record: Record) -> str:
    """The name of the pack that has an output; empty if it is a file of its own."""
    return record["pack"]["name"] if "pack" in record else ""


def begin_of(pack: str) -> str:
    """Of two packs, greater is that of the one that was begun later, by the clocks of who wrote them."""
    found = _PACK.fullmatch(pack)
    return found[2] if found else ""


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``items.jsonl`` says of an output."""
    said = dict(record)
    for key in _OWN:
        said.pop(key, None)
    if "pack" in said:
        said["pack"] = said["pack"]["name"]
    return said


def read_record(item: Item, output: str) -> Record | None:
    """The record that an earlier version wrote of an item's output; None if there is none, or a damaged one.

    It is a file of its own, with the output's path, unless that is too long.
    """
    folder, slash, file = item.output.rpartition("/")
    name = folder + slash + names.shorten(file, names.MAX_BYTES - len(".json"))
    try:
        return _RECORD.read_if_any(storage.join(output, RECORDS, f"{name}.json"))
    except storage.Corrupt:
        return None


def as_booked(record: Mapping[str, Any], item: Item) -> dict[str, Any]:
    """The record of an earlier version as the books have it; of the very first ones it is unknown what they are of."""
    known = {key: value for key, value in record.items() if key != "made_of"}
    if "made_of" in record:
        known["versions"] = [(version.bytes, version.crc32c, version.stamp) for version in record["made_of"]]
    return {**known, "output": item.output, "status": "finished before"}


def source_of(record: Record) -> list[str]:
    """Addresses of the image and of all masks; that of the mask is empty where holes are in the image itself."""
    return [record["image"], record["mask"], *record.get("more_masks", ())]


def files_of(item: Item) -> list[str]:
    """`source_of` of the record that the item's output will have."""
    return [item.image, item.mask, *item.more_masks]


def is_finished(record: Record, item: Item, output: str, mark_of: Callable[[str], str]) -> bool:
    """Whether an output and all that it was made of are as its record has them.

    Args:
        record: of the item's files.
        output: address of the output folder.
        mark_of: what a list has just told of the file at an address, see `is_same`; empty for nothing.
    """
    address, made_of = storage.join(output, item.output), _made_of(record, item)
    if made_of is None:  # nothing is known of the inputs, and to read all outputs would take too long
        if storage.is_remote(address):
            return storage.checksum(address) == record["crc32c"]
        return storage.entry(address).size == record["bytes"]
    if pack := record.get("pack"):
        output_then = Version(storage.join(output, pack["name"]), pack["bytes"], pack["crc32c"], pack["stamp"])
    else:
        output_then = Version(address, record["bytes"], record["crc32c"], record.get("stamp", ""))
    return all(is_same(version, mark_of(version.address)) for version in (output_then, *made_of))


def _made_of(record: Record, item: Item) -> list[Version] | None:
    """The files that an output was made of, as they were; None if its record does not say."""
    files = [item.image, *item.masks]
    if "versions" in record and len(record["versions"]) == len(files):
        return [Version(address, *version) for address, version in zip(files, record["versions"], strict=True)]
    return record.get("made_of")


def is_seen(record: Record, there: str, marks: Sequence[str]) -> bool:
    """Whether `is_finished` is true by what lists tell alone, which costs no request.

    Args:
        record: of the item's files.
        there: what a list has just told of the output, or of the pack that has it; empty for nothing.
        marks: the same of the image and of each mask.
    """
    versions, kept = record.get("versions", ()), record.get("pack") or record
    if not there or (there != kept["crc32c"] and there != kept.get("stamp")) or len(versions) != len(marks):
        return False
    for mark, (_, checksum, stamp) in zip(marks, versions, strict=True):
        if not mark or (mark != checksum and mark != stamp):
            return False
    return True


def is_own(address: str, earlier: Collection[str], data: bytes) -> bool:
    """Whether what is at an output's address was made by this job, of earlier inputs, or is what is left of that.

    What somebody has made of an output since, another image, is not.

    Args:
        earlier: checksums of outputs that were made of the files that the inputs were then.
        data: the output that is to take its place.
    """
    if not earlier:
        return False
    try:
        there = storage.read(address, max_bytes=budget.max_file_bytes())
        if storage.crc32c(there) in earlier or data.startswith(there):
            return True
        pictures.decode(there)
    except ImageError:  # cut short, and then the inputs changed, too
        return True
    except UserError:  # a folder, larger than any output, or not to be read
        return False
    return False
