"""Turns images into a dataset of records: ImageNet in any of its forms, or a folder of one's own.

    python -m pipelines.build_imagenet --input gs://B/ILSVRC2012 --output gs://B/imagenet

--input is one of
    a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the development kit, or one of these tars
    a folder with train/SYNSET/..., val/... or test/..., or Kaggle's with ILSVRC/Data/CLS-LOC
    any other folder of images, or a quoted glob; their label is -1

Nothing is unpacked. Labels are positions in the sorted list of synsets. Upright RGB JPEGs are stored byte for
byte; other images are encoded anew; a file that cannot be used becomes a line of rejects/SPLIT.jsonl.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trainer.command import ArgumentParser, code_version, quiet_imports, run_command
from trainer.errors import UserError


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.build_imagenet", description=__doc__)
    parser.add_argument("--input", required=True, help="folder, tar or glob (local or gs://)")
    parser.add_argument("--output", required=True, help="the dataset's folder")
    parser.add_argument("--split", help="comma-separated: what to read of train,val,test; of other images, their split")
    parser.add_argument("--devkit", help="ILSVRC's development kit, a tar or a folder; default: looked for in --input")
    parser.add_argument("--short-side", type=int, help="shrink larger images to this shorter side (default: keep)")
    parser.add_argument("--quality", type=int, default=95, help="of images that are encoded anew (default 95)")
    parser.add_argument("--max-pixels", type=int, default=100_000_000, help="reject larger ones (default 100000000)")
    parser.add_argument("--min-side", type=int, default=1, help="reject smaller ones (default 1)")
    parser.add_argument("--limit", type=int, help="this many images of each split, the same ones every time")
    parser.add_argument("--num-shards", type=int, help="of each split; default: a power of two, of 100-200 MB each")
    parser.add_argument("--overwrite", action="store_true", help="write again what is finished already")
    return parser


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.image_dataset import sources
        from pipelines.image_dataset.convert import choose_num_shards, measure_split
        from pipelines.image_dataset.image_shards import ListImages, WriteImages
        from pipelines.launch import claim_dataset, parse_options, run_pipeline
        from pipelines.transforms.dataset_writer import FinishDataset
        from trainer import storage
        from trainer.data import manifest
        from trainer.images import rgb

    ours, options = parse_options(parser(), argv)
    for name in ("num_shards", "limit"):
        if getattr(ours, name) is not None and getattr(ours, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more. Received {getattr(ours, name)}.")
    try:
        spec = rgb.ImageSpec(
            short_side=ours.short_side, quality=ours.quality, max_pixels=ours.max_pixels, min_side=ours.min_side
        )
    except ValueError as error:
        name, _, expected = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{expected}") from None
    splits = tuple(ours.split.split(",")) if ours.split is not None else ()
    output = storage.normalize(ours.output)
    source = sources.find_source(ours.input, splits, ours.devkit or "")
    if not claim_dataset(output, ours.overwrite):
        return 0

    by_split = {part.split: [p for p in source.parts if p.split == part.split] for part in source.parts}
    num_shards = {
        split: ours.num_shards or choose_num_shards(measure_split(parts, spec, ours.limit))
        for split, parts in by_split.items()
    }
    parameters = {"input": storage.normalize(ours.input), "num_shards": num_shards, "limit": ours.limit}
    fields = {
        "kind": "image",
        "seed": 0,
        "code_version": code_version(),
        "parameters": parameters | dataclasses.asdict(spec),
        "synsets": source.synsets,
    }

    def build(pipeline):
        parts = pipeline | "Parts" >> beam.Create(source.parts)
        items, unlisted = parts | ListImages(ours.limit)
        labels = {synset: label for label, synset in enumerate(source.synsets)}
        shards, unused = items | WriteImages(output, num_shards, spec, labels)
        outside = pipeline | "Outside" >> beam.Create(source.rejects)
        lost = (unlisted, outside) | "Lost" >> beam.Flatten()
        inputs = (items, lost) | "Inputs" >> beam.Flatten() | beam.combiners.Count.Globally()
        rejects = (lost, unused) | "Rejects" >> beam.Flatten()
        (shards, rejects, inputs) | FinishDataset(output, num_shards, fields)

    run_pipeline(options, build)
    counts = manifest.load_manifest(output, "image").counts
    print(f"{counts['records']} images in {output}, {counts['rejects']} of {counts['inputs']} rejected")
    return 0


if __name__ == "__main__":
    run_command(main)
