"""The manifest of a dataset, a folder of TFRecord shards; it is written last.

No manifest, no dataset: an unfinished job leaves none, and readers refuse the folder.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from trainer import storage
from trainer.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of records: name below the dataset's folder, records in it, size, checksum."""

    name: str
    split: str
    records: int
    bytes: int
    crc32c: str


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

    kind: str
    parameters: dict
    seed: int
    code_version: str
    counts: dict
    shards: tuple[Shard, ...]
    synsets: tuple[str, ...] = ()
    statistics: dict = field(default_factory=dict)
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


def shard_name(split: str, shard: int, num_shards: int) -> str:
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def dump_manifest(manifest: Manifest) -> bytes:
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode()


def has_manifest(folder: str) -> bool:
    return storage.exists(storage.join(folder, MANIFEST))


def load_manifest(folder: str, kind: str) -> Manifest:
    """Reads and checks the manifest of the dataset in ``folder``.

    Raises:
        UserError: there is no folder or no manifest, or it is of another kind or schema version.
    """
    data, _ = storage.read_versioned(storage.join(folder, MANIFEST))
    if data is None:
        if not storage.find(folder):
            raise storage.NotFound(f"{kind} dataset {folder} does not exist (or holds no files)")
        raise UserError(f"{folder} has no {MANIFEST}: the job that writes this dataset did not finish; run it again")
    try:
        fields = json.loads(data)
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{folder}: expected schema version {SCHEMA_VERSION}. Received {version}.")
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        fields["synsets"] = tuple(fields["synsets"])
        manifest = Manifest(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/{MANIFEST} is not a dataset manifest: {error}") from None
    if manifest.kind != kind:
        raise UserError(f"{folder}: expected a dataset of {kind} records. Received {manifest.kind} records.")
    return manifest
