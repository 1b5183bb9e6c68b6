"""What a finished run was: RUN/summary.json, which the last process of the run writes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math

from trainer import storage
from trainer.checkpoints.pointers import Pin

SUMMARY = "summary.json"


def code_version() -> str:
    return importlib.metadata.version("pconv")


def plain(value):
    """JSON's form of nested dicts and lists: what is no number there becomes null, keys become texts."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_summary(run: str, pins: dict[str, Pin | None], export: str, export_files: dict[str, str], facts: dict) -> str:
    """Writes the summary in place of an earlier one; returns its address.

    Args:
        pins: the checkpoints to name: ``latest``, ``best``.
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
    storage.overwrite(address, json.dumps(plain(summary), indent=1, sort_keys=True).encode())
    return address
