"""The inpainting job's transforms: image files and mask files in, inpainted files out.

match -> finished before? -> read -> load ---> RunInference ---> write --> records
  |             |  and stale ^  |       |   no hole: as it is ------^ |
  +-------------+---------------+-------+-----------------------------+--> rejects

Reading goes ahead of the network and writing comes after it, both in threads of their own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from pipelines.inpainting import inputs, loading, outputs
from pipelines.inpainting.inputs import Inputs, Item
from pipelines.inpainting.loading import HOLELESS, Settings, Task
from pipelines.inpainting.outputs import FINISHED, STALE
from pipelines.transforms.model_handler import BATCH_PIXELS, Filled, FillModelHandler
from pipelines.transforms.rejects import REJECTED, Reject, tag_rejects
from pipelines.transforms.thread_map import ThreadMap
from trainer import storage
from trainer.images import EXTENSIONS
from trainer.storage.claims import Claim


class InpaintFiles(beam.PTransform):
    """From a pipeline to records of outputs, as dicts, and `Reject`s.

    Args:
        where: where the images are.
        settings: how they are read and written.
        output: address of the output folder.
        handler: the network.
        replaces: whether existing outputs may be replaced, see `outputs.claim_output`.
        total: number of images, as far as known at launch.
        claim: on the output folder.
    """

    def __init__(
        self,
        where: Inputs,
        settings: Settings,
        output: str,
        handler: FillModelHandler,
        replaces: bool = False,
        total: int = 0,
        claim: Claim | None = None,
    ):
        super().__init__()
        self._where, self._settings, self._output, self._handler = where, settings, output, handler
        self._report = outputs.ReportItems(total)
        self._writer = ThreadMap(
            outputs.write_result, settings, output, replaces, claim, weigh=_pixels, max_in_flight=BATCH_PIXELS
        )

    def expand(self, pipeline) -> tuple[beam.PCollection[dict], beam.PCollection[Reject]]:
        matched, lost = pipeline | MatchInputs(self._where, self._settings)
        items = matched | SkipFinished(self._output)
        recaller = ThreadMap(outputs.recall, self._output, threads=16, max_in_flight=64)
        recalled = items[FINISHED] | "Recall" >> beam.ParDo(recaller).with_outputs(REJECTED, STALE, main="records")
        reader = ThreadMap(loading.read_item, self._settings, threads=4, max_in_flight=4)
        read = (
            (items.new, recalled[STALE])
            | "Unfinished" >> beam.Flatten()
            | beam.Reshuffle()
            | "Read" >> beam.ParDo(reader).with_outputs(REJECTED, main="files")
        )
        loaded = read.files | "Load" >> _tagged(loading.load_item, self._settings, tags=[HOLELESS], main="pairs")
        filled = loaded.pairs | "Inpaint" >> RunInference(KeyedModelHandler(self._handler))
        written = filled | "Write" >> self._write()
        copied = loaded[HOLELESS] | "WriteHoleless" >> self._write()
        records = [written.records, copied.records, recalled.records]
        rejects = [*lost, *(part[REJECTED] for part in (items, recalled, read, loaded, written, copied))]
        return self._reported(records, "Records"), self._reported(rejects, "Rejects")

    def _write(self):
        return beam.ParDo(self._writer).with_outputs(REJECTED, main="records")

    def _reported(self, parts: Sequence[beam.PCollection], name: str) -> beam.PCollection:
        """All parts together; each reports before they are put together, which waits for all of them."""
        reported = [part | f"Report{name}{n}" >> beam.ParDo(self._report) for n, part in enumerate(parts)]
        return reported | name >> beam.Flatten()


def _tagged(function, *arguments, main: str, tags: Sequence[str] = ()):
    return beam.FlatMap(function, *arguments).with_outputs(REJECTED, *tags, main=main)


def _pixels(result: tuple[Task, Filled | Exception]) -> int:
    _, filled = result
    return filled.pixels[..., 0].size if isinstance(filled, Filled) else 1


class MatchInputs(beam.PTransform):
    """From a pipeline to `Item`s, and a list of PCollections of `Reject`s."""

    def __init__(self, where: Inputs, settings: Settings):
        super().__init__()
        self._where, self._extension = where, EXTENSIONS[settings.format]
        self._needs_mask = settings.holes is None

    def expand(self, pipeline) -> tuple[beam.PCollection[Item], list[beam.PCollection[Reject]]]:
        where, extension = self._where, self._extension
        if where.listed:
            match = _tagged(tag_rejects, inputs.match_listed, where.base, self._needs_mask, extension, main="items")
            listed = pipeline | "List" >> beam.Create([where.listed])
            # (stem, (image, mask))
            pairs = listed | "ReadPairs" >> _tagged(tag_rejects, inputs.list_pairs, where.base, main="pairs")
            matched = pairs.pairs | "ByStem" >> beam.GroupByKey() | "Match" >> match
            return matched.items, [pairs[REJECTED], matched[REJECTED]]
        mask_base = storage.select(where.masks).base if where.masks else ""
        match = _tagged(tag_rejects, inputs.match_files, where, extension, where.lone, mask_base, main="items")
        files = self._files(pipeline)
        named = {kind: found.files for kind, found in files.items()}
        matched = named | "ByRoot" >> beam.CoGroupByKey() | "Match" >> match
        return matched.items, [*(found[REJECTED] for found in files.values()), matched[REJECTED]]

    def _files(self, pipeline) -> dict[str, beam.pvalue.DoOutputsTuple]:
        """(root, address) of images and of masks, and tagged `Reject`s."""
        return {
            kind: pipeline
            | f"Pattern_{kind}" >> beam.Create([pattern])
            | f"List_{kind}" >> _tagged(tag_rejects, inputs.list_roots, other, main="files")
            for kind, (pattern, other) in self._where.kinds.items()
        }


class SkipFinished(beam.PTransform):
    """From `Item`s to those that are still to be made (``new``), those tagged `FINISHED`, and tagged `Reject`s."""

    def __init__(self, output: str):
        super().__init__()
        self._output = output

    def expand(self, items) -> beam.pvalue.DoOutputsTuple:
        existing = items.pipeline | "Output" >> beam.Create([self._output]) | beam.FlatMap(outputs.list_existing)
        return (
            {"items": items | beam.Map(_by_output, storage.is_remote(self._output)), "existing": existing}
            | "ByOutput" >> beam.CoGroupByKey()
            | "Skip" >> _tagged(outputs.skip_finished, tags=[FINISHED], main="new")
        )


def _by_output(item: Item, is_remote: bool) -> tuple[str, Item]:
    """The item by its output; of objects ``a//b`` and ``a/b``, which become one file, both have this name."""
    item = item if is_remote else item._replace(output=posixpath.normpath(item.output.lstrip("/")))
    return outputs.record_name(item.output), item


class WriteOutcome(beam.PTransform):
    """Writes the job's reports from the PCollections of records and rejects: see `outputs.write_outcome`."""

    def __init__(self, folder: str, fields: dict, claim: Claim | None = None, job: dict | None = None):
        super().__init__()
        self._folder, self._fields, self._claim, self._job = folder, fields, claim, job

    def expand(self, outcomes):
        records, rejects = outcomes
        every = [beam.pvalue.AsList(part) for part in (records, rejects)]
        count = records | beam.combiners.Count.Globally()
        return count | "WriteOutcome" >> beam.Map(
            outputs.write_outcome, self._folder, self._fields, *every, self._claim, self._job
        )
