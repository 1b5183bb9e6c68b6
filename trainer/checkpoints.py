"""Checkpoints in a run's folder: immutable, checked when read, found through a pointer.

    RUN/checkpoints/step-00000100-5f2c91d0/model.npz       every variable of the network, by name
                                           optimizer.npz   every variable of the optimizer
                                           state.json      step, phase, examples seen
                                           manifest.json   name, size and crc32c of each; written last
    RUN/checkpoints/latest.json                            names the newest folder; moved by compare-and-swap

A folder's name ends in random digits, so that a step which is computed again after a failure never
meets what an earlier attempt left. Arrays are stored without pickle: reading one runs no code.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass

import numpy as np

from trainer import storage
from trainer.command import UserError

PARTS = ("model", "optimizer")
_STATE, _MANIFEST = "state.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A checkpoint that cannot change: its folder and the crc32c of its manifest, which holds those of the rest."""

    address: str
    crc32c: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, read and verified.

    Attributes:
        pin: where it came from.
        state: ``step`` (optimizer steps done), ``phase``, ``examples`` (seen by all workers).
        variables: for each of `PARTS` that was asked for, the arrays by variable path.
    """

    pin: Pin
    state: dict
    variables: dict[str, dict[str, np.ndarray]]


def _pointer(run: str) -> str:
    return storage.join(run, "checkpoints", "latest.json")


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name}: expected an array of numbers. Received dtype {array.dtype}.")
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def save_checkpoint(run: str, variables: dict[str, dict[str, np.ndarray]], state: dict, keep: int) -> Pin:
    """Writes a checkpoint, moves ``latest`` to it and deletes all but the newest ``keep``.

    Args:
        variables: arrays by variable path, for each of `PARTS`.
        state: as in `Checkpoint`.
    """
    files = {f"{part}.npz": _pack(variables[part]) for part in PARTS}
    files[_STATE] = json.dumps(state, sort_keys=True).encode()
    name = f"step-{state['step']:08d}-{os.urandom(4).hex()}"
    address = storage.join(run, "checkpoints", name)
    for file, data in files.items():
        storage.create(storage.join(address, file), data)
    listed = [{"name": file, "bytes": len(data), "crc32c": storage.crc32c(data)} for file, data in files.items()]
    manifest = json.dumps({"files": listed}, sort_keys=True).encode()
    storage.create(storage.join(address, _MANIFEST), manifest)

    pin = Pin(address=address, crc32c=storage.crc32c(manifest))
    _, generation = storage.read_versioned(_pointer(run))
    target = {"checkpoint": name, "step": state["step"], "crc32c": pin.crc32c}
    storage.replace(_pointer(run), json.dumps(target, sort_keys=True).encode(), generation)
    _delete_old(run, keep, current=name)
    return pin


def _delete_old(run: str, keep: int, current: str) -> None:
    folder = storage.join(run, "checkpoints")
    files: dict[str, list[str]] = {}
    for address in storage.find(folder):
        name, slash, _ = storage.relative(address, folder).partition("/")
        if slash:
            files.setdefault(name, []).append(address)
    # What attempts that were killed left behind has no manifest; it goes before any checkpoint does.
    complete = {name: storage.join(folder, name, _MANIFEST) in found for name, found in files.items()}
    old = sorted((name for name in files if name != current), key=lambda name: (complete[name], name))
    for name in old[: max(0, len(old) + 1 - keep)]:
        # The manifest goes first: what is left of a half-deleted folder is not a checkpoint.
        for address in sorted(files[name], key=lambda a: not a.endswith(_MANIFEST)):
            storage.delete(address)


def find_latest(run: str) -> Pin | None:
    """The newest checkpoint of ``run``; None if the run has none yet. Raises `UserError` if the pointer is broken."""
    data, _ = storage.read_versioned(_pointer(run))
    if data is None:
        return None
    try:
        target = json.loads(data)
        return Pin(address=storage.join(run, "checkpoints", target["checkpoint"]), crc32c=target["crc32c"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{_pointer(run)} is not a pointer to a checkpoint") from None


def load_checkpoint(pin: Pin, parts: tuple[str, ...] = PARTS) -> Checkpoint:
    """Reads ``parts`` of a checkpoint.

    Raises:
        UserError: a file is missing or corrupt; the message names it.
    """
    listed = json.loads(storage.read(storage.join(pin.address, _MANIFEST), pin.crc32c))["files"]
    checksums = {file["name"]: file["crc32c"] for file in listed}

    def load(name: str) -> bytes:
        return storage.read(storage.join(pin.address, name), checksums[name])

    variables = {part: _unpack(load(f"{part}.npz")) for part in parts}
    return Checkpoint(pin=pin, state=json.loads(load(_STATE)), variables=variables)


def read_variables(variables) -> dict[str, np.ndarray]:
    """Values of Keras variables by path; raises `ValueError` where two share one."""
    arrays = {variable.path: np.asarray(variable) for variable in variables}
    if len(arrays) != len(variables):
        paths = [variable.path for variable in variables]
        raise ValueError(f"expected a path of its own for each variable. Received {max(paths, key=paths.count)} twice.")
    return arrays


def assign_variables(variables, arrays: dict[str, np.ndarray]) -> None:
    """Sets Keras variables from a checkpoint's arrays.

    Raises:
        UserError: names or shapes differ from what the config makes; the message names the first of them.
    """
    ours = {variable.path: variable for variable in variables}
    if different := sorted(ours.keys() ^ arrays.keys()):
        where = "the config's network but not in the checkpoint" if different[0] in ours else "the checkpoint only"
        raise UserError(f"the checkpoint does not fit the config: {different[0]} is in {where}")
    for name, variable in ours.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f"the checkpoint does not fit the config: {name}: expected shape {tuple(variable.shape)}. "
                f"Received {arrays[name].shape}."
            )
    for name, variable in ours.items():
        variable.assign(arrays[name])
