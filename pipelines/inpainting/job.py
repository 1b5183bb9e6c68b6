"""The inpainting job's transforms: image files and mask files in, inpainted files out.

lists -> pages -> shares -> resolve --> chunks -> read -> load ---> RunInference ---> write -+-> books
                            settle                 |       |  no hole: as it is -------^     |
                              +-- finished, rejects+-------+---------------------------------+
lists of outputs and of books, once all that is written -> shares -> merge -> reports -> manifest

What travels between workers are pages of names and chunks of items; the records stay in the books (`books`). Reading
goes ahead of the network and writing comes after it, both in threads of their own. What is done to a page, a share or
an item are functions of the modules beside this one, which wires them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.transforms.window import GlobalWindows

from pipelines.inpainting import loading, outputs, pages, reports, resume
from pipelines.inpainting.books import Books, Line, Writer
from pipelines.inpainting.inputs import Sources
from pipelines.inpainting.loading import Settings, Task
from pipelines.inpainting.reports import Reporting
from pipelines.inpainting.resume import Before, Chunk, Contested, Resuming
from pipelines.transforms.model_handler import BATCH_PIXELS, Filled, FillModelHandler
from pipelines.transforms.progress import Progress
from pipelines.transforms.rejects import Reject
from pipelines.transforms.thread_map import ThreadMap
from trainer.images import EXTENSIONS
from trainer.storage.claims import Claim

LINES, HOLELESS, BEFORE, CONTESTED = "lines", "holeless", "before", "contested"  # tags of outputs beside the main one


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """One job.

    Attributes:
        sources: where the images are.
        settings: how they are read and written.
        handler: the network.
        replaces: whether existing outputs may be replaced, see `outputs.claim_output`.
        reporting: the output folder's books, the claim on it, and what the manifest says.
    """

    sources: Sources
    settings: Settings
    handler: FillModelHandler
    replaces: bool
    reporting: Reporting

    @property
    def books(self) -> Books:
        return self.reporting.books

    @property
    def claim(self) -> Claim | None:
        return self.reporting.claim


class InpaintFiles(beam.PTransform):
    """From a pipeline to the finished job: outputs, books, reports and manifest."""

    def __init__(self, job: Inpainting):
        super().__init__()
        self._job = job

    def expand(self, pipeline):
        job, keeper = self._job, KeepBooks(self._job.books, self._job.claim)
        listed = pipeline | "Inputs" >> ListPages(job.sources, pages.parts_of(job.sources))
        known = pipeline | "Known" >> ListPages(job.sources, pages.parts_of_outputs(job.books.output))
        surveys = listed.pages | "Surveys" >> beam.Keys()
        survey = beam.pvalue.AsSingleton(surveys | "Survey" >> beam.CombineGlobally(pages.merge_surveys))
        found = (listed.pages, known.pages) | "Pages" >> beam.Flatten() | "Spread" >> SpreadPages(job.sources, survey)
        resolved = found.shares | ResolveShares(job, survey)
        lines = [listed[LINES], known[LINES], found[LINES], *resolved.lines]
        total = (*lines, resolved.chunks) | "Total" >> Sum(_count)
        lines += resolved.chunks | "Make" >> MakeOutputs(job)
        # Each is written before they are put together, which waits for all of them.
        sides = beam.pvalue.AsSingleton(total), survey
        kept = [part | f"KeepBooks{n}" >> beam.ParDo(keeper, *sides) for n, part in enumerate(lines)]
        written = tuple(kept) | "Written" >> Sum(int)
        return written | "Report" >> WriteReports(job, survey, resolved.before)


class ListPages(beam.PTransform):
    """From a pipeline to (`Survey`, page) of what is listed, and tagged `Line`s of rejects.

    Args:
        sources: the inputs.
        parts: what is to be listed.
        after: a side input: what the lists wait for.
    """

    def __init__(self, sources: Sources, parts: list[pages.Part], after: Any = None):
        super().__init__()
        self._sources, self._parts, self._after = sources, parts, after

    def expand(self, pipeline) -> beam.pvalue.DoOutputsTuple:
        parts = pipeline | beam.Create(self._parts) | "Cut" >> beam.FlatMap(_cut_after, self._after)
        return parts | beam.Reshuffle() | "List" >> _tagged(pages.list_part, self._sources, main="pages")


def _cut_after(part: pages.Part, after: Any) -> Iterator[pages.Part]:
    return pages.cut(part)


class SpreadPages(beam.PTransform):
    """From (`Survey`, page) to (share, page), and tagged `Line`s of rejects.

    Args:
        sources: the inputs.
        survey: of all of them, a side input.
    """

    def __init__(self, sources: Sources, survey: Any):
        super().__init__()
        self._sources, self._survey = sources, survey

    def expand(self, found) -> beam.pvalue.DoOutputsTuple:
        return found | beam.Values() | _tagged(pages.spread, self._survey, self._sources, main="shares")


class Resolved(NamedTuple):
    """PCollections of what is to be done, and of what is not.

    Attributes:
        chunks: of items to be made.
        before: `Before`s.
        lines: of `Line`s, and those that have the `Before`s.
    """

    chunks: beam.PCollection
    before: beam.PCollection
    lines: list[beam.PCollection]


class ResolveShares(beam.PTransform):
    """From (share, page) to `Resolved`; see `resume`.

    Args:
        survey: of all inputs, a side input.
    """

    def __init__(self, job: Inpainting, survey: Any):
        super().__init__()
        self._survey = survey
        self._resuming = Resuming(
            sources=job.sources,
            books=job.books,
            extension=EXTENSIONS[job.settings.format],
            needs_mask=job.settings.holes is None,
        )

    def expand(self, shares) -> Resolved:
        tags = {Line: LINES, Before: BEFORE}
        found = (
            shares
            | "Shares" >> beam.GroupByKey()
            | "Resolve"
            >> _tagged(resume.resolve, self._survey, self._resuming, tags=tags | {Contested: CONTESTED}, main="chunks")
        )
        contested = found[CONTESTED] | "Contested" >> beam.Map(_for_home) | "Homes" >> beam.GroupByKey()
        settled = contested | "Settle" >> _tagged(resume.settle, tags=tags, main="chunks")
        parts = found, settled
        return Resolved(
            tuple(part.chunks for part in parts) | "Chunks" >> beam.Flatten(),
            tuple(part[BEFORE] for part in parts) | "Finished" >> beam.Flatten(),
            [part[tag] for part in parts for tag in (LINES, BEFORE)],
        )


class MakeOutputs(beam.PTransform):
    """From `Chunk`s of items to a list of PCollections of `Line`s: of records and of rejects."""

    def __init__(self, job: Inpainting):
        super().__init__()
        settings = job.settings
        self._job = job
        self._reader = ThreadMap(loading.read_item, settings, threads=4, max_in_flight=4)
        self._writer = ThreadMap(
            outputs.write_result,
            settings,
            job.books.output,
            job.replaces,
            job.claim,
            weigh=_pixels,
            max_in_flight=BATCH_PIXELS,
        )

    def expand(self, chunks) -> list[beam.PCollection]:
        items = chunks | beam.Reshuffle() | "Items" >> beam.FlatMap(resume.unpack_items)
        read = items | "Read" >> beam.ParDo(self._reader) | "Split" >> _tagged(_one, main="files")
        tags = {Line: LINES, Filled: HOLELESS}
        loaded = read.files | "Load" >> _tagged(loading.load_item, self._job.settings, tags=tags, main="pairs")
        filled = loaded.pairs | "Inpaint" >> RunInference(KeyedModelHandler(self._job.handler))
        written = filled | "Write" >> beam.ParDo(self._writer)
        copied = loaded[HOLELESS] | "WriteHoleless" >> beam.ParDo(self._writer)
        return [read[LINES], loaded[LINES], written, copied]


class WriteReports(beam.PTransform):
    """From how many lines were written, when all are, to the reports and the manifest: see `reports`.

    Args:
        before: the `Before`s.
    """

    def __init__(self, job: Inpainting, survey: Any, before: beam.PCollection):
        super().__init__()
        self._job, self._survey, self._before = job, survey, before

    def expand(self, written):
        job, parts = self._job, pages.parts_of_outputs(self._job.books.output)
        listed = written.pipeline | "Again" >> ListPages(job.sources, parts, beam.pvalue.AsSingleton(written))
        found = listed.pages | "Spread" >> SpreadPages(job.sources, self._survey)
        before = self._before | "Before" >> beam.Map(_page_of)
        shares = (found.shares, before) | "Pages" >> beam.Flatten() | "Shares" >> beam.GroupByKey()
        summaries = shares | "Merge" >> beam.Map(reports.merge, job.reporting)
        summary = summaries | "Sum" >> beam.CombineGlobally(reports.merge_summaries)
        return summary | "Publish" >> beam.Map(reports.publish, self._survey, job.reporting)


class Sum(beam.PTransform):
    """The sum of what ``function`` makes of all elements of some PCollections: one number, 0 without elements."""

    def __init__(self, function: Callable[[Any], int]):
        super().__init__()
        self._function = function

    def expand(self, parts):
        parts = parts if isinstance(parts, tuple) else (parts,)
        counts = [part | f"Count{n}" >> beam.Map(self._function) for n, part in enumerate(parts)]
        return counts | beam.Flatten() | beam.CombineGlobally(sum)


class KeepBooks(beam.DoFn):
    """Writes `Line`s into the books, counts them and the `Before`s, and prints `Progress`; how many lines there were.

    Args:
        books, claim: the job's.
    """

    def __init__(self, books: Books, claim: Claim | None):
        super().__init__()
        self._books, self._claim, self._progress = books, claim, Progress("images")
        count, spread = beam.metrics.Metrics.counter, beam.metrics.Metrics.distribution
        self._counts = {name: count("pconv", name) for name in ("outputs", "rejects", "finished_before", "windows")}
        self._spreads = {name: spread("pconv", name) for name in ("hole_permille", "milliseconds", "output_bytes")}

    def setup(self):
        self._progress.start()

    def start_bundle(self):
        self._writer: Writer | None = None
        self._written = 0

    def process(self, found: Line | Before, total: int, survey: pages.Survey):
        if isinstance(found, Before):
            self._counts["outputs"].inc(found.number)
            self._counts["finished_before"].inc(found.number)
            self._progress.add(False, found.number, total)
            return
        self._writer = self._writer or Writer(self._books, self._claim, survey.digits)
        self._writer.add(found)
        self._written += 1
        self._count(found.outcome)
        is_new = isinstance(found.outcome, Reject) or found.outcome["status"] == "done"
        self._progress.add(is_new, total=total)

    def _count(self, outcome: dict | Reject) -> None:
        if isinstance(outcome, Reject):
            self._counts["rejects"].inc()
            return
        self._counts["outputs"].inc()
        if outcome["status"] != "done":
            self._counts["finished_before"].inc()
            return
        self._counts["windows"].inc(outcome["windows"])
        self._spreads["hole_permille"].update(round(1000 * outcome["hole_ratio"]))
        self._spreads["milliseconds"].update(round(1000 * outcome["seconds"]))
        self._spreads["output_bytes"].update(outcome["bytes"])

    def finish_bundle(self):
        if self._writer is not None:
            self._writer.flush()
        yield GlobalWindows.windowed_value(self._written)


# Thin wiring


def _tagged(function, *arguments: Any, main: str, tags: Mapping[type, str] | None = None):
    """A FlatMap whose outputs of some types are tagged; of pairs, that of the second counts."""
    tags = {Line: LINES} if tags is None else tags
    return beam.FlatMap(_tag, function, tags, *arguments).with_outputs(*tags.values(), main=main)


# Without types of its arguments: Beam would check an empty ``arguments`` as if it were an element.
def _tag(element, function, tags, *arguments) -> Iterator[Any]:
    for found in function(element, *arguments):
        tag = tags.get(type(found[1]) if type(found) is tuple else type(found))
        yield beam.pvalue.TaggedOutput(tag, found) if tag else found


def _one(element: Any) -> Iterator[Any]:
    yield element


def _page_of(before: Before) -> tuple[str, bytes]:
    return before.share, before.page


def _for_home(contested: Contested) -> tuple[str, bytes]:
    return contested.share, contested.found


def _count(found: Line | Before | Chunk) -> int:
    return 1 if isinstance(found, Line) else found.number


def _pixels(result: tuple[Task, Filled | Exception]) -> int:
    _, filled = result
    return filled.pixels[..., 0].size if isinstance(filled, Filled) else 1
