"""Image files and mask files in, inpainted files out: the pure functions of the job, and its transforms.

list -> match -> finished before? -> read -> load ---> RunInference ---> encode, write --> records
          |             |             |       |  no hole: as it is --------^      |
          +-------------+-------------+-------+-----------------------------------+-----> rejects

Reading goes ahead of the network and writing comes after it, both in threads of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from pipelines.inpainting import inputs as pairs
from pipelines.inpainting import outputs
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.loading import HOLELESS, Settings, Task, load_item, read_item
from pipelines.inpainting.outputs import FINISHED
from pipelines.transforms.model_handler import BATCH_PIXELS, Filled, FillModelHandler
from pipelines.transforms.rejects import REJECTED, Reject, Rejected, blame, tag_rejects
from pipelines.transforms.thread_map import ThreadMap
from trainer.images import EXTENSIONS, pictures
from trainer.inference import predict


def write_result(result: tuple[Task, Filled | Exception], settings: Settings, output: str, replaces: bool) -> Iterator:
    """The record of one output that was written; or a tagged `Reject` of what could not be computed or written."""
    task, filled = result
    begin, address = time.perf_counter(), task.item.image
    try:
        with blame(address, "inpaint", Exception):
            if isinstance(filled, Exception):
                raise filled
        with blame(address, "encode", Exception):
            data = task.copy
            if data is None:
                stored = pictures.turn_back(filled.pixels, task.metadata.orientation)
                data = pictures.encode(pictures.Picture(stored, task.metadata), settings.format, settings.quality)
        with blame(address, "write", Exception):
            details = {
                "height": task.size[0],
                "width": task.size[1],
                "hole_ratio": task.hole_ratio,
                "windows": filled.windows,
                "seconds": round(task.seconds + filled.seconds + time.perf_counter() - begin, 4),
            }
            record = outputs.write_output(task.item, data, details, output, replaces)
    except Rejected as lost:
        yield beam.pvalue.TaggedOutput(REJECTED, lost.reject)
    else:
        yield record


# Transforms


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the images are: patterns of images and masks (empty: holes are in the images), or a list of pairs.

    Attributes:
        base: folder that outputs' paths are relative to.
        match: of `pairs.MATCHES`.
    """

    base: str
    images: str = ""
    masks: str = ""
    listed: str = ""
    match: str = "stem"


class MatchInputs(beam.PTransform):
    """From a pipeline to `Item`s and `Reject`s."""

    def __init__(self, inputs: Inputs, settings: Settings):
        super().__init__()
        self._inputs, self._settings = inputs, settings

    def expand(self, pipeline):
        found, extension = self._inputs, EXTENSIONS[self._settings.format]
        if found.listed:
            needs_mask = self._settings.holes is None
            return (
                pipeline
                | "List" >> beam.Create([found.listed])
                | "ReadPairs" >> beam.FlatMap(pairs.list_pairs, found.base)
                | "ByStem" >> beam.GroupByKey()
                | "Match" >> beam.FlatMap(pairs.match_listed, found.base, needs_mask, extension)
            )
        patterns = {"images": found.images} | ({"masks": found.masks} if found.masks else {})
        files = {
            kind: pipeline | f"Pattern_{kind}" >> beam.Create([p]) | f"List_{kind}" >> beam.FlatMap(pairs.list_stems)
            for kind, p in patterns.items()
        }
        return (
            files
            | "ByStem" >> beam.CoGroupByKey()
            | "Match" >> beam.FlatMap(pairs.match_files, found.base, found.match, extension)
        )


class InpaintFiles(beam.PTransform):
    """From a pipeline to records of outputs, as dicts, and `Reject`s.

    Args:
        inputs: where the images are.
        settings: how they are read and written.
        output: address of the output folder.
        handler: the network.
        replaces: whether outputs that are there may be replaced, see `results.claim_output`.
        total: number of images, as far as known at launch.
    """

    def __init__(
        self,
        inputs: Inputs,
        settings: Settings,
        output: str,
        handler: FillModelHandler,
        replaces: bool = False,
        total: int = 0,
    ):
        super().__init__()
        self._report = outputs.ReportItems(total)
        self._inputs, self._settings, self._handler = inputs, settings, handler
        self._output, self._replaces = output, replaces

    def expand(self, pipeline) -> tuple[beam.PCollection[dict], beam.PCollection[Reject]]:
        matched = (
            pipeline
            | MatchInputs(self._inputs, self._settings)
            | beam.FlatMap(_split).with_outputs(REJECTED, main="items")
        )
        there = pipeline | "Output" >> beam.Create([self._output]) | beam.FlatMap(outputs.list_finished)
        sorted_out = (
            {"items": matched.items | beam.Map(_by_output), "there": there}
            | "ByOutput" >> beam.CoGroupByKey()
            | "SortOut" >> beam.FlatMap(outputs.sort_out).with_outputs(REJECTED, FINISHED, main="items")
        )
        recalled = (
            sorted_out[FINISHED]
            | "Recall" >> beam.FlatMap(outputs.recall, self._output)
            | "SplitRecalled" >> beam.FlatMap(_split).with_outputs(REJECTED, main="items")
        )
        read = (
            sorted_out.items
            | beam.Reshuffle()
            | "Read"
            >> beam.ParDo(ThreadMap(read_item, threads=4, max_in_flight=4)).with_outputs(REJECTED, main="files")
        )
        loaded = read.files | "Load" >> beam.FlatMap(load_item, self._settings).with_outputs(
            REJECTED, HOLELESS, main="pairs"
        )
        filled = loaded.pairs | "Inpaint" >> RunInference(KeyedModelHandler(self._handler))
        write = ThreadMap(
            write_result, self._settings, self._output, self._replaces, weigh=_pixels, max_in_flight=BATCH_PIXELS
        )
        written = [
            source | f"Write{name}" >> beam.ParDo(write).with_outputs(REJECTED, main="records")
            for name, source in (("", filled), ("Holeless", loaded[HOLELESS]))
        ]
        records = [*(part.records for part in written), recalled.items]
        rejects = [part[REJECTED] for part in (matched, sorted_out, recalled, read, loaded, *written)]
        # Each reports before they are put together, which waits for all of them.
        return tuple(
            tuple(part | f"Report{kind}{n}" >> beam.ParDo(self._report) for n, part in enumerate(parts))
            | kind >> beam.Flatten()
            for kind, parts in (("Records", records), ("Rejects", rejects))
        )


def _by_output(item: Item) -> tuple[str, Item]:
    return item.output, item


def _split(element: Any) -> Iterator:
    return tag_rejects([element])


def _pixels(result: tuple[Task, Filled | Exception]) -> int:
    height, width = result[0].size
    return height * width


def model_of(pin: predict.ModelPin) -> dict:
    """What identifies the network, for reports."""
    return {"address": pin.checkpoint.address, "crc32c": pin.checkpoint.crc32c}
