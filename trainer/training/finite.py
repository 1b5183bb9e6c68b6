"""Watches for losses that are not finite, without waiting for the step under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import UserError
from trainer.training.step import Health, StepResult

_NAMED = 8  # examples of a step that are named at most


@dataclass(frozen=True)
class _Pending:
    step: int
    result: StepResult
    batch: Sequence


class FiniteWatch:
    """Looks at each step's health when the next one is under way.

    Args:
        worker: number of this worker.
        allowed: how many steps may be left out.
        skipped: how many were, before.
        report: called with an event for each one that is left out.
    """

    def __init__(self, worker: int, allowed: int, skipped: int, report: Callable[[dict], None]):
        self._worker, self._allowed, self._report = worker, allowed, report
        self.skipped = skipped
        self._pending: _Pending | None = None

    def follow(self, step: int, result: StepResult, batch: Sequence) -> None:
        """Looks at the step before, then keeps this one for the next time.

        Args:
            step: number of the step, from 1.
            batch: target, mask, filenames and mask indices of this worker.
        """
        self.look()
        self._pending = _Pending(step, result, batch)

    def look(self) -> None:
        """Looks at the last step now.

        Raises:
            UserError: its loss is not finite, and as many steps as are allowed were left out already. Every worker
                raises it at the same step.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        health = Health(*pending.result.health.numpy().tolist())
        if health.sound:
            return
        terms = {name: float(value) for name, value in pending.result.terms.items()}
        examples = [] if health.sound_here else _suspects(*pending.batch)
        if self.skipped < self._allowed:
            self.skipped += 1
            if examples or self._worker == 0:
                counts = {"skipped": self.skipped, "allowed": self._allowed}
                event = {"event": "skipped", "step": pending.step, "worker": self._worker, "terms": terms, **counts}
                self._report(event | {"examples": examples})
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        what = "loss" if not np.isfinite(list(terms.values())).all() else "gradient"
        message = f"step {pending.step}: the {what} is not finite ({values})"
        if self._allowed:
            message += f", after {self.skipped} steps that were left out"
        if examples:
            message += f"; examples of worker {self._worker}: {'; '.join(examples)}"
        raise UserError(message)


def _suspects(targets, masks, filenames, indices) -> list[str]:
    """Names of the examples that are not finite themselves; of all of them where each is."""
    finite = [np.isfinite(np.asarray(x)).all(axis=(1, 2, 3)) for x in (targets, masks)]
    wrong = np.flatnonzero(~(finite[0] & finite[1]))
    chosen = wrong if len(wrong) else np.arange(len(finite[0]))
    names, numbers = np.asarray(filenames), np.asarray(indices)
    listed = [f"{names[i].decode()} with mask {numbers[i]}" for i in chosen[:_NAMED]]
    return listed + ([f"and {len(chosen) - _NAMED} more"] if len(chosen) > _NAMED else [])
