"""The order of examples against slow enumeration: all of them, once an epoch, and no shard opened in vain."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from trainer.data.manifest import Shard
from trainer.data.order import Order, RecordReader, Source, draw_order, fit_streams

ORDERS = [  # counts, streams, window
    ([1], 1, 1),
    ([0, 1], 3, 2),
    ([5], 1, 9),
    ([3, 0, 5, 2], 3, 2),
    ([1, 1, 1], 4, 1),
    ([7, 4, 9, 0, 6, 8, 5, 3], 4, 3),
    ([10] * 8, 4, 100),
    ([2, 30, 1, 1], 6, 8),
]


def make(counts, streams, window, seed=(7, 0)):
    return Order(counts, seed, streams, window)


def sequence(order, streams, epoch):
    """(shard, position in the shard) of the epoch's examples, from the definition, one by one."""
    line = [(shard, i) for shard in order.epoch_shards(epoch)[0].tolist() for i in range(order.counts[shard])]
    run = len(line) // streams
    rounds = [line[stream * run + row] for row in range(run) for stream in range(streams)]
    return rounds + line[run * streams :]


@pytest.mark.parametrize(("counts", "streams", "window"), ORDERS)
def test_every_epoch_holds_every_record_once_going_round_the_streams(counts, streams, window):
    order, total = make(counts, streams, window), sum(counts)
    found = order.locate(np.arange(4 * total))
    everything = sorted((shard, record) for shard, count in enumerate(counts) for record in range(count))
    for epoch in range(4):
        mine = found[epoch * total : (epoch + 1) * total]
        assert [e for e, _, _ in mine] == [epoch] * total
        assert sorted((shard, record) for _, shard, record in mine) == everything
        for (_, shard, record), (expected, position) in zip(mine, sequence(order, streams, epoch), strict=True):
            assert shard == expected and record // window == position // window


@pytest.mark.parametrize(("counts", "streams", "window"), ORDERS)
def test_any_number_is_found_without_those_before_it(counts, streams, window):
    order = make(counts, streams, window)
    whole = order.locate(np.arange(200))
    picked = np.random.default_rng(0).permutation(200)
    assert make(counts, streams, window).locate(picked) == [whole[n] for n in picked]
    far = 10**12 + np.arange(3)
    assert {epoch for epoch, _, _ in order.locate(far)} <= {int(n) // sum(counts) for n in far}


def test_order_is_drawn_from_seed_epoch_and_shard():
    counts = [40] * 6
    seeds = [(0, 0), (0, 1), (1, 0), (2**63 - 1, 0)]
    orders = [Order(counts, seed, 2, 40) for seed in seeds]
    found = {tuple((s, r) for _, s, r in order.locate(np.arange(240) + 240 * e)) for order in orders for e in range(3)}
    assert len(found) == 12
    shards = {tuple(order.epoch_shards(epoch)[0]) for order in orders for epoch in range(3)}
    assert len(shards) >= 11  # of 720 orders
    within = {tuple(orders[0]._permutation(epoch, shard)) for epoch in range(3) for shard in range(6)}
    assert len(within) == 18


def test_drawn_orders_are_uniform():
    first = Counter(tuple(draw_order(3, seed)) for seed in range(3000))
    assert len(first) == 6 and all(abs(count - 500) < 4 * (3000 * 5 / 36) ** 0.5 for count in first.values())


def test_the_order_stays_what_it_was():
    # Resuming a run after an update of the project or of NumPy needs this. Change it only with a reason to give users.
    found = make([3, 0, 5, 2], 3, 2).locate(np.arange(20))
    expected = [
        (3, 0),
        (2, 0),
        (2, 4),
        (3, 1),
        (2, 3),
        (0, 0),
        (2, 1),
        (2, 2),
        (0, 1),
        (0, 2),
        (3, 1),
        (0, 1),
        (2, 0),
        (3, 0),
        (0, 2),
        (2, 2),
        (0, 0),
        (2, 1),
        (2, 3),
        (2, 4),
    ]
    assert [(s, r) for _, s, r in found] == expected


def segments_of(order, streams, start, step, epochs):
    """(first, last, epoch, shard) of the worker's examples in each shard of each stream, from the definition."""
    spans = {}
    for epoch in epochs:
        places = sequence(order, streams, epoch)
        body = len(places) // streams * streams
        for place, (shard, _) in enumerate(places):
            number = epoch * len(places) + place
            if number >= start and (number - start) % step == 0:
                stream = place % streams if place < body else streams  # the last holds what is left over
                spans.setdefault((epoch, stream, shard), []).append(number)
    return sorted((mine[0], mine[-1], epoch, shard) for (epoch, _, shard), mine in spans.items())


@pytest.mark.parametrize(("counts", "streams", "window"), ORDERS)
@pytest.mark.parametrize(("start", "step"), [(0, 1), (3, 2), (5, 3), (11, 4), (1, 5), (2, 8), (9, 12), (4, 100)])
def test_segments_are_what_the_examples_read(counts, streams, window, start, step):
    order = make(counts, streams, window)
    epochs = range(start // sum(counts), start // sum(counts) + 6)
    found = itertools.takewhile(lambda s: s.epoch in epochs, order.segments(start, step))
    expected = segments_of(order, streams, start, step, epochs)
    assert [(s.first, s.last, s.epoch, s.shard) for s in found] == expected


@pytest.mark.parametrize(("workers", "each"), [(1, 8), (2, 4), (4, 2), (8, 2), (3, 8), (6, 4)])
def test_workers_that_divide_the_streams_share_the_shards(workers, each):
    order = make([10] * 8, 4, 10)  # each of four streams is two shards
    read = []
    for worker in range(workers):
        segments = itertools.takewhile(lambda s: s.epoch == 0, order.segments(worker, workers))
        read.append({s.shard for s in segments})
    assert [len(shards) for shards in read] == [each] * workers
    assert set.union(*read) == set(range(8))


def test_bytes_open_at_once():
    order = make([1, 0, 1, 1, 1, 1], 4, 1)
    sizes = [10, 1000, 20, 30, 40, 50]
    assert order.shard_bytes(sizes, workers=1) == 150  # four streams and one, of the shards with records
    assert order.shard_bytes(sizes, workers=2) == 120
    assert order.shard_bytes(sizes, workers=4) == 90
    assert order.shard_bytes(sizes, workers=3) == 150


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_no_records_are_refused(counts):
    with pytest.raises(ValueError, match="counts: expected one record or more. Received"):
        make(counts, 2, 2)


class Cache:
    """Counts what a reader has open."""

    def __init__(self):
        self.opened, self.prepared, self.now, self.most = [], [], Counter(), 0

    def prepare(self, dataset, shard):
        self.prepared.append(shard.name)

    def open(self, dataset, shard):
        assert not self.now[shard.name]
        self.opened.append(shard.name)
        self.now[shard.name] += 1
        self.most = max(self.most, self.now.total())
        return Handle(self, shard.name)


class Handle:
    def __init__(self, cache, name):
        self.cache, self.name = cache, name

    def read(self, record):
        assert self.cache.now[self.name] == 1
        return f"{self.name}:{record}".encode()

    def close(self):
        self.cache.now[self.name] -= 1


def reader_of(counts, streams, start=0, step=1):
    shards = [Shard(name=str(i), split="train", records=n, bytes=1, crc32c="") for i, n in enumerate(counts)]
    cache = Cache()
    return RecordReader(Source("d", shards, make(counts, streams, 5)), cache, start, step), cache


@pytest.mark.parametrize(("start", "step"), [(0, 1), (37, 1), (2, 2), (50, 3), (160, 4)])
def test_a_reader_gives_the_orders_records_and_holds_few_shards(start, step):
    counts = [10] * 16
    reader, cache = reader_of(counts, 4, start, step)
    order = make(counts, 4, 5)
    for first in range(start, start + 480 * step, 16 * step):
        numbers = first + step * np.arange(16)
        assert reader.read(numbers) == [f"{s}:{r}".encode() for _, s, r in order.locate(numbers)]
    own = 4 // np.gcd(4, step)
    assert cache.most <= own + 1 == order.open_at_once(step)
    reader.close()
    assert not cache.now.total()


@pytest.mark.parametrize(("counts", "streams"), [*[order[:2] for order in ORDERS], ([2], 2), ([9], 3)])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (3, 2), (5, 3), (1, 5)])
def test_a_shard_stays_open_from_its_first_example_to_its_last(counts, streams, start, step):
    """When a segment begins, what ended before is closed; a shard whose last example is this one is not."""
    (reader, cache), order = reader_of(counts, streams, start, step), make(counts, streams, 5)
    epochs = range(start // sum(counts), start // sum(counts) + 6)
    numbers = np.arange(start, epochs.stop * sum(counts), step)
    segments = segments_of(order, streams, start, step, epochs)
    held, opened = set(), []
    for number, (_, shard, _) in zip(numbers.tolist(), order.locate(numbers), strict=True):
        if any(first == number for first, *_ in segments):
            held &= {shard for first, last, _, shard in segments if first <= number <= last}
        if shard not in held:
            opened.append(str(shard))
        held.add(shard)
        reader.read(np.array([number]))
        assert {name for name, count in cache.now.items() if count} == set(map(str, held))
    assert cache.opened == opened


def opened_by(counts, streams, workers):
    """Shards that all workers together open in the first epoch, one number after the other."""
    opened = 0
    for worker in range(workers):
        reader, cache = reader_of(counts, streams, worker, workers)
        for number in range(worker, sum(counts), workers):
            reader.read(np.array([number]))
        opened += len(cache.opened)
    return opened


@pytest.mark.parametrize(("counts", "streams"), [*[order[:2] for order in ORDERS], ([7] * 20, 6), ([9, 8] * 10, 12)])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6])
def test_reads_are_what_readers_open(counts, streams, workers):
    found = make(counts, streams, 5).reads(workers)
    expected = opened_by(counts, streams, workers) / np.count_nonzero(counts)
    if streams % workers == 0:
        assert found == pytest.approx(expected)
    elif min(counts) > 6:  # each worker has a record of every shard that its streams lead through
        assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("counts", "streams", "workers", "reads"),
    [
        ([10] * 8, 4, 1, 1),
        ([10] * 8, 4, 4, 1),
        ([10] * 8, 4, 8, 2),  # of two workers on each stream
        ([10] * 8, 4, 3, 3),  # all read all
        ([10] * 10, 4, 2, 1.2),  # two of three borders are within a shard
        ([1251] * 1024, 16, 16, 1),
    ],
)
def test_reads_by_hand(counts, streams, workers, reads):
    assert make(counts, streams, 5).reads(workers) == pytest.approx(reads)


@pytest.mark.parametrize(
    ("sizes", "workers", "streams"),
    [
        ([[100] * 1024, [2] * 128], [4], 16),
        ([[100] * 1024, [2] * 128], [3], 18),
        ([[100] * 1024, [2] * 128], [1], 16),
        ([[100] * 1024, [2] * 128], [32], 32),
        ([[100] * 1024, [2] * 128], [1, 2, 3, 4], 24),
        ([[100] * 1024, [2] * 128], [5, 6, 7, 8], 16),  # 840 would be too many
        ([[100] * 128, [100] * 128], [2], 6),  # of 128 shards six are read twice
        ([[100] * 8, [100, 0] * 8], [2], 2),
        ([[100] * 8, [100] * 8], [16], 16),  # each worker has to have one
    ],
)
def test_streams_fit_workers_and_shards(sizes, workers, streams):
    assert fit_streams(sizes, workers) == streams


def test_a_shard_is_opened_once_an_epoch_and_prepared_before():
    reader, cache = reader_of([10] * 16, 4)
    for first in range(0, 160, 16):
        reader.read(first + np.arange(16))
        assert set(cache.opened[1:]) <= set(cache.prepared)  # the very first is needed at once
    assert sorted(cache.opened) == sorted(map(str, range(16)))


def test_what_was_read_before_is_not_opened_again():
    order = make([10] * 16, 4, 5)
    reader, cache = reader_of([10] * 16, 4, start=120)  # row 30 of 40 in each of four streams: the last of four shards
    reader.read(120 + np.arange(40))
    assert sorted(cache.opened) == sorted({str(s) for _, s, _ in order.locate(120 + np.arange(40))})
    assert len(cache.opened) == 4
