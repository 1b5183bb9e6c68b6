"""Pairs of image files and their own mask files, in place of records: by their names, or as a list says.

They are matched and read as the inpainting job does it, and scored at their own sizes, all of them, each as a round of
its own. The target is the image as 8-bit RGB, as viewers show it.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from masks import coverage
from pipelines.evaluation import pairing
from pipelines.evaluation.rounds import Case, Facts, Failure, Round
from pipelines.inpainting import inputs, loading, matching
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.loading import Settings
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.errors import UserError
from trainer.storage.names import printable

Entry = tuple[int, str, Item | None, str]  # number and name of a pair, its files, or why there are none


@dataclass(frozen=True, kw_only=True)
class FilePairs:
    """Pairs of files, as `job.Data` has records.

    Attributes:
        where: where they are.
        settings: how masks are read.
        entries: the pairs, in the order of their images.
    """

    where: inputs.Inputs
    settings: Settings
    entries: tuple[Entry, ...]

    @classmethod
    def find(cls, where: inputs.Inputs, settings: Settings) -> FilePairs:
        """Raises `UserError` if no image has a mask."""
        named: list[tuple[str, Item | None, str]] = []
        for found in matching.match_all(where):
            address, error = (found.source, found.error) if isinstance(found, Reject) else (found.image, "")
            name = (
                storage.relative(address, where.base) if address.startswith(storage.join(where.base, "")) else address
            )
            named.append((name, None if isinstance(found, Reject) else found, error))
        if not any(item for _, item, _ in named):
            raise UserError("no image has a mask" + "".join(f": {name}: {error}" for name, _, error in named[:1]))
        named.sort(key=lambda entry: entry[0])
        entries = ((number, printable(name), item, error) for number, (name, item, error) in enumerate(named))
        return cls(where=where, settings=settings, entries=tuple(entries))

    def describe(self) -> dict:
        """For metrics.json."""
        where = self.where
        return {
            "pairs": where.listed or {"images": where.images, "masks": where.masks},
            "files": len(self.entries),
            "hole": self.settings.hole or self.settings.hole_label,
            "threshold": self.settings.threshold,
        }


def read_round(entry: Entry, settings: Settings) -> Round:
    """The round of one pair; what cannot be read or matched fails it."""
    number, name, item, error = entry
    facts = Facts(number, number, name, pairing.OTHER, 0, None)
    found = loading.load_pair(item, settings) if item else error
    if isinstance(found, str):
        return Round([], [Failure(facts, found)])
    ratio = coverage.hole_ratio(found.mask)
    margin = coverage.border_margin(*found.mask.shape)
    border = int(coverage.touches_border(found.mask, margin))
    facts = facts._replace(bucket=coverage.bucket_of(ratio), border=border, hole_ratio=ratio)
    return Round([Case(facts, to_rgb(found.image), found.mask)], [])


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] of uint8 or uint16 [height, width, 1 to 4 channels], without alpha."""
    if pixels.dtype == np.uint16:
        pixels = (pixels / 257 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, 2))


def facts_of(decoded: Round) -> Iterator[Facts]:
    """What is known of the pairs of a round."""
    yield from (case.facts for case in decoded.cases)
    yield from (failure.facts for failure in decoded.failures)


def make_plan(facts: Iterable[Facts]) -> pairing.Plan:
    """The plan of pairs that are rounds of their own."""
    facts = list(facts)
    found = collections.Counter((one.bucket, one.border) for one in facts)
    return pairing.Plan(
        {one.pair: (one.pair, one.pair) for one in facts}, len(facts), {cell: found[cell] for cell in pairing.CELLS}
    )
