"""Draws hole masks and writes them as a dataset.

    python -m pipelines.build_masks --output gs://B/masks --count 55000 --size 512

Without --hole-ratio the masks are spread evenly over the paper's six intervals, (0.01, 0.1] to
(0.5, 0.6]. The same options give the same bytes, whatever runs them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from trainer.command import ArgumentParser, UserError, quiet_imports, run_command

MASKS_PER_SHARD = 16_384  # 82 MB of `shapes` at 512 x 512


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.build_masks", description=__doc__)
    parser.add_argument("--output", required=True, help="the dataset's folder (local or gs://)")
    parser.add_argument("--count", type=int, required=True, help="number of masks")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels (default 512)")
    parser.add_argument("--generator", default="shapes", help="family of masks (default shapes)")
    parser.add_argument("--hole-ratio", metavar="LOW,HIGH", help="one interval (LOW, HIGH] for all masks")
    parser.add_argument("--border", default="any", help="any, none (holes keep away from it) or touch (default any)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other masks (default 0)")
    parser.add_argument("--split", default="train", help="first part of the shards' names (default train)")
    parser.add_argument("--num-shards", type=int, help=f"default: one per {MASKS_PER_SHARD} masks")
    parser.add_argument("--overwrite", action="store_true", help="write again what is finished already")
    return parser


def parse_intervals(text: str | None, default: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if text is None:
        return list(default)
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--hole-ratio: expected LOW,HIGH. Received {text!r}.") from None
    return [(low, high)]


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from masks.coverage import RATIO_BUCKETS
        from masks.sampling import MaskSpec
        from pipelines.launch import claim_dataset, code_version, parse_options, run_pipeline
        from pipelines.mask_records import SampleMasks
        from pipelines.progress import ReportProgress
        from pipelines.shards import WriteDataset
        from trainer import storage

    ours, options = parse_options(parser(), argv)
    for name in ("count", "num_shards"):
        if getattr(ours, name) is not None and getattr(ours, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more. Received {getattr(ours, name)}.")
    if not re.fullmatch(r"[\w-]+", ours.split):
        raise UserError(f"--split: expected letters, digits, - and _. Received {ours.split!r}.")
    intervals = parse_intervals(ours.hole_ratio, RATIO_BUCKETS)
    try:
        specs = [
            MaskSpec(
                generator=ours.generator,
                height=ours.size,
                width=ours.size,
                hole_ratio=interval,
                border=ours.border,
                seed=ours.seed,
            )
            for interval in intervals
        ]
    except ValueError as error:
        raise UserError(str(error)) from None

    output = storage.normalize(ours.output)
    if not claim_dataset(output, ours.overwrite):
        return 0
    num_shards = {ours.split: ours.num_shards or math.ceil(ours.count / MASKS_PER_SHARD)}
    fields = {
        "kind": "mask",
        "seed": ours.seed,
        "code_version": code_version(),
        "parameters": {
            "generator": ours.generator,
            "height": ours.size,
            "width": ours.size,
            "hole_ratio": intervals,
            "border": ours.border,
            "count": ours.count,
            "split": ours.split,
            "num_shards": num_shards,
        },
    }

    def build(pipeline):
        found = pipeline | SampleMasks(specs[0], intervals, ours.count, ours.split)
        found = found | "Progress" >> beam.ParDo(ReportProgress("masks", ours.count))
        rejects = pipeline | "NoRejects" >> beam.Create([])
        inputs = pipeline | "Inputs" >> beam.Create([ours.count])
        (found, rejects, inputs) | WriteDataset(output, num_shards, fields)

    run_pipeline(options, build)
    print(f"{ours.count} masks in {output}")
    return 0


if __name__ == "__main__":
    run_command(main)
