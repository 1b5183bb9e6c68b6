"""Mask number n as a record: the pure functions of the mask job, and their transform."""

from __future__ import annotations

import dataclasses

import apache_beam as beam

from masks import coverage
from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from pipelines.shards import Record
from trainer import records

# Consecutive indices drawn as one element: an element of Beam costs about as much as a small mask.
CHUNK = 64


def mask_record(spec: MaskSpec, index: int) -> bytes:
    """Serialized record of ``sample_mask(spec, index)``."""
    mask = sample_mask(spec, index)
    ratio = coverage.hole_ratio(mask)
    values = {
        "mask/encoded": encode_mask(mask),
        "mask/height": spec.height,
        "mask/width": spec.width,
        "mask/hole_ratio": ratio,
        "mask/bucket": coverage.bucket_of(ratio),
        "mask/touches_border": int(coverage.touches_border(mask, spec.margin)),
        "mask/generator": spec.generator,
        "mask/index": index,
    }
    return records.encode_record(values, records.MASK_FEATURES)


def spec_of(spec: MaskSpec, intervals: list[tuple[float, float]], index: int) -> MaskSpec:
    """The specification of mask ``index``: the hole-ratio intervals take turns."""
    return dataclasses.replace(spec, hole_ratio=intervals[index % len(intervals)])


def sample_records(
    first: int, spec: MaskSpec, intervals: list[tuple[float, float]], count: int, split: str
) -> list[Record]:
    """Records of the masks ``first`` to ``first + CHUNK - 1``, as far as there are any."""
    indices = range(first, min(first + CHUNK, count))
    return [(split, f"{index:012d}", mask_record(spec_of(spec, intervals, index), index)) for index in indices]


class SampleMasks(beam.PTransform):
    """Twin of `masks.sampling.sample_mask`: from a pipeline to `Record`s of masks 0 to ``count - 1``."""

    def __init__(self, spec: MaskSpec, intervals: list[tuple[float, float]], count: int, split: str):
        super().__init__()
        self._arguments = (spec, intervals, count, split)
        self._starts = list(range(0, count, CHUNK))

    def expand(self, pipeline):
        return pipeline | beam.Create(self._starts) | beam.Reshuffle() | beam.FlatMap(sample_records, *self._arguments)
