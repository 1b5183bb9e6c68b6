"""Turns an ImageNet folder tree into a dataset of image records.

    python -m pipelines.build_imagenet --input gs://B/ILSVRC2012 --output gs://B/imagenet

Reads train/<synset>/*.JPEG, val/... and test/... below --input. Labels are positions in the sorted
list of synsets; files right below their split have label -1. A file that cannot be used becomes a
line of rejects/<split>.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.command import ArgumentParser, UserError, quiet_imports, run_command

IMAGES_PER_SHARD = 1000  # ImageNet's average file of 110 KB makes shards of 110 MB


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.build_imagenet", description=__doc__)
    parser.add_argument("--input", required=True, help="folder that holds train/, val/ or test/ (local or gs://)")
    parser.add_argument("--output", required=True, help="the dataset's folder")
    parser.add_argument("--split", default="train,val,test", help="folders to read (default train,val,test)")
    parser.add_argument("--num-shards", type=int, help=f"of each split; default: one per {IMAGES_PER_SHARD} images")
    parser.add_argument("--overwrite", action="store_true", help="write again what is finished already")
    return parser


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.image_records import SPLITS, ConvertFiles, list_files, list_tree, synset_of
        from pipelines.launch import claim_dataset, code_version, parse_options, run_pipeline
        from pipelines.progress import ReportProgress
        from pipelines.shards import WriteDataset
        from trainer import datasets, storage

    ours, options = parse_options(parser(), argv)
    splits = tuple(ours.split.split(","))
    if wrong := [split for split in splits if split not in SPLITS]:
        raise UserError(f"--split: expected names of {SPLITS}. Received {wrong[0]!r}.")
    if ours.num_shards is not None and ours.num_shards < 1:
        raise UserError(f"--num-shards: expected 1 or more. Received {ours.num_shards}.")

    root, output = storage.normalize(ours.input), storage.normalize(ours.output)
    tree = list_tree(root, splits)
    if not claim_dataset(output, ours.overwrite):
        return 0
    synsets = tuple(sorted({synset_of(file, root) for files in tree.values() for file in files} - {""}))
    total = sum(len(files) for files in tree.values())
    num_shards = {split: ours.num_shards or math.ceil(len(files) / IMAGES_PER_SHARD) for split, files in tree.items()}
    fields = {
        "kind": "image",
        "seed": 0,
        "code_version": code_version(),
        "parameters": {"input": root, "num_shards": num_shards},
        "synsets": synsets,
    }

    def build(pipeline):
        # Listed again by a worker: a million names do not fit into the description of a job.
        files = pipeline | beam.Create(list(tree)) | "List" >> beam.FlatMap(list_files, root) | beam.Reshuffle()
        seen = files | "Progress" >> beam.ParDo(ReportProgress("images", total))
        converted, rejects = seen | ConvertFiles(root, {synset: i for i, synset in enumerate(synsets)})
        inputs = files | beam.combiners.Count.Globally()
        (converted, rejects, inputs) | WriteDataset(output, num_shards, fields)

    run_pipeline(options, build)
    counts = datasets.load_manifest(output, "image").counts
    print(f"{counts['records']} images in {output}, {counts['rejects']} of {counts['inputs']} rejected")
    return 0


if __name__ == "__main__":
    run_command(main)
