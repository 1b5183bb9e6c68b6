"""Steps whose loss or gradient is not finite: which examples to suspect, and whether training may go on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.errors import UserError
from trainer.training.progress.events import Report, StepSkipped, what_failed
from trainer.training.step import Health, StepResult

_MAX_NAMED = 8  # examples of a step named in a message


class FiniteWatch:
    """Detects non-finite losses without blocking on the step in flight: it reads a step's health one step later.

    Args:
        worker: index of this worker.
        allowed: how many steps may be skipped.
        skipped: how many were skipped before.
        report: gets a `StepSkipped` for each skipped step.
    """

    def __init__(self, worker: int, allowed: int, skipped: int, report: Report):
        self._worker, self._allowed, self._report = worker, allowed, report
        self.skipped = skipped
        self._pending: tuple[int, StepResult, Sequence] | None = None

    def follow(self, step: int, result: StepResult, batch: Sequence) -> None:
        """Checks the step before, then remembers this one.

        Args:
            step: number of the step, from 1.
            batch: target, mask, filenames and mask indices of this worker.
        """
        self.check()
        self._pending = step, result, batch

    def is_sound(self) -> bool:
        """Whether `check` would find nothing; waits for the last step."""
        return self._pending is None or Health(*self._pending[1].health.numpy().tolist()).sound

    def check(self) -> None:
        """Checks the last step now, waiting for it.

        Raises:
            UserError: its loss or gradient is not finite, and the allowed number of steps has been skipped already.
                All workers raise it at the same step.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, result, batch = pending
        health = Health(*result.health.numpy().tolist())
        if health.sound:
            return
        terms = {name: float(value) for name, value in result.terms.items()}
        examples = [] if health.sound_here else _suspects(*batch)
        if self.skipped < self._allowed:
            self.skipped += 1
            if examples or self._worker == 0:
                counts = {"skipped": self.skipped, "allowed": self._allowed}
                self._report(StepSkipped(step=step, worker=self._worker, terms=terms, examples=examples, **counts))
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        message = f"step {step}: non-finite {what_failed(terms)} ({values})"
        if self._allowed:
            message += f", after {self.skipped} skipped step{'s' if self.skipped > 1 else ''}"
        if examples:
            message += f"; examples of worker {self._worker}: {'; '.join(examples)}"
        raise UserError(message)


def _suspects(targets, masks, filenames, indices) -> list[str]:
    """Names of the examples that are not finite themselves; of all examples if each of them is."""
    finite = [np.isfinite(np.asarray(x)).all(axis=(1, 2, 3)) for x in (targets, masks)]
    wrong = np.flatnonzero(~(finite[0] & finite[1]))
    chosen = wrong if len(wrong) else np.arange(len(finite[0]))
    names, numbers = np.asarray(filenames), np.asarray(indices)
    listed = [f"{names[i].decode()} with mask {numbers[i]}" for i in chosen[:_MAX_NAMED]]
    return listed + ([f"and {len(chosen) - _MAX_NAMED} more"] if len(chosen) > _MAX_NAMED else [])
