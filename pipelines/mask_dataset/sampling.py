"""Mask number n as a record: pure functions of the mask job, their transforms, and the dataset's summary."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import cv2

from masks import coverage
from masks.codec import decode_mask, encode_mask
from masks.contact_sheet import contact_sheet
from masks.families import FAMILIES
from masks.sampling import MaskSpec, family_of, sample_mask
from pipelines.mask_dataset.sources import SourceFile, SourceOptions, decode_source, encode_source, read_sources
from pipelines.transforms.dataset_writer import Record
from pipelines.transforms.rejects import REJECTED, Reject
from trainer import storage
from trainer.data import records
from trainer.errors import UserError
from trainer.storage import claims
from trainer.storage.claims import Claim

# Consecutive indices drawn as one element: Beam's cost per element is about that of a small mask.
CHUNK = 64
TALLY = "tally"
SHEET = "contact_sheet.png"


class Cell(NamedTuple):
    """What masks are counted by."""

    generator: str
    bucket: int
    touches_border: int


class Count(NamedTuple):
    """Number of masks in a cell; index and PNG of the first one, that of lowest index."""

    masks: int
    first: int
    png: bytes


Tally = dict[Cell, Count]


class Batch(NamedTuple):
    """Up to ``CHUNK`` masks that start from one source; ``source`` is empty for families that start from nothing."""

    source: bytes
    indices: list[int]


def mask_values(spec: MaskSpec, index: int) -> dict:
    """``sample_mask(spec, index)`` as the values of a mask record."""
    mask = sample_mask(spec, index)
    ratio = coverage.hole_ratio(mask)
    return {
        "mask/encoded": encode_mask(mask),
        "mask/height": spec.height,
        "mask/width": spec.width,
        "mask/hole_ratio": ratio,
        "mask/bucket": coverage.bucket_of(ratio),
        "mask/touches_border": int(coverage.touches_border(mask, spec.margin)),
        "mask/generator": family_of(spec, index),
        "mask/index": index,
    }


def spec_of(specs: tuple[MaskSpec, ...], index: int) -> MaskSpec:
    """The specification of mask ``index``: they take turns."""
    return specs[index % len(specs)]


def mask_record(spec: MaskSpec, index: int) -> tuple[bytes, Tally]:
    """The record of mask ``index``, serialized, and the tally of this one mask."""
    values = mask_values(spec, index)
    cell = Cell(values["mask/generator"], values["mask/bucket"], values["mask/touches_border"])
    return records.encode_record(values, records.MASK_FEATURES), {cell: Count(1, index, values["mask/encoded"])}


def key_of(index: int) -> str:
    """The key of a mask's `Record`."""
    return f"{index:012d}"


def sample_records(
    indices: Iterable[int], specs: tuple[MaskSpec, ...], split: str
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """The masks ``indices``, each as a `Record`, and under the tag ``tally`` the `Tally` of them all."""
    tallies = []
    for index in indices:
        serialized, tally = mask_record(spec_of(specs, index), index)
        tallies.append(tally)
        yield split, key_of(index), serialized
    yield beam.pvalue.TaggedOutput(TALLY, merge_tallies(tallies))


def read_file(
    file: SourceFile, options: SourceOptions, split: str
) -> Iterator[tuple[str, bytes] | beam.pvalue.TaggedOutput]:
    """(name, encoded source) of each source in a file, or one `Reject` under the tag ``rejected``."""
    for found in read_sources(file, options):
        if isinstance(found, Reject):
            yield beam.pvalue.TaggedOutput(REJECTED, dataclasses.replace(found, split=split))
        else:
            yield f"{found.source.kind}:{found.key}", encode_source(found.source)


def source_of(spec: MaskSpec, index: int, turn: int, names: dict[str, list[str]]) -> str:
    """Name of the source that mask ``index`` starts from; empty if its family starts from nothing.

    Args:
        spec: specification of the mask.
        index: of the mask.
        turn: how often the specifications have taken turns. Sources take turns with it, so that each of them meets
            every specification.
        names: names of the sources of each family, in order.
    """
    found = names.get(family_of(spec, index))
    return found[turn % len(found)] if found else ""


def assign_sources(
    first: int, specs: tuple[MaskSpec, ...], count: int, found: Iterable[str], rejects: Iterable[Reject]
) -> Iterator[tuple[str, int]]:
    """(source's name, index) of the masks ``first`` to ``first + CHUNK - 1``.

    Raises:
        UserError: a family of the specifications has no source.
    """
    ordered = sorted(found)
    names = {}
    for family in specs[0].families:
        if kinds := FAMILIES[family].source_kinds:
            names[family] = [name for name in ordered if name.partition(":")[0] in kinds]
            if not names[family]:
                why = "; ".join(f"{r.source}: {r.error}" for r in sorted(rejects, key=lambda r: r.source)[:3])
                raise UserError(f"{family}: none of the files can be used: {why}")
    for index in range(first, min(first + CHUNK, count)):
        name = source_of(spec_of(specs, index), index, index // len(specs), names)
        yield name or f"~{first}", index


def split_group(group: tuple[str, dict]) -> Iterator[tuple[bytes, list[int]]]:
    """The masks of one source as `Batch`es, which are bare tuples on their way: Beam has a fast coder for these."""
    _, found = group
    source = next(iter(found["source"]), b"")
    indices = sorted(found["indices"])
    for start in range(0, len(indices), CHUNK):
        batch = Batch(source, indices[start : start + CHUNK])
        yield batch.source, batch.indices


def sample_batch(
    item: tuple[bytes, list[int]], specs: tuple[MaskSpec, ...], split: str
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """`sample_records` of a `Batch`."""
    batch = Batch(*item)
    if batch.source:
        source = decode_source(batch.source)
        specs = tuple(dataclasses.replace(spec, source=source) for spec in specs)
    return sample_records(batch.indices, specs, split)


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
    """The tally of all masks in ``tallies``; the same in any order and grouping."""
    merged: Tally = {}
    for tally in tallies:
        for cell, count in tally.items():
            known = merged.get(cell, Count(0, count.first, count.png))
            earlier = min(known, count, key=lambda one: (one.first, one.png))
            merged[cell] = earlier._replace(masks=known.masks + count.masks)
    return merged


def histogram(tally: Tally) -> list[dict]:
    """Number of masks by family, hole-ratio interval (its position in ``RATIO_BUCKETS``) and border class."""
    return [{**cell._asdict(), "count": tally[cell].masks} for cell in sorted(tally)]


def sheet_of(tally: Tally) -> bytes:
    """PNG with the first mask of each cell: a row per family and border class, a column per interval."""
    buckets = sorted({cell.bucket for cell in tally})
    columns = ["other" if bucket < 0 else "({}, {}]".format(*coverage.RATIO_BUCKETS[bucket]) for bucket in buckets]
    rows = {}
    for family, touches in sorted({(cell.generator, cell.touches_border) for cell in tally}):
        counts = [tally.get(Cell(family, bucket, touches)) for bucket in buckets]
        masks = [None if count is None else decode_mask(count.png) for count in counts]
        rows[f"{family}, at border" if touches else family] = masks
    return cv2.imencode(".png", contact_sheet(rows, columns))[1].tobytes()


def write_summary(tally: Tally, folder: str, claim: Claim | None = None) -> dict:
    """Writes the contact sheet into ``folder``; returns the ``statistics`` of the dataset's manifest."""
    claims.require(claim)
    # One that is there is of the same masks or, if the shards turn out to be others, is not to be replaced.
    with contextlib.suppress(storage.AlreadyExists):
        write = storage.overwrite if claim is not None and claim.is_own else storage.create
        write(storage.join(folder, SHEET), sheet_of(tally))
    return {"histogram": histogram(tally)}


class SampleMasksFromSources(beam.PTransform):
    """Twin of `masks.sampling.sample_mask` for families that start from sources, from a pipeline.

    Returns three PCollections: the `Record`s of masks 0 to ``count - 1``, one `Tally` of them all, and the `Reject`s of
    the sources' files.
    """

    def __init__(
        self,
        specs: tuple[MaskSpec, ...],
        count: int,
        split: str,
        files: list[SourceFile],
        options: SourceOptions,
    ):
        super().__init__()
        self._specs, self._count, self._split = specs, count, split
        self._files, self._options = files, options

    def expand(self, pipeline):
        read = (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "SpreadFiles" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(read_file, self._options, self._split).with_outputs(REJECTED, main="sources")
        )
        named = read.sources | "Encoded" >> beam.Map(lambda pair: pair).with_output_types(tuple[str, bytes])
        names = beam.pvalue.AsList(named | "Names" >> beam.Keys())
        assigned = (
            pipeline
            | "Indices" >> beam.Create(range(0, self._count, CHUNK))
            | "Assign"
            >> beam.FlatMap(
                assign_sources, self._specs, self._count, names, beam.pvalue.AsList(read[REJECTED])
            ).with_output_types(tuple[str, int])
        )
        outputs = (
            {"source": named, "indices": assigned}
            | "Join" >> beam.CoGroupByKey()
            | "Split" >> beam.FlatMap(split_group)
            | "SpreadMasks" >> beam.Reshuffle()
            | "Draw" >> beam.FlatMap(sample_batch, self._specs, self._split).with_outputs(TALLY, main="records")
        )
        return outputs.records, outputs[TALLY] | beam.CombineGlobally(merge_tallies), read[REJECTED]
