"""Builds a dataset of image records from ImageNet in any of its forms, or from any folder of images.

    python -m pipelines.build_imagenet --input gs://B/ILSVRC2012 --output gs://B/imagenet

--input is one of
    a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the development kit, or one of these tars
    a folder with train/SYNSET/..., val/... or test/..., or Kaggle's with ILSVRC/Data/CLS-LOC
    any other folder of images, or a quoted glob; their label is -1

Nothing is unpacked. Labels are positions in the sorted list of synsets. Upright RGB JPEGs are stored byte for
byte; other images are re-encoded, CMYK through its color profile or, without one, by a plain formula; a
file that cannot be used becomes a line of rejects/SPLIT.jsonl, and the exit code is then 3. A storage
or a disk that fails is no reject: the job ends, exit code 1, and the same command can be given again. It keeps the
shards that are there and were made of the same files, told by their sizes and times, and does not read these files.
A finished dataset is left as it is, unless its options, its inputs or its shards are others by now.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer import storage
from trainer.command import ArgumentParser, code_version, integer, quiet_imports, run_command
from trainer.images import MAX_PIXELS_HELP, MOST_PIXELS
from trainer.images.rgb import JPEG_SIDE, ImageSpec

if TYPE_CHECKING:
    from pipelines.image_dataset.sources import Source
    from trainer.data.finished import Expected


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.build_imagenet", description=__doc__)
    add = parser.add_argument
    add("--input", required=True, help="folder, tar or glob to read (local or in a bucket)")
    add("--output", required=True, help="folder for the dataset")
    add(
        "--split",
        help="splits of ImageNet to read, separated by commas (default: all of train,val,test); for other images, the "
        "name of their split (default: train)",
    )
    add("--devkit", help="ILSVRC's development kit, a tar or a folder (default: the one in --input)")
    add("--short-side", type=integer(1, JPEG_SIDE), help="shrink larger images to this shorter side (default: keep)")
    add("--quality", type=integer(1, 100), default=95, help="JPEG quality of re-encoded images, 1-100 (default 95)")
    add(
        "--max-pixels",
        type=integer(1, MOST_PIXELS),
        default=100_000_000,
        help=MAX_PIXELS_HELP,
    )
    add("--min-side", type=integer(1, JPEG_SIDE), default=1, help="reject images with a shorter side (default 1)")
    add("--limit", type=integer(1), help="images to take of each split, the same ones every time (default: all)")
    add(
        "--num-shards",
        type=integer(1),
        help="shards of each split (default: the power of two that makes shards of 100-200 MB)",
    )
    add("--overwrite", action="store_true", help="replace a dataset; a job that is writing there ends")
    return parser


def _expected(ours: argparse.Namespace, spec: ImageSpec, source: Source, num_shards: dict[str, int]) -> Expected:
    """The dataset that the options describe, to compare one that is there with."""
    from trainer.data.finished import Expected
    from trainer.storage.names import printable

    parameters = {"input": storage.normalize(ours.input), "num_shards": num_shards, "limit": ours.limit}
    if ours.devkit:
        parameters["devkit"] = storage.normalize(ours.devkit)
    return Expected(
        kind="image",
        seed=0,
        parameters=parameters | dataclasses.asdict(spec),
        synsets=tuple(map(printable, source.synsets)),
        defaults=dataclasses.asdict(ImageSpec()),
        places=source.places,
        count=(lambda: None) if ours.limit else source.count,
    )


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.image_dataset import sources
        from pipelines.image_dataset.convert import ListImages, WriteImages, choose_num_shards, measure_split
        from pipelines.launch import (
            claim_dataset,
            parse_options,
            report_dataset,
            report_rejects,
            require_apart,
            run_pipeline,
        )
        from pipelines.transforms.dataset_writer import FinishDataset
        from trainer.storage import claims, recognize

    ours, options = parse_options(parser(), argv)
    spec = ImageSpec(
        short_side=ours.short_side, quality=ours.quality, max_pixels=ours.max_pixels, min_side=ours.min_side
    )
    splits = tuple(ours.split.split(",")) if ours.split is not None else ()
    output = storage.normalize(ours.output)
    recognize.require_folder("--output", output)
    source = sources.find_source(ours.input, splits, ours.devkit or "")
    if not source.synsets and all(part.files for part in source.parts):  # ImageNet's forms name what is read
        require_apart(output, {"--input": ours.input})
    num_shards = {
        split: ours.num_shards or choose_num_shards(measure_split(parts, spec, ours.limit))
        for split, parts in source.by_split().items()
    }
    expected = _expected(ours, spec, source, num_shards)
    claim = claim_dataset(output, ours.overwrite, source.by_split(), expected)
    if claim is None:
        return report_rejects(output, "image")
    fields = {**expected.fields, "code_version": code_version()}

    def build(pipeline):
        parts = pipeline | "Parts" >> beam.Create(source.cut())
        images, unlisted = parts | ListImages(ours.limit, output)
        labels = {synset: label for label, synset in enumerate(source.synsets)}
        shards, unused = images | WriteImages(output, num_shards, spec, labels, claim)
        outside = pipeline | "Outside" >> beam.Create(source.rejects)
        lost = (unlisted, outside) | "Lost" >> beam.Flatten()
        inputs = (images, lost) | "Inputs" >> beam.Flatten() | beam.combiners.Count.Globally()
        rejects = (lost, unused) | "Rejects" >> beam.Flatten()
        (shards, rejects, inputs) | FinishDataset(output, num_shards, fields, claim)

    with claims.held(claim, goes_on=ours.no_wait):
        run_pipeline(options, build, wait=not ours.no_wait)
    return 0 if ours.no_wait else report_dataset(output, "image")


if __name__ == "__main__":
    run_command(main)
