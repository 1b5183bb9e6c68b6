"""What a checkpoint is made of: files that are written once, the manifest last, and verified when read.

Arrays are stored without pickle: reading one runs no code.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainer import presets, storage
from trainer.checkpoints import folders, pointers
from trainer.checkpoints.folders import MANIFEST
from trainer.checkpoints.pointers import Pin
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.storage import retry

PARTS = ("model", "optimizer")
OPTIONAL_PARTS = ("ema",)
_STATE, _CONFIG = "state.json", "config.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, read and verified.

    Attributes:
        pin: where it came from.
        state: ``step`` (optimizer steps done), ``phase``, ``examples`` (seen by all workers) and what else was saved.
        variables: for each of the parts that were asked for, the arrays by variable path.
        config: what it was trained with; None if it was saved without.
    """

    pin: Pin
    state: dict
    variables: dict[str, dict[str, np.ndarray]]
    config: TrainConfig | None = None


# Writing


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def _files(variables: Mapping[str, Mapping[str, np.ndarray]], state: dict, config) -> Iterator[tuple[str, bytes]]:
    for part in (*PARTS, *OPTIONAL_PARTS):
        if part in variables:
            yield f"{part}.npz", _pack(variables[part])  # one at a time: memory holds one packed part
    yield _STATE, json.dumps(state, sort_keys=True).encode()
    if config is not None:
        yield _CONFIG, presets.to_json(config)


def require_storable(variables: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raises `ValueError` unless ``variables`` are what `write_checkpoint` takes."""
    missing, unknown = set(PARTS) - variables.keys(), variables.keys() - {*PARTS, *OPTIONAL_PARTS}
    if missing or unknown:
        raise ValueError(f"variables: expected parts {PARTS} and maybe {OPTIONAL_PARTS}. Received {list(variables)}.")
    for arrays in variables.values():
        for name, array in arrays.items():
            if array.dtype.kind not in "biufc":  # NumPy would pickle objects, and read back bfloat16 as raw bytes
                raise ValueError(f"{name}: expected an array of numbers. Received dtype {array.dtype}.")


def write_checkpoint(
    run: str,
    variables: Mapping[str, Mapping[str, np.ndarray]],
    state: dict,
    *,
    config: TrainConfig | None = None,
    writer: str | None = None,
    patience_s: float = 0.0,
) -> Pin:
    """Writes a checkpoint that no pointer names yet.

    Args:
        variables: arrays by variable path, for each of `PARTS` and maybe of `OPTIONAL_PARTS`.
        state: as in `Checkpoint`; JSON.
        writer: from `pointers.claim`.
        patience_s: how long each write is tried again while the store refuses, in seconds.
    """
    require_storable(variables)
    address = storage.join(pointers.folder(run), folders.new_name(state["step"]))
    listed = []
    for file, data in _files(variables, state, config):
        retry.create(storage.join(address, file), data, patience_s)
        listed.append({"name": file, "bytes": len(data), "crc32c": storage.crc32c(data)})
    # A writer that has been replaced may have lost files to the sweep of the next one.
    retry.persist(lambda: pointers.require_turn(run, writer), patience_s)
    manifest = json.dumps({"files": listed}, sort_keys=True).encode()
    retry.create(storage.join(address, MANIFEST), manifest, patience_s)
    return Pin(address=address, crc32c=storage.crc32c(manifest))


# Reading


def pin_of(run: str, name: str) -> Pin:
    """The pin of a folder that no pointer names, by the manifest it has now."""
    address = storage.join(pointers.folder(run), name)
    return Pin(address=address, crc32c=storage.crc32c(storage.read(storage.join(address, MANIFEST))))


def _read_manifest(pin: Pin) -> dict[str, str]:
    """Checksum of each file."""
    address = storage.join(pin.address, MANIFEST)
    data = storage.read(address, pin.crc32c)
    try:
        return {str(file["name"]): str(file["crc32c"]) for file in json.loads(data)["files"]}
    except (ValueError, KeyError, TypeError):
        raise storage.Corrupt(f"{address} is corrupt: it is not a manifest") from None


def is_whole(pin: Pin) -> bool:
    """Whether all files of a checkpoint are there with their checksums; a bucket says so without sending them."""
    try:
        files = _read_manifest(pin)
        return all(storage.checksum(storage.join(pin.address, name)) == crc for name, crc in files.items())
    except (storage.NotFound, storage.Corrupt):
        return False


def _unpack(data: bytes, address: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise storage.Corrupt(f"{address} is corrupt: {error}") from None


def _parse_config(data: bytes, address: str) -> TrainConfig:
    try:
        return presets.from_json(data)
    except ValueError as error:
        raise UserError(f"{address} is not a config: {error}") from None


def load_checkpoint(pin: Pin, parts: tuple[str, ...] | None = None) -> Checkpoint:
    """Reads ``parts`` of a checkpoint; all it has by default.

    Raises:
        UserError: a file is missing or corrupt; the message names it. Or the checkpoint has no such part.
    """
    checksums = _read_manifest(pin)

    def load(name: str) -> tuple[bytes, str]:
        address = storage.join(pin.address, name)
        if name not in checksums:
            raise UserError(f"{pin.address} has no {name}")
        return storage.read(address, checksums[name]), address

    if parts is None:
        parts = tuple(part for part in (*PARTS, *OPTIONAL_PARTS) if part in PARTS or f"{part}.npz" in checksums)
    return Checkpoint(
        pin=pin,
        state=json.loads(load(_STATE)[0]),
        variables={part: _unpack(*load(f"{part}.npz")) for part in parts},
        config=_parse_config(*load(_CONFIG)) if _CONFIG in checksums else None,
    )
