"""Work that is left when others have been lost, piece by piece, each alone in a process.

One of the pieces may be what its process was killed for, such as an image that needs more memory than there is. Ray
Data cannot tell: a task that is lost was for many of them. So these are actors of Ray's own, which have one piece at a
time; that of one which is killed is tried once more, with nothing beside it, and then given up.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ray

from pipelines.engines.on_ray.cluster import Parts, remote
from pipelines.engines.on_ray.rows import Failure
from trainer.errors import Outage

_TRIES = 2  # of a piece
_LOADS = 3  # actors in a row that may be lost before they have a piece


class Worker(Protocol):
    """What an actor does."""

    def load(self) -> None:
        """Gets ready."""

    def make(self, piece: Any) -> Any:
        """The result of a piece."""


def killed() -> MemoryError:
    """The error of a piece that is given up."""
    return MemoryError(
        f"its process was killed {_TRIES} times while it had this image alone, as happens when memory runs out: give "
        "each process more of it, or leave such images out by --max-pixels"
    )


def each_alone(
    make_worker: Callable[..., Worker], arguments: tuple[Any, ...], pieces: Sequence[Any], parts: Parts
) -> Iterator[tuple[Any, Any]]:
    """(piece, result) of each piece; the result is None if its process was killed each time.

    Args:
        make_worker, arguments: what an actor has.

    Raises:
        Outage: actors are lost again and again before they have a piece; or what a piece failed with.
        UserError: what a piece failed with.
    """
    if not pieces:
        return
    print(f"  {len(pieces)} images lost with a process: made again, one at a time", file=sys.stderr, flush=True)
    todo = collections.deque((piece, 0) for piece in pieces)
    pool = _Pool((make_worker, *arguments), parts, min(parts.actors, len(todo)))
    while todo or pool.busy:
        for actor in pool.free():
            # The second time nothing else runs, so that it was not for another piece that memory ran out.
            if not todo or (pool.busy and (todo[0][1] or pool.is_retrying)):
                break
            pool.start(actor, todo.popleft())
        for (piece, tries), result in pool.wait():
            if isinstance(result, Failure):
                raise result.error()
            if result is None and tries < _TRIES:
                todo.append((piece, tries))
            else:
                yield piece, result


class _Alone:
    """A `Worker` as an actor, which returns errors as `Failure`s: an exception means that its process is gone."""

    def __init__(self, make_worker: Callable[..., Worker], *arguments: Any):
        self._worker = make_worker(*arguments)

    def load(self) -> Failure | None:
        try:
            self._worker.load()
        except Exception as error:
            return Failure.of(error)
        return None

    def make(self, piece: Any) -> Any:
        try:
            return self._worker.make(piece)
        except Exception as error:
            return Failure.of(error)


class _Pool:
    """Actors, each with one piece at a time; one that is lost is replaced.

    Attributes:
        busy: by reference to a result, the actor that works on it, the piece, and how often it was tried before.
    """

    def __init__(self, arguments: tuple[Any, ...], parts: Parts, size: int):
        resources = {"num_cpus": parts.actor_cpus, "num_gpus": parts.actor_gpus}
        self._class = remote(_Alone, **resources, max_restarts=0, max_task_retries=0)
        self._arguments, self._lost = arguments, 0
        self._loading: dict[Any, Any] = {}  # by reference
        self._free: list[Any] = []
        self.busy: dict[Any, tuple[Any, tuple[Any, int]]] = {}
        for _ in range(size):
            self._add()

    def _add(self) -> None:
        actor = self._class.remote(*self._arguments)
        self._loading[actor.load.remote()] = actor

    @property
    def is_retrying(self) -> bool:
        return any(tries for _, (_, tries) in self.busy.values())

    def free(self) -> list[Any]:
        """Actors that have nothing to do."""
        return list(self._free)

    def start(self, actor: Any, what: tuple[Any, int]) -> None:
        self._free.remove(actor)
        self.busy[actor.make.remote(what[0])] = actor, what

    def wait(self) -> Iterator[tuple[tuple[Any, int], Any]]:
        """Waits until something has happened; (piece, tries), and its result, None if its process was killed.

        That a machine is lost is no fault of a piece, and no try.
        """
        (reference,), _ = ray.wait([*self._loading, *self.busy], num_returns=1)
        if actor := self._loading.pop(reference, None):
            self._loaded(reference, actor)
            return
        actor, (piece, tries) = self.busy.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._add()
            yield (piece, tries + (not _is_machines(error))), None
            return
        self._free.append(actor)
        yield (piece, tries + 1), result

    def _loaded(self, reference: Any, actor: Any) -> None:
        try:
            failure = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._lost += not _is_machines(error)
            if self._lost >= _LOADS:
                raise Outage(
                    f"{_LOADS} processes in a row were lost while they loaded the network, as happens when memory runs "
                    f"out: {str(error).strip().partition(chr(10))[0]}"
                ) from None
            self._add()
            return
        if failure is not None:
            raise failure.error()
        self._lost = 0
        self._free.append(actor)


def _is_machines(error: ray.exceptions.RayError) -> bool:
    """Whether a process is gone because its machine is."""
    return getattr(error, "preempted", False) or "node has died" in str(error)
