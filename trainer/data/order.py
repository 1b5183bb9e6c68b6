"""The order of training examples: which record is example n, and which shards a worker reads.

One epoch of a dataset is one sequence: its shards in an order drawn from (seed, epoch), the records of each in an
order drawn from (seed, epoch, shard). The sequence is cut into V equal runs of records, the *streams*, and example
numbers go through them in turn:

    sequence   s0 s0 s0 s1 | s1 s1 s2 s2 | s2 s2 s3 s3 | s3      V = 3 streams of 4 records, 1 left over
    number      0  3  6  9    1  4  7 10    2  5  8 11   12

With V = 16, neighboring examples come from 16 places of the dataset, and where the number of workers divides V, each
worker reads V / workers of the runs and no other files. Any other number of workers gives the same order but reads
files more than once. The fewer than V records left over end the epoch. Nothing depends on what was read before: any
number is located from the counts in the manifest alone.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer import storage
from trainer.config import MAX_STREAMS
from trainer.data.manifest import Shard
from trainer.data.shard_cache import OpenShard, ShardCache

_USUAL, _READ_TWICE = 16, 1 / 20  # see `fit_streams`


def draw_order(count: int, *path: int, window: int | None = None) -> np.ndarray:
    """A permutation of ``range(count)`` drawn from the integers of ``path``.

    Computed from the raw words of a bit generator, which NumPy keeps stable across versions, unlike its
    ``permutation`` (numpy.org/neps/nep-0019-rng-policy.html).

    Args:
        window: numbers are shuffled only within each run of ``window``; None shuffles all of them.
    """
    words = np.random.Philox(np.random.SeedSequence(path)).random_raw(count)
    return np.lexsort((words, np.arange(count) // (window or max(count, 1))))


@dataclass(frozen=True)
class Segment:
    """The span of one worker's examples, ``first`` to ``last``, in which some are read from ``shard`` in ``epoch``."""

    first: int
    last: int
    epoch: int
    shard: int


class Order:
    """Where the endless sequence of examples 0, 1, 2 ... lies in shards that hold ``counts`` records.

    Args:
        counts: records of each shard; some may be 0, not all.
        seed: non-negative integers that determine the order, such as (seed, kind of dataset).
        streams: V, see above.
        window: records of a shard that are shuffled among themselves.
    """

    def __init__(self, counts: Sequence[int], seed: Sequence[int], streams: int, window: int):
        self.counts = np.array(counts, np.int64)
        self.per_epoch = int(self.counts.sum())
        if self.per_epoch < 1:
            raise ValueError(f"counts: expected one record or more. Received {list(counts)}.")
        self._seed, self._streams, self._window = tuple(seed), streams, window
        self._run = self.per_epoch // streams  # records of a stream
        self.epoch_shards = functools.lru_cache(maxsize=4)(self._epoch_shards)
        self._permutation = functools.lru_cache(maxsize=2 * streams + 2)(self._draw_permutation)

    def _epoch_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards with records in the order of ``epoch``, and where in the sequence each ends."""
        shards = draw_order(len(self.counts), *self._seed, epoch)
        shards = shards[self.counts[shards] > 0]
        return shards, np.cumsum(self.counts[shards])

    def _draw_permutation(self, epoch: int, shard: int) -> np.ndarray:
        # The 1 keeps the path apart from that of the shards' order: NumPy drops trailing zeros of a seed.
        return draw_order(int(self.counts[shard]), *self._seed, epoch, shard, 1, window=self._window)

    def locate(self, numbers: np.ndarray) -> list[tuple[int, int, int]]:
        """(epoch, shard, record of the shard) of each example number, int64 [n]."""
        found = []
        for epoch, group in itertools.groupby(numbers.tolist(), lambda n: n // self.per_epoch):
            shards, ends = self.epoch_shards(epoch)
            place = np.fromiter(group, np.int64) - epoch * self.per_epoch
            row, stream = np.divmod(place, self._streams)
            place = np.where(row < self._run, stream * self._run + row, place)
            position = np.searchsorted(ends, place, side="right")
            offset = place - (ends - self.counts[shards])[position]
            for shard, at in zip(shards[position].tolist(), offset.tolist(), strict=True):
                found.append((epoch, shard, int(self._permutation(epoch, shard)[at])))
        return found

    def segments(self, start: int, step: int) -> Iterator[Segment]:
        """What the examples start, start + step, start + 2 * step ... read, ordered by first example."""
        for epoch in itertools.count(start // self.per_epoch):
            yield from sorted(self._epoch_segments(epoch, start, step), key=lambda s: (s.first, s.last))

    def _epoch_segments(self, epoch: int, start: int, step: int) -> Iterator[Segment]:
        shards, ends = self.epoch_shards(epoch)
        zero, run, body = epoch * self.per_epoch, self._run, self._run * self._streams
        # Each run is an arithmetic progression of example numbers, and so are the records left over.
        runs = [(k * run, (k + 1) * run, zero + k, self._streams) for k in range(self._streams)]
        for low, high, number, stride in [*runs, (body, self.per_epoch, zero + body, 1)]:
            if (number - start) % math.gcd(stride, step):  # of this run other workers read all
                continue
            while low < high:
                position = int(np.searchsorted(ends, low, side="right"))
                stop = min(high, int(ends[position]))
                mine = _common(number, stride, stop - low, start, step)
                if mine:
                    yield Segment(mine[0], mine[-1], epoch, int(shards[position]))
                number, low = number + (stop - low) * stride, stop

    def reads(self, workers: int) -> float:
        """How often a shard is opened in the first epoch, on average, by all of ``workers`` together.

        1 is the least. Where a stream begins within a shard, that shard is read at the end of one stream and at the
        beginning of the next; where ``workers`` do not divide the streams, several of them read the same ones.
        """
        classes = math.gcd(self._streams, workers)  # worker n reads the streams of worker n + classes
        opened = sum(self._count_opened(worker, workers) for worker in range(classes))
        return opened * (workers // classes) / np.count_nonzero(self.counts)

    def _count_opened(self, worker: int, workers: int) -> int:
        """How often `RecordReader` opens a shard in the first epoch."""
        last: dict[int, int] = {}  # example of each shard
        opened, began = 0, 0
        for segment in sorted(self._epoch_segments(0, worker, workers), key=lambda s: s.first):
            # Closed when a segment began after its last example.
            opened += segment.shard not in last or last[segment.shard] < began
            last[segment.shard], began = max(segment.last, last.get(segment.shard, 0)), segment.first
        return opened

    def open_at_once(self, workers: int) -> int:
        """Shards that one of ``workers`` may hold open: one per run it reads, and one more as runs end."""
        return self._streams // math.gcd(self._streams, workers) + 1

    def shard_bytes(self, sizes: Sequence[int], workers: int) -> int:
        """The most bytes that the shards open at once in one of ``workers`` can take; ``sizes``: of each shard."""
        held = [size for size, count in zip(sizes, self.counts, strict=True) if count]
        return sum(heapq.nlargest(self.open_at_once(workers), held))


def fit_streams(sizes: Iterable[Sequence[int]], workers: Sequence[int]) -> int:
    """How many streams suit the shards of datasets that are read together, and each of some numbers of workers.

    About 16, so that a batch comes from many places. Fewer if the shards in which one begins, which are read twice,
    were more than a twentieth of all bytes, but no fewer than there are workers.

    Args:
        sizes: bytes of the shards of each dataset.
        workers: numbers of workers that may read them; the last is the one that is wanted.
    """
    held = [[size for size in dataset if size] for dataset in sizes]
    room = int(sum(map(sum, held)) / sum(sum(dataset) / len(dataset) for dataset in held) * _READ_TWICE)
    unit = math.lcm(*workers)
    if unit > max(room, _USUAL):  # few numbers of workers can have what they like
        unit = workers[-1]
    wanted = -(-_USUAL // unit) * unit
    return min(max(unit, min(wanted, room // unit * unit)), MAX_STREAMS)


def _common(first: int, stride: int, count: int, start: int, step: int) -> range:
    """Numbers of ``range(start, infinity, step)`` among the ``count`` numbers first, first + stride, ..."""
    period = step // math.gcd(stride, step)  # of the places at which both progressions meet
    begin = max(0, -((first - start) // stride)) if first < start else 0
    for place in range(begin, min(begin + period, count)):
        if (first + place * stride - start) % step == 0:
            return range(first + place * stride, first + count * stride, period * stride)
    return range(0)


@dataclass(frozen=True)
class Source:
    """One split of a dataset and the order of its records.

    Attributes:
        folder: the dataset's address.
        shards: of the split.
        order: made from their record counts.
    """

    folder: str
    shards: Sequence[Shard]
    order: Order

    def describe(self, number: int) -> str:
        """Names the record that an example is, for error messages."""
        ((_, shard, record),) = self.order.locate(np.array([number]))
        return f"record {record} of {storage.join(self.folder, self.shards[shard].name)}"


class RecordReader:
    """The serialized records of the examples ``start``, ``start + step``, ... of a source, in that order.

    Args:
        cache: opens the shards.
    """

    def __init__(self, source: Source, cache: ShardCache, start: int, step: int):
        self._source, self._cache = source, cache
        self._segments = source.order.segments(start, step)
        self._upcoming: deque[Segment] = deque(itertools.islice(self._segments, source.order.open_at_once(step)))
        self._open: dict[int, OpenShard] = {}
        self._last: dict[int, int] = {}  # the example that reads a shard last, as far as its segments have begun

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """Records of the next examples, whose numbers are int64 [n]."""
        found = []
        for number, (_, shard, record) in zip(numbers.tolist(), self._source.order.locate(numbers), strict=True):
            self._begin(number)
            if shard not in self._open:
                self._open[shard] = self._cache.open(self._source.folder, self._source.shards[shard])
            found.append(self._open[shard].read(record))
        return found

    def _begin(self, number: int) -> None:
        """When segments begin: closes the shards that are no longer needed and has the next ones fetched."""
        if self._upcoming[0].first > number:
            return
        while self._upcoming[0].first <= number:
            segment = self._upcoming.popleft()
            self._upcoming.append(next(self._segments))
            self._last[segment.shard] = max(segment.last, self._last.get(segment.shard, 0))
        for shard in [shard for shard in self._open if self._last[shard] < number]:
            self._open.pop(shard).close()
        for segment in self._upcoming:
            if segment.shard not in self._open:
                self._cache.prepare(self._source.folder, self._source.shards[segment.shard])

    def close(self) -> None:
        for shard in self._open.values():
            shard.close()
        self._open.clear()
