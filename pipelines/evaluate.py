"""Scores trained networks on image and mask records, beside methods that need no training.

    python -m pipelines.evaluate --images gs://B/imagenet --masks gs://B/test-masks --run gs://B/runs/a \\
        --output gs://B/report

Writes report.html (one file that needs no network: tables, curves, pictures), table.md, metrics.json
and pairs.jsonl. --run RUN takes a run's newest checkpoint, RUN@best its best, RUN@400 that of step
400, MODEL.keras an export; NAME=RUN names it, and it may be given several times: differences to the
first, and their standard errors, are of the same pairs. The same datasets, networks and seed give the
same numbers on any runner. A pair that a method gave no finite picture for is counted as failed and
enters no mean; the exit code is then 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from trainer.command import SOME_REJECTED, ArgumentParser, code_version, quiet_imports, run_command
from trainer.errors import UserError


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.evaluate", description=__doc__)
    add = parser.add_argument
    add("--images", required=True, help="dataset of image records, or a glob of image files (local or gs://)")
    add("--masks", required=True, help="dataset of mask records; its size is the pictures' size")
    add("--run", required=True, action="append", help="[NAME=]RUN[@CHECKPOINT] or MODEL.keras; repeatable")
    add("--output", required=True, help="folder for the report")
    add("--split", default="val", help="split of the image records (default val)")
    add("--mask-split", default="val", help="split of the masks (default val)")
    add(
        "--per-cell",
        metavar="N|all",
        help="pairs of each hole-ratio interval and border class (default: as many as the smallest of them has)",
    )
    add("--seed", type=int, default=0, help="decides which masks and images are paired (default 0)")
    add("--baseline", default="telea,ns,mean", help="methods to score too (default telea,ns,mean)")
    add("--published", action="store_true", help="show the paper's numbers, of other data, beside")
    add("--lpips", metavar="FILE", help="weights for LPIPS, an .npz (see trainer/metrics/lpips.py); left out without")
    add("--fid", metavar="FILE", help="weights for FID, an .npz (see trainer/metrics/fid.py); left out without")
    add("--batch-size", type=int, help="pairs computed together (default: what suits the device)")
    return parser


def _check(ours: argparse.Namespace, known: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Names of the baselines, and pairs per cell; raises `UserError` for wrong values."""
    from pipelines.evaluation.pairing import ALL_MASKS

    baselines = tuple(dict.fromkeys(name for name in ours.baseline.split(",") if name))
    if wrong := [name for name in baselines if name not in known]:
        raise UserError(f"--baseline: expected names of {sorted(known)}. Received {wrong[0]!r}.")
    if ours.batch_size is not None and ours.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more. Received {ours.batch_size}.")
    if ours.per_cell in (None, "all"):
        return baselines, ALL_MASKS if ours.per_cell else None
    if not ours.per_cell.isdigit() or int(ours.per_cell) < 1:
        raise UserError(f"--per-cell: expected 1 or more, or all. Received {ours.per_cell}.")
    return baselines, int(ours.per_cell)


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        from pipelines.evaluation.job import Data, Job, build
        from pipelines.evaluation.methods import find_contenders
        from pipelines.evaluation.rounds import Weights
        from pipelines.launch import parse_options, run_pipeline
        from trainer import storage
        from trainer.inference.baselines import BASELINES
        from trainer.metrics.fid import load_inception
        from trainer.metrics.lpips import load_lpips

    ours, options = parse_options(parser(), argv)
    baselines, per_cell = _check(ours, list(BASELINES))
    data = Data.find(ours.images, ours.split, ours.masks, ours.mask_split, ours.seed)
    contenders = find_contenders(ours.run)
    if wrong := [c.name for c in contenders if c.name in BASELINES]:
        raise UserError(f"--run: expected another name than a baseline's (NAME=ADDRESS). Received {wrong[0]!r}.")
    weights: dict[str, Weights | None] = {"lpips": None, "fid": None}
    for name, load in (("lpips", load_lpips), ("fid", load_inception)):
        if getattr(ours, name):
            address = storage.normalize(getattr(ours, name))
            weights[name] = Weights(address, storage.checksum(address))
            load(*weights[name])  # what is wrong with them is told at launch
    output = storage.normalize(ours.output)
    storage.require_writable(output)
    parameters = {"seed": ours.seed, "per_cell": ours.per_cell, "batch_size": ours.batch_size}
    job = Job(
        data=data,
        contenders=tuple(contenders),
        baselines=baselines,
        per_cell=per_cell,
        seed=ours.seed,
        batch_size=ours.batch_size,
        output=output,
        published=ours.published,
        **weights,
        fields={"code_version": code_version(), "data": data.describe(), "parameters": parameters},
    )
    run_pipeline(options, lambda pipeline: build(pipeline, job))
    report = json.loads(storage.read(storage.join(output, "metrics.json")))
    print(storage.read(storage.join(output, "table.md")).decode().partition("\n## By border")[0])
    counts = report["counts"]
    print(f"{counts['pairs']} pairs of {counts['masks']} masks; {output}/report.html")
    if counts["failed"]:
        print(f"{counts['failed']} of {counts['rows']} pictures failed, see {output}/pairs.jsonl", file=sys.stderr)
        return SOME_REJECTED
    return 0


if __name__ == "__main__":
    run_command(main)
