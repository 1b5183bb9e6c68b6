"""Saves checkpoints while training goes on.

with Saver(run, config) as saver:
    ...
    waited = saver.save({"model": ..., "optimizer": ...}, {"step": step, ...}, score)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer import storage
from trainer.checkpoints import files, pointers
from trainer.checkpoints.files import Arrays, State, is_whole, prune, require_storable, write_checkpoint
from trainer.checkpoints.pointers import Pin, Score
from trainer.checkpoints.retention import Retention
from trainer.config import TrainConfig
from trainer.storage.retry import persist

PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is in the store.

    Attributes:
        latest, best: whether the pointer was moved to it.
        deleted: names of the checkpoints that have been deleted since the one before.
        seconds: from the snapshot's end until it was in the store, waiting for that included.
    """

    step: int
    pin: Pin
    latest: bool
    best: bool
    deleted: tuple[str, ...]
    seconds: float


class Saver:
    """The only writer of a run's checkpoints: a `Saver` made earlier can no longer move any pointer.

    At most one upload is in flight. Its error is raised by the next call of `save`, `finished`, `wait` or `close`.
    Deleting holds nothing up and raises nothing, see `retention_error`.

    Attributes:
        swept: names of the folders that earlier writers left unfinished; they are being deleted.
    """

    def __init__(self, run: str, config: TrainConfig, *, patience_s: float = PATIENCE):
        """Claims the run.

        Args:
            run: address of the run's folder.
            config: stored with each checkpoint; its ``checkpoint`` says how many to keep and whether uploads run in
                the background.
            patience_s: seconds for which writes are retried while the store refuses.

        Raises:
            UserError: the run's folder cannot be written.
        """
        self._run, self._config, self._patience = run, config, patience_s
        storage.confine(run)
        self._writer = persist(lambda: pointers.claim(run), patience_s)
        persist(lambda: files.sweep_drafts(run), patience_s)
        # Found now, before the first checkpoint is begun; a store that does not delete is not waited for.
        unfinished = persist(lambda: files.find_unfinished(run, self._writer), patience_s)
        self.swept = tuple(unfinished)
        self._retention = Retention(run, config.checkpoint.keep, self._writer, unfinished)
        self._retention.wait()
        self._thread = ThreadPoolExecutor(1, "checkpoints") if config.checkpoint.background else None
        self._upload: Future | None = None
        self._saved: list[Saved] = []

    def save(self, variables: Mapping[str, Arrays], state: State, score: Score | None = None) -> float:
        """Copies ``variables`` and begins to write them; waits first if the last ones are not written yet.

        Args:
            variables: arrays by variable path, for each of `files.PARTS` that is required and maybe for others.
            state: JSON with at least ``step``.
            score: of these variables, if they were validated.

        Returns:
            The seconds that training was held up by the last upload; without ``background``, by this one.
        """
        waited = self.wait()
        require_storable(variables)
        snapshot = {part: {name: np.array(x) for name, x in arrays.items()} for part, arrays in variables.items()}
        state = json.loads(json.dumps(state))  # a copy; refuses what is not JSON
        begin = time.monotonic()
        if self._thread is None:
            self._write(snapshot, state, score)
            return waited + time.monotonic() - begin
        self._upload = self._thread.submit(self._write, snapshot, state, score)
        return waited

    def _write(self, snapshot: Mapping[str, Arrays], state: State, score: Score | None) -> None:
        begin = time.monotonic()
        run, writer, step = self._run, self._writer, state["step"]
        pin = write_checkpoint(run, snapshot, state, config=self._config, writer=writer, patience_s=self._patience)
        # Best first: once latest has moved, this step will not be computed again.
        best = score is not None and persist(lambda: pointers.move_best(run, pin, step, score, writer), self._patience)
        latest = persist(lambda: pointers.move_latest(run, pin, step, writer, is_whole), self._patience)
        seconds = time.monotonic() - begin
        self._retention.begin()
        deleted = self._retention.take_deleted()
        self._saved.append(Saved(step=step, pin=pin, latest=latest, best=best, deleted=deleted, seconds=seconds))

    @property
    def is_writing(self) -> bool:
        """Whether an upload is in flight, so that `save` would have to wait."""
        return self._upload is not None and not self._upload.done()

    def finished(self) -> list[Saved]:
        """Checkpoints saved since the last call, oldest first. Raises the error of an upload that has failed."""
        if self._upload is not None and self._upload.done():
            self.wait()
        done, self._saved = self._saved, []
        return done

    def retention_error(self) -> str | None:
        """Why old checkpoints could not be deleted since the last call, if so; the next checkpoint tries again."""
        return self._retention.take_error()

    def wait(self) -> float:
        """Waits for the upload in flight; returns the seconds that took. Raises the upload's error."""
        if self._upload is None:
            return 0.0
        upload, self._upload = self._upload, None
        begin = time.monotonic()
        upload.result()
        return time.monotonic() - begin

    def close(self) -> None:
        """Waits for the upload in flight and raises its error."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            self._retention.wait()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:  # else the error that ends the training is the one to tell
                raise


def save_checkpoint(
    run: str,
    variables: Mapping[str, Arrays],
    state: State,
    keep: int,
    *,
    config: TrainConfig | None = None,
    score: Score | None = None,
) -> Pin:
    """Writes a checkpoint, moves the pointers, then deletes all but the newest ``keep`` and the best.

    For programs that write a single one and take no turns. Arguments and errors as in `files.write_checkpoint`.
    """
    storage.confine(run)
    pin = write_checkpoint(run, variables, state, config=config)
    pointers.move_latest(run, pin, state["step"], None, is_whole)
    if score is not None:
        pointers.move_best(run, pin, state["step"], score, None)
    prune(run, keep)
    return pin
