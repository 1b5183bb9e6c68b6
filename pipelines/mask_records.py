"""Mask number n as a record: the pure functions of the mask job, and their transform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import apache_beam as beam

from masks import coverage
from masks.codec import encode_mask
from masks.sampling import MaskSpec, family_of, sample_mask
from pipelines.mask_summary import Cell, merge_tallies
from pipelines.shards import Record
from trainer import records

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
