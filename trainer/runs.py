"""A training run's folder: its config.json, who may change it, and its summary.json.

Layout:

    RUN/config.json     the resolved `TrainConfig`; a run that continues may change only what no step computes with
    RUN/checkpoints/    see `trainer.checkpoints`
    RUN/exports/        see `trainer.inference.export_formats`
    RUN/logs/           see `trainer.tensorboard`
    RUN/summary.json    results of the run's last process; written when it ends
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from trainer import documents, presets, storage
from trainer.command import code_version
from trainer.config import TrainConfig
from trainer.errors import ConfigChanged, NotFound, UserError

if TYPE_CHECKING:  # light commands import this module, and checkpoints load NumPy and h5py
    from trainer.checkpoints.pointers import Pin

CONFIG, SUMMARY = "config.json", "summary.json"

_SUMMARY = documents.Form[dict[str, Any]]("the summary of a run", dict[str, documents.Json])
_ATTEMPTS = 100  # each failed one means that another process's succeeded

# What may change when a run continues: none of these alter what a step computes.
_FREE = ("scaling.", "checkpoint.", "validation.", "log_every", "skip_nonfinite")


def _read_config(run: str) -> tuple[TrainConfig | None, object]:
    """The run's config, None if it has none yet, and the generation of the file."""
    address = storage.join(run, CONFIG)
    data, generation = storage.read_versioned(address, documents.MAX_BYTES)
    try:
        return (None if data is None else presets.from_json(data)), generation
    except ValueError as error:
        raise UserError(f"{address} is not a config: {error}") from None


def read_config(run: str) -> TrainConfig:
    """The config of an existing run.

    Raises:
        UserError: the folder does not exist, is not a run's, or its config cannot be read.
    """
    config, _ = _read_config(run)
    if config is None:
        if not storage.find(run):
            raise NotFound(f"run {run} does not exist")
        raise UserError(f"{run} has no {CONFIG}: it is not the folder of a training run")
    return config


def compare_config(run: str, config: TrainConfig, allowed: Collection[str] = ()) -> object:
    """Checks that a run may start or continue with ``config``; returns the generation of its ``config.json``.

    Args:
        allowed: dotted keys whose values may differ, besides those that alter no step's computation.

    Raises:
        ConfigChanged: other keys differ; the message names them.
        UserError: the run's ``config.json`` is not a config.
    """
    present, generation = _read_config(run)
    if present is None:
        return generation
    ours, theirs = presets.flatten(config), presets.flatten(present)
    changed = [key for key in ours if ours[key] != theirs[key] and key not in allowed and not key.startswith(_FREE)]
    if changed:
        listed = ", ".join(f"{key} is {theirs[key]}, asked for {ours[key]}" for key in changed)
        raise ConfigChanged(f"{run} was started with another config: {listed}.")
    return generation


def settle_config(run: str, config: TrainConfig, allowed: Collection[str] = ()) -> None:
    """Writes ``config.json`` of a new run, or of one that continues with permitted changes; raises as `compare_config`.

    Of several processes that start at the same moment each finds what a faster one wrote, and compares with that.
    """
    storage.confine(run)
    address, data = storage.join(run, CONFIG), presets.to_json(config)
    for _ in range(_ATTEMPTS):
        generation = compare_config(run, config, allowed)
        if storage.read_versioned(address)[0] == data:
            return
        try:
            return storage.replace(address, data, generation)
        except storage.Conflict:
            pass
    raise UserError(f"{address} is changed by other processes again and again")


def plain(value: Any) -> Any:
    """``value``, nested dicts and lists, as strict JSON: keys become strings, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarized_step(run: str) -> int | None:
    """The last step that the run's summary tells of; None if there is no summary, or one that cannot be read."""
    try:
        step = (_SUMMARY.read_if_any(storage.join(run, SUMMARY)) or {}).get("step")
    except UserError:
        return None
    return step if isinstance(step, int) else None


def write_summary(run: str, pins: dict[str, Pin | None], export: str, export_files: dict[str, str], facts: dict) -> str:
    """Writes the summary, replacing an earlier one; returns its address.

    Args:
        pins: checkpoints by name: ``latest``, ``best``.
        export: the export's folder.
        export_files: crc32c of its files by name.
        facts: other JSON values, such as ``steps`` and ``seconds``.
    """
    checkpoints = {name: dataclasses.asdict(pin) if pin else None for name, pin in pins.items()}
    summary = {
        **facts,
        "checkpoints": checkpoints,
        "export": {"address": export, "crc32c": export_files},
        "code_version": code_version(),
    }
    address = storage.join(run, SUMMARY)
    storage.confine(run)
    storage.overwrite(address, json.dumps(plain(summary), indent=1, sort_keys=True).encode())
    return address
