"""Image files and mask files in, inpainted PNG files out: the pure functions of the job, and its transforms.

    list -> match by relative path without extension -> read, decode -> RunInference -> write PNG
              |                                            |                |              |
              +--------------------------------------------+----------------+--------------+--> rejects
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from masks.codec import read_mask_image
from pipelines.model_handler import InpaintModelHandler, Pair
from pipelines.shards import Reject, reject, reject_lines
from trainer import images, storage
from trainer.command import UserError

REJECTED = "rejected"
MANIFEST, REJECTS = "manifest.json", "rejects.jsonl"


class Job(NamedTuple):
    """One image to inpaint: addresses of the image, its mask and the output."""

    image: str
    mask: str
    output: str


def stem_of(address: str, base: str) -> str:
    """Path below ``base`` without extension: what an image and its mask have in common."""
    return posixpath.splitext(storage.relative(address, base))[0]


def output_name(address: str, base: str) -> str:
    """Path of the output below the output folder. ``a.jpg`` gives ``a.jpg.png``, so that ``a.png`` is left free."""
    name = storage.relative(address, base)
    return name if name.lower().endswith(".png") else f"{name}.png"


def check_outputs(pictures: list[str], masks: list[str], base: str, output: str) -> None:
    """Raises `UserError` if an output would replace an input, or two images would have one output."""
    inputs, sources = {*pictures, *masks}, {}
    for image in pictures:
        address = storage.join(output, output_name(image, base))
        if address in inputs:
            raise UserError(f"--output: {address} is an input, which the output of {image} would replace")
        if address in sources:
            raise UserError(f"{sources[address]} and {image} would both become {address}: rename one of them")
        sources[address] = image


def list_stems(pattern: str) -> list[tuple[str, str]]:
    """(stem, address) of each file that ``pattern`` finds."""
    base = storage.base_of(pattern)
    return [(stem_of(address, base), address) for address in storage.find(pattern)]


def match_pairs(group: tuple[str, dict[str, Iterable[str]]], images_base: str, output: str) -> Iterator:
    """Jobs of one stem; a file without a counterpart, or with two, becomes a `Reject`."""
    stem, found = group
    pictures, masks = sorted(found["images"]), sorted(found["masks"])
    if len(masks) == 1 and pictures:
        for image in pictures:
            yield Job(image, masks[0], storage.join(output, output_name(image, images_base)))
        return
    problem = f"expected one mask file named {stem}.*. Found {len(masks)}."
    for image in pictures:
        yield beam.pvalue.TaggedOutput(REJECTED, reject(image, "match", UserError(problem)))
    if not pictures:
        for mask in masks:
            error = UserError(f"expected an image file named {stem}.*. Found none.")
            yield beam.pvalue.TaggedOutput(REJECTED, reject(mask, "match", error))


def read_pair(job: Job, hole: str) -> Iterator:
    """The decoded pair of one job, or its `Reject`.

    Args:
        hole: ``black`` or ``white``: the colour of holes in mask files.
    """
    source, stage = job.image, "read"
    try:
        image_bytes = storage.read(job.image)
        stage = "decode"
        image = images.decode_rgb(image_bytes)
        source, stage = job.mask, "read"
        mask_bytes = storage.read(job.mask)
        stage = "decode"
        mask = read_mask_image(mask_bytes, hole)
        source, stage = job.image, "match"
        if mask.shape != image.shape[:2]:
            sizes = [f"{size[1]} x {size[0]}" for size in (mask.shape, image.shape)]
            raise ValueError(f"mask {job.mask} is {sizes[0]} pixels, the image is {sizes[1]}")
        yield job, Pair(image, mask)
    except (ValueError, UserError, OSError) as error:
        yield beam.pvalue.TaggedOutput(REJECTED, reject(source, stage, error))


def write_result(item: tuple[Job, np.ndarray | Exception]) -> Iterator:
    """Writes one PNG and gives its address; or a `Reject` of what the network could not compute."""
    job, result = item
    if isinstance(result, Exception):
        yield beam.pvalue.TaggedOutput(REJECTED, reject(job.image, "inpaint", result))
        return
    try:
        storage.overwrite(job.output, images.encode_png(result))
        yield job.output
    except (UserError, OSError) as error:
        yield beam.pvalue.TaggedOutput(REJECTED, reject(job.image, "write", error))


def write_outcome(outputs: int, folder: str, fields: dict, rejects: list[Reject]) -> None:
    """Writes ``rejects.jsonl`` and then ``manifest.json``, with the counts, into the output folder."""
    counts = {"inputs": outputs + len(rejects), "outputs": outputs, "rejects": len(rejects)}
    manifest = json.dumps({**fields, "counts": counts}, indent=1, sort_keys=True).encode()
    storage.overwrite(storage.join(folder, REJECTS), reject_lines(rejects))
    storage.overwrite(storage.join(folder, MANIFEST), manifest)


class InpaintFiles(beam.PTransform):
    """From a pipeline to addresses of written files and `Reject`s.

    Args:
        image_pattern, mask_pattern: a file, a folder or a glob each.
        output: address of the output folder.
        hole: ``black`` or ``white``.
        handler: the network.
    """

    def __init__(self, image_pattern: str, mask_pattern: str, output: str, hole: str, handler: InpaintModelHandler):
        super().__init__()
        self._patterns = {"images": image_pattern, "masks": mask_pattern}
        self._output, self._hole, self._handler = output, hole, handler

    def expand(self, pipeline) -> tuple[beam.PCollection[str], beam.PCollection[Reject]]:
        listed = {
            kind: pipeline | f"Pattern_{kind}" >> beam.Create([pattern]) | f"List_{kind}" >> beam.FlatMap(list_stems)
            for kind, pattern in self._patterns.items()
        }
        base = storage.base_of(self._patterns["images"])
        matched = (
            listed
            | "ByStem" >> beam.CoGroupByKey()
            | "Match" >> beam.FlatMap(match_pairs, base, self._output).with_outputs(REJECTED, main="jobs")
        )
        pairs = (
            matched.jobs
            | beam.Reshuffle()
            | "Read" >> beam.FlatMap(read_pair, self._hole).with_outputs(REJECTED, main="pairs")
        )
        written = (
            pairs.pairs
            | "Inpaint" >> RunInference(KeyedModelHandler(self._handler))
            | "Write" >> beam.FlatMap(write_result).with_outputs(REJECTED, main="files")
        )
        rejects = (matched[REJECTED], pairs[REJECTED], written[REJECTED]) | "Rejects" >> beam.Flatten()
        return written.files, rejects
