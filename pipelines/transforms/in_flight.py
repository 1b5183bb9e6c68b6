"""A function's results for elements that threads work on together, with a bound on how many there are at a time."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def one(element: Any) -> int:
    return 1


class InFlight:
    """What ``function`` yields for each element, in the order of the elements.

    Args:
        function: takes an element and ``arguments``; called from several threads at once.
        threads: number of threads.
        max_in_flight: total weight of the elements that may be waiting or running, which bounds memory. A heavier
            element starts when all others are done; the caller computes it, and its results are not gathered.
        weigh: weight of an element, 1 by default.
    """

    def __init__(
        self,
        function: Callable[..., Iterable],
        *arguments: Any,
        threads: int = 2,
        max_in_flight: int = 8,
        weigh: Callable[[Any], int] = one,
    ):
        self._function, self._arguments = function, arguments
        self._max_in_flight, self._weigh = max_in_flight, weigh
        self._pool = ThreadPoolExecutor(threads)
        self.forget()

    def forget(self) -> None:
        """Begins anew: what is in flight belongs to work that has failed."""
        self._in_flight: collections.deque[tuple[Future[list], int]] = collections.deque()
        self._weight = 0

    def add(self, element: Any) -> Iterator[Any]:
        """Starts on an element; results of those before that are done, or that have to make room."""
        weight = self._weigh(element)
        yield from self._results(self._max_in_flight - weight)
        if weight > self._max_in_flight:
            yield from self._function(element, *self._arguments)
            return
        self._in_flight.append((self._pool.submit(self._call, element), weight))
        self._weight += weight

    def finish(self) -> Iterator[Any]:
        """Results of all that is left."""
        yield from self._results(0)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _call(self, element: Any) -> list:
        return list(self._function(element, *self._arguments))

    def _results(self, max_weight: int) -> Iterator[Any]:
        """Results of the oldest elements that are done, and until those in flight weigh at most ``max_weight``.

        What is done goes on at once: the books of thousands of thumbnails would wait for a full weight of them.
        """
        while self._in_flight and (self._weight > max_weight or self._in_flight[0][0].done()):
            future, weight = self._in_flight.popleft()
            found = future.result()
            self._weight -= weight
            yield from found


def map_in_threads(function: Callable[..., Iterable], elements: Iterable, *arguments: Any, **options: Any) -> Iterator:
    """What ``function`` yields for all elements; ``options`` as of `InFlight`."""
    work = InFlight(function, *arguments, **options)
    try:
        for element in elements:
            yield from work.add(element)
        yield from work.finish()
    finally:
        work.close()
