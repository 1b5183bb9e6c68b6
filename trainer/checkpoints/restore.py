"""Checkpoints in a run's folder: immutable, checked when read, found through a pointer.

    RUN/checkpoints/step-00000100-5f2c91d0/model.npz       every variable of the network, by name
                                           optimizer.npz   every variable of the optimizer
                                           ema.npz         averages of the network's variables, if there are any
                                           state.json      step, phase, examples seen and what else the loop needs
                                           config.json     the config it was trained with
                                           manifest.json   name, size and crc32c of each; written last
    RUN/checkpoints/latest.json, best.json                 name one of the folders; moved by compare-and-swap

Whoever trains saves with `saver.Saver`, which does not hold up training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer import presets, storage
from trainer.checkpoints import folders, pointers
from trainer.checkpoints.files import Checkpoint, is_whole, load_checkpoint, pin_of, write_checkpoint
from trainer.checkpoints.pointers import BEST, LATEST, Pin, Score
from trainer.config import TrainConfig
from trainer.errors import UserError

# What decides which variables there are, and their shapes.
_SHAPING = ("unet.", "ema_decay", "precision")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be read, and what is newer but cannot.

    Attributes:
        skipped: address of each newer one and why it was skipped, newest first.
    """

    checkpoint: Checkpoint
    skipped: list[tuple[str, str]] = field(default_factory=list)


def save_checkpoint(
    run: str,
    variables: Mapping[str, Mapping[str, np.ndarray]],
    state: dict,
    keep: int,
    *,
    config: TrainConfig | None = None,
    score: Score | None = None,
) -> Pin:
    """Writes a checkpoint, moves the pointers, then deletes all but the newest ``keep`` and the best.

    For programs that write a single one. Arguments as in `checkpoint_format.write_checkpoint`.
    """
    pin = write_checkpoint(run, variables, state, config=config)
    pointers.move_latest(run, pin, state["step"], None, is_whole)
    if score is not None:
        pointers.move_best(run, pin, state["step"], score, None)
    folders.prune(run, keep)
    return pin


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
        if pointer is not None and pointer.checkpoint is not None:
            return pointer.pin(run)
        if which == LATEST:
            raise UserError(f"{run} has no checkpoint yet: training has not reached its first one")
        raise UserError(f"{run} has no best checkpoint yet: none was validated")
    if not str(which).isdecimal():
        raise UserError(f"checkpoint: expected latest, best or the number of a step. Received {which!r}.")
    saved = folders.newest_first(run)
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
    for _, name in folders.newest_first(run):
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


# Variables


def read_variables(variables) -> dict[str, np.ndarray]:
    """Values of Keras variables by path; raises `ValueError` where two share one."""
    arrays = {variable.path: np.asarray(variable) for variable in variables}
    if len(arrays) != len(variables):
        paths = [variable.path for variable in variables]
        raise ValueError(f"expected a path of its own for each variable. Received {max(paths, key=paths.count)} twice.")
    return arrays


def _difference(variables, arrays: Mapping[str, np.ndarray]) -> str | None:
    """The first name or shape in which a checkpoint's arrays differ from Keras variables."""
    ours = {variable.path: variable for variable in variables}
    if different := sorted(ours.keys() ^ arrays.keys()):
        where = "the config's network but not in the checkpoint" if different[0] in ours else "the checkpoint only"
        return f"{different[0]} is in {where}"
    for name, variable in ours.items():
        if tuple(variable.shape) != arrays[name].shape:
            return f"{name}: expected shape {tuple(variable.shape)}. Received {arrays[name].shape}."
    return None


def assign_variables(variables, arrays: Mapping[str, np.ndarray]) -> None:
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
