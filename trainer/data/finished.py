"""Whether a finished dataset is the one that a job would make: its options, its shards, the age of its inputs.

options      all that the manifest has of the job; another value is refused, by name
shards       size and crc32c as in the manifest. Of a local shard that was written before the manifest the size is
             enough; a bucket knows the crc32c of its objects
inputs       none may have changed since the first shard was written, neither a file nor, where there are folders,
             which files are in them. A manifest has no checksums of a million images, so that is all that can be
             told at launch; what looks changed is no reason to refuse, but one to make the records again and to
             compare the shards with them
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trainer import storage
from trainer.data.manifest import MANIFEST, REJECTS, Manifest, Shard
from trainer.errors import NotFound, UserError

T = TypeVar("T")
R = TypeVar("R")

_THREADS, _IN_FLIGHT = 16, 128
_ADDRESSES = ("mask_files", "frames", "stills")  # among the options; earlier versions wrote them as they were typed


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` by threads, which holds a bounded number of results: those of 100,000 would take 200 MB."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a job would make.

    Attributes:
        kind, seed, parameters, synsets: as in the `Manifest`.
        defaults: of parameters, which manifests of earlier versions may lack.
        places: files and folders that the records are made from.
        count: number of inputs, if it can be told; deleting an object leaves no trace but that.
    """

    kind: str
    seed: int
    parameters: dict[str, Any]
    synsets: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    places: Callable[[], Iterable[str]] = tuple
    count: Callable[[], int | None] = lambda: None

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the `Manifest`."""
        return {"kind": self.kind, "seed": self.seed, "parameters": self.parameters, "synsets": self.synsets}


def _flatten(values: dict[str, Any], outer: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flatten(value, f"{outer}{key}.") if isinstance(value, dict) else {outer + key: value}
    return found


def _options(seed: int, parameters: dict[str, Any], synsets: tuple[str, ...]) -> dict[str, Any]:
    found = _flatten({"seed": seed, **json.loads(json.dumps(parameters)), "synsets": list(synsets)})
    addresses = {f"sources.{name}" for name in _ADDRESSES}
    return {key: storage.normalize(value) if key in addresses else value for key, value in found.items()}


def require_same(folder: str, there: Manifest, expected: Expected) -> None:
    """Raises `UserError` if the dataset in ``folder`` was made with other options; the message names the first."""
    ours = _options(expected.seed, expected.parameters, expected.synsets)
    theirs = _options(there.seed, there.parameters, there.synsets)
    for key in dict.fromkeys([*ours, *theirs]):
        asked, was = (values.get(key, expected.defaults.get(key)) for values in (ours, theirs))
        if asked != was:
            shown = ("other ones", "these") if key == "synsets" else (json.dumps(asked), json.dumps(was))
            raise UserError(
                f"{folder} holds the dataset of another job, {key} is {shown[0]} and was {shown[1]}: "
                "--overwrite, or choose another folder"
            )


def damaged_files(folder: str, there: Manifest) -> list[str]:
    """Names of what a dataset's manifest lists and is not there any more as it was written."""
    written = storage.changed(storage.join(folder, MANIFEST))
    listed = {found.address: (found.size, found.checksum) for found in storage.Selection(folder).entries()}

    def is_whole(shard: Shard) -> bool:
        address = storage.join(folder, shard.name)
        size, checksum = listed.get(address, (shard.bytes, ""))
        if size != shard.bytes:
            return False
        if checksum == shard.crc32c:
            return True
        if not storage.is_remote(address) and 0 < storage.changed(address) <= written:
            return True
        try:
            return storage.checksum(address) == shard.crc32c
        except NotFound:
            return False

    whole = in_threads(is_whole, there.shards)
    damaged = [shard.name for shard, good in zip(there.shards, whole, strict=True) if not good]
    splits = dict.fromkeys(shard.split for shard in there.shards)
    rejects = [f"{REJECTS}/{split}.jsonl" for split in splits]
    present = [name for name in rejects if storage.join(folder, name) in listed]
    lines = sum(storage.read(storage.join(folder, name)).count(b"\n") for name in present)
    return damaged + (rejects if lines != there.counts["rejects"] else [])


def is_outdated(folder: str, there: Manifest, expected: Expected) -> bool:
    """Whether an input may have changed since a dataset whose shards are whole was made."""
    count = expected.count()
    if count is not None and count != there.counts["inputs"]:
        return True
    places = list(expected.places())
    if not places:
        return False
    shards = in_threads(storage.changed, (storage.join(folder, shard.name) for shard in there.shards))
    begun = min(shards, default=0.0)
    return any(changed >= begun for changed in in_threads(lambda place: storage.changed(place, folder), places))
