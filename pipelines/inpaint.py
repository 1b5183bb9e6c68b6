"""Fills the holes of image files with a trained network.

    python -m pipelines.inpaint --images 'gs://B/in/**' --masks 'gs://B/holes/**' --hole black \\
        --run gs://B/runs/a --output gs://B/out
    python -m pipelines.inpaint --pairs gs://B/pairs.csv --hole white --run gs://B/runs/a --output gs://B/out
    python -m pipelines.inpaint --images photos --holes color=#ff00ff --model exports/step-00000400 --output out
    python -m pipelines.inpaint --images a.jpg --masks hole.png --hole white --model starter --output out

An image and its mask have the same path below their folders, except for the extension: the mask of a.jpg is a.png, or
a_mask.png (a-mask, a.mask, mask_a), or a.jpg.png; the holes of a_mask_1.png, a_mask_2.png are joined. One mask file is
the mask of all images. --pairs lists them instead, as CSV with the columns image and mask or as JSON lines, in one list
or a glob of many; --holes finds holes in the images themselves. Masks have the orientation in which viewers show the
image, and are read by what they hold: two gray levels, labels, paint, alpha; what is ambiguous is a reject that names
the option. An output has its image's path, depth, channels, colors (profile, gAMA, cHRM, cICP), orientation, density,
EXIF, XMP and texts, without thumbnails and makers' notes; in png and webp valid pixels are kept bit for bit. CMYK
becomes sRGB. Of several pages or frames the first is read. Each input is a line of items.jsonl in the output folder,
and of rejects.jsonl if it could not be used (of more than 50,000 images, of items-*-of-*.jsonl and so on, see
manifest.json); the exit code is then 3. A storage or a disk that fails is no reject: the job ends, exit code 1. A
second run computes only what is missing, damaged, or of files that have changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipelines.engines import RAY, choice
from pipelines.inpainting import MATCHES
from trainer import storage
from trainer.command import SOME_REJECTED, ArgumentParser, code_version, fraction, integer, quiet_imports, run_command
from trainer.config import PRECISIONS
from trainer.errors import UserError
from trainer.images import (
    EXTENSIONS,
    FORMATS,
    HOLE_LABEL_HELP,
    HOLES,
    MAX_PIXELS_HELP,
    MOST_PIXELS,
    THRESHOLD_HELP,
)
from trainer.inference import DEVICES
from trainer.storage import claims, recognize

if TYPE_CHECKING:
    from pipelines.inpainting.inputs import Inputs
    from pipelines.inpainting.loading import Settings
    from trainer.inference.pins import ModelPin


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.inpaint", description=__doc__)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--images", help="image files: a file, a folder or a glob (local or in a bucket)")
    images.add_argument("--pairs", help="list of images and masks, .csv or .jsonl, or glob; paths start at its folder")
    holes = parser.add_mutually_exclusive_group()
    holes.add_argument("--masks", help="mask files, with the sizes of the images: a file, a folder or a glob")
    holes.add_argument(
        "--holes",
        help="find holes in the images: alpha[,N] (pixels whose alpha is less than N, 1-255; default 255, all that can "
        "be seen through) or color=#rrggbb[,tolerance 0-255]",
    )
    add_network(parser)
    add = parser.add_argument
    add("--output", required=True, help="folder for the outputs")
    add(
        "--hole",
        choices=HOLES,
        help="what marks holes in mask files: black or white, the lower or the higher of two gray levels, whatever "
        "they are; or transparent or opaque (default: as stated in their manifest.json)",
    )
    add("--hole-label", help=HOLE_LABEL_HELP)
    add("--threshold", type=fraction, help=THRESHOLD_HELP.format("0.5"))
    add(
        "--grow",
        type=integer(0, 1024),
        default=0,
        help="grow all holes by so many pixels of the image, in a circle around each of their pixels (default 0)",
    )
    add(
        "--match",
        choices=MATCHES,
        help="a mask is named after its image (stem: a.png, a_mask.png or a.jpg.png for a.jpg), has its path and "
        "extension (path), is one for all images (one), or is listed in --pairs (csv) (default: csv with --pairs, one "
        "if --masks is a file, else stem)",
    )
    add("--resize-masks", action="store_true", help="resize masks of another size to the image's (nearest neighbor)")
    add(
        "--format",
        type=_parse_format,
        default="png",
        choices=FORMATS,
        help="format of the outputs; png (default) and webp are lossless",
    )
    add(
        "--pack",
        choices=("tar",),
        help="write outputs into tars of WebDataset's layout, packs/*.tar, which manifest.json names, instead of a "
        "file each; a job that is writing there ends",
    )
    add("--pack-mb", type=integer(1, 1000), help="with --pack: MB of a tar, at most about (default 100)")
    add("--quality", type=integer(1, 100), default=95, help="JPEG quality, 1-100 (default 95)")
    add("--overwrite", action="store_true", help="compute all outputs again; a job that is writing there ends")
    add_computing(parser)
    add("--batch-size", type=integer(1), help="images of 512 x 512 computed together (default: 8 on a GPU, else 1)")
    choice.add_options(parser)
    return parser


def add_network(parser: ArgumentParser) -> None:
    """Adds the options that name the network."""
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", help="folder of a training run")
    network.add_argument(
        "--model",
        help="an exported .keras file, or its folder; or starter, the small model that comes with this package",
    )
    parser.add_argument(
        "--checkpoint", help="checkpoint of the run: best, latest or a step (default: best if there is one)"
    )


def add_computing(parser: ArgumentParser) -> None:
    """Adds the options of what is computed with the network, and of how much."""
    add = parser.add_argument
    add("--precision", choices=PRECISIONS, help="precision of the network (default: as trained)")
    add("--device", default="auto", choices=DEVICES, help="device to compute on (default auto: a GPU if there is one)")
    add(
        "--window",
        type=integer(64, 8192),
        help="longest side computed at once, in pixels (default: twice the side of the training crops, at most 1024)",
    )
    add("--max-pixels", type=integer(1, MOST_PIXELS), default=100_000_000, help=MAX_PIXELS_HELP)


def check_network(ours: argparse.Namespace) -> None:
    """Raises `UserError` for options that name it and contradict each other."""
    if ours.checkpoint and ours.model:
        raise UserError("--checkpoint: cannot be combined with --model")


def _parse_format(text: str) -> str:
    return {"jpg": "jpeg"}.get(text.lower(), text.lower())


def _check(ours: argparse.Namespace) -> None:
    """Raises `UserError` for options that contradict each other."""
    if ours.pairs and ours.masks:
        raise UserError("--masks: cannot be combined with --pairs, which lists the masks")
    for name in ("hole", "hole_label", "threshold"):
        if ours.holes and getattr(ours, name) is not None:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: cannot be combined with --holes, which needs no mask files")
    if ours.hole and ours.hole_label:
        raise UserError("--hole-label: cannot be combined with --hole, in whose place it says what marks holes")
    if ours.images and not (ours.masks or ours.holes):
        raise UserError("--images: also needs --masks or --holes")
    if ours.match and (ours.match == "csv") != bool(ours.pairs):
        raise UserError("--match: csv goes with --pairs, and all others go without")
    if ours.pack_mb and not ours.pack:
        raise UserError("--pack-mb: expected with --pack, of whose tars it is the size")
    if ours.pack and ours.engine == RAY:
        raise UserError("--pack: expected without --engine ray, which writes each output into a file of its own")
    check_network(ours)


def _make_settings(ours: argparse.Namespace, where: Inputs, masks: Iterable[str]) -> Settings:
    from pipelines.inpainting.inputs import resolve_hole
    from pipelines.inpainting.loading import BY_CONTENT, Settings, parse_holes

    settings = Settings(
        hole=None if ours.holes or ours.hole_label else resolve_hole(ours.hole, where, masks),
        hole_label=ours.hole_label,
        threshold=ours.threshold,
        mask_reading=None if ours.holes else BY_CONTENT,
        holes=parse_holes(ours.holes) if ours.holes else None,
        grow=ours.grow or None,
        resize_masks=ours.resize_masks,
        format=ours.format,
        quality=ours.quality,
        max_pixels=ours.max_pixels,
    )
    try:
        _ = settings.holes or settings.reading
    except ValueError as error:
        raise UserError(f"--hole-label: {error}") from None
    return settings


def find_network(ours: argparse.Namespace) -> ModelPin:
    """The network that the options name, fixed. Raises `UserError` if there is none."""
    from trainer.inference import pins

    if ours.model:
        return pins.find_given(ours.model)
    return pins.find_model(storage.normalize(ours.run), ours.checkpoint)


def _report(output: str) -> int:
    """Prints the counts of a finished job; returns the exit code."""
    from pipelines.inpainting.inputs import MANIFEST, REJECTS
    from trainer.documents import COUNTED

    report = COUNTED.read(storage.join(output, MANIFEST))
    counts = report.counts
    holeless = f", {counts['without_holes']} without holes" if counts["without_holes"] else ""
    earlier = f"; {counts['finished_before']} of them from an earlier run" if counts["finished_before"] else ""
    several = counts.get("several_frames", 0)
    frames = f"; {several} with further pages or frames, which are not read" if several else ""
    images = f"{counts['outputs']} image{'' if counts['outputs'] == 1 else 's'}"
    print(f"{images}: {counts['outputs'] - counts['without_holes']} inpainted{holeless}{earlier}{frames}; {output}")
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not counts["rejects"]:
        return 0
    where = f"{output}/{REJECTS if storage.exists(storage.join(output, REJECTS)) else 'rejects-*.jsonl'}"
    print(f"{counts['rejects']} of {counts['inputs']} inputs rejected, see {where}", file=sys.stderr)
    return SOME_REJECTED


def main(argv: Sequence[str]) -> int:
    ours, engine = choice.parse_options(parser(), argv)
    with quiet_imports():
        from pipelines.inpainting.inputs import Sources, check_outputs, find_inputs
        from pipelines.inpainting.job import Inpainting
        from pipelines.inpainting.outputs import claim_output, open_books
        from pipelines.inpainting.reports import Reporting
        from pipelines.transforms.model_handler import FillModelHandler

    _check(ours)
    output = storage.normalize(ours.output)
    recognize.require_folder("--output", output)
    where, pairs = find_inputs(ours.images, ours.masks, ours.pairs, ours.match)
    settings = _make_settings(ours, where, (mask for _, mask in pairs if mask))
    files = (address for pair in pairs for address in pair if address)
    check_outputs(files, where.patterns, output, EXTENSIONS[settings.format])
    network = find_network(ours)
    model = {"address": network.checkpoint.address, "crc32c": network.checkpoint.crc32c}
    parameters = {
        **dataclasses.asdict(settings),
        "precision": ours.precision or network.config.precision,
        "window": ours.window,
    }
    if ours.pack:
        parameters["pack"] = ours.pack
    description = {"model": model, **parameters}
    claim = claim_output(output, description, ours.overwrite, alone=bool(ours.pack))
    fields = {
        "code_version": code_version(),
        "model": model,
        "parameters": {**dataclasses.asdict(where), **parameters},
    }
    job = Inpainting(
        sources=Sources.find(where, output),
        settings=settings,
        handler=FillModelHandler(
            network, ours.batch_size, precision=ours.precision, device=ours.device, window=ours.window
        ),
        replaces=claim.is_own,
        reporting=Reporting(
            books=open_books(output), job=description, fields=fields, claim=claim, packs=bool(ours.pack)
        ),
        pack_bytes=(ours.pack_mb or 100) * 1_000_000 if ours.pack else None,
    )
    with claims.held(claim, goes_on=not engine.waits):
        engine.inpaint(job)
    return _report(output) if engine.waits else 0


if __name__ == "__main__":
    run_command(main)
