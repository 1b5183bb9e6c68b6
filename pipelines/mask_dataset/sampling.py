"""Mask number n as a record: the pure functions of the mask job, and their transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam

from masks import coverage
from masks.codec import encode_mask
from masks.families import FAMILIES
from masks.sampling import MaskSpec, family_of, sample_mask
from pipelines.mask_dataset.mask_summary import Cell, merge_tallies
from pipelines.mask_dataset.sources import SourceFile, SourceOptions, decode_source, encode_source, read_sources
from pipelines.transforms.dataset_writer import Record
from pipelines.transforms.rejects import REJECTED, Reject
from trainer.data import records
from trainer.errors import UserError

# Consecutive indices drawn as one element: an element of Beam costs about as much as a small mask.
CHUNK = 64
TALLY = "tally"


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


def sample_records(
    indices: Iterable[int], specs: tuple[MaskSpec, ...], split: str
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """The masks ``indices``, each as a `Record`, and under the tag ``tally`` the `Tally` of them all."""
    tallies = []
    for index in indices:
        values = mask_values(spec_of(specs, index), index)
        cell = Cell(values["mask/generator"], values["mask/bucket"], values["mask/touches_border"])
        tallies.append({cell: (1, index, values["mask/encoded"])})
        yield split, f"{index:012d}", records.encode_record(values, records.MASK_FEATURES)
    yield beam.pvalue.TaggedOutput(TALLY, merge_tallies(tallies))


def sample_chunk(
    first: int, specs: tuple[MaskSpec, ...], count: int, split: str
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """`sample_records` of the masks ``first`` to ``first + CHUNK - 1``, as far as there are any."""
    return sample_records(range(first, min(first + CHUNK, count)), specs, split)


def read_file(
    file: SourceFile, options: SourceOptions, split: str
) -> Iterator[tuple[str, bytes] | beam.pvalue.TaggedOutput]:
    """The sources in one file under their names, encoded, or one `Reject` under the tag ``rejected``."""
    for found in read_sources(file, options):
        if isinstance(found, Reject):
            yield beam.pvalue.TaggedOutput(REJECTED, dataclasses.replace(found, split=split))
        else:
            key, source = found
            yield f"{source.kind}:{key}", encode_source(source)


def source_of(spec: MaskSpec, index: int, turn: int, names: dict[str, list[str]]) -> str:
    """Name of the source that mask ``index`` starts from; empty if its family starts from nothing.

    Args:
        turn: how often the specifications have taken turns: with it the sources do, so each meets every specification.
        names: of the sources of each family, in order.
    """
    found = names.get(family_of(spec, index))
    return found[turn % len(found)] if found else ""


def assign_sources(
    first: int, specs: tuple[MaskSpec, ...], count: int, found: Iterable[str], rejects: Iterable[Reject]
) -> Iterator[tuple[str, int]]:
    """(source's name, index) of the masks ``first`` to ``first + CHUNK - 1``.

    Raises:
        UserError: a family of the specification has no source.
    """
    ordered = sorted(found)
    names = {}
    for family in specs[0].families:
        if kinds := FAMILIES[family].source_kinds:
            names[family] = [name for name in ordered if name.partition(":")[0] in kinds]
            if not names[family]:
                why = "; ".join(f"{r.source}: {r.error}" for r in sorted(rejects, key=lambda r: r.source)[:3])
                raise UserError(f"{family}: expected a file that it can start from. None can be used: {why}")
    for index in range(first, min(first + CHUNK, count)):
        name = source_of(spec_of(specs, index), index, index // len(specs), names)
        yield name or f"~{first}", index


def split_group(group: tuple[str, dict]) -> Iterator[tuple[bytes, list[int]]]:
    """(encoded source, up to ``CHUNK`` indices) of all masks of one source; no bytes where there is none."""
    _, found = group
    source = next(iter(found["source"]), b"")
    indices = sorted(found["indices"])
    for start in range(0, len(indices), CHUNK):
        yield source, indices[start : start + CHUNK]


def sample_from_source(
    item: tuple[bytes, list[int]], specs: tuple[MaskSpec, ...], split: str
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """`sample_records` of masks that start from one source."""
    encoded, indices = item
    if encoded:
        source = decode_source(encoded)
        specs = tuple(dataclasses.replace(spec, source=source) for spec in specs)
    return sample_records(indices, specs, split)


class SampleMasksFromSources(beam.PTransform):
    """As `SampleMasks`, for families that start from sources; also returns the `Reject`s of their files."""

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
            | "Draw" >> beam.FlatMap(sample_from_source, self._specs, self._split).with_outputs(TALLY, main="records")
        )
        return outputs.records, outputs[TALLY] | beam.CombineGlobally(merge_tallies), read[REJECTED]


class SampleMasks(beam.PTransform):
    """Twin of `masks.sampling.sample_mask`: from a pipeline to masks 0 to ``count - 1``.

    Returns a pair of PCollections: the `Record`s, and one `Tally` of all.
    """

    def __init__(self, specs: tuple[MaskSpec, ...], count: int, split: str):
        super().__init__()
        self._arguments = (specs, count, split)
        self._starts = list(range(0, count, CHUNK))

    def expand(self, pipeline):
        outputs = (
            pipeline
            | beam.Create(self._starts)
            | beam.Reshuffle()
            | beam.FlatMap(sample_chunk, *self._arguments).with_outputs(TALLY, main="records")
        )
        return outputs.records, outputs[TALLY] | beam.CombineGlobally(merge_tallies)
