"""Finds the checkpoints of a run and restores what they hold: weights for inference, variables for training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from trainer import presets, storage
from trainer.checkpoints import pointers
from trainer.checkpoints.files import EMA, MODEL, Arrays, Checkpoint, load_checkpoint, load_first, newest_first, pin_of
from trainer.checkpoints.pointers import BEST, LATEST, Pin
from trainer.config import TrainConfig, UNetConfig
from trainer.errors import UserError

_MAX_RATIO, _ROOM = 4, 1 << 24  # a network may need so many times the bytes of its weights, and so many besides

# Keys that decide which variables there are and their shapes.
_SHAPING = ("unet.", "ema_decay", "precision")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be read.

    Attributes:
        skipped: address of each newer one that cannot be read, and why, newest first.
    """

    checkpoint: Checkpoint
    skipped: list[tuple[str, str]] = field(default_factory=list)


# Finding


def find_latest(run: str) -> Pin | None:
    """The newest checkpoint of ``run``; None if the run has none yet. Raises `Corrupt` if the pointer is broken."""
    pointer = pointers.read(run, LATEST)
    return pointer.pin(run) if pointer else None


def find(run: str, which: str | int = LATEST) -> Pin:
    """A checkpoint of ``run``: ``latest``, ``best`` or the number of a step.

    Raises:
        UserError: there is none; the message lists the steps there are.
    """
    if which in (LATEST, BEST):
        pointer = pointers.read(run, which)
        if pointer and (pin := pointer.pin(run)):
            return pin
        if which == LATEST:
            raise UserError(f"{run} has no checkpoint yet: training has not reached its first one")
        raise UserError(f"{run} has no best checkpoint yet: none was validated")
    if not str(which).isdecimal():
        raise UserError(f"checkpoint: expected latest, best or the number of a step. Received {which!r}.")
    saved = newest_first(run)
    named = {pointer.checkpoint for name in (LATEST, BEST) if (pointer := pointers.read(run, name))}
    # Of a step that was computed twice, the one that a pointer names stays longer.
    found = sorted((name for step, name in saved if step == int(which)), key=lambda name: name not in named)
    if not found:
        steps = ", ".join(str(step) for step in sorted({step for step, _ in saved})) or "none yet"
        raise UserError(f"{run} has no checkpoint of step {which}. Steps it has: {steps}.")
    return pin_of(run, found[0])


def load_newest(run: str, parts: tuple[str, ...] | None = None) -> Found | None:
    """The newest checkpoint of ``run`` that can be read; None if the run has none yet.

    What ``latest`` names comes first; if that is missing or corrupt the others follow, newest first.

    Raises:
        UserError: there are checkpoints, but none that can be read.
    """
    skipped: list[tuple[str, str]] = []
    latest = None
    try:
        latest = find_latest(run)
        if latest:
            return Found(load_checkpoint(latest, parts))
    except (storage.NotFound, storage.Corrupt) as error:
        skipped.append((latest.address if latest else pointers.address_of(run, LATEST), str(error)))
    for _, name in newest_first(run):
        address = storage.join(pointers.folder(run), name)
        if latest and address == latest.address:
            continue
        try:
            return Found(load_checkpoint(pin_of(run, name), parts), skipped)
        except (storage.NotFound, storage.Corrupt) as error:
            skipped.append((address, str(error)))
    if skipped:
        raise UserError(f"{run} has no checkpoint that can be read: " + "; ".join(why for _, why in skipped))
    return None


# Inference


class Weights(NamedTuple):
    """Arrays by variable path, and what they are: ``ema`` or ``raw``."""

    kind: str
    arrays: dict[str, np.ndarray]


def inference_part(parts: Collection[str]) -> str:
    """Which part holds the weights to compute with, those that validation judges: the EMA where there is one."""
    return EMA if EMA in parts else MODEL


def load_for_inference(pin: Pin) -> Checkpoint:
    """Reads what `inference_weights` needs of a checkpoint and nothing else; raises as `load_checkpoint`."""
    return load_first(pin, (EMA, MODEL))


def require_finite(arrays: Arrays, address: str) -> None:
    """Raises `UserError` if there are NaN or infinities among weights: whatever is computed with them is worthless."""
    wrong = {name: int(array.size - np.isfinite(array).sum()) for name, array in arrays.items()}
    if found := [name for name, count in wrong.items() if count]:
        raise UserError(
            f"{address}: expected finite weights. Received {sum(wrong.values()):,} that are not, in {found[0]} and "
            f"{len(found) - 1} other arrays."
        )


def require_fit(unet: UNetConfig, size: int, address: str) -> None:
    """Raises `UserError` if a network is far larger than the weights it is to get: building it takes the memory.

    Args:
        size: bytes of the weights, or of the file that they are in.
    """
    if 4 * unet.kernel_values > _MAX_RATIO * size + _ROOM:
        raise UserError(
            f"{address} does not fit its config: expected weights of a network with {unet.kernel_values:,} or more. "
            f"Received {size:,} bytes."
        )


def inference_weights(checkpoint: Checkpoint) -> Weights:
    """The weights that validation judged; everything that computes with a run's weights uses them.

    Raises:
        ValueError: the part they are in was not loaded.
        UserError: they are not finite.
    """
    part = inference_part(checkpoint.parts)
    if part not in checkpoint.variables:
        raise ValueError(f"checkpoint: expected its {part} to be loaded. Received {list(checkpoint.variables)}.")
    require_finite(checkpoint.variables[part], f"{checkpoint.pin.address}/{part}.npz")
    return Weights("ema" if part == EMA else "raw", checkpoint.variables[part])


# Variables


def read_variables(variables) -> dict[str, np.ndarray]:
    """Values of Keras variables by path; raises `ValueError` where two share one."""
    arrays = {variable.path: np.asarray(variable) for variable in variables}
    if len(arrays) != len(variables):
        paths = [variable.path for variable in variables]
        raise ValueError(f"expected a path of its own for each variable. Received {max(paths, key=paths.count)} twice.")
    return arrays


def _difference(variables, arrays: Arrays) -> str | None:
    """The first name or shape in which a checkpoint's arrays differ from Keras variables."""
    ours = {variable.path: variable for variable in variables}
    if different := sorted(ours.keys() ^ arrays.keys()):
        where = "the config's network but not in the checkpoint" if different[0] in ours else "the checkpoint only"
        return f"{different[0]} is in {where}"
    for name, variable in ours.items():
        if tuple(variable.shape) != arrays[name].shape:
            return f"{name}: expected shape {tuple(variable.shape)}. Received {arrays[name].shape}."
    return None


def assign_variables(variables, arrays: Arrays) -> None:
    """Sets Keras variables from a checkpoint's arrays.

    Raises:
        UserError: names or shapes differ from what the config makes; the message names the first of them.
    """
    if different := _difference(variables, arrays):
        raise UserError(f"the checkpoint does not fit the config: {different}")
    for variable in variables:
        variable.assign(arrays[variable.path])


def _changed_keys(theirs: TrainConfig | None, ours: TrainConfig) -> str:
    """What may be the reason why variables differ; keys of the network hide the rest."""
    if theirs is None:
        return ""
    old, new = presets.flatten(theirs), presets.flatten(ours)
    changed = [key for key in new if old[key] != new[key] and key.startswith(_SHAPING)]
    changed = [key for key in changed if key.startswith("unet.")] or changed
    return "".join(f"{key} is {old[key]} in the checkpoint and {new[key]} in the config; " for key in changed)


def restore_variables(checkpoint: Checkpoint, config: TrainConfig, variables: Mapping[str, Sequence[Any]]) -> None:
    """Sets the Keras variables of each part from a checkpoint: of all parts, or of none.

    Args:
        config: what the variables were made by.
        variables: by part, such as ``{"model": model.variables, "optimizer": optimizer.variables}``.

    Raises:
        UserError: the checkpoint does not fit; the message names the config's keys that differ, with both
            values, and the first variable.
    """
    for part, targets in variables.items():
        if part not in checkpoint.variables:
            different: str | None = f"it has no {part}"
        else:
            different = _difference(targets, checkpoint.variables[part])
        if different:
            keys = _changed_keys(checkpoint.config, config)
            raise UserError(f"{checkpoint.pin.address} does not fit the config: {keys}{different}")
    for part, targets in variables.items():
        assign_variables(targets, checkpoint.variables[part])
