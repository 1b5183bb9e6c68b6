"""The inpainting job on Ray: see `pipelines.inpainting.job` for the picture.

chunks -> read_chunks ---> Network ---> write_outputs -> what was booked, of which chunk
          tasks            actors       tasks                  |
                                        what is missing at the end, one by one: `alone`

Lists and reports are Ray tasks (`shares`), the items between them go through Ray Data, images in shared memory and
bounded by bytes. A block that is lost with a process or a machine is not made again there: Ray Data would run the task
of an image that needs more memory than there is again and again, and what runs beside it would be killed each time.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.util.metrics import Gauge

from pipelines.engines.on_ray import alone, shares
from pipelines.engines.on_ray.cluster import BLOCK_BYTES, Cluster, Parts, joined, results
from pipelines.engines.on_ray.progress import JobProgress
from pipelines.engines.on_ray.rows import from_table, stage
from pipelines.engines.on_ray.shares import Todo
from pipelines.inpainting import books, loading
from pipelines.inpainting.books import Line, Writer
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.job import READING, WRITING, Inpainting
from pipelines.inpainting.loading import Files, Task
from pipelines.inpainting.pages import Survey
from pipelines.inpainting.resume import Chunk, unpack_items
from pipelines.transforms.in_flight import map_in_threads
from pipelines.transforms.model_handler import Filled, Pair
from pipelines.transforms.rejects import Reject, reject
from trainer.errors import ImageError
from trainer.images import budget
from trainer.storage.names import printable

# Bytes of a decoded image that is not sent to others: the actor that fills it decodes, encodes and writes it, too.
_STAYS_BYTES = 4 * BLOCK_BYTES

Key = tuple[int, int]  # of an item: the number of its chunk, and its place there
Result = tuple[Task, Pair | Filled | Exception]


class Booked(NamedTuple):
    """Items whose lines are in the books: by chunk, bits of their places; how many these are, and how many rejects."""

    chunks: dict[int, int]
    number: int
    rejects: int


def inpaint(job: Inpainting, cluster: Cluster) -> None:
    """Runs the job to its end: outputs, books, reports and manifest.

    Raises:
        UserError: it failed because of something that the user can fix.
        Outage: a store, a disk or a process failed.
    """
    with joined(cluster) as parts:
        todo = shares.find(job, parts.task_cpus)
        counts: dict[int, int] = {}
        for _, numbers in todo.tables:
            counts |= numbers
        known, number = todo.finished + todo.rejects, sum(counts.values())
        with contextlib.closing(JobProgress("images", job.books.output, Gauge, known + number)) as progress:
            progress.add(old=known, rejects=todo.rejects)
            missing = {number: (1 << count) - 1 for number, count in counts.items()}
            if missing:
                for booked in _make(job, todo, parts, number):
                    progress.add(booked.number, rejects=booked.rejects)
                    for chunk, bits in booked.chunks.items():
                        missing[chunk] &= ~bits
            if left := {chunk: bits for chunk, bits in missing.items() if bits}:
                items = list(_items_of(todo, left))
                lost = _unfinished(job, items, todo.survey)
                progress.add(len(items) - len(lost), lost=len(lost))
                for line in _make_alone(job, lost, todo.survey, parts):
                    progress.add(1, rejects=_is_reject(line))
        shares.report(job, todo, parts.task_cpus)


def _make(job: Inpainting, todo: Todo, parts: Parts, number: int) -> Iterator[Booked]:
    """Makes outputs, but for those that are lost; raises what a task has failed with."""
    actors = max(1, min(parts.actors, number // job.handler.batch_weight))
    calls = 2 if parts.actor_gpus else 1  # as `model_handler.one_of_few`: on a CPU one keeps all its cores busy
    pool = ActorPoolStrategy(
        min_size=1,
        max_size=max(parts.actors, 1000),
        initial_size=actors,
        max_tasks_in_flight_per_actor=2 * calls,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )
    with warnings.catch_warnings():
        # Of max_retries and the like, which Ray 2.64 is to name in another way, and of pools larger than their input.
        warnings.simplefilter("ignore")
        job_ref = ray.put(job)
        task = {"batch_format": "pyarrow", "fn_args": (job_ref,), "num_cpus": parts.task_cpus, "max_retries": 0}
        made: Any = ray.data.from_arrow_refs([table for table, _ in todo.tables])
        made = made.map_batches(read_chunks, batch_size=None, **task)
        made = made.map_batches(
            Network,
            fn_constructor_args=(job_ref, parts),
            compute=pool,
            batch_format="pyarrow",
            batch_size=None,  # blocks, which the actor cuts into batches of the network: a call for each takes longer
            num_cpus=parts.actor_cpus,
            num_gpus=parts.actor_gpus or None,
            max_restarts=-1,
            max_task_retries=0,
        )
        made = made.map_batches(write_outputs, batch_size=None, **task, fn_kwargs={"survey": todo.survey})
        # References, for what an iterator over values would end with when one of them is lost.
        for bundle in made.iter_internal_ref_bundles():
            for reference in bundle.block_refs:
                yield from results(reference)


def _items_of(todo: Todo, left: dict[int, int]) -> Iterator[Item]:
    """The items of chunks that are missing, by the bits of their places."""
    for reference, numbers in todo.tables:
        if not left.keys() & numbers.keys():
            continue
        for number, chunk in from_table(ray.get(reference)):
            for place, item in enumerate(unpack_items(chunk)):
                if left.get(number, 0) >> place & 1:
                    yield item


def _make_alone(job: Inpainting, items: Sequence[Item], survey: Survey, parts: Parts) -> Iterator[Line]:
    """Makes outputs that were lost, one by one, and writes what becomes of each into the books; the line of each."""
    writer = Writer(job.books, job.claim, survey.digits)
    for item, made in alone.each_alone(Maker, (ray.put(job), parts), items, parts):
        line = made or Line(item.share, reject(item.image, "inpaint", alone.killed()))
        writer.add(line)
        yield line
    writer.flush()


def _is_reject(line: Line) -> bool:
    return isinstance(line.outcome, Reject)


def _unfinished(job: Inpainting, items: Sequence[Item], survey: Survey) -> list[Item]:
    """Those of which this run has no line in the books: a task may be lost after it has written some."""
    outputs, rejected = set[str](), set[str]()
    ours = [name for name in books.list_parts(job.books.output) if books.run_of(name) == job.books.run]
    for share in {item.share[: survey.digits] for item in items}:
        names = [name for name in ours if books.part_prefix(name) == share]
        for _, output, line in books.read_parts(job.books, names, share):
            if output:
                outputs.add(output)
            elif lost := books.parse_reject(line):
                rejected.add(lost.source)
    return [item for item in items if item.output not in outputs and printable(item.image) not in rejected]


# Reading


def read_chunks(table: pa.Table, job_ref: Any) -> Iterator[pa.Table]:
    """From (number, `Chunk`) to (`Key`, what is known of an item): `Line`, `Files` of a large image, or a result."""
    job: Inpainting = ray.get(job_ref)
    return stage(lambda chunks: _read(chunks, job), table)


def _read(chunks: Iterable[tuple[int, Chunk]], job: Inpainting) -> Iterator[tuple[Key, Any]]:
    """What needs no network, as an image without holes, is written here: it travels as its line."""
    return _written(_load(chunks, job), job)


def _load(chunks: Iterable[tuple[int, Chunk]], job: Inpainting) -> Iterator[tuple[Key, Any]]:
    items = (((number, place), item) for number, chunk in chunks for place, item in enumerate(unpack_items(chunk)))

    def read(keyed: tuple[Key, Item]) -> Iterator[tuple[Key, Files | Line]]:
        key, item = keyed
        yield from ((key, found) for found in job.read(item))

    for key, found in map_in_threads(read, items, **READING):
        if isinstance(found, Line) or _stays(found, job):
            yield key, found
        else:
            yield from ((key, loaded) for loaded in loading.load_item(found, job.settings))


def _stays(files: Files, job: Inpainting) -> bool:
    try:
        _, demand = budget.admit(files.image, job.settings.max_pixels, own_depth=True)
    except ImageError:
        return False  # loading says why
    return demand.own * demand.pixels > _STAYS_BYTES


# Computing


class Maker:
    """The network of an actor, which is loaded when there is something to fill.

    Args:
        job: of which the items are.
        parts: what the actor may use.
    """

    def __init__(self, job: Inpainting, parts: Parts):
        self._job, self._parts, self._lock = job, parts, threading.Lock()
        self._model: Any = None

    def load(self) -> None:
        with self._lock:
            if self._model is None:
                # What imports leave behind is never collected (see `quiet_imports`), the frames of their callers among
                # it, and what these have: so a thread without images calls.
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(self._job.handler.prepare).result()
                self._parts.prepare_devices()
                self._model = self._job.handler.load_model()

    def fill(self, batch: Sequence[Pair]) -> list[Filled | Exception]:
        """`FillModelHandler.run_inference`."""
        if not batch:
            return []
        self.load()
        return self._job.handler.run_inference(batch, self._model)

    def finish(self, files: Files) -> Line:
        """The line of an item that is decoded, filled and written here."""
        # TensorFlow's tracing leaves cycles with the frames of its callers, and so with an image that was filled, until
        # a collection that hardly ever comes: of 100 megapixels 0.7 GB.
        gc.collect()
        (loaded,) = loading.load_item(files, self._job.settings)
        if isinstance(loaded, Line):
            return loaded
        task, pair = loaded
        filled = self.fill([pair])[0] if isinstance(pair, Pair) else pair
        del loaded, pair  # a large image's: the output takes as much
        (line,) = self._job.write((task, filled))
        return line

    def make(self, item: Item) -> Line:
        """All that there is to do for an item, but for the books."""
        (found,) = self._job.read(item)
        return found if isinstance(found, Line) else self.finish(found)


class Network:
    """From (`Key`, what is known of an item) to (`Key`, `Line` or (`Task`, `Filled` or the error))."""

    def __init__(self, job_ref: Any, parts: Parts):
        self._job: Inpainting = ray.get(job_ref)
        self._maker = Maker(self._job, parts)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        return stage(self._fill, table)

    def _fill(self, found: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
        handler, keys, batch, weight = self._job.handler, list[tuple[Key, Task]](), list[Pair](), 0
        for key, one in found:
            if isinstance(one, Files):
                yield key, self._maker.finish(one)
            elif isinstance(one, Line) or not isinstance(one[1], Pair):
                yield key, one
            else:
                task, pair = one
                if batch and weight + handler.weigh(pair) > handler.batch_weight:
                    yield from self._flush(keys, batch)
                    keys, batch, weight = [], [], 0
                keys.append((key, task))
                batch.append(pair)
                weight += handler.weigh(pair)
        yield from self._flush(keys, batch)

    def _flush(self, keys: list[tuple[Key, Task]], batch: list[Pair]) -> Iterator[tuple[Key, Any]]:
        for (key, task), filled in zip(keys, self._maker.fill(batch), strict=True):
            yield key, (task, filled)


# Writing


def write_outputs(table: pa.Table, job_ref: Any, survey: Survey) -> Iterator[pa.Table]:
    """From (`Key`, `Line` or result) to one `Booked`, once outputs and books are written."""
    job: Inpainting = ray.get(job_ref)
    return stage(lambda found: _write(found, job, survey), table)


def _write(found: Iterable[tuple[Key, Any]], job: Inpainting, survey: Survey) -> Iterator[Booked]:
    writer, chunks = Writer(job.books, job.claim, survey.digits), dict[int, int]()
    number = rejects = 0

    for (chunk, place), line in _written(found, job):
        writer.add(line)
        chunks[chunk] = chunks.get(chunk, 0) | 1 << place
        number += 1
        rejects += _is_reject(line)
    writer.flush()
    yield Booked(chunks, number, rejects)


def _written(found: Iterable[tuple[Key, Any]], job: Inpainting) -> Iterator[tuple[Key, Any]]:
    """The lines of results, which threads write; what is a line already, or waits for a network, as it is."""

    def waits(one: Any) -> bool:
        return isinstance(one, Line | Files) or isinstance(one[1], Pair)

    def write(keyed: tuple[Key, Any]) -> Iterator[tuple[Key, Any]]:
        key, one = keyed
        yield from ((key, line) for line in ([one] if waits(one) else job.write(one)))

    def weigh(keyed: tuple[Key, Any]) -> int:
        one = keyed[1]
        if isinstance(one, Line | Files):
            return 1
        return one[1].mask.size if isinstance(one[1], Pair) else WRITING["weigh"](one)

    return map_in_threads(write, found, **{**WRITING, "weigh": weigh})
