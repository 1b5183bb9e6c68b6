"""What a folder holds: which kind of job wrote it, as the documents tell that only such a job leaves there.

A job writes into a new folder, or into one of its own kind. In any other its files would lie among those of another
kind, and its ``--overwrite``, its sweeping and its ``manifest.json`` would take these for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer import storage
from trainer.documents import Form
from trainer.errors import UserError

IMAGES, MASKS = "a dataset of image records", "a dataset of mask records"
OUTPUTS, REPORT = "inpainted images", "the report of an evaluation"
RUN, EXPORT = "a training run", "an exported network"
OTHERS = "files of another program"
DATASETS = {"image": IMAGES, "mask": MASKS}  # by kind of record

_MAX_BYTES = 1 << 26  # of the largest of these documents, a dataset's manifest and an evaluation's metrics


@dataclass(frozen=True)
class _Keys:
    """What is looked at of a document, which may be anybody's."""

    kind: Any = None
    shards: Any = None
    counts: Any = None
    cells: Any = None
    methods: Any = None
    unet: Any = None
    checkpoint_crc32c: Any = None


_FORM: Form[_Keys] = Form("a document", _Keys, _MAX_BYTES)


def _manifest(keys: _Keys) -> str:
    if isinstance(keys.kind, str) and keys.shards is not None:
        return DATASETS.get(keys.kind, OTHERS)
    return OUTPUTS if isinstance(keys.counts, dict) and "outputs" in keys.counts else OTHERS


# The documents, and what tells whose they are; one that is no JSON object may have been anybody's, and says nothing.
_DOCUMENTS: dict[str, Callable[[_Keys], str]] = {
    "manifest.json": _manifest,
    "metrics.json": lambda keys: REPORT if keys.cells is not None and keys.methods is not None else OTHERS,
    "config.json": lambda keys: RUN if keys.unet is not None else OTHERS,
    "card.json": lambda keys: EXPORT if keys.checkpoint_crc32c is not None else OTHERS,
}
# Files whose names alone tell it, also of a job that did not end.
_FILES = {".items/job.json": OUTPUTS, "checkpoints/latest.json": RUN}
# The document that each kind of job writes.
_WRITES = {IMAGES: "manifest.json", MASKS: "manifest.json", OUTPUTS: "manifest.json"}
_WRITES |= {REPORT: "metrics.json", RUN: "config.json", EXPORT: "card.json"}


def _look(folder: str) -> dict[str, str]:
    """What each document in the folder tells; `OTHERS` of one that none of our jobs wrote."""
    found = {name: kind for name, kind in _FILES.items() if storage.exists(storage.join(folder, name))}
    for name, kind_of in _DOCUMENTS.items():
        try:
            keys = _FORM.read_if_any(storage.join(folder, name))
        except UserError:
            continue
        if keys is not None:
            found[name] = kind_of(keys)
    return found


def kinds_of(folder: str) -> set[str]:
    """What the folder holds; one of an earlier version may hold several kinds."""
    return set(_look(folder).values()) - {OTHERS}


def require_kind(folder: str, kind: str) -> None:
    """Raises `UserError` if the folder holds something else and nothing of ``kind``; the message names both.

    A document of another program counts only if the job would write one of that name.
    """
    found = {name: what for name, what in _look(folder).items() if what != OTHERS or name == _WRITES[kind]}
    if found and kind not in found.values():
        (name, other), *_ = found.items()
        raise UserError(
            f"{folder} holds {other} ({name}). Expected {kind}, or a folder without either: choose another folder."
        )
