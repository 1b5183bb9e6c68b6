"""Fills the holes of image files with a trained network.

    python -m pipelines.inpaint --images 'gs://B/in/**' --masks 'gs://B/holes/**' --hole black \\
        --run gs://B/runs/a --output gs://B/out

An image and its mask have the same path below their folders, but for the extension. Outputs are PNG
files with the image's path; valid pixels are kept bit for bit. Inputs that could not be used are
lines of rejects.jsonl in the output folder; the exit code is then 3.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from trainer.command import SOME_REJECTED, ArgumentParser, UserError, quiet_imports, run_command

HOLES = ("black", "white")


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.inpaint", description=__doc__)
    parser.add_argument("--images", required=True, help="image files: a file, a folder or a glob (local or gs://)")
    parser.add_argument("--masks", required=True, help="mask files, of the images' sizes")
    parser.add_argument("--hole", required=True, metavar="black|white", help="the colour of holes in mask files")
    parser.add_argument("--run", required=True, help="folder of the training run whose newest checkpoint is used")
    parser.add_argument("--output", required=True, help="folder for the outputs")
    parser.add_argument("--batch-size", type=int, default=8, help="images of one size computed together (default 8)")
    return parser


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.inpainting import MANIFEST, REJECTS, InpaintFiles, check_outputs, write_outcome
        from pipelines.launch import code_version, parse_options, run_pipeline
        from pipelines.model_handler import InpaintModelHandler
        from pipelines.progress import ReportProgress
        from trainer import storage
        from trainer.predict import find_model

    ours, options = parse_options(parser(), argv)
    if ours.hole not in HOLES:
        raise UserError(f"--hole: expected one of {HOLES}. Received {ours.hole!r}.")
    if ours.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more. Received {ours.batch_size}.")
    run, output = storage.normalize(ours.run), storage.normalize(ours.output)
    patterns = {"--images": storage.normalize(ours.images), "--masks": storage.normalize(ours.masks)}
    listed = {name: storage.find(pattern) for name, pattern in patterns.items()}
    for name, files in listed.items():
        if not files:
            raise UserError(f"{name}: no files at {patterns[name]}")
    check_outputs(*listed.values(), storage.base_of(patterns["--images"]), output)
    handler = InpaintModelHandler(find_model(run), ours.batch_size)
    storage.require_writable(output)
    fields = {
        "code_version": code_version(),
        "model": dataclasses.asdict(handler.pin.checkpoint),
        "parameters": {"images": patterns["--images"], "masks": patterns["--masks"], "hole": ours.hole},
    }
    storage.delete(storage.join(output, MANIFEST))

    def build(pipeline):
        files, rejects = pipeline | InpaintFiles(*patterns.values(), output, ours.hole, handler)
        done = files | "Progress" >> beam.ParDo(ReportProgress("images", len(listed["--images"])))
        counted = done | beam.combiners.Count.Globally()
        counted | "WriteOutcome" >> beam.Map(write_outcome, output, fields, beam.pvalue.AsList(rejects))

    run_pipeline(options, build)
    counts = json.loads(storage.read(storage.join(output, MANIFEST)))["counts"]
    print(f"{counts['outputs']} inpainted images in {output}")
    if counts["rejects"]:
        print(f"{counts['rejects']} of {counts['inputs']} inputs rejected, see {output}/{REJECTS}", file=sys.stderr)
        return SOME_REJECTED
    return 0


if __name__ == "__main__":
    run_command(main)
