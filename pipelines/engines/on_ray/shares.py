"""Lists, shares and reports of the inpainting job as Ray tasks: what comes before its items, and after them.

Pages and chunks stay in Ray's object store; who started the job knows their references and counts. A task that is lost
with its process or machine is run again by Ray, as is one whose results are: it writes the same lines into the books.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from pipelines.engines.on_ray.cluster import remote
from pipelines.engines.on_ray.rows import to_table
from pipelines.inpainting import pages, reports, resume
from pipelines.inpainting.books import Line, Writer
from pipelines.inpainting.job import Inpainting
from pipelines.inpainting.pages import Part, Survey
from pipelines.inpainting.reports import Summary
from pipelines.inpainting.resume import Before, Chunk, Contested

_GROUPS = 256  # of shares, and of pages: what the driver knows are references of each to each
_TABLES = 32  # tasks, at least, that read the items of many shares
_ITEMS = 256  # of a task that reads

Pages = list[tuple[str, bytes]]  # (share, page)


class Todo(NamedTuple):
    """What is to be done, and what is known already.

    Attributes:
        survey: of all inputs.
        tables: references to tables of (number, `Chunk`), see `rows`, and of the chunks in each number -> items.
        before: by group, references to the pages of what was finished.
        finished, rejects: how many inputs that is, and how many are rejected.
    """

    survey: Survey
    tables: list[tuple[Any, dict[int, int]]]
    before: dict[int, list[Any]]
    finished: int
    rejects: int


def find(job: Inpainting, cpus: float) -> Todo:
    """Lists inputs and outputs, matches them, and looks up what is finished; ``cpus``: of a task."""
    job_ref = ray.put(job)
    listed, survey, lines = _list(job, job_ref, pages.parts_of(job.sources), cpus)
    known, _, more = _list(job, job_ref, pages.parts_of_outputs(job.books.output), cpus)
    groups, rejects = _spread(job_ref, survey, [*listed, *known], [*lines, *more], cpus)
    todo = Todo(survey, [], {}, 0, 0)
    run = remote(_resolve, num_returns="streaming", num_cpus=cpus)
    streams = [run.remote(number, job_ref, survey, *parts) for number, parts in groups.items()]
    todo, contested = _gather(todo, streams)
    settle = remote(_settle, num_returns="streaming", num_cpus=cpus)
    streams = [settle.remote(_GROUPS + number, job_ref, survey, *parts) for number, parts in contested.items()]
    todo, _ = _gather(todo, streams)
    return todo._replace(rejects=todo.rejects + rejects)


def report(job: Inpainting, todo: Todo, cpus: float) -> None:
    """Writes the reports and the manifest, once all outputs and books are written."""
    job_ref = ray.put(job)
    listed, _, _ = _list(job, job_ref, pages.parts_of_outputs(job.books.output, pages.WRITTEN), cpus)
    groups, _ = _spread(job_ref, todo.survey, listed, [], cpus)
    numbers = sorted({*groups, *todo.before})
    run = remote(_merge, num_cpus=cpus)
    found = [run.remote(job_ref, *groups.get(number, ()), *todo.before.get(number, ())) for number in numbers]
    reports.publish(reports.merge_summaries(ray.get(found)), todo.survey, job.reporting)


# Lists


def _list(job: Inpainting, job_ref: Any, parts: Iterable[Part], cpus: float) -> tuple[list[Any], Survey, list[Line]]:
    """References to the pages of some parts, what is known of all, and lines of rejects."""
    run = remote(list_part, num_returns="streaming", num_cpus=cpus)
    streams = [run.remote(cut, job_ref) for part in parts for cut in pages.cut(part)]
    found, surveys, lines = [], list[Survey](), list[Line]()
    for stream in streams:
        *mine, told = stream
        survey, rejected = ray.get(told)
        found += mine
        surveys.append(survey)
        lines += rejected
    return found, pages.merge_surveys(surveys), lines


def list_part(part: Part, job: Inpainting) -> Iterator[bytes | tuple[Survey, list[Line]]]:
    """The pages of a part; at last what is known of them together, and the lines of rejects."""
    surveys, lines = list[Survey](), list[Line]()
    for found in pages.list_part(part, job.sources):
        if isinstance(found, Line):
            lines.append(found)
        else:
            surveys.append(found[0])
            yield found[1]
    yield pages.merge_surveys(surveys), lines


# Shares


def _group_of(share: str, groups: int) -> int:
    return int(share, 16) * groups >> 4 * len(share) if share else 0


def _groups(survey: Survey) -> int:
    return min(_GROUPS, 16**survey.digits)


def _spread(
    job_ref: Any, survey: Survey, listed: list[Any], lines: list[Line], cpus: float
) -> tuple[dict[int, list[Any]], int]:
    """By group, references to the pages of its shares; and how many lines of rejects were written."""
    groups = _groups(survey)
    run = remote(_spread_pages, num_returns=groups + 1, num_cpus=cpus)
    size = -(-len(listed) // _GROUPS) or 1
    spread = [run.remote(job_ref, survey, lines)] if lines else []
    spread += [run.remote(job_ref, survey, [], *listed[n : n + size]) for n in range(0, len(listed), size)]
    found = {number: [parts[number] for parts in spread] for number in range(groups)} if spread else {}
    return found, sum(ray.get([parts[-1] for parts in spread]))


def _spread_pages(job: Inpainting, survey: Survey, lines: list[Line], *listed: bytes) -> list[Pages | int]:
    groups = _groups(survey)
    writer, spread, rejects = _writer(job, survey), [Pages() for _ in range(groups)], len(lines)
    for line in lines:
        writer.add(line)
    for found in pages.spread(listed, survey, job.sources):
        if isinstance(found, Line):
            writer.add(found)
            rejects += 1
        else:
            spread[_group_of(found[0], groups)].append(found)
    writer.flush()
    return [*spread, rejects]


def _by_share(parts: Iterable[Pages]) -> dict[str, list[bytes]]:
    shares: dict[str, list[bytes]] = {}
    for share, data in (found for part in parts for found in part):
        shares.setdefault(share, []).append(data)
    return dict(sorted(shares.items()))


def _writer(job: Inpainting, survey: Survey) -> Writer:
    return Writer(job.books, job.claim, survey.digits)


# What is to be done of them


class _Told(NamedTuple):
    """What a task that resolves shares says before each of its results: of what kind, for whom, and how much it is."""

    kind: str
    group: int = 0
    numbers: dict[int, int] = {}
    finished: int = 0
    rejects: int = 0


def _gather(todo: Todo, streams: list[Any]) -> tuple[Todo, dict[int, list[Any]]]:
    """Adds what tasks have found; and by group, references to what is contested."""
    contested: dict[int, list[Any]] = {}
    finished, rejects = todo.finished, todo.rejects
    for stream in streams:
        for reference in stream:
            told, result = ray.get(reference), next(stream)
            finished, rejects = finished + told.finished, rejects + told.rejects
            if told.kind == "table":
                todo.tables.append((result, told.numbers))
            else:
                kept = todo.before if told.kind == "before" else contested
                kept.setdefault(told.group, []).append(result)
    return todo._replace(finished=finished, rejects=rejects), contested


def _resolve(number: int, job: Inpainting, survey: Survey, *parts: Pages) -> Iterator[Any]:
    """Tables of chunks, then what was finished before and what is contested, each after a `_Told`."""
    shares, resuming = _by_share(parts), job.resuming
    found = (one for group in shares.items() for one in resume.resolve(group, survey, resuming))
    yield from _tell(number, job, survey, found)


def _settle(number: int, job: Inpainting, survey: Survey, *parts: Pages) -> Iterator[Any]:
    """The same of what shares have found of outputs that several may have."""
    found = (one for group in _by_share(parts).items() for one in resume.settle(group))
    yield from _tell(number, job, survey, found)


def _tell(
    number: int, job: Inpainting, survey: Survey, found: Iterable[Line | Chunk | Before | Contested]
) -> Iterator[Any]:
    groups, writer, rejects = _groups(survey), _writer(job, survey), 0
    chunks, pages_of = list[Chunk](), dict[tuple[str, int], Pages]()
    finished: dict[int, int] = {}
    for one in found:
        if isinstance(one, Line):
            writer.add(one)
            rejects += 1
        elif isinstance(one, Chunk):
            chunks.append(one)
        else:
            kind, data = ("before", one.page) if isinstance(one, Before) else ("contested", one.found)
            group = _group_of(one.share, groups)
            pages_of.setdefault((kind, group), []).append((one.share, data))
            if isinstance(one, Before):
                finished[group] = finished.get(group, 0) + one.number
    writer.flush()
    for numbers, table in _tables(number << 32, chunks, groups):
        yield _Told("table", numbers=numbers)
        yield table
    for (kind, group), mine in pages_of.items():
        yield _Told(kind, group, finished=finished.get(group, 0) if kind == "before" else 0, rejects=rejects)
        rejects = 0
        yield mine
    if rejects:
        yield _Told("before", rejects=rejects)
        yield Pages()


def _tables(number: int, chunks: list[Chunk], groups: int) -> Iterator[tuple[dict[int, int], pa.Table]]:
    """Chunks in tables, each for one task; so many that every machine has some."""
    tables = max(1, _TABLES // groups)
    size = max(1, min(_ITEMS, sum(chunk.number for chunk in chunks) // tables))
    mine: dict[int, Chunk] = {}
    for place, chunk in enumerate(chunks, start=number):
        if mine and sum(one.number for one in mine.values()) + chunk.number > size:
            yield _packed(mine)
            mine = {}
        mine[place] = chunk
    if mine:
        yield _packed(mine)


def _packed(chunks: dict[int, Chunk]) -> tuple[dict[int, int], pa.Table]:
    return {place: chunk.number for place, chunk in chunks.items()}, to_table(chunks.items())


# Reports


def _merge(job: Inpainting, *parts: Pages) -> Summary:
    shares = _by_share(parts)
    return reports.merge_summaries(reports.merge(group, job.reporting) for group in shares.items())
