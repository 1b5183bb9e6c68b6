"""Scores a trained network on image and mask records, beside methods that need no training.

    python -m pipelines.evaluate --images gs://B/imagenet --masks gs://B/test-masks --run gs://B/runs/a \\
        --output gs://B/report

Writes table.md (mean PSNR, SSIM and L1 by hole-ratio interval), metrics.json and pairs.jsonl. The
same datasets and checkpoint give the same pairs and numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from trainer.command import ArgumentParser, UserError, quiet_imports, run_command


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.evaluate", description=__doc__)
    parser.add_argument("--images", required=True, help="dataset of image records (local or gs://)")
    parser.add_argument("--masks", required=True, help="dataset of mask records; its size is the pictures' size")
    parser.add_argument("--run", required=True, help="folder of the training run whose newest checkpoint is scored")
    parser.add_argument("--output", required=True, help="folder for the report")
    parser.add_argument("--split", default="val", help="split of the images (default val)")
    parser.add_argument("--mask-split", default="val", help="split of the masks (default val)")
    parser.add_argument("--pairs", type=int, help="number of pairs (default: one per mask)")
    parser.add_argument("--baseline", default="telea,mean", help="methods to score too (default telea,mean)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs computed together (default 8)")
    return parser


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.evaluation import ScorePairs, write_report
        from pipelines.launch import code_version, parse_options, run_pipeline
        from pipelines.model_handler import InpaintModelHandler
        from pipelines.progress import ReportProgress
        from trainer import datasets, storage
        from trainer.baselines import BASELINES
        from trainer.predict import find_model

    ours, options = parse_options(parser(), argv)
    baselines = tuple(name for name in ours.baseline.split(",") if name)
    if wrong := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"--baseline: expected names of {sorted(BASELINES)}. Received {wrong[0]!r}.")
    if ours.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more. Received {ours.batch_size}.")
    run, output = storage.normalize(ours.run), storage.normalize(ours.output)

    def shards_of(address: str, kind: str, split: str) -> list[tuple[str, str, int]]:
        folder = storage.normalize(address)
        shards = datasets.load_manifest(folder, kind).split(split)
        starts = itertools.accumulate((shard.records for shard in shards), initial=0)
        counts.append(sum(shard.records for shard in shards))
        return [(storage.join(folder, s.name), s.crc32c, first) for s, first in zip(shards, starts, strict=False)]

    counts: list[int] = []
    image_shards = shards_of(ours.images, "image", ours.split)
    mask_shards = shards_of(ours.masks, "mask", ours.mask_split)
    num_images, num_masks = counts
    num_pairs = num_masks if ours.pairs is None else ours.pairs
    if not num_images:
        raise UserError(f"{ours.images}: expected records in split {ours.split!r}. Received none.")
    if not 1 <= num_pairs <= num_masks:
        raise UserError(f"--pairs: expected 1 to {num_masks}, the number of masks. Received {num_pairs}.")
    handler = InpaintModelHandler(find_model(run), ours.batch_size)
    storage.require_writable(output)
    fields = {
        "code_version": code_version(),
        "model": dataclasses.asdict(handler.pin.checkpoint),
        "parameters": {"images": ours.images, "masks": ours.masks, "split": ours.split, "pairs": num_pairs},
    }

    def build(pipeline):
        rows = pipeline | ScorePairs(image_shards, mask_shards, num_images, num_pairs, handler, baselines)
        seen = rows | "Progress" >> beam.ParDo(ReportProgress("scores", num_pairs * (1 + len(baselines))))
        seen | beam.combiners.ToList() | "WriteReport" >> beam.Map(write_report, output, fields)

    run_pipeline(options, build)
    print(storage.read(storage.join(output, "table.md")).decode(), end="")
    print(f"{num_pairs} pairs, report in {output}")
    return 0


if __name__ == "__main__":
    run_command(main)
