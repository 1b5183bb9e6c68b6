"""The whole chain on this machine, from a folder of photographs to inpainted pictures.

    python -m pipelines.demo --output demo

Runs the five stage commands, printing each, on bundled photographs: draws masks, writes records,
trains a small network with two Ray workers, inpaints photographs that were not trained on, scores
it beside methods that need no training, and ends with OUTPUT/report/report.html: tables, curves and
pictures in one page. OUTPUT/report.png shows whole photographs. What an earlier demo left in OUTPUT
is removed first.
"""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.errors import UserError
from trainer.presets import resolve_config

PHOTOS = Path(__file__).parent / "photos"
FOLDERS = ("masks", "test-masks", "records", "run", "pictures", "holes", "inpainted", "report")
STAGES = 6
PICTURE_SIDE = 256  # shorter side of the pictures that are inpainted
HOLE_RATIO = (0.2, 0.3)


class Score(NamedTuple):
    """PSNR inside the holes, in dB, of one photograph."""

    name: str
    hole_ratio: float
    network: float
    telea: float
    mean: float


def stage(number: int, title: str) -> None:
    print(f"\n[{number}/{STAGES}] {title}", flush=True)


def run_stage(module: str, *arguments: str) -> None:
    """Runs one stage command as its own process.

    Raises:
        UserError: it failed; what went wrong has been printed by then.
    """
    command = ["python", "-m", module, *arguments]
    print(f"$ {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command[1:]]).returncode
    if code:
        raise UserError(f"{module} ended with exit code {code}")


def write_pictures(output: Path) -> list[str]:
    """Scales the held-out photographs and draws a mask file for each; returns their names."""
    import cv2

    from masks.codec import encode_mask
    from masks.sampling import MaskSpec, sample_mask
    from trainer.images import rgb

    names = []
    for index, path in enumerate(sorted(glob.glob(str(PHOTOS / "val" / "*" / "*.jpg")))):
        photo = rgb.decode_rgb(Path(path).read_bytes())
        scale = PICTURE_SIDE / min(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = photo.shape[:2]
        spec = MaskSpec(generator="shapes", height=height, width=width, hole_ratio=HOLE_RATIO, seed=2)
        name = f"{Path(path).stem}.png"
        (output / "pictures" / name).write_bytes(rgb.encode_png(photo))
        (output / "holes" / name).write_bytes(encode_mask(sample_mask(spec, index)))
        names.append(name)
    return names


def compare(output: Path, names: Sequence[str]) -> list[Score]:
    """Draws ``report.png`` of the inpainted pictures and scores them."""

    from masks.codec import decode_mask
    from masks.coverage import hole_ratio
    from pipelines.report import draw_report, show_holes
    from trainer.images import rgb
    from trainer.inference.baselines import fill_mean, fill_telea
    from trainer.metrics.intervals import score

    rows, scores = [], []
    for name in names:
        target = rgb.decode_rgb((output / "pictures" / name).read_bytes())
        mask = decode_mask((output / "holes" / name).read_bytes())
        network = rgb.decode_rgb((output / "inpainted" / name).read_bytes())
        filled = [network, fill_telea(target, mask), fill_mean(target, mask)]
        scores.append(Score(name, hole_ratio(mask), *(score(p, target, mask)["psnr_holes"] for p in filled)))
        last = scores[-1]
        captions = [f"{last.hole_ratio:.0%} holes", f"{last.network:.1f} dB in holes", Path(name).stem]
        captions.append(f"{last.telea:.1f} dB in holes")
        rows.append(([show_holes(target, mask), network, target, filled[1]], captions))
    title = "Photographs that the network was not trained on"
    sheet = draw_report(title, ["with holes", "inpainted", "target", "Telea (OpenCV)"], rows)
    sheet.save(output / "report.png")
    return scores


def print_scores(scores: Sequence[Score]) -> None:
    print(f"\n{'PSNR inside the holes, dB':28}{'holes':>7}{'network':>10}{'Telea':>8}{'mean colour':>13}")
    for s in scores:
        print(f"{s.name:28}{s.hole_ratio:7.0%}{s.network:10.2f}{s.telea:8.2f}{s.mean:13.2f}")


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--output", default="demo", help="folder for all that the demo makes (default demo)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to trainer.train; repeatable"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    ours = parser().parse_args(argv)
    begin = time.monotonic()
    output = Path(ours.output).expanduser()
    resolve_config("demo", ours.set)  # a wrong --set is told before the first stage
    try:
        for name in FOLDERS:
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("pictures", "holes"):
            os.makedirs(output / name)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None
    at = {name: str(output / name) for name in FOLDERS}

    stage(1, "Draw hole masks")
    size = ["--size", "128"]
    run_stage("pipelines.build_masks", "--output", at["masks"], "--count", "6000", *size)
    test_masks = ["--count", "48", "--stratify", *size, "--split", "val", "--seed", "1"]
    run_stage("pipelines.build_masks", "--output", at["test-masks"], *test_masks)

    stage(2, "Turn photographs into records")
    run_stage("pipelines.build_imagenet", "--input", str(PHOTOS), "--split", "train,val", "--output", at["records"])

    stage(3, "Train the network with two Ray workers")
    settings = [part for assignment in ours.set for part in ("--set", assignment)]
    data = ["--images", at["records"], "--masks", at["masks"], "--run", at["run"]]
    run_stage("trainer.train", "--preset", "demo", *settings, *data)

    stage(4, "Inpaint photographs that were not trained on")
    with quiet_imports():
        names = write_pictures(output)
    files = ["--images", at["pictures"], "--masks", at["holes"], "--hole", "black"]
    run_stage("pipelines.inpaint", *files, "--run", at["run"], "--output", at["inpainted"])

    stage(5, "Draw photographs as they are, with holes, and inpainted")
    with quiet_imports():
        scores = compare(output, names)
    print_scores(scores)
    print(f"{output / 'report.png'}")

    stage(6, "Score it by hole ratio on records that were not trained on")
    data = ["--images", at["records"], "--masks", at["test-masks"], "--run", at["run"]]
    run_stage("pipelines.evaluate", *data, "--output", at["report"])
    page = (output / "report" / "report.html").resolve()
    print(f"\nOpen {page.as_uri()} in a browser.  ({time.monotonic() - begin:.0f} s)")
    if worse := [s.name for s in scores if s.network <= s.mean]:
        print(f"the network did not beat the mean colour on {', '.join(worse)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
