"""The folders of a run's checkpoints: their names, which of them are complete, which may go.

    RUN/checkpoints/step-00000100-5f2c91d0/   a checkpoint once its manifest is there

A folder's name ends in random digits, so that a step which is computed again after a failure never
meets what an earlier attempt left.
"""

from __future__ import annotations

import os
import re
import shutil

from trainer import storage
from trainer.checkpoints import pointers

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})-[0-9a-f]{8}")


def new_name(step: int) -> str:
    return f"step-{step:08d}-{os.urandom(4).hex()}"


def _step_of(name: str) -> int:
    return int(_NAME.fullmatch(name)[1])


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


def _remove(run: str, name: str, files: set[str]) -> None:
    # The manifest goes first: what is left of a half-deleted folder is not a checkpoint.
    for address in sorted(files, key=lambda a: (not a.endswith("/" + MANIFEST), a)):
        storage.delete(address)
    folder = storage.join(pointers.folder(run), name)
    if not storage.is_bucket(folder):
        shutil.rmtree(folder, ignore_errors=True)  # drafts of a killed writer, and the folder itself


def prune(run: str, keep: int, writer: str | None = None) -> list[str]:
    """Deletes all checkpoints but the newest ``keep`` and those that pointers name; returns the deleted names.

    What has no manifest stays: its writer may still be at work (see `sweep`).

    Raises:
        UserError: another writer has claimed the run.
    """
    listed = _list(run)  # before the pointers: what is not listed yet is not deleted
    latest, best = (pointers.read(run, which) for which in (pointers.LATEST, pointers.BEST))
    pointers.require_turn(run, writer)
    if latest is None or latest.step is None:
        return []
    # What is newer than the pointer may be just about to be named by it.
    older = [
        name
        for name, files in listed.items()
        if name != latest.checkpoint and _is_complete(run, name, files) and _step_of(name) <= latest.step
    ]
    older.sort(key=lambda name: (_step_of(name), name), reverse=True)
    doomed = [name for name in older[keep - 1 :] if best is None or name != best.checkpoint]
    doomed = [name for name in doomed if _step_of(name) < latest.step]
    for name in doomed:
        _remove(run, name, listed[name])
    return doomed


def sweep(run: str, writer: str) -> list[str]:
    """Deletes what writers before ``writer`` left unfinished; returns the names.

    Call it after `pointers.claim` and before the first checkpoint. One of those writers may still be
    uploading: it can no longer move a pointer, so no pointer will ever name what is deleted here.

    Raises:
        UserError: another writer has claimed the run.
    """
    listed = _list(run)
    # Only if the turn is still ours now were none of the listed folders begun by a writer after us.
    pointers.require_turn(run, writer)
    named = {pointer.checkpoint for which in (pointers.LATEST, pointers.BEST) if (pointer := pointers.read(run, which))}
    left = [name for name, files in listed.items() if name not in named and not _is_complete(run, name, files)]
    for name in left:
        _remove(run, name, listed[name])
    return left
