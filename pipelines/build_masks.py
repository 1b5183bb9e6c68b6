"""Draws hole masks and writes them as a dataset.

    python -m pipelines.build_masks --output gs://B/masks --count 55000 --size 512
    python -m pipelines.build_masks --output gs://B/test-masks --test-set paper

Without --hole-ratio the masks are spread evenly over the paper's six intervals, (0.01, 0.1] to
(0.5, 0.6]. The same options give the same bytes, whatever runs them. A contact sheet is written
beside the manifest. --mask-files are read by what they hold, as pipelines.inpaint reads them. A file
that no mask can start from becomes a line of rejects/SPLIT.jsonl, and the exit code is then 3. A
storage or a disk that fails is no reject: the job ends, exit code 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from masks.families import FAMILIES
from masks.sampling import BORDERS, MIXTURE
from pipelines.mask_dataset import SPLITS, TEST_SETS, make_plan, parameters_of, places_of
from trainer.command import ArgumentParser, code_version, integer, quiet_imports, run_command
from trainer.images import HOLE_LABEL_HELP, HOLES, MAX_PIXELS_HELP, MOST_PIXELS, THRESHOLD_HELP

MASKS_PER_SHARD = 16_384  # 82 MB of `shapes` at 512 x 512


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.build_masks", description=__doc__)
    parser.add_argument("--output", required=True, help="folder of the dataset (local or in a bucket)")
    parser.add_argument("--count", type=int, help="number of masks")
    parser.add_argument("--size", type=int, help="height and width in pixels (default 512)")
    parser.add_argument(
        "--generator", choices=(*FAMILIES, MIXTURE), default="shapes", help="family of masks (default shapes)"
    )
    parser.add_argument("--weights", metavar="FAMILY=NUMBER,...", help="relative frequency of each family in a mixture")
    parser.add_argument("--hole-ratio", metavar="LOW,HIGH", help="a single interval (LOW, HIGH] for all masks")
    parser.add_argument(
        "--border", choices=BORDERS, help="whether holes near the border are allowed (default), forbidden or required"
    )
    parser.add_argument("--margin", type=int, help="pixels that count as near the border (default 50 per 512)")
    parser.add_argument(
        "--stratify", action="store_true", help="draw equally many masks for every interval and border class"
    )
    parser.add_argument("--test-set", choices=TEST_SETS, help="the paper's test set: 12 x 1,000 masks of 512 x 512")
    parser.add_argument("--mask-files", metavar="GLOB", help="mask images for the family files")
    parser.add_argument("--hole", choices=HOLES, help="what marks holes in these images, see pipelines.inpaint")
    parser.add_argument("--hole-label", help=HOLE_LABEL_HELP)
    parser.add_argument("--threshold", type=float, help=THRESHOLD_HELP.format("0.6"))
    parser.add_argument("--frames", metavar="GLOB", help="videos, frames or stereo pairs for the family occlusion")
    parser.add_argument("--stills", metavar="GLOB", help="photographs for occlusion, which moves them as two layers")
    parser.add_argument("--max-pixels", type=integer(1, MOST_PIXELS), help=MAX_PIXELS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other masks (default 0)")
    parser.add_argument("--split", choices=SPLITS, help="name of the split; splits share no mask (default train)")
    parser.add_argument("--num-shards", type=int, help=f"number of shards (default: one per {MASKS_PER_SHARD} masks)")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset; a job that is writing there ends")
    return parser


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.launch import (
            claim_dataset,
            parse_options,
            report_dataset,
            report_rejects,
            require_apart,
            run_pipeline,
        )
        from pipelines.mask_dataset.pieces import MaskShards, WriteMasks
        from pipelines.mask_dataset.sampling import SHEET, SampleMasksFromSources, write_summary
        from pipelines.mask_dataset.sources import find_files
        from pipelines.transforms.dataset_writer import FinishDataset, WriteDataset
        from pipelines.transforms.report_progress import ReportProgress
        from trainer import storage
        from trainer.data.finished import Expected
        from trainer.storage import claims, recognize

    ours, options = parse_options(parser(), argv)
    plan = make_plan(ours)
    files, reading, unmatched = find_files(ours, plan)
    output = storage.normalize(ours.output)
    recognize.require_folder("--output", output)
    require_apart(output, {"--mask-files": ours.mask_files, "--frames": ours.frames, "--stills": ours.stills})
    num_shards = {plan.split: ours.num_shards or math.ceil(plan.count / MASKS_PER_SHARD)}
    parameters = {**parameters_of(plan, ours), "num_shards": num_shards}
    expected = Expected(kind="mask", seed=ours.seed, parameters=parameters, places=lambda: places_of(ours))
    claim = claim_dataset(output, ours.overwrite, [plan.split], expected)
    if claim is None:
        return report_rejects(output, "mask")
    fields = {**expected.fields, "code_version": code_version()}

    def build(pipeline):
        made = (output, num_shards, fields, claim)
        if files:
            sampled = SampleMasksFromSources(plan.specs, plan.count, plan.split, files, reading)
            found, tally, unused = pipeline | sampled
            found = found | "Progress" >> beam.ParDo(ReportProgress("masks", plan.count))
            write: beam.PTransform = WriteDataset(*made)
        else:
            found, tally = pipeline | WriteMasks(MaskShards(plan, num_shards[plan.split], output, claim))
            unused, write = pipeline | "Unused" >> beam.Create([]), FinishDataset(*made)
        rejects = (pipeline | "Unmatched" >> beam.Create(unmatched), unused) | "Rejects" >> beam.Flatten()
        # Inputs are the masks, and the files that no mask could start from.
        inputs = rejects | beam.combiners.Count.Globally() | "Inputs" >> beam.Map(lambda n: n + plan.count)
        statistics = tally | "Summary" >> beam.Map(write_summary, output, claim)
        (found, rejects, inputs, statistics) | write

    with claims.held(claim, goes_on=ours.no_wait):
        run_pipeline(options, build, wait=not ours.no_wait)
    hint = f"; {storage.join(output, SHEET)} shows some of them"
    return 0 if ours.no_wait else report_dataset(output, "mask", hint)


if __name__ == "__main__":
    run_command(main)
