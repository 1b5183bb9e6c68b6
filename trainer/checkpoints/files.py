"""The files of a checkpoint: written once, the manifest last, verified when read.

    RUN/checkpoints/step-00000100-5f2c91d0/model.npz       every variable of the network, by path
                                           optimizer.npz   every variable of the optimizer
                                           ema.npz         moving averages of the network's variables, with ema_decay
                                           state.json      see `State`
                                           config.json     the config it was trained with
                                           manifest.json   name, size and crc32c of each; written last
    RUN/checkpoints/latest.json, best.json                 see `pointers`

A folder's name ends in random digits, so a step that is computed again after a failure never meets what an earlier
attempt left. Arrays are stored without pickle: reading one runs no code.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from typing_extensions import Required, TypedDict

from trainer import documents, presets, storage, weight_files
from trainer.checkpoints import pointers
from trainer.checkpoints.pointers import Pin
from trainer.config import PHASES, TrainConfig
from trainer.documents import CHECKED, Count, Crc32c, Form
from trainer.errors import UserError
from trainer.storage import retry

Arrays = Mapping[str, np.ndarray]

MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"
# The parts of a checkpoint and whether every checkpoint has them; each is a file PART.npz of arrays by variable path.
PARTS = {MODEL: True, OPTIMIZER: True, EMA: False}
_REQUIRED = tuple(part for part, required in PARTS.items() if required)
_OPTIONAL = tuple(part for part, required in PARTS.items() if not required)
MANIFEST = "manifest.json"
_STATE, _CONFIG = "state.json", "config.json"
_IN_RUN = ("checkpoints", "logs", "exports", "config.json", "data.json", "summary.json")  # of it, drafts may be left
_NAME = re.compile(pointers.FOLDER_NAME)
_MAX_PART = 1 << 34  # bytes of a part; the paper's network is 0.13 GB, its optimizer twice that


class State(TypedDict, total=False):
    """The values of state.json; only ``step`` is always there."""

    __pydantic_config__ = ConfigDict(CHECKED, extra="allow")  # type: ignore[misc]  # programs keep more in it

    step: Required[Count]  # optimizer steps done
    phase: Annotated[str, Field(pattern=f"^({'|'.join(PHASES)})$")]
    examples: Count  # seen by all workers
    # See `carried.LossScale.state`; float32 holds no larger one.
    loss_scale: Annotated[list[Annotated[float, Field(ge=0, lt=2**128)]], Field(min_length=2, max_length=2)]
    skipped: Count  # steps with a loss that was not finite


class _Listed(TypedDict):
    """A file of a checkpoint, in its manifest."""

    __pydantic_config__ = CHECKED  # type: ignore[misc]

    name: Annotated[str, Field(pattern=r"^[a-z]+\.(npz|json)$")]
    bytes: Count
    crc32c: Crc32c


class _Manifest(TypedDict):
    """The values of a checkpoint's manifest.json."""

    __pydantic_config__ = CHECKED  # type: ignore[misc]

    files: Annotated[list[_Listed], Field(max_length=100)]


_STATE_FORM: Form[State] = Form("the state of a training", State, error=storage.Corrupt)
_MANIFEST_FORM: Form[_Manifest] = Form("the manifest of a checkpoint", _Manifest, error=storage.Corrupt)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, read and verified.

    Attributes:
        pin: where it came from.
        parts: all that the checkpoint has.
        variables: the arrays by variable path of each part that was asked for.
        config: what it was trained with; None if it was saved without.
    """

    pin: Pin
    state: State
    parts: tuple[str, ...]
    variables: dict[str, dict[str, np.ndarray]]
    config: TrainConfig | None = None


# Writing


def _pack(arrays: Arrays) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # a path is never "allow_pickle"
    return packed.getvalue()


def _files(variables: Mapping[str, Arrays], state: State, config: TrainConfig | None) -> Iterator[tuple[str, bytes]]:
    for part in PARTS:
        if part in variables:
            yield f"{part}.npz", _pack(variables[part])  # one at a time: memory holds one packed part
    yield _STATE, json.dumps(state, sort_keys=True).encode()
    if config is not None:
        yield _CONFIG, presets.to_json(config)


def require_storable(variables: Mapping[str, Arrays]) -> None:
    """Raises `ValueError` unless ``variables`` are what `write_checkpoint` takes."""
    missing, unknown = set(_REQUIRED) - variables.keys(), variables.keys() - PARTS.keys()
    if missing or unknown:
        raise ValueError(f"variables: expected parts {_REQUIRED} and maybe {_OPTIONAL}. Received {list(variables)}.")
    for arrays in variables.values():
        for name, array in arrays.items():
            if array.dtype.kind not in "biufc":  # NumPy would pickle objects, and read back bfloat16 as raw bytes
                raise ValueError(f"{name}: expected an array of numbers. Received dtype {array.dtype}.")


def write_checkpoint(
    run: str,
    variables: Mapping[str, Arrays],
    state: State,
    *,
    config: TrainConfig | None = None,
    writer: str | None = None,
    patience_s: float = 0.0,
) -> Pin:
    """Writes a checkpoint that no pointer names yet.

    Args:
        variables: arrays by variable path, for each of `PARTS` that is required and maybe for others.
        state: JSON.
        writer: from `pointers.claim`.
        patience_s: how long each write is retried while the store refuses, in seconds.

    Raises:
        ValueError: a part is missing or unknown, or an array is not of numbers.
        UserError: another writer has claimed the run.
    """
    require_storable(variables)
    address = storage.join(pointers.folder(run), f"step-{state['step']:08d}-{os.urandom(4).hex()}")
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
    return {file["name"]: file["crc32c"] for file in _MANIFEST_FORM.read(address, pin.crc32c)["files"]}


def is_whole(pin: Pin) -> bool:
    """Whether all files of a checkpoint are there with their checksums; a bucket answers without sending them."""
    try:
        files = _read_manifest(pin)
        return all(storage.checksum(storage.join(pin.address, name)) == crc for name, crc in files.items())
    except (storage.NotFound, storage.Corrupt):
        return False


def _unpack(data: bytes, address: str) -> dict[str, np.ndarray]:
    try:
        return weight_files.read_npz(data, f"{address} is corrupt")
    except UserError as error:
        raise storage.Corrupt(str(error)) from None


def _parse_config(data: bytes, address: str) -> TrainConfig:
    try:
        return presets.from_json(data)
    except ValueError as error:
        raise UserError(f"{address} is not a config: {error}") from None


def load_checkpoint(pin: Pin, parts: Sequence[str] | None = None) -> Checkpoint:
    """Reads ``parts`` of a checkpoint; all it has by default.

    Raises:
        UserError: a file is missing or corrupt; the message names it. Or the checkpoint has no such part.
    """
    return _load(pin, _read_manifest(pin), parts)


def load_first(pin: Pin, parts: Sequence[str]) -> Checkpoint:
    """Reads the first of ``parts`` that a checkpoint has, and no other; raises as `load_checkpoint`."""
    checksums = _read_manifest(pin)
    present = [part for part in parts if f"{part}.npz" in checksums]
    return _load(pin, checksums, present[:1] or parts[-1:])


def _load(pin: Pin, checksums: dict[str, str], parts: Sequence[str] | None) -> Checkpoint:
    def load(name: str, max_bytes: int = documents.MAX_BYTES) -> tuple[bytes, str]:
        address = storage.join(pin.address, name)
        if name not in checksums:
            raise UserError(f"{pin.address} has no {name}")
        return storage.read(address, checksums[name], max_bytes), address

    present = tuple(part for part in PARTS if f"{part}.npz" in checksums)
    if parts is None:
        parts = tuple(part for part in PARTS if part in _REQUIRED or part in present)
    state = _STATE_FORM.parse(*load(_STATE))
    if (name := _NAME.fullmatch(pin.address.rpartition("/")[2])) and int(name[1]) != state["step"]:
        raise storage.Corrupt(f"{pin.address}: expected the step of its name. Received {state['step']}.")
    return Checkpoint(
        pin=pin,
        state=state,
        parts=present,
        variables={part: _unpack(*load(f"{part}.npz", _MAX_PART)) for part in parts},
        config=_parse_config(*load(_CONFIG)) if _CONFIG in checksums else None,
    )


# Folders


def _step_of(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found, name
    return int(found[1])


def _list(run: str) -> dict[str, set[str]]:
    """Addresses of the files in each of the folders."""
    folder = pointers.folder(run)
    # Emptied folders, and those whose files are all drafts, show up here alone.
    files: dict[str, set[str]] = {name: set() for name in storage.folders(folder)}
    for address in storage.find(folder):
        files.setdefault(storage.relative(address, folder).partition("/")[0], set()).add(address)
    return {name: found for name, found in files.items() if _NAME.fullmatch(name)}


def _is_complete(run: str, name: str, files: set[str]) -> bool:
    return storage.join(pointers.folder(run), name, MANIFEST) in files


def newest_first(run: str) -> list[tuple[int, str]]:
    """Step and name of every folder that has its manifest."""
    complete = [name for name, files in _list(run).items() if _is_complete(run, name, files)]
    return sorted(((_step_of(name), name) for name in complete), reverse=True)


def remove(run: str, name: str, files: set[str]) -> None:
    """Deletes the ``files`` of a folder, and the folder itself."""
    # The manifest goes first: what is left of a half-deleted folder is not a checkpoint.
    for address in sorted(files, key=lambda a: (not a.endswith("/" + MANIFEST), a)):
        storage.delete(address)
    folder = storage.join(pointers.folder(run), name)
    storage.sweep(folder, lambda _: True)  # drafts of a killed writer
    storage.remove_folder(folder)


def prune(run: str, keep: int, writer: str | None = None) -> list[str]:
    """Deletes all checkpoints but the newest ``keep`` and those that pointers name; returns the deleted names.

    Folders without a manifest stay: their writer may still be at work (see `sweep`).

    Raises:
        UserError: another writer has claimed the run.
    """
    return _remove_all(run, find_outdated(run, keep, writer))


def find_outdated(run: str, keep: int, writer: str | None = None) -> dict[str, set[str]]:
    """What `prune` deletes: addresses of the files by name of the folder."""
    listed = _list(run)  # before the pointers: what is not listed yet is not deleted
    latest, best = (pointers.read(run, which) for which in (pointers.LATEST, pointers.BEST))
    pointers.require_turn(run, writer)
    if latest is None or latest.step is None:
        return {}
    # What is newer than the pointer may be just about to be named by it.
    older = [
        name
        for name, files in listed.items()
        if name != latest.checkpoint and _is_complete(run, name, files) and _step_of(name) <= latest.step
    ]
    older.sort(key=lambda name: (_step_of(name), name), reverse=True)
    doomed = [name for name in older[keep - 1 :] if best is None or name != best.checkpoint]
    return {name: listed[name] for name in doomed if _step_of(name) < latest.step}


def sweep(run: str, writer: str) -> list[str]:
    """Deletes the unfinished folders of writers before ``writer``; returns their names.

    Call it after `pointers.claim` and before the first checkpoint. One of those writers may still be
    uploading: it can no longer move a pointer, so no pointer will ever name what is deleted here. What it is
    writing at this moment stays; the drafts of writers that were killed go, from the whole run.

    Raises:
        UserError: another writer has claimed the run, or a checkpoint is a link.
    """
    swept = _remove_all(run, find_unfinished(run, writer))
    sweep_drafts(run)
    return swept


def find_unfinished(run: str, writer: str) -> dict[str, set[str]]:
    """What `sweep` deletes: addresses of the files by name of the folder."""
    listed = _list(run)
    for name in listed:  # those that are complete too: `prune` would meet them in the midst of a training
        storage.require_confined(storage.join(pointers.folder(run), name))
    # Only if the turn is still ours now were none of the listed folders begun by a writer after us.
    pointers.require_turn(run, writer)
    named = {pointer.checkpoint for which in (pointers.LATEST, pointers.BEST) if (pointer := pointers.read(run, which))}
    return {name: files for name, files in listed.items() if name not in named and not _is_complete(run, name, files)}


def sweep_drafts(run: str) -> None:
    """Deletes the drafts that writers who were killed left anywhere in the run."""
    storage.sweep(run, lambda name: name.partition("/")[0] in _IN_RUN)


def _remove_all(run: str, doomed: Mapping[str, set[str]]) -> list[str]:
    for name, files in doomed.items():
        remove(run, name, files)
    return list(doomed)
