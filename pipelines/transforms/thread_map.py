"""Beam's FlatMap in threads: waiting for storage and compressing go on while the network computes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows


def _one(element: Any) -> int:
    return 1


class ThreadMap(beam.DoFn):
    """What ``function`` yields for each element, in the order of the elements, in the global window.

    A bundle ends when all of its elements are done; an error of ``function`` fails the bundle, as with FlatMap.

    Args:
        function: takes an element and ``arguments``; called from several threads at once.
        threads: number of threads.
        max_in_flight: total weight of the elements that may be waiting or running, which bounds memory. A heavier
            element starts when all others are done; the bundle waits for it, and its results are not gathered.
        weigh: weight of an element, 1 by default.
    """

    def __init__(
        self,
        function: Callable[..., Iterable],
        *arguments: Any,
        threads: int = 2,
        max_in_flight: int = 8,
        weigh: Callable[[Any], int] = _one,
    ):
        super().__init__()
        self._function, self._arguments, self._threads = function, arguments, threads
        self._max_in_flight, self._weigh = max_in_flight, weigh

    def setup(self):
        self._pool = ThreadPoolExecutor(self._threads)

    def start_bundle(self):
        self._in_flight: collections.deque[tuple[Future[list], int]] = collections.deque()
        self._weight = 0

    def process(self, element):
        weight = self._weigh(element)
        yield from self._results(self._max_in_flight - weight)
        if weight > self._max_in_flight:
            yield from self._function(element, *self._arguments)
            return
        self._in_flight.append((self._pool.submit(self._call, element), weight))
        self._weight += weight

    def finish_bundle(self):
        for result in self._results(0):
            if isinstance(result, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(result.tag, GlobalWindows.windowed_value(result.value))
            else:
                yield GlobalWindows.windowed_value(result)

    def teardown(self):
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
