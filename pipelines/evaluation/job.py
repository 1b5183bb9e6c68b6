"""The evaluation job as a whole: its data, and the files it ends with."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.evaluation import pairing, scoreboard
from pipelines.evaluation.file_pairs import FilePairs
from pipelines.evaluation.methods import Network
from pipelines.evaluation.report_page import render_page
from pipelines.evaluation.rounds import Shard, Weights
from trainer import storage, tensorboard
from trainer.data.manifest import MANIFEST, check_sizes, load_manifest
from trainer.errors import UserError
from trainer.metrics import IMAGE, validation_metrics
from trainer.metrics.intervals import interval_name
from trainer.storage import claims, recognize
from trainer.storage.claims import Claim

METRICS = "metrics.json"
FILES = ("pairs.jsonl", METRICS, "table.md", "report.html")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset.

    Attributes:
        facts: for metrics.json: address, crc32c of the manifest, counts, parameters ...
    """

    shards: tuple[Shard, ...]
    records: int
    facts: dict

    @classmethod
    def find(cls, address: str, kind: str, split: str) -> Split:
        """Raises `UserError` if there is no finished dataset of that kind, or no record in the split."""
        folder = storage.normalize(address)
        manifest = load_manifest(folder, kind)
        shards = manifest.split(split)
        check_sizes(folder, shards)
        starts = itertools.accumulate((shard.records for shard in shards), initial=0)
        records = sum(shard.records for shard in shards)
        if not records:
            raise UserError(f"{address}: split {split!r} has no records.")
        facts = {
            "address": folder,
            "crc32c": storage.checksum(storage.join(folder, MANIFEST)),
            "split": split,
            "records": records,
            "counts": manifest.counts,
            "parameters": manifest.parameters,
            "code_version": manifest.code_version,
        }
        found = (
            Shard(storage.join(folder, s.name), s.crc32c, first, s.records, s.bytes)
            for s, first in zip(shards, starts, strict=False)
        )
        return cls(shards=tuple(found), records=records, facts=facts)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The masks and images to pair.

    Attributes:
        images: of a dataset; None if they are files.
        image_files: addresses of the files; empty for a dataset.
        selected: the dataset or the files.
        places: place in the seed's order by position, of the images that can be needed.
    """

    masks: Split
    images: Split | None
    image_files: tuple[str, ...]
    selected: storage.Selection
    places: dict[int, int]

    @classmethod
    def find(cls, images: str, split: str, masks: str, mask_split: str, seed: int) -> Data:
        """Raises `UserError` for datasets that do not exist, are unfinished or have no records."""
        selected = storage.select(images)
        is_dataset = not (selected.glob or recognize.look(selected.address).kind in ("image", "images"))
        found = cls(
            masks=Split.find(masks, "mask", mask_split),
            images=Split.find(images, "image", split) if is_dataset else None,
            image_files=() if is_dataset else tuple(selected.find()),
            selected=selected,
            places={},
        )
        if not found.num_images:
            raise UserError(f"{images}: no file matches.")
        places = pairing.order_images(found.num_images, seed, rounds=found.masks.records)
        return dataclasses.replace(found, places=places)

    @property
    def num_images(self) -> int:
        """Number of images, which take turns."""
        return self.images.records if self.images else len(self.image_files)

    def describe(self) -> dict:
        """For metrics.json."""
        files = {"address": self.selected.address, "files": len(self.image_files)}
        return {"masks": self.masks.facts, "images": self.images.facts if self.images else files}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides what the job computes and writes; ``fields`` go into metrics.json as they are.

    ``claim`` is that on the output folder.
    """

    data: Data | FilePairs
    networks: tuple[Network, ...]
    baselines: tuple[str, ...]
    per_cell: int | None
    seed: int
    batch_size: int | None
    max_pixels: int
    output: str
    published: bool
    lpips: Weights | None
    fid: Weights | None
    fields: dict
    claim: Claim | None = None

    @property
    def reference(self) -> str:
        """The method that others are compared with, and by whose scores the gallery is chosen."""
        return self.networks[0].name

    @property
    def methods(self) -> list[str]:
        return [*(network.name for network in self.networks), *self.baselines]


def write_report(
    rows: Iterable[dict],
    job: Job,
    plan: pairing.Plan,
    board: scoreboard.Board,
    chosen: dict[int, tuple[int, str]],
    pictures: Iterable[tuple[int, str, bytes]],
    distances: Mapping[str, Mapping] | None,
) -> None:
    """Writes `FILES` into the output folder. Raises `UserError` if another job has claimed it, or one is gone."""
    order = {name: number for number, name in enumerate(job.methods)}
    rows = sorted(rows, key=lambda row: (row["pair"], order[row["method"]]))
    report = make_report(rows, job, plan, board, distances)
    tags = ("loss/total", *(f"validation/{name}" for name in validation_metrics(IMAGE)))
    curves = {n.name: tensorboard.read_curves(n.run, tags) for n in job.networks if n.run}
    files = {
        "pairs.jsonl": "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows),
        METRICS: json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n",
        "table.md": scoreboard.format_report(report, job.published),
        "report.html": render_page(report, rows, chosen, sorted(pictures), curves, job.published),
    }
    encoded = {name: files[name].encode() for name in FILES}
    claims.require(job.claim)
    for name, data in encoded.items():
        storage.overwrite(storage.join(job.output, name), data)
    claims.require_files(job.output, {name: (len(data), storage.crc32c(data)) for name, data in encoded.items()})
    claims.require(job.claim)


def make_report(
    rows: list[dict],
    job: Job,
    plan: pairing.Plan,
    board: scoreboard.Board,
    distances: Mapping[str, Mapping] | None,
) -> dict:
    """The contents of metrics.json."""
    cells, differences = scoreboard.summarize(board, job.methods, job.reference, distances)
    found = [
        {"interval": interval_name(bucket), "border": pairing.BORDERS[border], "masks": count}
        for (bucket, border), count in plan.found.items()
    ]
    return {
        **job.fields,
        "counts": {
            "masks": sum(plan.found.values()),
            "pairs": len(plan.places),
            "rows": len(rows),
            "failed": sum("error" in row for row in rows),
        },
        "masks_found": found,
        "reference": job.reference,
        "methods": describe_methods(job),
        "metrics": list(cells[0]["metrics"]),
        "lpips": job.lpips and job.lpips._asdict(),
        "fid": job.fid and job.fid._asdict(),
        "cells": cells,
        "differences": differences,
    }


def describe_methods(job: Job) -> list[dict]:
    """The methods, as in metrics.json."""
    return [*map(_describe, job.networks), *({"name": name} for name in job.baselines)]


def _describe(network: Network) -> dict:
    pin = network.pin
    where = {"name": network.name, "run": network.run, **dataclasses.asdict(pin.checkpoint)}
    return where | {"config": dataclasses.asdict(pin.config)}
