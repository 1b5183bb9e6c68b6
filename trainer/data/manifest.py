"""The manifest of a dataset, a folder of TFRecord shards; it is written last.

No manifest, no dataset: an unfinished job leaves none, and readers refuse the folder.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, FailFast, Field

from trainer import documents, storage
from trainer.documents import CHECKED, Count, Crc32c, Form, Json, Text
from trainer.errors import UserError
from trainer.storage import recognize

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
REJECTS = "rejects"  # folder with the lines of the inputs that could not be used, a file for each split
_FRAME = 16  # bytes that a shard has besides each record's own


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of records: name in the dataset's folder, records in it, size, checksum."""

    __pydantic_config__ = CHECKED

    name: Text
    split: Text
    records: Count
    bytes: Count
    crc32c: Crc32c


def _require_counts(counts: dict[str, int]) -> dict[str, int]:
    if counts.keys() != {"inputs", "records", "rejects"}:
        raise ValueError(f"expected inputs, records and rejects. Received {documents.show(sorted(counts))}.")
    return counts


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a finished dataset.

    Attributes:
        kind: ``image`` or ``mask``: which of `records.FEATURES` its records have.
        parameters: resolved options of the job that wrote it.
        counts: ``inputs``, ``records``, ``rejects``; always inputs = records + rejects.
        shards: in name order.
        synsets: class folder names in label order (images only).
        statistics: what the job counted; of masks ``histogram``, their number by family, hole-ratio interval and
            border class.
    """

    __pydantic_config__ = CHECKED

    kind: Text
    parameters: dict[str, Json]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    code_version: Text
    counts: Annotated[dict[str, Count], AfterValidator(_require_counts)]
    shards: Annotated[tuple[Shard, ...], FailFast()]
    synsets: Annotated[tuple[Text, ...], FailFast()] = ()
    statistics: dict[str, Json] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        counts = self.counts
        in_shards = sum(shard.records for shard in self.shards)
        if counts["records"] != in_shards or counts["inputs"] != counts["records"] + counts["rejects"]:
            raise ValueError(
                f"expected inputs = records + rejects and {in_shards} records, as in the shards. Received {counts}."
            )

    def split(self, name: str) -> tuple[Shard, ...]:
        """Shards of one split; raises `UserError` naming the existing splits if it is not one of them."""
        shards = tuple(shard for shard in self.shards if shard.split == name)
        if not shards:
            raise UserError(f"split: expected one of {sorted({s.split for s in self.shards})}. Received {name!r}.")
        return shards


def digest(shards: Iterable[Shard]) -> str:
    """A checksum of records and of their order: the same wherever the shards lie, another for other ones."""
    facts = sorted([shard.name, shard.records, shard.bytes, shard.crc32c] for shard in shards)
    return storage.crc32c(json.dumps(facts).encode())


def shard_name(split: str, shard: int, num_shards: int) -> str:
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


_SHARD_NAME = re.compile(r"([^./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]*)-([0-9]{5,9})-of-([0-9]{5,9})\.tfrecord")


def _check_shards(shards: Iterable[Shard]) -> None:
    """Raises `ValueError` unless each shard is a file in the dataset's folder that can hold its records, listed once.

    A manifest may have been written by anybody who may write the folder: a name with a path in it would be read as a
    file of the machine's.
    """
    names = collections.Counter(shard.name for shard in shards)
    for shard in shards:
        found = _SHARD_NAME.fullmatch(shard.name)
        if not found or found[1] != shard.split or int(found[2]) >= int(found[3]):
            expected = shard_name(shard.split, 0, 1) if found else "SPLIT-00000-of-00001.tfrecord"
            raise ValueError(
                f"expected shards named as {documents.show(expected)}. Received {documents.show(shard.name)}."
            )
        if names[shard.name] > 1:
            raise ValueError(f"expected each shard once. Received {documents.show(shard.name)} twice.")
        if shard.bytes < _FRAME * shard.records:
            raise ValueError(
                f"{documents.show(shard.name)}: expected {_FRAME} bytes or more for each record. "
                f"Received {shard.records} records in {shard.bytes} bytes."
            )


def dump_manifest(manifest: Manifest) -> bytes:
    """The manifest's document. Of many shards, one at a time is held as a dict and as text."""
    encoder = json.JSONEncoder(indent=1, sort_keys=True, default=dataclasses.asdict)
    file = io.BytesIO()
    for text in encoder.iterencode({part.name: getattr(manifest, part.name) for part in dataclasses.fields(manifest)}):
        file.write(text.encode())
    return file.getvalue()


@dataclass(frozen=True)
class _AnyVersion:
    """What a manifest of any version has."""

    schema_version: Json


_NAME, _MAX_BYTES = "a dataset manifest", 1 << 25  # for more than 100,000 shards
_VERSION: Form[_AnyVersion] = Form(_NAME, _AnyVersion, _MAX_BYTES)
_FORM: Form[Manifest] = Form(_NAME, Manifest, _MAX_BYTES)


def has_manifest(folder: str) -> bool:
    return storage.exists(storage.join(folder, MANIFEST))


def load_manifest(folder: str, kind: str) -> Manifest:
    """Reads and checks the manifest of the dataset in ``folder``.

    Raises:
        UserError: there is no folder or no manifest, or it is of another kind or schema version.
    """
    address = storage.join(folder, MANIFEST)
    data, _ = _FORM.read_versioned(address)
    if data is None:
        raise explain_missing(folder, kind)
    version = _VERSION.parse(data, address).schema_version
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder}: expected schema version {SCHEMA_VERSION}. Received {documents.show(version)}.")
    manifest = _FORM.parse(data, address)
    try:
        _check_shards(manifest.shards)
    except ValueError as error:
        raise UserError(f"{address} is not {_FORM.name}: {error}") from None
    if manifest.kind != kind:
        raise UserError(
            f"{folder}: expected a dataset of {kind} records. Received {documents.show(manifest.kind)[1:-1]} records."
        )
    return manifest


# What makes a dataset of image files, by the kind of its records.
_MAKERS = {
    "image": "python -m pipelines.build_imagenet --input {} --output DATASET",
    "mask": "python -m pipelines.build_masks --generator files --mask-files {} --hole black|white --output DATASET "
    "--count NUMBER",
}


def explain_missing(folder: str, kind: str) -> UserError:
    """What to say of an address that is not the folder of a finished dataset."""
    thing = recognize.look(folder)
    if thing.kind == "nothing":
        return storage.NotFound(f"{kind} dataset {folder} does not exist (or holds no files)")
    received = f"{folder} is {thing.what}. Expected the folder of a dataset of {kind} records"
    if thing.whole and "the dataset" in thing.what:
        return UserError(f"{received}: {thing.whole}.")
    if thing.kind in ("image", "images", "tar", "archive", "archives"):
        unpack = "" if kind == "image" and thing.kind != "archive" else " (archives: unpack them first)"
        unpack = unpack if "archive" in thing.kind else ""
        return UserError(f"{received}, which {_MAKERS[kind].format(folder)} makes{unpack}.")
    if thing.kind in ("shards", "folder") and not thing.whole:
        unfinished = "the job that writes this dataset did not finish; run it again"
        return UserError(f"{folder} has no {MANIFEST}: {unfinished} (it is {thing.what})")
    return UserError(f"{received}.")


def check_sizes(folder: str, shards: Iterable[Shard]) -> None:
    """Checks that every shard exists and has the size that the manifest says.

    Raises:
        UserError: a shard is missing or has another size; the message names the first.
    """
    sizes = dict(storage.scan(folder))
    for shard in shards:
        address = storage.join(folder, shard.name)
        if address not in sizes and not storage.exists(address):  # a list may lag behind
            raise UserError(f"{address} is missing: the dataset's manifest lists it")
        if sizes.get(address, shard.bytes) != shard.bytes:
            raise UserError(f"{address}: expected a shard of {shard.bytes} bytes. Received {sizes[address]} bytes.")
