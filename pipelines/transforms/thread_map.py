"""Beam's FlatMap in threads: waiting for storage and compressing go on while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipelines.transforms.in_flight import InFlight


class ThreadMap(beam.DoFn):
    """What ``function`` yields for each element, in the order of the elements, in the global window.

    A bundle ends when all of its elements are done; an error of ``function`` fails the bundle, as with FlatMap. Of an
    element that is heavier than all that may be in flight the bundle waits for the results.

    Args:
        function, arguments, options: as of `InFlight`.
    """

    def __init__(self, function: Callable[..., Iterable], *arguments: Any, **options: Any):
        super().__init__()
        self._function, self._arguments, self._options = function, arguments, options

    def setup(self):
        self._work = InFlight(self._function, *self._arguments, **self._options)

    def start_bundle(self):
        self._work.forget()

    def process(self, element):
        yield from self._work.add(element)

    def finish_bundle(self):
        for result in self._work.finish():
            if isinstance(result, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(result.tag, GlobalWindows.windowed_value(result.value))
            else:
                yield GlobalWindows.windowed_value(result)

    def teardown(self):
        self._work.close()
