"""Fills the holes of image files with a trained network.

    python -m pipelines.inpaint --images 'gs://B/in/**' --masks 'gs://B/holes/**' --hole black \\
        --run gs://B/runs/a --output gs://B/out
    python -m pipelines.inpaint --pairs gs://B/pairs.csv --hole white --run gs://B/runs/a --output gs://B/out
    python -m pipelines.inpaint --images photos --holes color=#ff00ff --model exports/step-00000400 --output out

An image and its mask have the same path below their folders, but for the extension; --pairs lists them instead, as
CSV with the columns image and mask or as JSON lines; --holes finds holes in the images themselves. Masks are of the
image as viewers turn it. Outputs have the image's path, depth, channels, colour profile and orientation; in png and
webp valid pixels are kept bit for bit. Each input is a line of items.jsonl in the output folder, and of rejects.jsonl
if it could not be used; the exit code is then 3. A second run makes only what is not there yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from trainer.command import SOME_REJECTED, ArgumentParser, code_version, quiet_imports, run_command
from trainer.errors import UserError


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.inpaint", description=__doc__)
    add = parser.add_argument
    add("--images", help="image files: a file, a folder or a glob (local or gs://)")
    add("--masks", help="mask files, of the images' sizes")
    add("--pairs", help="list of images and masks instead of both: .csv or .jsonl; paths are relative to its folder")
    add("--holes", help="no masks: alpha (transparent pixels are holes) or color=#rrggbb[,tolerance 0 to 255]")
    add("--hole", metavar="black|white", help="colour of holes in mask files, if no manifest.json beside them does")
    add(
        "--match",
        default=None,
        metavar="stem|path|csv",
        help="masks have the image's path without extension (stem, default) or with it (path), or are in --pairs (csv)",
    )
    add("--resize-masks", action="store_true", help="bring masks of another size to the image's (nearest neighbour)")
    add("--run", help="folder of a training run")
    add("--checkpoint", help="of the run: best, latest or a step (default: best if there is one, else latest)")
    add("--model", help="instead of --run: an exported .keras file, or its folder")
    add("--output", required=True, help="folder for the outputs")
    add("--format", default="png", metavar="png|jpeg|webp", help="of the outputs; png (default) and webp are lossless")
    add("--quality", type=int, default=95, help="of JPEG outputs, 1 to 100 (default 95)")
    add("--overwrite", action="store_true", help="make all outputs again")
    add("--precision", help="float32, mixed_bfloat16 or mixed_float16 (default: as trained)")
    add("--device", default="auto", metavar="auto|cpu|gpu", help="of the network (default: a GPU if there is one)")
    add("--batch-size", type=int, help="images of 512 x 512 computed together (default 8 on a GPU, else 1)")
    add("--window", type=int, help="longest side computed at once (default twice the training crops', at most 1024)")
    add("--max-pixels", type=int, default=100_000_000, help="images with more are rejected (default 100 million)")
    return parser


def _check(ours: argparse.Namespace) -> None:
    """Raises `UserError` for options that do not go together."""
    if ours.pairs and (ours.images or ours.masks):
        raise UserError("--pairs: expected no --images and no --masks beside it")
    if not (ours.pairs or ours.images):
        raise UserError("expected --images or --pairs. Received neither.")
    if ours.holes and (ours.masks or ours.hole):
        raise UserError("--holes: expected no --masks and no --hole beside it")
    if ours.images and not (ours.masks or ours.holes):
        raise UserError("expected --masks or --holes. Received neither.")
    if (ours.match == "csv") != bool(ours.pairs) and ours.match:
        raise UserError("--match csv: expected together with --pairs, and no other with it")
    if bool(ours.run) == bool(ours.model):
        raise UserError("expected one of --run and --model")
    if ours.checkpoint and ours.model:
        raise UserError("--checkpoint: expected with --run alone")


def _check_values(ours: argparse.Namespace) -> None:
    from pipelines.inpainting.inputs import HOLES, MATCHES
    from trainer.config import PRECISIONS
    from trainer.images import FORMATS
    from trainer.images.rgb import PILLOWS_LIMIT
    from trainer.inference import DEVICES

    choices = {"hole": HOLES, "match": MATCHES, "format": FORMATS, "device": DEVICES, "precision": PRECISIONS}
    for name, allowed in choices.items():
        if getattr(ours, name) is not None and getattr(ours, name) not in allowed:
            raise UserError(f"--{name}: expected one of {allowed}. Received {getattr(ours, name)!r}.")
    if ours.batch_size is not None and ours.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more. Received {ours.batch_size}.")
    limits = {"quality": (1, 100), "window": (64, 8192), "max_pixels": (1, PILLOWS_LIMIT)}
    for name, (low, high) in limits.items():
        value, option = getattr(ours, name), name.replace("_", "-")
        if value is not None and not low <= value <= high:
            raise UserError(f"--{option}: expected {low} to {high}. Received {value}.")


def main(argv: Sequence[str]) -> int:
    with quiet_imports():
        import apache_beam as beam

        from pipelines.inpainting import inputs as pairs
        from pipelines.inpainting import outputs
        from pipelines.inpainting.job import InpaintFiles, Inputs, model_of
        from pipelines.inpainting.loading import Settings, parse_holes
        from pipelines.launch import parse_options, run_pipeline
        from pipelines.transforms.model_handler import FillModelHandler
        from trainer import storage
        from trainer.images import EXTENSIONS
        from trainer.inference import predict

    ours, options = parse_options(parser(), argv)
    _check(ours)
    _check_values(ours)
    output = storage.normalize(ours.output)
    holes = parse_holes(ours.holes) if ours.holes else None
    if ours.pairs:
        listed = storage.normalize(ours.pairs)
        found = pairs.read_pairs(listed)
        if not found:
            raise UserError(f"--pairs: {listed} lists no images")
        images, masks = ([pair[part] for pair in found] for part in (0, 1))
        inputs, patterns = Inputs(base=pairs.common_folder(images), listed=listed, match="csv"), {}
    else:
        given = {"--images": ours.images, "--masks": ours.masks}
        patterns = {name: storage.normalize(pattern) for name, pattern in given.items() if pattern}
        lists = {name: pairs.list_files(pattern) for name, pattern in patterns.items()}
        for name, files in lists.items():
            if not files:
                raise UserError(f"{name}: no files at {patterns[name]}")
        images, masks = lists["--images"], lists.get("--masks", [])
        inputs = Inputs(
            base=storage.base_of(patterns["--images"]),
            images=patterns["--images"],
            masks=patterns.get("--masks", ""),
            match=ours.match or "stem",
        )
    hole = ours.hole
    if holes is None:
        folder = storage.base_of(patterns["--masks"]) if "--masks" in patterns else pairs.shared_folder(masks)
        said = pairs.hole_of_folder(folder) if folder else None
        if hole is None and said is None:
            raise UserError("--hole: expected black or white, the colour of holes in mask files. Received nothing.")
        if hole and said and hole != said:
            raise UserError(f"--hole: the manifest.json of {folder} says {said!r}. Received {hole!r}.")
        hole = hole or said
    settings = Settings(
        hole=hole,
        holes=holes,
        resize_masks=ours.resize_masks,
        format=ours.format,
        quality=ours.quality,
        max_pixels=ours.max_pixels,
    )
    pairs.check_outputs([*images, *filter(None, masks)], patterns.values(), output, EXTENSIONS[ours.format])
    if ours.model:
        pin = predict.find_export(storage.normalize(ours.model))
    else:
        pin = predict.find_model(storage.normalize(ours.run), ours.checkpoint)
    computing = {"precision": ours.precision, "device": ours.device, "window": ours.window}
    handler = FillModelHandler(pin, ours.batch_size, **computing)
    parameters = {**dataclasses.asdict(settings), "precision": ours.precision or pin.config.precision}
    parameters["window"] = ours.window
    replaces = outputs.claim_output(output, {"model": model_of(pin), **parameters}, ours.overwrite)
    where = dataclasses.asdict(inputs)
    fields = {"code_version": code_version(), "model": model_of(pin), "parameters": {**where, **parameters}}

    def build(pipeline):
        records, rejects = pipeline | InpaintFiles(inputs, settings, output, handler, replaces, len(images))
        counted = records | beam.combiners.Count.Globally()
        before = (beam.pvalue.AsList(part) for part in (records, rejects))
        counted | "WriteOutcome" >> beam.Map(outputs.write_outcome, output, fields, *before)

    run_pipeline(options, build)
    counts = json.loads(storage.read(storage.join(output, pairs.MANIFEST)))["counts"]
    again = f", {counts['finished_before']} of them from an earlier run" if counts["finished_before"] else ""
    print(f"{counts['outputs']} inpainted images in {output}{again}")
    if counts["rejects"]:
        print(
            f"{counts['rejects']} of {counts['inputs']} inputs rejected, see {output}/{pairs.REJECTS}", file=sys.stderr
        )
        return SOME_REJECTED
    return 0


if __name__ == "__main__":
    run_command(main)
