"""Scores trained networks on image and mask records, beside methods that need no training.

    python -m pipelines.evaluate --images gs://B/imagenet --masks gs://B/test-masks --run gs://B/runs/a \\
        --output gs://B/report

Writes report.html (tables, curves and images in one file that needs no network), table.md, metrics.json
and pairs.jsonl; the same command replaces them, --overwrite those of another evaluation. With --hole, or
--pairs, image files are scored with their own mask files, found as by pipelines.inpaint. --run RUN takes a
run's newest checkpoint, RUN@best its best, RUN@400 that of step 400, MODEL.keras an export, starter the model
that comes with this package; NAME=RUN names it; a run called me@work or lr=0.1 is meant by its name. --run,
or --model, may be given several times: differences to the first network, with their standard errors, are of
the same pairs. The same datasets, networks and seed give the same numbers on any runner. A pair that a method
gives no finite image for counts as failed and enters no mean; the exit code is then 3. A storage or a disk that
fails is no such pair: the job ends, exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.engines import choice
from trainer.command import SOME_REJECTED, ArgumentParser, code_version, fraction, integer, quiet_imports, run_command
from trainer.errors import UserError
from trainer.images import HOLE_LABEL_HELP, HOLES, MAX_PIXELS_HELP, MOST_PIXELS, THRESHOLD_HELP

if TYPE_CHECKING:
    from pipelines.evaluation.file_pairs import FilePairs
    from pipelines.evaluation.job import Job
    from pipelines.evaluation.rounds import Weights

ALL = "all"  # of --per-cell
_OF_MASK_FILES = ("hole", "hole_label", "threshold")  # options that only these need


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.evaluate", description=__doc__)
    add = parser.add_argument
    add("--images", help="dataset of image records, or image files: a file, a folder or a glob (local or in a bucket)")
    add(
        "--masks",
        help="dataset of mask records; images are cropped and resized to the masks' size. Or with --hole: mask files, "
        "each of the image that it is named after, as in pipelines.inpaint; images keep their size",
    )
    add("--pairs", help="list of image files and mask files, .csv or .jsonl, instead of --images and --masks")
    add("--hole", choices=HOLES, help="what marks holes in mask files (default: as stated in their manifest.json)")
    add("--hole-label", help=HOLE_LABEL_HELP)
    add("--threshold", type=fraction, help=THRESHOLD_HELP.format("0.5"))
    add(
        "--run",
        "--model",
        dest="run",
        required=True,
        action="append",
        help="[NAME=]RUN[@CHECKPOINT], [NAME=]MODEL.keras, or [NAME=]starter, the small model that comes with this "
        "package; repeatable",
    )
    add("--output", required=True, help="folder for the report")
    add("--split", default="val", help="split of the image records (default val)")
    add("--mask-split", default="val", help="split of the mask records (default val)")
    add(
        "--per-cell",
        type=_per_cell,
        metavar="N|all",
        help="pairs in each cell of hole-ratio interval and border class (default: the size of the smallest cell)",
    )
    add("--max-pixels", type=integer(1, MOST_PIXELS), help=MAX_PIXELS_HELP)
    add("--seed", type=int, default=0, help="seed of the pairing of masks with images (default 0)")
    add(
        "--baseline",
        type=_baselines,
        default="telea,ns,mean",
        help="comma-separated methods to score as well: telea, ns, mean, interpolation, patchmatch (default "
        "telea,ns,mean)",
    )
    add("--published", action="store_true", help="also show the paper's published scores (different data)")
    add("--lpips", metavar="FILE", help="LPIPS weights (.npz or .pth); LPIPS is skipped if not given")
    add("--fid", metavar="FILE", help="FID weights (.npz or .pth); FID is skipped if not given")
    add("--batch-size", type=_batch_size, help="pairs per batch (default: what suits the device)")
    add("--overwrite", action="store_true", help="replace the report of another evaluation")
    choice.add_options(parser)
    return parser


def _per_cell(text: str) -> str:
    if text != ALL and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected 1 or more, or {ALL}. Received {text}.")
    return text


def _baselines(text: str) -> tuple[str, ...]:
    from trainer.inference.baselines import BASELINES, EXTRAS

    names = tuple(dict.fromkeys(name for name in text.split(",") if name))
    if wrong := [name for name in names if name not in BASELINES]:
        raise argparse.ArgumentTypeError(f"expected names of {sorted(BASELINES)}. Received {wrong[0]!r}.")
    for name in EXTRAS.keys() & set(names):
        if importlib.util.find_spec(EXTRAS[name]) is None:
            raise argparse.ArgumentTypeError(f"{name} is an optional package: pip install 'pconv[{name}]'.")
    return names


def _batch_size(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected 1 or more. Received {text}.")
    return int(text)


def _load_weights(ours: argparse.Namespace) -> dict[str, Weights | None]:
    """Address and checksum of each metric's weights; loads them too, so that errors appear at launch."""
    from pipelines.evaluation.rounds import Weights
    from trainer import storage
    from trainer.metrics.fid import load_inception
    from trainer.metrics.lpips import load_lpips

    found: dict[str, Weights | None] = {"lpips": None, "fid": None}
    for name, load in (("lpips", load_lpips), ("fid", load_inception)):
        if given := getattr(ours, name):
            address = storage.normalize(given)
            weights = found[name] = Weights(address, storage.checksum(address))
            load(*weights)
    return found


def _find_files(ours: argparse.Namespace) -> FilePairs | None:
    """Pairs of files, None where masks are records; raises `UserError` for what is missing or does not fit."""
    from masks.codec import MAX_PIXELS
    from pipelines.evaluation.file_pairs import FilePairs
    from pipelines.inpainting.inputs import find_inputs, resolve_hole
    from pipelines.inpainting.loading import BY_CONTENT, Settings
    from trainer import storage
    from trainer.data.manifest import explain_missing
    from trainer.storage import recognize

    if ours.hole and ours.hole_label:
        raise UserError("--hole-label: cannot be combined with --hole, in whose place it says what marks holes")
    if bool(ours.pairs) == bool(ours.images and ours.masks) or (ours.pairs and (ours.images or ours.masks)):
        raise UserError("expected --images and --masks, or --pairs")
    if not ours.pairs:
        selected, kind = storage.select(ours.masks), recognize.look(ours.masks).kind
        if not selected.glob and kind not in ("image", "images"):
            given = [f"--{name.replace('_', '-')}" for name in _OF_MASK_FILES if getattr(ours, name) is not None]
            if given and kind == "dataset":
                raise UserError(f"{given[0]}: expected with mask files. Received a dataset of mask records.")
            return None
        if recognize.look(ours.images).kind == "dataset":  # which has no names that masks could be found by
            raise explain_missing(selected.address, "mask")
    if ours.per_cell:
        raise UserError("--per-cell: expected with a dataset of masks; of files all pairs are scored")
    where, pairs = find_inputs(ours.images, ours.masks, ours.pairs)
    masks = [mask for _, mask in pairs if mask]
    settings = Settings(
        hole=None if ours.hole_label else resolve_hole(ours.hole, where, masks),
        hole_label=ours.hole_label,
        threshold=ours.threshold,
        mask_reading=BY_CONTENT,
        max_pixels=ours.max_pixels or MAX_PIXELS,
    )
    try:
        _ = settings.reading
    except ValueError as error:
        raise UserError(f"--hole-label: {error}") from None
    return FilePairs.find(where, settings)


def _make_job(ours: argparse.Namespace) -> Job:
    """The job that the options describe; raises `UserError` for what is missing or does not fit."""
    from masks.codec import MAX_PIXELS
    from pipelines.evaluation.job import FILES, Data, Job
    from pipelines.evaluation.methods import find_networks
    from pipelines.evaluation.pairing import ALL_MASKS
    from pipelines.launch import require_apart
    from trainer import storage
    from trainer.inference.baselines import BASELINES
    from trainer.storage import recognize

    data: Data | FilePairs = _find_files(ours) or Data.find(
        ours.images, ours.split, ours.masks, ours.mask_split, ours.seed
    )
    networks = find_networks(ours.run)
    if wrong := [network.name for network in networks if network.name in BASELINES]:
        raise UserError(f"--run: expected another name than a baseline's (NAME=ADDRESS). Received {wrong[0]!r}.")
    weights = _load_weights(ours)
    output = storage.normalize(ours.output)
    recognize.require_folder("--output", output)
    files = {"--images": None if isinstance(data, Data) and data.images else ours.images}
    files |= {"--masks": None if isinstance(data, Data) else ours.masks}
    require_apart(output, files, FILES)
    storage.require_writable(output)
    parameters = {"seed": ours.seed, "per_cell": ours.per_cell, "batch_size": ours.batch_size}
    parameters |= {"max_pixels": ours.max_pixels} if ours.max_pixels else {}
    return Job(
        data=data,
        networks=tuple(networks),
        baselines=ours.baseline,
        per_cell=ALL_MASKS if ours.per_cell == ALL else ours.per_cell and int(ours.per_cell),
        seed=ours.seed,
        batch_size=ours.batch_size,
        max_pixels=ours.max_pixels or MAX_PIXELS,
        output=output,
        published=ours.published,
        lpips=weights["lpips"],
        fid=weights["fid"],
        fields={"code_version": code_version(), "data": data.describe(), "parameters": parameters},
    )


def _show(output: str) -> int:
    """Prints the table of a finished report; returns the exit code."""
    from pipelines.evaluation.job import METRICS
    from trainer import storage
    from trainer.documents import COUNTED

    counts = COUNTED.read(storage.join(output, METRICS)).counts
    print(storage.read(storage.join(output, "table.md")).decode().partition("\n## By border")[0])
    print(f"{counts['pairs']} pairs of {counts['masks']} masks; {output}/report.html")
    if counts["failed"]:
        print(f"{counts['failed']} of {counts['rows']} images failed, see {output}/pairs.jsonl", file=sys.stderr)
        return SOME_REJECTED
    return 0


def main(argv: Sequence[str]) -> int:
    ours, engine = choice.parse_options(parser(), argv)
    with quiet_imports():  # Keras, for seconds: --help does without
        from pipelines.evaluation.earlier import require_same
        from pipelines.evaluation.job import FILES, METRICS
        from trainer import storage
        from trainer.storage import claims

    job = _make_job(ours)
    require_same(job, ours.overwrite)
    job = dataclasses.replace(job, claim=claims.take(job.output, replaces=True))
    storage.sweep(job.output, FILES.__contains__)
    storage.delete(storage.join(job.output, METRICS))  # an earlier one's: without it there is no report
    with claims.held(job.claim, goes_on=not engine.waits):
        engine.evaluate(job)
    return _show(job.output) if engine.waits else 0


if __name__ == "__main__":
    run_command(main)
