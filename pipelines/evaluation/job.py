"""The evaluation job as a whole: its data, its wiring, and the files that it ends with."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

import apache_beam as beam

from pipelines import training_curves
from pipelines.evaluation import gallery, pairing, scoreboard
from pipelines.evaluation.distances import MeasureDistances
from pipelines.evaluation.methods import Contender
from pipelines.evaluation.report_page import render_page
from pipelines.evaluation.rounds import FillRounds, MakeRounds, Weights, key_by_pair, score_round
from pipelines.transforms.progress import ReportProgress
from trainer import storage
from trainer.data import manifest as datasets
from trainer.errors import UserError
from trainer.metrics import IMAGE, validation_metrics
from trainer.metrics.intervals import interval_name

ShardAddress = tuple[str, str, int]  # address, crc32c, position of the first record


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is paired.

    Attributes:
        masks, images: addresses.
        image_files: of a glob; empty for records.
        num_images: that take turns.
        places: of the images that can be needed, by position.
        manifests: of the datasets, by kind: address, crc32c, counts, parameters, records of the split.
    """

    masks: str
    images: str
    mask_shards: tuple[ShardAddress, ...]
    image_shards: tuple[ShardAddress, ...]
    image_files: tuple[str, ...]
    num_images: int
    num_masks: int
    places: dict[int, int]
    manifests: dict[str, dict]

    @classmethod
    def find(cls, images: str, split: str, masks: str, mask_split: str, seed: int) -> Data:
        """Raises `UserError` for datasets that are not there, unfinished or without records."""
        manifests: dict[str, dict] = {}
        mask_address, image_address = storage.normalize(masks), storage.normalize(images)
        is_glob = any(sign in image_address for sign in "*?[")
        mask_shards = _list_shards(mask_address, "mask", mask_split, manifests)
        image_shards = () if is_glob else _list_shards(image_address, "image", split, manifests)
        files = tuple(storage.find(image_address)) if is_glob else ()
        num_images = len(files) if is_glob else manifests["image"]["records"]
        if not num_images:
            what = "files" if is_glob else f"records in split {split!r}"
            raise UserError(f"{images}: expected {what}. Received none.")
        num_masks = manifests["mask"]["records"]
        if not num_masks:
            raise UserError(f"{masks}: expected records in split {mask_split!r}. Received none.")
        return cls(
            masks=mask_address,
            images=image_address,
            mask_shards=mask_shards,
            image_shards=image_shards,
            image_files=files,
            num_images=num_images,
            num_masks=num_masks,
            places=pairing.order_images(num_images, seed, rounds=num_masks),
            manifests=manifests,
        )

    def describe(self) -> dict:
        """For metrics.json."""
        files = {"address": self.images, "files": self.num_images}
        return {"masks": self.manifests["mask"], "images": self.manifests.get("image", files)}


def _list_shards(folder: str, kind: str, split: str, manifests: dict) -> tuple[ShardAddress, ...]:
    manifest = datasets.load_manifest(folder, kind)
    shards = manifest.split(split)
    starts = itertools.accumulate((shard.records for shard in shards), initial=0)
    manifests[kind] = {
        "address": folder,
        "crc32c": storage.checksum(storage.join(folder, datasets.MANIFEST)),
        "split": split,
        "records": sum(shard.records for shard in shards),
        "counts": manifest.counts,
        "parameters": manifest.parameters,
        "code_version": manifest.code_version,
    }
    return tuple((storage.join(folder, s.name), s.crc32c, first) for s, first in zip(shards, starts, strict=False))


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides what the job computes and writes; ``fields`` are metrics.json's own."""

    data: Data
    contenders: tuple[Contender, ...]
    baselines: tuple[str, ...]
    per_cell: int | None
    seed: int
    batch_size: int | None
    output: str
    published: bool
    lpips: Weights | None
    fid: Weights | None
    fields: dict

    @property
    def reference(self) -> str:
        """The method that others are compared with, and by which pictures are chosen."""
        return self.contenders[0].name

    @property
    def methods(self) -> list[str]:
        return [*(contender.name for contender in self.contenders), *self.baselines]


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Adds the whole job to ``pipeline``."""
    data = job.data
    rounds, plan = pipeline | MakeRounds(
        mask_shards=data.mask_shards,
        image_shards=data.image_shards,
        image_files=(data.image_files, storage.base_of(data.images)),
        places=data.places,
        num_images=data.num_images,
        seed=job.seed,
        per_cell=job.per_cell,
    )
    filled = rounds | FillRounds(list(job.contenders), job.baselines, job.batch_size)
    scored = [item | f"Score_{name}" >> beam.FlatMap(score_round, name, job.lpips) for name, item in filled.items()]
    rows = scored | beam.Flatten() | "Progress" >> beam.ParDo(ReportProgress("scores"))
    pairs = rows | "ByPair" >> beam.Map(key_by_pair) | beam.GroupByKey() | beam.Values()
    distances = filled | MeasureDistances(job.fid) if job.fid else None
    board = pairs | "Tally" >> beam.CombineGlobally(scoreboard.TallyRows(job.reference))
    all_rows = rows | "AllRows" >> beam.combiners.ToList()
    chosen = all_rows | "Choose" >> beam.Map(gallery.choose_pairs, job.reference)
    shown = (
        rounds
        | "KeepChosen" >> beam.FlatMap(gallery.keep_chosen, beam.pvalue.AsSingleton(chosen))
        | "FillChosen" >> FillRounds(list(job.contenders), job.baselines, job.batch_size)
    )
    pictures = [
        item | f"Draw_{name}" >> beam.FlatMap(gallery.draw_round, name, name == job.reference)
        for name, item in shown.items()
    ]
    (
        all_rows
        | "WriteReport"
        >> beam.Map(
            write_report,
            job,
            *(beam.pvalue.AsSingleton(one) for one in (plan, board, chosen)),
            beam.pvalue.AsIter(pictures | "AllPictures" >> beam.Flatten()),
            beam.pvalue.AsDict(distances) if distances else None,
        )
    )


def write_report(rows, job: Job, plan, board, chosen, pictures, distances) -> None:
    """Writes ``pairs.jsonl``, ``metrics.json``, ``table.md`` and ``report.html`` into the output folder."""
    order = {name: number for number, name in enumerate(job.methods)}
    rows = sorted(rows, key=lambda row: (row["pair"], order[row["method"]]))
    cells, differences = scoreboard.summarize(board, job.methods, job.reference, distances)
    found = [
        {"interval": interval_name(bucket), "border": pairing.BORDERS[border], "masks": count}
        for (bucket, border), count in plan.found.items()
    ]
    report = {
        **job.fields,
        "counts": {
            "masks": sum(plan.found.values()),
            "pairs": len(plan.places),
            "rows": len(rows),
            "failed": sum("error" in row for row in rows),
        },
        "masks_found": found,
        "reference": job.reference,
        "methods": [_describe(contender) for contender in job.contenders] + [{"name": name} for name in job.baselines],
        "metrics": list(cells[0]["metrics"]),
        "lpips": job.lpips and job.lpips._asdict(),
        "fid": job.fid and job.fid._asdict(),
        "cells": cells,
        "differences": differences,
    }
    tags = ("loss/total", *(f"validation/{name}" for name in validation_metrics(IMAGE)))
    curves = {
        contender.name: training_curves.read_curves(contender.run, tags)
        for contender in job.contenders
        if contender.run
    }
    files = {
        "pairs.jsonl": "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows),
        "metrics.json": json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n",
        "table.md": scoreboard.format_report(report, job.published),
        "report.html": render_page(report, rows, chosen, sorted(pictures), curves, job.published),
    }
    for name, text in files.items():
        storage.overwrite(storage.join(job.output, name), text.encode())


def _describe(contender: Contender) -> dict:
    pin = contender.pin
    where = {"name": contender.name, "run": contender.run, **dataclasses.asdict(pin.checkpoint)}
    return where | {"config": dataclasses.asdict(pin.config)}
