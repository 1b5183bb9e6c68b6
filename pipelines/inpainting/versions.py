"""Records of outputs, and versions of files: what a second run knows of an output and of what it was made of.

It takes an output for finished only if all these files are as they were. It need not read them: the list of a bucket
tells the crc32c of an object, that of a local folder the stamp of a file (`storage.stamp`), and only where that says
nothing, or something else, is the file asked for, read at last and its crc32c compared. So a finished item costs no
request of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

RECORDS = ".items"


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


class Record(TypedDict):
    """The record of an output; what else is in it is taken as it is."""

    __pydantic_config__ = ConfigDict(CHECKED, extra="allow")  # type: ignore[misc]

    image: str
    mask: str
    output: str
    more_masks: NotRequired[list[str]]
    bytes: Count
    crc32c: Crc32c
    stamp: NotRequired[str]  # of the output
    made_of: NotRequired[list[Version]]  # in a record of its own
    versions: NotRequired[list[tuple[Count, Crc32c, str]]]  # of its image and its masks: bytes, crc32c and stamp


_RECORD: Form[Record] = Form("the record of an output", Record, error=storage.Corrupt)
_OWN = ("stamp", "made_of", "versions", "share")  # fields that are not told to users


def is_record(found: Any) -> bool:
    """Whether a value has the fields of a record that its readers go by: of millions of lines `Form` takes too long."""
    try:
        texts = found["image"], found["mask"], found["output"], found["crc32c"], found["status"]
        return (
            [*map(type, texts)] == [str] * len(texts)
            and type(found["bytes"]) is int
            and all(type(name) is str for name in found.get("more_masks", ()))
            and [*map(len, found.get("versions", ()))] == [3] * len(found.get("versions", ()))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``items.jsonl`` says of an output."""
    return {key: value for key, value in record.items() if key not in _OWN}


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


def is_finished(record: Record, item: Item, output: str, marks: Mapping[str, str]) -> bool:
    """Whether an output and all that it was made of are as its record has them.

    Args:
        record: of the item's files.
        output: address of the output folder.
        marks: by address, what a list has just told of some of the files, see `is_same`.
    """
    address, made_of = storage.join(output, item.output), _made_of(record, item)
    if made_of is None:  # nothing is known of the inputs, and to read all outputs would take too long
        if storage.is_remote(address):
            return storage.checksum(address) == record["crc32c"]
        return storage.entry(address).size == record["bytes"]
    output_then = Version(address, record["bytes"], record["crc32c"], record.get("stamp", ""))
    return all(is_same(version, marks.get(version.address, "")) for version in (output_then, *made_of))


def _made_of(record: Record, item: Item) -> list[Version] | None:
    """The files that an output was made of, as they were; None if its record does not say."""
    files = [item.image, *item.masks]
    if "versions" in record and len(record["versions"]) == len(files):
        return [Version(address, *version) for address, version in zip(files, record["versions"], strict=True)]
    return record.get("made_of")


def is_seen(record: Record, item: Item, output: str, marks: Mapping[str, str]) -> bool:
    """Whether `is_finished` is true by ``marks`` alone, which cost no request."""
    files, versions = [item.image, *item.masks], record.get("versions", ())
    if len(versions) != len(files):
        return False
    mark = marks.get(storage.join(output, item.output))
    if not mark or mark not in (record["crc32c"], record.get("stamp")):
        return False
    return all(
        (mark := marks.get(address)) and mark in version[1:] for address, version in zip(files, versions, strict=True)
    )


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
