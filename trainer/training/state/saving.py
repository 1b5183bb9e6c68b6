"""Worker 0's writing into the run's folder."""

from __future__ import annotations

from trainer import checkpoints, storage
from trainer.checkpoints import pointers
from trainer.checkpoints.saver import Saver
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.inference.export_formats import export_model
from trainer.metrics.intervals import interval_tag
from trainer.runs import summarized_step, write_summary
from trainer.tensorboard import read_scalars
from trainer.training.progress.events import (
    CheckpointAwaited,
    CheckpointSaved,
    Exported,
    Report,
    RetentionFailed,
    SummaryWritten,
)
from trainer.training.state.timer import SaveTimer
from trainer.training.state.train_state import TrainState
from trainer.training.validation import Validated


class Writer:
    """Writes checkpoints, the export and the summary.

    Args:
        pin: the checkpoint that training resumed from.
        begin: steps done when this process began.
    """

    def __init__(
        self, config: TrainConfig, run: str, saver: Saver, pin: checkpoints.Pin | None, report: Report, begin: int
    ):
        self._config, self._run, self._saver, self._report, self._begin = config, run, saver, report, begin
        self._latest = pin
        minutes = config.checkpoint.every_minutes
        self._timer = SaveTimer(minutes) if minutes else None

    def save(self, state: TrainState, phase: str, score: checkpoints.Score | None) -> None:
        variables = {part: read() for part, read in state.readers().items()}
        if self._timer:
            self._timer.begin(state.step)
        self.pause(self._saver.save(variables, state.facts(self._config, phase), score))

    def pause(self, seconds: float) -> None:
        """Takes out ``seconds`` in which nothing was trained of those that `is_due` looks at."""
        if self._timer:
            self._timer.pause(seconds)

    def is_due(self) -> bool:
        """Whether a checkpoint is due by time; called after each step.

        Waits for the one that is being written where another step could be more than may be lost.
        """
        if self._timer is None:
            return False
        self._timer.check()
        if not self._saver.is_writing:
            self.report_saved()
        elif self._timer.must_wait():
            waited = self._saver.wait()
            self.pause(waited)
            self._report(CheckpointAwaited(seconds=waited, minutes=self._config.checkpoint.every_minutes))
            self.report_saved()
        return not self._saver.is_writing and self._timer.is_due()

    def report_saved(self, wait: bool = False) -> None:
        """Reports the checkpoints that were completed since the last call; with ``wait``, all that were begun."""
        if wait:
            self._saver.wait()
        for saved in self._saver.finished():
            self._latest = saved.pin
            if self._timer:
                self._timer.complete(saved.step, saved.seconds)
            self._report(
                CheckpointSaved(step=saved.step, address=saved.pin.address, best=saved.best, seconds=saved.seconds)
            )
        if why := self._saver.retention_error():
            self._report(RetentionFailed(why=why))

    def finish(self, state: TrainState, terms: dict, seconds: float, validated: Validated | None) -> None:
        """Exports the network and writes the summary, unless that tells of the last step already.

        Args:
            terms: the last loss terms; none if this process took no step, for they are in the logs of the one that did.
            seconds: that this process trained.
            validated: the last validation of this process.
        """
        self.report_saved(wait=True)
        if self._latest is None:
            raise RuntimeError("expected a checkpoint of the last step")
        steps = state.step - self._begin
        summarized = not steps and summarized_step(self._run) == state.step
        if not steps and not summarized:
            terms = _read_terms(self._run, state.step)
        folder = export_model(self._run, self._config, checkpoints.load_for_inference(self._latest), terms)
        self._report(Exported(step=state.step, address=folder))
        if summarized:
            return
        cells = {interval_tag(bucket): cell for bucket, cell in validated.cells.items()} if validated else None
        best = pointers.read(self._run, pointers.BEST)
        if best and best.checkpoint is None:  # of a pointer that was found broken
            best = None
        facts = {
            "step": state.step,
            "steps_of_this_process": steps,
            "seconds_of_this_process": seconds,
            "images_per_second": steps * self._config.examples_per_step / seconds if steps else None,
            "terms": terms,
            "last_validation": {"step": validated.step, "cells": cells} if validated else None,
            "best_validation": {"step": best.step, "metric": best.metric, "value": best.value} if best else None,
            "skipped_steps": state.skipped,
        }
        files = {storage.relative(file, folder): storage.checksum(file) for file in storage.find(folder)}
        pins = {"latest": self._latest, "best": best.pin(self._run) if best else None}
        self._report(SummaryWritten(address=write_summary(self._run, pins, folder, files, facts)))


def _read_terms(run: str, step: int) -> dict[str, float]:
    """The loss terms of a step as an earlier process logged them; none if its logs do not have them."""
    try:
        logged = read_scalars(run, step)
    except UserError:
        return {}
    return {tag.removeprefix("loss/"): value for tag, value in logged.items() if tag.startswith("loss/")}
