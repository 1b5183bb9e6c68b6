"""The whole chain on this machine, from a folder of photographs to inpainted images.

    python -m pipelines.demo --output demo

Runs the five stage commands on bundled photographs, printing each command: draws masks, writes
image records, trains a small network on two cores with Ray, inpaints photographs that the network
has never seen, and scores it beside the starter model and methods that need no training.
OUTPUT/report/report.html has tables, curves and images in one page; OUTPUT/report.png shows whole
photographs. What an earlier demo left in OUTPUT is removed first; a folder with anything else of
these names is refused.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer import stopping
from trainer.command import ArgumentParser, code_version, quiet_imports, run_command
from trainer.errors import UserError
from trainer.presets import resolve_config

PHOTOS = Path(__file__).parent / "photos"
STAGES = 6
MARK = "demo.json"  # says that a folder is the demo's
_SET = r"(train|val)-\d{5}-of-\d{5}\.tfrecord|manifest\.json|contact_sheet\.png|rejects/(train|val)\.jsonl"
# What the stages write into their folders, as patterns of paths; hidden files are whatever they are.
WRITES = {
    **dict.fromkeys(("masks", "test-masks", "records"), _SET),
    "run": r"(checkpoints|logs|exports)/.*|(config|data|summary)\.json",
    **dict.fromkeys(("pictures", "holes"), "{photo}"),
    **dict.fromkeys(("inpainted", "inpainted-starter"), r"manifest\.json|(items|rejects)\.jsonl|{photo}"),
    "report": r"pairs\.jsonl|metrics\.json|table\.md|report\.html",
}
MASKS = 6000  # to train with
MASK_SIZE = "128"  # side of masks, hence of the images that are trained on and scored
SHORT_SIDE = 256  # of the photographs that are inpainted whole
HOLE_RATIO = (0.2, 0.3)

# The contact sheet: pixels, and colors in RGB.
CELL_WIDTH, GAP, CAPTION = 300, 12, 22
BACKGROUND, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)


class Score(NamedTuple):
    """PSNR inside the holes of one photograph, in dB, by method."""

    name: str
    hole_ratio: float
    network: float
    starter: float
    telea: float
    mean: float


def stage(number: int, title: str) -> None:
    print(f"\n[{number}/{STAGES}] {title}", flush=True)


def run_stage(module: str, *arguments: str) -> None:
    """Runs one stage command in a process of its own, which ends when the demo is interrupted.

    Raises:
        SystemExit: it was interrupted, or both. It has said so.
        UserError: the command failed. It has printed why.
    """
    command = ["python", "-m", module, *arguments]
    print(f"$ {shlex.join(command)}", flush=True)
    with stopping.start_bound([sys.executable, *command[1:]]) as process:
        try:
            code = process.wait()
        except stopping.Interrupted as interrupt:
            process.send_signal(interrupt.number)
            if (code := process.wait()) <= 128:  # it was about to end anyway
                raise
    if code > 128:
        sys.exit(code)
    if code:
        raise UserError(f"{module} ended with exit code {code}")


def make_folders(output: Path) -> None:
    """Removes what an earlier demo left, and makes the folders that this module itself writes to.

    Raises:
        UserError: what is there is not the demo's, or the folder cannot be written to.
    """
    require_own(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / MARK).write_text(json.dumps({"made_by": "pipelines.demo", "code_version": code_version()}) + "\n")
        for name in WRITES:
            shutil.rmtree(output / name, ignore_errors=True)
        for name in ("pictures", "holes"):
            (output / name).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None


def require_own(output: Path) -> None:
    """Raises `UserError` if a demo would remove or replace what no demo has made; the message names the first file."""
    there = [name for name in (*WRITES, "report.png") if os.path.lexists(output / name)]
    if there and not is_marked(output):
        raise UserError(f"--output: expected a folder of the demo's. Received {output}, which holds {there[0]}.")
    photos = "(" + "|".join(re.escape(path.stem) for path in PHOTOS.glob("val/*/*.jpg")) + r")\.png"
    for name in there:
        folder, writes = output / name, WRITES.get(name, "")
        paths = [] if folder.is_symlink() else [path for path in folder.rglob("*") if not path.is_dir()]
        for path in [folder] if folder.is_symlink() else sorted(paths):
            below = path.relative_to(folder).as_posix()
            if path == folder or not re.fullmatch(writes.replace("{photo}", photos) + r"|(.*/)?\..*", below, re.DOTALL):
                raise UserError(f"--output: {path} is not of the demo: move it away, or choose another folder")


def is_marked(output: Path) -> bool:
    """Whether a demo has made the folder; those of earlier versions are known by the masks that they begin with."""

    def read(name: str) -> dict:
        try:
            found = json.loads((output / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    masks = read("masks/manifest.json").get("parameters")
    is_old = isinstance(masks, dict) and (masks.get("count"), masks.get("height")) == (MASKS, int(MASK_SIZE))
    return is_old or read(MARK).get("made_by") == "pipelines.demo"


def draw_masks(output: Path) -> None:
    """Masks to train with, and as many of each hole-ratio interval and border class to score with."""
    command = ("pipelines.build_masks", "--size", MASK_SIZE)
    run_stage(*command, "--count", str(MASKS), "--output", str(output / "masks"))
    stratified = ("--count", "48", "--stratify", "--split", "val", "--seed", "1")
    run_stage(*command, *stratified, "--output", str(output / "test-masks"))


def train(output: Path, assignments: Sequence[str]) -> None:
    settings = [part for assignment in assignments for part in ("--set", assignment)]
    data = ("--images", str(output / "records"), "--masks", str(output / "masks"))
    run_stage("trainer.train", "--preset", "demo", *settings, *data, "--run", str(output / "run"))


def write_images(output: Path) -> list[str]:
    """Scales the held-out photographs and draws a mask file for each; returns the names of both."""
    import cv2

    from masks.codec import encode_mask
    from masks.sampling import MaskSpec, sample_mask
    from trainer.images import rgb

    names = []
    for index, path in enumerate(sorted(PHOTOS.glob("val/*/*.jpg"))):
        photo = rgb.decode_rgb(path.read_bytes())
        scale = SHORT_SIDE / min(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = photo.shape[:2]
        spec = MaskSpec(generator="shapes", height=height, width=width, hole_ratio=HOLE_RATIO, seed=2)
        name = f"{path.stem}.png"
        (output / "pictures" / name).write_bytes(rgb.encode_png(photo))
        (output / "holes" / name).write_bytes(encode_mask(sample_mask(spec, index)))
        names.append(name)
    return names


def inpaint(output: Path) -> list[str]:
    """Fills the holes of the held-out photographs; returns their names."""
    with quiet_imports():
        names = write_images(output)
    files = ("--images", str(output / "pictures"), "--masks", str(output / "holes"), "--hole", "black")
    run_stage("pipelines.inpaint", *files, "--run", str(output / "run"), "--output", str(output / "inpainted"))
    run_stage("pipelines.inpaint", *files, "--model", "starter", "--output", str(output / "inpainted-starter"))
    return names


def compare(output: Path, names: Sequence[str]) -> list[Score]:
    """Scores the inpainted photographs and draws them as ``report.png``."""
    from masks.codec import decode_mask
    from masks.coverage import hole_ratio
    from trainer.images import rgb
    from trainer.inference.baselines import fill_mean, fill_telea
    from trainer.metrics.intervals import score

    rows, scores = [], []
    for name in names:
        target = rgb.decode_rgb((output / "pictures" / name).read_bytes())
        mask = decode_mask((output / "holes" / name).read_bytes())
        network, starter = (
            rgb.decode_rgb((output / folder / name).read_bytes()) for folder in ("inpainted", "inpainted-starter")
        )
        telea, mean = fill_telea(target, mask), fill_mean(target, mask)
        psnr = [score(filled, target, mask)["psnr_holes"] for filled in (network, starter, telea, mean)]
        scores.append(Score(name, hole_ratio(mask), *psnr))
        captions = [f"{hole_ratio(mask):.0%} holes", *(f"{value:.1f} dB in holes" for value in psnr[:3])]
        rows.append(([show_holes(target, mask), network, starter, telea, target], [*captions, Path(name).stem]))
    title = "Photographs that neither network has seen"
    columns = ["with holes", "trained here", "starter model", "Telea (OpenCV)", "target"]
    draw_sheet(title, columns, rows).save(output / "report.png")
    return scores


def show_holes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, uint8 [height, width, 3], with its holes in white."""
    return np.where(mask[..., None] == 1, image, np.uint8(255))


def draw_sheet(
    title: str, columns: Sequence[str], rows: Sequence[tuple[Sequence[np.ndarray], Sequence[str]]]
) -> Image.Image:
    """A contact sheet in RGB.

    Args:
        title: one line above it.
        columns: headings.
        rows: for each photograph its images, uint8 [height, width, 3], and a caption below each.

    Raises:
        ValueError: a row does not have one image and one caption per column.
    """
    heights = [round(CELL_WIDTH * images[0].shape[0] / images[0].shape[1]) for images, _ in rows]
    width = GAP + len(columns) * (CELL_WIDTH + GAP)
    top = 2 * GAP + 2 * CAPTION
    sheet = Image.new("RGB", (width, top + sum(height + CAPTION + GAP for height in heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, INK, large)
    lefts = [GAP + i * (CELL_WIDTH + GAP) for i in range(len(columns))]
    for left, heading in zip(lefts, columns, strict=True):
        draw.text((left, GAP + CAPTION + 4), heading, INK, small)
    y = top
    for height, (images, captions) in zip(heights, rows, strict=True):
        for left, image, caption in zip(lefts, images, captions, strict=True):
            scaled = Image.fromarray(image).resize((CELL_WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left, y))
            draw.text((left, y + height + 2), caption, FAINT, small)
        y += height + CAPTION + GAP
    return sheet


def print_scores(scores: Sequence[Score]) -> None:
    print(f"\n{'PSNR inside the holes, dB':28}{'holes':>7}{'network':>10}{'starter':>9}{'Telea':>8}{'mean color':>13}")
    for s in scores:
        print(f"{s.name:28}{s.hole_ratio:7.0%}{s.network:10.2f}{s.starter:9.2f}{s.telea:8.2f}{s.mean:13.2f}")


def evaluate(output: Path) -> None:
    data = ("--images", str(output / "records"), "--masks", str(output / "test-masks"))
    networks = ("--run", f"network={output / 'run'}", "--run", "starter")
    methods = ("--baseline", "telea,ns,mean,interpolation")
    run_stage("pipelines.evaluate", *data, *networks, *methods, "--output", str(output / "report"))


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--output", default="demo", help="folder for everything the demo makes (default demo)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to trainer.train; repeatable"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    ours = parser().parse_args(argv)
    begin = time.monotonic()
    output = Path(ours.output).expanduser()
    resolve_config("demo", ours.set)  # reports a wrong --set before the first stage
    make_folders(output)

    stage(1, "Draw hole masks")
    draw_masks(output)
    stage(2, "Turn photographs into records")
    records = str(output / "records")
    run_stage("pipelines.build_imagenet", "--input", str(PHOTOS), "--split", "train,val", "--output", records)
    stage(3, "Train the network on two cores with Ray")
    train(output, ours.set)
    stage(4, "Inpaint photographs that the network has never seen")
    names = inpaint(output)
    stage(5, "Show them as they are, with holes, and inpainted")
    with quiet_imports():
        scores = compare(output, names)
    print_scores(scores)
    print(output / "report.png")
    stage(6, "Score the network by hole ratio on records it has never seen")
    evaluate(output)

    page = (output / "report" / "report.html").resolve()
    print(f"\nOpen {page.as_uri()} in a browser.  ({time.monotonic() - begin:.0f} s)")
    if worse := [s.name for s in scores if s.network <= s.mean]:
        print(f"the network did not beat the mean color on {', '.join(worse)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
