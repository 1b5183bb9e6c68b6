"""Records of outputs, and versions of files: what a second run knows of an output and of what it was made of.

It takes an output for finished only if all these files are as they were. It need not read them: a bucket tells
the crc32c of an object, a local folder the stamp of a file (`storage.stamp`), and only where that says nothing, or
something else, is the file read and its crc32c compared. So the price of a finished item is a few small requests.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    more_masks: NotRequired[list[str]]
    bytes: Count
    crc32c: Crc32c
    stamp: NotRequired[str]  # of the output
    made_of: NotRequired[list[Version]]  # records of earlier versions have neither


_RECORD: Form[Record] = Form("the record of an output", Record, error=storage.Corrupt)


def record_name(name: str) -> str:
    """Path of an output's record in the folder of records, without ``.json``: the output's own, unless it is long."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + names.shorten(file, names.MAX_BYTES - len(".json"))


def record_address(output: str, name: str) -> str:
    """Address of the record of the output ``name``, a path below the folder ``output``."""
    return storage.join(output, RECORDS, f"{record_name(name)}.json")


def read_record(item: Item, output: str) -> Record | None:
    """The record of an item's output; None if there is none, or a damaged one."""
    try:
        return _RECORD.read_if_any(record_address(output, item.output))
    except storage.Corrupt:
        return None


def source_of(record: Record) -> list[str]:
    """Addresses of the image and of all masks; that of the mask is empty where holes are in the image itself."""
    return [record["image"], record["mask"], *record.get("more_masks", ())]


def files_of(item: Item) -> list[str]:
    """`source_of` of the record that the item's output will have."""
    return [item.image, item.mask, *item.more_masks]


def is_finished(record: Record, item: Item, output: str) -> bool:
    """Whether an output and all that it was made of are as its record has them."""
    address = storage.join(output, item.output)
    if "made_of" not in record:  # nothing is known of the inputs, and to read all outputs would take too long
        if storage.is_remote(address):
            return storage.checksum(address) == record["crc32c"]
        return storage.entry(address).size == record["bytes"]
    output_then = Version(address, record["bytes"], record["crc32c"], record.get("stamp", ""))
    if [version.address for version in record["made_of"]] != [item.image, *item.masks]:
        return False
    return is_current(output_then) and all(map(is_current, record["made_of"]))


def is_own(address: str, item: Item, data: bytes, output: str) -> bool:
    """Whether what is at an output's address was made by this job, of earlier inputs, or is what is left of that.

    What somebody has made of an output since, another image, is not.

    Args:
        data: the output that is to take its place.
    """
    record = read_record(item, output)
    if record is None or source_of(record) != files_of(item):
        return False
    try:
        there = storage.read(address, max_bytes=budget.max_file_bytes())
        if storage.crc32c(there) == record["crc32c"] or data.startswith(there):
            return True
        pictures.decode(there)
    except ImageError:  # cut short, and then the inputs changed, too
        return True
    except UserError:  # a folder, larger than any output, or not to be read
        return False
    return False
