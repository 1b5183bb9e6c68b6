"""Beam's FlatMap in threads of its own: what waits for storage or compresses goes on while the network computes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows


def _one(element: Any) -> int:
    return 1


class InBackground(beam.DoFn):
    """What ``function`` yields for each element, in the order of the elements, in the global window.

    A bundle ends when all of its elements are done; an error of ``function`` is the bundle's, as with FlatMap.

    Args:
        function: takes an element and ``arguments``; in several threads at once.
        threads: how many.
        most: weight of the elements that may be waiting or under way together, which bounds memory. One that weighs
            more is taken when all others are done, and waited for.
        weigh: weight of an element, 1 by default.
    """

    def __init__(
        self,
        function: Callable[..., Iterable],
        *arguments: Any,
        threads: int = 2,
        most: int = 8,
        weigh: Callable[[Any], int] = _one,
    ):
        super().__init__()
        self._function, self._arguments, self._threads = function, arguments, threads
        self._most, self._weigh = most, weigh

    def setup(self):
        self._pool = ThreadPoolExecutor(self._threads)

    def start_bundle(self):
        self._under_way, self._weight = collections.deque(), 0

    def process(self, element):
        weight = self._weigh(element)
        yield from self._results(self._most - weight)
        self._under_way.append((self._pool.submit(self._call, element), weight))
        self._weight += weight
        if weight > self._most:
            yield from self._results(0)

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

    def _results(self, rest: int) -> Iterator:
        """Of the eldest elements, until those under way weigh no more than ``rest``."""
        while self._under_way and self._weight > rest:
            future, weight = self._under_way.popleft()
            found = future.result()
            self._weight -= weight
            yield from found
