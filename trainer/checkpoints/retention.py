"""Deletes checkpoints beside the training: a store that refuses to delete holds nothing up.

What could not be deleted is tried again after the next checkpoint, and by the next writer of the run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping

from trainer.checkpoints import files
from trainer.errors import UserError
from trainer.storage.retry import persist

# For how long a step is retried; nothing waits for it.
PATIENCE = 10.0
# How long a checkpoint waits at most for the deletion of those that it replaces, in seconds; it takes far less.
GRACE = 5.0


class Retention:
    """Deletes folders of checkpoints in a thread that does not keep the process alive.

    Args:
        keep: how many checkpoints stay, besides those that pointers name.
        writer: whose turn it is, from `pointers.claim`.
        unfinished: files of folders that earlier writers left unfinished, by name; they go first.
    """

    def __init__(self, run: str, keep: int, writer: str, unfinished: Mapping[str, set[str]]):
        self._run, self._keep, self._writer = run, keep, writer
        self._doomed = dict(unfinished)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due = self._late = False
        self._deleted: list[str] = []
        self._error: Exception | None = None
        if unfinished:
            self._start()

    def begin(self) -> None:
        """Lets the thread delete what may go by now; waits for it for `GRACE` seconds unless it is late already.

        Raises:
            UserError: the run is another writer's by now, or a link leads out of it.
        """
        with self._lock:
            self._due = True
        self._start()
        if not self._late:
            self.wait()
        self._raise_what_is_wrong()

    def wait(self) -> None:
        """Waits for what is being deleted, but not for longer than `GRACE`. Raises as `begin` does."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(GRACE)
            self._late = thread.is_alive()
        self._raise_what_is_wrong()

    def _raise_what_is_wrong(self) -> None:
        """Raises, once, what is not a store's refusal and what no later attempt mends."""
        with self._lock:
            if isinstance(self._error, UserError):
                error, self._error = self._error, None
                raise error

    def take_deleted(self) -> tuple[str, ...]:
        """Names of the folders deleted since the last call."""
        with self._lock:
            deleted, self._deleted = self._deleted, []
        return tuple(deleted)

    def take_error(self) -> str | None:
        """Why something could not be deleted since the last call; None if all could, as far as is known by now."""
        with self._lock:
            error, self._error = self._error, None
        return None if error is None else " ".join(str(error).split())

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="retention", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                due, self._due = self._due, False
            try:
                persist(functools.partial(self._delete, due), PATIENCE)
            except Exception as error:  # whatever it is, training can do without
                self._error = error
            with self._lock:
                if not self._due:
                    self._thread, self._late = None, False
                    return

    def _delete(self, due: bool) -> None:
        if due:
            self._doomed |= files.find_outdated(self._run, self._keep, self._writer)
        for name in list(self._doomed):
            files.remove(self._run, name, self._doomed[name])
            del self._doomed[name]
            with self._lock:
                self._deleted.append(name)
