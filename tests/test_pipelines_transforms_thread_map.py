"""Work in threads beside a bundle: what comes out, in which order, how much at a time, and what fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipelines.transforms.thread_map import ThreadMap


def halves_and_odd(number: int, extra: int):
    if number % 2:
        yield beam.pvalue.TaggedOutput("odd", number + extra)
    else:
        yield from [number // 2 + extra] * (number % 3)


def test_what_comes_out_is_what_flat_map_gives():
    with beam.Pipeline("FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create(range(50))
        plain = numbers | beam.FlatMap(halves_and_odd, 100).with_outputs("odd", main="even")
        found = numbers | beam.ParDo(ThreadMap(halves_and_odd, 100, max_in_flight=3)).with_outputs("odd", main="even")
        expected = [n + 100 for n in range(1, 50, 2)]
        assert_that(found.odd, equal_to(expected), label="odd")
        assert_that(plain.odd, equal_to(expected), label="plain odd")
        even = [n // 2 + 100 for n in range(0, 50, 2) for _ in range(n % 3)]
        assert_that(found.even, equal_to(even), label="even")
        assert_that(plain.even, equal_to(even), label="plain even")


def started(function, **options) -> ThreadMap:
    step = ThreadMap(function, **options)
    step.setup()
    step.start_bundle()
    return step


def values(results) -> list:
    return [result.value for result in results]


def test_elements_are_worked_on_together_and_come_out_in_order():
    meeting, order = threading.Barrier(2, timeout=240), []

    def meet(number):
        meeting.wait()  # of one alone this would end in an error
        order.append(number)
        yield number

    step = started(meet)
    found = [result for number in range(8) for result in step.process(number)]
    assert found + values(step.finish_bundle()) == list(range(8)) == sorted(order)
    step.teardown()


def test_no_more_is_taken_than_may_be_in_memory():
    taken, given = [], []

    class Waited(Future):
        """Is not done until somebody waits for it."""

        def done(self):
            return False

    class Pool:
        def submit(self, function, number):
            taken.append(number)
            future = Waited()
            future.set_result(function(number))
            return future

    step = started(lambda number: [number], max_in_flight=6, weigh=abs)
    step.teardown()
    step._work._pool = Pool()
    for number in (3, -3, 1, 5, 9, 2):
        given.append(list(step.process(number)))
    # 3 and -3 fill it; for 1 the eldest leaves, for 5 the next; 9 waits for all others and is waited for.
    assert given == [[], [], [3], [-3], [1, 5, 9], []] and values(step.finish_bundle()) == [2]
    assert taken == [3, -3, 1, 5, 2]  # what is larger than all may be is computed by the caller


def test_what_is_done_goes_on_at_once():
    """The oldest first: what is done behind one that is not waits for it."""
    may_go_on = threading.Event()

    def wait_for_first(number):
        if number == 1:
            may_go_on.wait(60)
        yield number

    step = started(wait_for_first, max_in_flight=100)
    assert list(step.process(0)) == []
    while not step._work._in_flight[0][0].done():
        pass
    assert list(step.process(1)) == [0] and list(step.process(2)) == [] and list(step.process(3)) == []
    may_go_on.set()
    assert values(step.finish_bundle()) == [1, 2, 3]
    step.teardown()


def test_an_error_ends_the_bundle_and_the_next_begins_anew():
    def fail_on_2(number):
        if number == 2:
            raise KeyError("two")
        yield number

    step = started(fail_on_2)
    with pytest.raises(KeyError, match="two"):
        for number in range(3):
            list(step.process(number))
        list(step.finish_bundle())
    step.start_bundle()
    assert list(step.process(7)) == [] and values(step.finish_bundle()) == [7]
    step.teardown()
