"""The inpainting job's transforms on Apache Beam: see `pipelines.inpainting.job` for the picture.

Reading goes ahead of the network and writing comes after it, both in threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
from apache_beam.transforms.window import GlobalWindows

from pipelines.inpainting import loading, pages, reports, resume
from pipelines.inpainting.books import Books, Line, Writer
from pipelines.inpainting.inputs import Sources
from pipelines.inpainting.job import READING, WRITING, Inpainting
from pipelines.inpainting.packs import Packed, Packer
from pipelines.inpainting.resume import Before, Chunk, Contested
from pipelines.transforms.model_handler import Filled, FillModelHandler, Pair
from pipelines.transforms.progress import Progress
from pipelines.transforms.rejects import Reject
from pipelines.transforms.thread_map import ThreadMap
from trainer.storage.claims import Claim

LINES, HOLELESS, BEFORE, CONTESTED = "lines", "holeless", "before", "contested"  # tags of outputs beside the main one
_PAGES = 64  # that are spread together


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
        lines += resolved.chunks | "Make" >> MakeOutputs(job, survey)
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
        some = found | beam.Values() | "Some" >> beam.BatchElements(_PAGES, _PAGES, record_metrics=False)
        return some | _tagged(pages.spread, self._survey, self._sources, main="shares")


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
        self._survey, self._resuming = survey, job.resuming

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
    """From `Chunk`s of items to a list of PCollections of `Line`s: of records and of rejects.

    Args:
        survey: of all inputs, a side input.
    """

    def __init__(self, job: Inpainting, survey: Any):
        super().__init__()
        self._job, self._survey = job, survey
        self._reader, self._writer = ThreadMap(job.read, **READING), ThreadMap(job.write, **WRITING)

    def expand(self, chunks) -> list[beam.PCollection]:
        items = chunks | beam.Reshuffle() | "Items" >> beam.FlatMap(resume.unpack_items)
        read = items | "Read" >> beam.ParDo(self._reader) | "Split" >> _tagged(_one, main="files")
        tags = {Line: LINES, Filled: HOLELESS}
        loaded = read.files | "Load" >> _tagged(loading.load_item, self._job.settings, tags=tags, main="pairs")
        filled = loaded.pairs | "Inpaint" >> RunInference(KeyedModelHandler(RunFill(self._job.handler)))
        if self._job.pack_bytes is not None:
            # Each by itself: what is flattened the in-process runner keeps in memory until the last image is filled.
            packed = [
                results
                | f"Encode{name}" >> beam.ParDo(ThreadMap(self._job.encode, **WRITING))
                | f"Pack{name}" >> beam.ParDo(PackOutputs(self._job), self._survey)
                for name, results in (("", filled), ("Holeless", loaded[HOLELESS]))
            ]
            return [read[LINES], loaded[LINES], *packed]
        written = filled | "Write" >> beam.ParDo(self._writer)
        copied = loaded[HOLELESS] | "WriteHoleless" >> beam.ParDo(self._writer)
        return [read[LINES], loaded[LINES], written, copied]


class PackOutputs(beam.DoFn):
    """From `Packed` outputs, among `Line`s, to the `Line`s of their records once they are written: see `Packer`."""

    def __init__(self, job: Inpainting):
        super().__init__()
        self._job = job

    def start_bundle(self):
        self._packer: Packer | None = None

    def process(self, found: Packed | Line, survey: pages.Survey):
        if isinstance(found, Line):
            yield found
            return
        self._packer = self._packer or self._job.packer(survey.digits)
        yield from self._packer.add(found)

    def finish_bundle(self):
        if self._packer is not None:
            yield from map(GlobalWindows.windowed_value, self._packer.flush())


class RunFill(ModelHandler[Pair, Filled | Exception, Any]):
    """A `FillModelHandler` as RunInference takes it, which weighs pairs with their keys."""

    def __init__(self, handler: FillModelHandler):
        super().__init__()
        self._handler = handler

    def load_model(self) -> Any:
        return self._handler.load_model()

    def run_inference(
        self, batch: Sequence[Pair], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[Filled | Exception]:
        return self._handler.run_inference(batch, model)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        weight = self._handler.batch_weight
        return {"min_batch_size": weight, "max_batch_size": weight, "element_size_fn": self._weigh}

    def _weigh(self, element: tuple[Any, Pair]) -> int:
        return self._handler.weigh(element[1])

    def get_metrics_namespace(self) -> str:
        return "pconv"


class WriteReports(beam.PTransform):
    """From how many lines were written, when all are, to the reports and the manifest: see `reports`.

    Args:
        before: the `Before`s.
    """

    def __init__(self, job: Inpainting, survey: Any, before: beam.PCollection):
        super().__init__()
        self._job, self._survey, self._before = job, survey, before

    def expand(self, written):
        job, parts = self._job, pages.parts_of_outputs(self._job.books.output, pages.WRITTEN)
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
        if not found.is_booked:
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
