"""Why workers start again: Ray Train writes it into logs of its own, which go with the cluster."""

from __future__ import annotations

import pickle
from typing import Any

from ray.train import UserCallback

from trainer.errors import user_error_in
from trainer.training.progress.events import WorkerFailed

_LONGEST = 300  # characters; what follows in Ray's messages are guesses and advice


class TellFailures(UserCallback):
    """Reports `WorkerFailed` for each worker that fails; Ray Train's controller calls it, in a process of its own.

    Args:
        events: the ``ray.util.queue.Queue`` for pickled events.
    """

    def __init__(self, events: Any):
        self._events = events

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for worker, error in sorted(worker_exceptions.items()):
            cause = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
            if user_error_in(cause) is None:  # that ends the training, and its worker has reported it
                self._events.put(pickle.dumps(WorkerFailed(worker=worker, why=explain(cause))))


def explain(cause: BaseException) -> str:
    """One line for what a worker failed with: its own error, or what Ray says of its process or its machine."""
    # Fields of Ray's messages begin with a tab: numbers of actors and jobs.
    lines = [line for line in str(cause).splitlines() if line.strip() and not line.startswith("\t")]
    text = " ".join(" ".join(lines).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 4].rsplit(" ", 1)[0] + " ..."
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
